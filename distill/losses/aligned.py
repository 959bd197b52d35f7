"""A sequence of a store, paired with the student's tokens: the input of each loss's arrays.

A *pair* is a run of the teacher's records beside a run of the student's labels: one of each at a
shared start or by position, several where a group of tokens starts and ends together. What is asked
about a pair's distribution is asked of its last record, and the student answers at its last label.

Every method returns arrays under the names by which a batch is laid out, see
:mod:`distill.losses.loss`; a loss merges those it reads into one dict.

A pair may also be of a label that begins inside one of the teacher's tokens: `written` bytes of
that token are there already, and its record answers for what can follow them.

Shape legend: n = records of the sequence, P = pairs, M = entries of all pairs, D = distinct draws
of all pairs, L = labels of all pairs, E = labels before the last one of their pair, k = columns.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.alignment.beginnings import Beginnings
from distill.alignment.entries_at import (
    Places,
    Sources,
    Texts,
    came_at,
    fitting,
    mixed_at,
    sources_at,
)
from distill.alignment.map_entries import Sent, VocabularyMap
from distill.alignment.runs import Ints, lists_of, runs
from distill.alignment.ways import Ways
from distill.losses.one_scale import at_columns, entries_at_one_scale
from logitstore.format.fields import no_records
from logitstore.format.logprob_codec import TOKEN_STEP
from logitstore.records import TokenRecords

#: A token's own log-probability is off by half a step of its code at most.
TOKEN_LOGPROB_ERROR_NATS = TOKEN_STEP / 2

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Aligned:
    """The records of a sequence, paired with the student's labels.

    Attributes:
        records: All records of the sequence.
        pairs: (P, 4) for each pair the teacher's first record and the one behind its last, then the
            student's first label and the one behind its last.
        mapping: The map of teacher ids to student ids; None for a loss that compares no ids.
        l1_max: The largest L1 distance by which rounding in the store can have changed a record's
            distribution, for a loss that certifies a bound; else 0.
        temperatures: The temperature of each column of `records.lognorm`.
        written: (P,) bytes of the last record's token that the student has written before its
            label; None: nowhere any.
        space: (P,) how the teacher's tokens are read there, of :mod:`distill.alignment.event_map`;
            None: as they are.
        order: The teacher's vocabulary, where some are written.
        texts: Both tokenisations, where the labels that came are to be told from others.
        label_ids: (L,) the student's tokens; None for a loss that compares no ids.
        ways: How the text can go on at each pair, where the answers at the student's boundaries are
            among the records; None: by the pair's own record alone.
    """

    records: TokenRecords
    pairs: Ints
    mapping: VocabularyMap | None = None
    l1_max: float = 0.0
    temperatures: tuple[float, ...] = ()
    written: Ints | None = None
    space: Ints | None = None
    order: Beginnings | None = None
    texts: Texts | None = None
    label_ids: Ints | None = None
    ways: Ways | None = None

    @property
    def last_record(self) -> Ints:
        """Find (P,) the record that describes each pair's distribution."""
        return self.pairs[:, 1] - 1

    @property
    def last_label(self) -> Ints:
        """Find (P,) the label that the student answers each pair at."""
        return self.pairs[:, 3] - 1

    @property
    def _places(self) -> Places:
        none = np.zeros(len(self.pairs), np.int64)
        return Places(
            self.last_record,
            self.last_label,
            none if self.space is None else self.space,
            none if self.written is None else self.written,
        )

    def entries(self) -> Arrays:
        """Take the teacher's entries without their ids, and the tail.

        Returns:
            `entry_count` (P,), `entry_logprobs` (M,) and `tail_logmass` (P,).
        """
        records, last = self.records, self.last_record
        count, (logprobs,) = lists_of(records.entry_count, last, records.entry_logprobs)
        return {
            "entry_count": count.astype(np.int32),
            "entry_logprobs": logprobs,
            "tail_logmass": records.tail_logmass[last],
        }

    def entries_at_one_scale(self) -> Arrays:
        """Take the entries' log-probabilities of standardised logits, most probable first.

        Returns:
            `entry_count` (P,) and `entry_logprobs` (M,).
        """
        scaled, records = entries_at_one_scale(self.records), self.records
        count, (logprobs,) = lists_of(records.entry_count, self.last_record, scaled)
        return {
            "entry_count": count.astype(np.int32),
            "entry_logprobs": logprobs.astype(np.float32),
        }

    def mapped_entries(self) -> Arrays:
        """Send the teacher's entries to the student's events; masses that meet are added up.

        Entries that are not mapped join the tail in `rest_logmass`. Their mass is summed; 1 - sum
        would cancel to noise exactly where the head has nearly everything.

        Returns:
            `entry_count` (P,), `entry_ids` (M,), `entry_logmass` (M,) and `rest_logmass` (P,); and
            the arrays of :meth:`_cells`.
        """
        assert self.mapping is not None
        sources, came = self._sources(), None
        if self.texts is not None:
            assert self.label_ids is not None
            at, made = self._places, self.mapping.made
            came = came_at(self.records, at, made, self.texts, self.label_ids, sources)
        rest = sources.rest
        sent = self.mapping.send(
            sources.count, sources.source, sources.logprobs, came, is_mixed=self.ways is not None
        )
        if sent.left_out is not None:
            with np.errstate(divide="ignore"):  # log 0 = -inf: nothing is left over
                rest = np.log(np.exp(rest, dtype=np.float64) + sent.left_out)
        return {
            "entry_count": sent.count.astype(np.int32),
            "entry_ids": sent.ids,
            "entry_logmass": sent.logmass,
            "rest_logmass": rest.astype(np.float32),
            **self._cells(sent),
        }

    def _sources(self) -> Sources:
        """List the teacher's entries at each pair by their sources, less what does not fit."""
        assert self.mapping is not None
        asked = None
        if self.texts is not None:
            assert self.label_ids is not None
            asked = self.texts, self.label_ids
        at, made = self._places, self.mapping.made
        if self.ways is not None:
            assert self.order is not None
            return mixed_at(self.records, at, self.ways, made, self.order, asked)
        sources = sources_at(self.records, at, made, self.order)
        return sources if asked is None else fitting(sources, self.records, at, *asked)

    def _cells(self, sent: Sent) -> Arrays:
        """Find the event of each pair's label among those that the teacher gives mass to.

        Returns:
            `cell` (P, r), its place among the pair's entries, -1 where it is in the rest; r places
            for a map that divides tokens, and `cell_share` (P, r), the share in each.
        """
        assert self.mapping is not None
        assert self.label_ids is not None
        labels, made = self.label_ids[self.last_label], self.mapping.made
        cells: Arrays = {"cell": sent.places_of(made.events_of(labels))}
        if made.divided is not None:
            cells["cell_share"] = made.divided[:, labels].T
        return cells

    def divided_entries(self) -> Arrays:
        """Divide the teacher's entries into those that the student has a token for, and others.

        Needs a map whose event 0 is of the tokens that one side alone has. Within one tokenizer
        there are no such events, nor such entries.

        Returns:
            `entry_count` (P,), `entry_ids` and `entry_logmass` (M,) of the first; `other_count`
            (P,) and `other_logprobs` of the others, most probable first; `tail_logmass` (P,);
            `apart_event` (P,), the event of the others, -1 for none; and `share` (P,), of the
            teacher's vocabulary that the student has.
        """
        records, last = self.records, self.last_record
        assert records.entry_ids is not None
        assert self.mapping is not None
        made = self.mapping.made
        count, (ids, logprobs) = lists_of(
            records.entry_count, last, records.entry_ids, records.entry_logprobs
        )
        event, of_all = made.event[ids.astype(np.int64)], made.event[: made.tokens]
        is_other, has_others = event <= 0, made.of_token is not None
        if not has_others:
            is_other, of_all = np.zeros(len(event), np.bool_), of_all + 1
        owner = np.repeat(np.arange(len(last)), count)
        sent = self.mapping.send(
            np.bincount(owner[~is_other], minlength=len(last)), ids[~is_other], logprobs[~is_other]
        )
        tail = records.tail_logmass[last]
        if sent.left_out is not None:
            with np.errstate(divide="ignore"):  # log 0 = -inf: nothing is left over
                tail = np.log(np.exp(tail, dtype=np.float64) + sent.left_out).astype(np.float32)
        share = np.mean(of_all > 0) if len(of_all) else 1.0
        return {
            "entry_count": sent.count.astype(np.int32),
            "entry_ids": sent.ids,
            "entry_logmass": sent.logmass,
            "other_count": np.bincount(owner[is_other], minlength=len(last)).astype(np.int32),
            "other_logprobs": logprobs[is_other],
            "tail_logmass": tail,
            "apart_event": np.full(len(last), 0 if has_others else -1, np.int32),
            "share": np.full(len(last), share, np.float32),
        }

    def alike_entries(self, unlike: float) -> Arrays:
        """List for each of the teacher's entries the student's tokens that it could be.

        Needs a map whose shares say how alike they are. A token that is the fixed target of one
        entry of a record is nothing that another could be.

        Args:
            unlike: Tokens so far apart, or further, are not listed, but for fixed targets.

        Returns:
            `entry_count` (P,), `entry_logprobs` (M,) and `tail_logmass` (P,); and of each pair of
            an entry and a token, of which X_count (P,) are a pair's: `edge_ids`, the token;
            `edge_entry`, the place of the entry; `edge_first`, that of the first edge of the same
            token; `edge_alike`, 1 for a fixed target; `edge_is_label`, 1 where it is the label.
        """
        assert self.records.entry_ids is not None
        assert self.mapping is not None
        assert self.label_ids is not None
        arrays = self.entries()
        count, (ids,) = lists_of(self.records.entry_count, self.last_record, self.records.entry_ids)
        edge_source, target, share = self.mapping.pairs_of(ids.astype(np.int64))
        owner = np.repeat(np.arange(len(count)), count)
        entry = (np.arange(len(ids)) - np.repeat(np.cumsum(count) - count, count))[edge_source]
        pair = owner[edge_source]
        width = int(target.max(initial=0)) + 1
        is_fixed = (share == 1) & (target >= 0)
        token = pair * width + np.maximum(target, 0)
        kept = is_fixed | ((target >= 0) & (1 - share < unlike) & ~np.isin(token, token[is_fixed]))
        pair, entry, target, share, token = (
            each[kept] for each in (pair, entry, target, share, token)
        )
        edges = np.bincount(pair, minlength=len(count))
        before = np.cumsum(edges) - edges
        _, first, which = np.unique(token, return_index=True, return_inverse=True)
        labels = self.label_ids[self.last_label]
        return {
            **arrays,
            "edge_count": edges.astype(np.int32),
            "edge_ids": target.astype(np.int32),
            "edge_entry": entry.astype(np.int32),
            "edge_first": (first[which] - before[pair]).astype(np.int32),
            "edge_alike": share.astype(np.float32),
            "edge_is_label": (target == labels[pair]).astype(np.int32),
        }

    def entries_by_id(self) -> Arrays:
        """Name the teacher's entries by the student's ids; those without one are dropped.

        Returns:
            The arrays of :meth:`entries`, and `entry_ids` (M,), distinct in a pair.
        """
        assert self.records.entry_ids is not None
        assert self.mapping is not None
        arrays = self.entries()
        _, (ids,) = lists_of(self.records.entry_count, self.last_record, self.records.entry_ids)
        count = arrays["entry_count"].astype(np.int64)
        sent = self.mapping.send(count, ids, arrays["entry_logprobs"])
        return {
            "entry_count": sent.count.astype(np.int32),
            "entry_ids": sent.ids,
            "entry_logprobs": sent.logmass,
            "tail_logmass": arrays["tail_logmass"],
        }

    def draws(self) -> Arrays:
        """Name the draws from the teacher's tail by the student's ids; 0 times those without one.

        Returns:
            `draw_count` (P,), `draw_ids` (D,), distinct in a pair, and `draw_times` (D,).
        """
        records = self.records
        assert self.mapping is not None
        assert records.sample_ids is not None
        assert records.sample_counts is not None
        assert records.draw_count is not None
        record, _ = runs(np.zeros_like(records.draw_count), records.draw_count)
        target = self.mapping.ids[records.sample_ids.astype(np.int64)]
        order = np.lexsort((target, record))
        record, target = record[order], target[order]
        # An id drawn more than 255 times is stored again with the rest, and two ends are one event
        # to another end: as a target each is one.
        is_new = np.diff(record, prepend=-1).astype(bool)
        is_new |= np.diff(target, prepend=-2).astype(bool)
        first = np.flatnonzero(is_new)
        times = np.bincount(np.cumsum(is_new) - 1, records.sample_counts[order], len(first))
        distinct = np.bincount(record[first], minlength=len(records))
        count, (ids, times) = lists_of(
            distinct, self.last_record, target[first], times.astype(np.int32)
        )
        return {
            "draw_count": count.astype(np.int32),
            "draw_ids": ids,
            "draw_times": np.where(ids >= 0, times, np.int32(0)),
        }

    def token_logprob(self, *, without_last: bool = False) -> npt.NDArray[np.float64]:
        """Sum up (P,) the log-probability that the teacher gives each pair's own tokens.

        Args:
            without_last: Leave each pair's last token out; 0 where it has no other.
        """
        stop = self.last_record if without_last else self.pairs[:, 1]
        pair, record = runs(self.pairs[:, 0], stop)
        # Not a difference of running sums: one token that the teacher excluded (-inf) would spoil
        # all later pairs.
        weights = self.records.token_logprob[record].astype(np.float64)
        return np.bincount(pair, weights, len(self.pairs)).astype(np.float64, copy=False)

    def labels(self) -> Arrays:
        """List all labels of each pair: `token_index` (L,), and the pair, `token_pair` (L,)."""
        pair, label = runs(self.pairs[:, 2], self.pairs[:, 3])
        return {"token_index": label, "token_pair": pair}

    def earlier_labels(self) -> Arrays:
        """List the labels before each pair's last: `earlier_index` (E,) and `earlier_pair` (E,)."""
        pair, label = runs(self.pairs[:, 2], self.last_label)
        return {"earlier_index": label, "earlier_pair": pair}

    def at_temperature(self, temperature: float) -> "Aligned":
        """Bring the teacher's distributions to another temperature, which is stored."""
        if temperature == 1:
            return self
        assert self.records.lognorm is not None
        lognorm = self.records.lognorm[:, self.temperatures.index(temperature)]
        return replace(self, records=_tempered(self.records, temperature, lognorm))

    def states(self) -> Arrays:
        """Take the teacher's last hidden state at each of the n records of the sequence.

        Returns:
            `whole_codes` (n, D), and of fp8 `whole_scale` (n,); `whole_ids` (n,), the token that
            each predicts, `whole_read` (n,), the one before it, and `whole_sequence` (n,), 0.
            Where the store has the teacher's input embedding, too, `whole_embedding_ids` (E,), the
            distinct tokens among these, `whole_embedding_codes` and `whole_embedding_scale`.
        """
        if self.records.sidecar is None:  # of an empty batch
            return {name: np.zeros((0, *shape), dtype) for name, shape, dtype in _NO_STATES}
        states: Any = self.records.sidecar()
        made: Arrays = {
            "whole_ids": self.records.token_ids.astype(np.int64),
            "whole_read": states.ids_of_records.astype(np.int64),
            "whole_sequence": np.zeros(len(self.records), np.int64),
            **_rows("whole", states.rows_of_records),
        }
        if states.embedding_ids is not None:
            made["whole_embedding_ids"] = states.embedding_ids.astype(np.int64)
            made |= _rows("whole_embedding", states.encoded.embedding)
        return made

    def columns(self, k: int) -> npt.NDArray[np.float32]:
        """Choose k columns of the sequence: (P, k) log-probabilities there, at one scale.

        Logits are divided by their standard deviation. The columns are the ids with most
        probability over all records, the one with most of it first; -inf where a record has no such
        entry.
        """
        if not len(self.pairs):
            return np.full((0, k), -np.inf, np.float32)
        return at_columns(self.records, k)[self.last_record]


#: Names, further dimensions and types of the arrays of states that are not there.
_NO_STATES: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("whole_ids", (), "<i8"),
    ("whole_read", (), "<i8"),
    ("whole_sequence", (), "<i8"),
    ("whole_codes", (0,), "|u1"),
)


def _rows(name: str, rows: Any) -> Arrays:
    """Name rows as they are stored; torch knows 16 bits with a sign better than without."""
    codes = rows.codes.view(np.int16) if rows.scale is None else rows.codes
    scale = {} if rows.scale is None else {f"{name}_scale": rows.scale}
    return {f"{name}_codes": codes, **scale}


def nothing() -> Aligned:
    """Make an empty sequence without pairs, for a batch of which no row could be used."""
    mapping = VocabularyMap.of_ids(np.zeros(0, np.int32))
    none = np.zeros(0, np.int64)
    return Aligned(no_records(), np.zeros((0, 4), np.int64), mapping, label_ids=none)


def _tempered(
    records: TokenRecords, temperature: float, lognorm: npt.NDArray[np.float32]
) -> TokenRecords:
    """Bring distributions to another temperature, so that head + tail = 1 again.

    The tail is 1 - head, if that is more than rounding. Tokens that share a mass u have at least
    u^(1/T) together at T > 1, and at most that at T < 1: so the stored tail bounds the new one.
    """
    logprobs = records.entry_logprobs.astype(np.float64) / temperature
    owner = np.repeat(np.arange(len(records)), records.entry_count)
    mass = np.exp(logprobs - lognorm[owner])
    head = np.bincount(owner, mass, len(records))
    as_one = np.exp(records.tail_logmass.astype(np.float64) / temperature - lognorm)
    least, most = (as_one, 1.0) if temperature > 1 else (0.0, np.minimum(as_one, 1))
    has_tail = records.tail_logmass > -np.inf
    tail = np.where(has_tail, np.clip(1 - head, least, most), 0)
    with np.errstate(divide="ignore"):  # log 0 = -inf: no tail
        log_tail, shift = np.log(tail), np.log1p(-np.minimum(tail, 1)) - np.log(head)
    return replace(
        records,
        entry_logprobs=(logprobs - lognorm[owner] + shift[owner]).astype(np.float32),
        tail_logmass=log_tail.astype(np.float32),
    )
