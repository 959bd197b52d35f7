"""Hold what a store has of one sequence: the records of its supervised tokens, and its text.

A record describes the distribution that predicted its token: record t holds token t, its place in
the text, and the teacher's distribution given everything before t. No reader ever shifts by one.

Shape legend: n = records (supervised tokens) of the sequence, m = entries of all its records,
T = extra temperatures, d = draws of all its records, L = tokens of the whole sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

#: The id in a padding slot of :meth:`TokenRecords.padded`; no vocabulary reaches it.
PADDING_ID = 0xFFFF_FFFF
#: The label of a token that is not trained on; torch's cross-entropy ignores it.
NO_LABEL = -100
#: Added to a standard deviation of logits before anything is divided by it (MultiLevelOT,
#: arXiv:2412.14528): `lognorm_std` is at `logit_std` plus this, and so is the student.
STD_FLOOR = 1e-4


class Segment(NamedTuple):
    """A stretch of a row's text that is either context or trained on."""

    text: str
    supervised: bool
    role: str | None = None


class SequenceText(NamedTuple):
    """The text of one sequence, and where it comes from.

    Attributes:
        row: Index of the dataset row.
        part: 0, or the number of the window when a long row was split.
        status: ``ok``, or why some of the text has no records (``empty``, ``truncated``, …).
        segments: The text, in order. Together the supervised ones are what the records cover.
        supervised_start: Bytes of the row's supervised text that lie before this part's.
        messages: The original conversation as JSON, where the row was one.
    """

    row: int
    part: int
    status: str
    segments: tuple[Segment, ...]
    supervised_start: int = 0
    messages: str | None = None

    @property
    def supervised_bytes(self) -> bytes:
        """The UTF-8 bytes that `byte_starts` counts in (less `supervised_start`)."""
        return "".join(s.text for s in self.segments if s.supervised).encode()


class PaddedEntries(NamedTuple):
    """Entries as rectangular arrays. A slot beyond a record's count is masked, never a valid id."""

    ids: npt.NDArray[np.uint32] | None  # (n, K), PADDING_ID where masked; None: captured without
    logprobs: npt.NDArray[np.float32]  # (n, K), most probable first, -inf where masked
    mask: npt.NDArray[np.bool_]  # (n, K), True where there is an entry


class Entries(NamedTuple):
    """The entries of one sequence without the rest: four of the fields of `TokenRecords`."""

    entry_count: npt.NDArray[np.int64]  # (n,)
    entry_ids: npt.NDArray[np.uint32] | None  # (m,)
    entry_logprobs: npt.NDArray[np.float32]  # (m,)
    tail_logmass: npt.NDArray[np.float32]  # (n,)


class Sidecar(Protocol):
    """The hidden states of one sequence, `logitstore.format.hidden_states.HiddenStates`."""

    @property
    def of_records(self) -> npt.NDArray[np.float32]:
        """(n, D) the state that predicted each record's token."""


_SHOWN_RECORDS = 20  # of a sequence, in a notebook
_COLUMNS = ("record", "token id", "bytes", "p", "entropy", "tail", "entries", "largest p")


@dataclass(frozen=True, slots=True)
class TokenRecords:
    """The records of one sequence, decoded: log-probabilities in nats; entries + tail = 1.

    Attributes:
        token_ids: (n,) uint32, the teacher's tokens.
        byte_starts: (n,) int64, bytes of the row's supervised UTF-8 text before the token.
        byte_lengths: (n,) int64; 0 for EOS-like tokens.
        token_logprob: (n,) float32, log p of the token itself; -inf where the teacher excluded it;
            NaN where the source of an import lacks it.
        entry_count: (n,) int64, entries kept of each record.
        entry_ids: (m,) uint32 flat, or None in a store captured without ids.
        entry_logprobs: (m,) float32 flat, over the full vocabulary, at temperature 1.
        tail_logmass: (n,) float32, log of the probability beyond the entries; -inf for none.
        entropy: (n,) float32 of the full distribution, nats; NaN where an import's source lacks it.
        lognorm: (n, T) float32, log sum_v p_v^(1/temperature), or None.
        logit_std: (n,) float32, standard deviation of the full logit row, or None.
        lognorm_std: (n,) float32, `lognorm` at temperature logit_std + 1e-4, or None.
        sample_ids: (d,) uint32 flat, distinct draws from the tail, or None.
        sample_counts: (d,) uint8, how often each was drawn, or None.
        draw_count: (n,) int64, distinct draws of each record, or None.
        sidecar: Reads the hidden states, which lie in a file of their own; None where there are
            none.
    """

    token_ids: npt.NDArray[np.uint32]
    byte_starts: npt.NDArray[np.int64]
    byte_lengths: npt.NDArray[np.int64]
    token_logprob: npt.NDArray[np.float32]
    entry_count: npt.NDArray[np.int64]
    entry_ids: npt.NDArray[np.uint32] | None
    entry_logprobs: npt.NDArray[np.float32]
    tail_logmass: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    lognorm: npt.NDArray[np.float32] | None = None
    logit_std: npt.NDArray[np.float32] | None = None
    lognorm_std: npt.NDArray[np.float32] | None = None
    sample_ids: npt.NDArray[np.uint32] | None = None
    sample_counts: npt.NDArray[np.uint8] | None = None
    draw_count: npt.NDArray[np.int64] | None = None
    sidecar: Callable[[], Sidecar] | None = field(default=None, repr=False, compare=False)

    @property
    def hidden(self) -> npt.NDArray[np.float32] | None:
        """(n, D) float32, read now: the last hidden state that predicted each token; or None."""
        return None if self.sidecar is None else self.sidecar().of_records

    def __len__(self) -> int:
        return len(self.token_ids)

    def _repr_html_(self) -> str:
        """Show the first records in a notebook; `?` for what an import's source lacks."""
        from logitstore.console.notebook import table_html

        shown = range(min(len(self), _SHOWN_RECORDS))
        more = len(self) - len(shown)
        said = f"{more:,} records more. " if more else ""
        return table_html(
            _COLUMNS,
            [self._cells(t) for t in shown],
            f"{said}Their text is in the store: store.show(i).",
        )

    def _cells(self, t: int) -> list[str]:
        """Format record t for `_COLUMNS`."""
        start = int(self.byte_starts[t])
        count = int(self.entry_count[t])
        first = int(self.entry_count[:t].sum())
        largest = self.entry_logprobs[first] if count else -np.inf
        return [
            str(t),
            str(int(self.token_ids[t])),
            f"{start}-{start + int(self.byte_lengths[t])}",
            _number(np.exp(self.token_logprob[t])),
            _number(self.entropy[t]),
            _number(np.exp(self.tail_logmass[t])),
            str(count),
            _number(np.exp(largest)),
        ]

    def cut(self, k: int) -> "TokenRecords":
        """Keep the k most probable entries of each record; the others' mass goes into its tail."""
        count = self.entry_count
        if int(count.max(initial=0)) <= k:
            return self
        starts = np.cumsum(count) - count
        record = np.repeat(np.arange(len(count)), count)
        is_kept = np.arange(len(record)) - starts[record] < k
        lost = np.exp(self.entry_logprobs[~is_kept].astype(np.float64))
        cut_mass = np.bincount(record[~is_kept], lost, minlength=len(count))
        with np.errstate(divide="ignore"):  # log 0 = -inf: no tail
            tail = np.log(np.exp(self.tail_logmass.astype(np.float64)) + cut_mass)
        return replace(
            self,
            entry_count=np.minimum(count, k),
            entry_ids=None if self.entry_ids is None else self.entry_ids[is_kept],
            entry_logprobs=self.entry_logprobs[is_kept],
            # What was not cut stays as it is, to the bit.
            tail_logmass=np.where(count > k, tail, self.tail_logmass).astype(np.float32),
        )

    def padded(self, k: int | None = None) -> PaddedEntries:
        """Return entries as (n, K) arrays; K is `k`, or the largest count of this sequence.

        A `k` below a record's count drops its least probable entries; the tail has their
        probability too after :meth:`cut`.
        """
        width = int(self.entry_count.max(initial=0)) if k is None else k
        mask = np.arange(width) < self.entry_count[:, None]
        starts = np.cumsum(self.entry_count) - self.entry_count
        source = (starts[:, None] + np.arange(width))[mask]
        logprobs = np.full(mask.shape, -np.inf, np.float32)
        logprobs[mask] = self.entry_logprobs[source]
        ids = None
        if self.entry_ids is not None:
            ids = np.full(mask.shape, PADDING_ID, np.uint32)
            ids[mask] = self.entry_ids[source]
        return PaddedEntries(ids, logprobs, mask)


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence as a model reads it: all of its tokens, and the records at theirs.

    The record at position p is the teacher's distribution that *predicted* `input_ids[p]`, so it is
    compared with the logits that a model gives at position p - 1.

    Attributes:
        input_ids: (L,) int64, every token that the teacher read: context, text, ends. Empty where
            the sequence has no records.
        attention_mask: (L,) int64, ones.
        loss_mask: (L,) bool, True for tokens with a record.
        positions: (n,) int64, the token of each record: `input_ids[positions]` are
            `records.token_ids`.
        records: The records.
        text: The text, and the dataset row that it comes from.
        agrees: Whether the teacher's tokenizer, run on the text again, gives the records' tokens in
            their places, as after a capture. False where the tokens came from elsewhere (a server's
            choice, ids of a dataset): then those of records are what they were, and the text
            between them is tokenised piece by piece.
    """

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.bool_]
    positions: npt.NDArray[np.int64]
    records: TokenRecords
    text: SequenceText
    agrees: bool

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(L,) the tokens with a record, and -100 for all others, as `transformers` takes them."""
        return np.where(self.loss_mask, self.input_ids, NO_LABEL)

    def placed(
        self, values: npt.NDArray[Any], fill: float | np.number[Any] = np.nan
    ) -> npt.NDArray[Any]:
        """Put values of the records at their tokens: (n, …) becomes (L, …).

        Args:
            values: One for each record, such as `records.entropy` or `records.padded().logprobs`.
            fill: What stands at tokens without a record.
        """
        placed = np.full((len(self), *values.shape[1:]), fill, values.dtype)
        placed[self.positions] = values
        return placed


def _number(value: float) -> str:
    return "?" if np.isnan(value) else f"{value:.4f}"
