"""Try before training whether records, text and labels belong together, whatever went wrong.

No student is asked here, so that a new one can be tried, too. Some sequences are read, in groups of
neighbours from all over the store, and three questions asked:

    text       is a record's token the text that stands where the store places it, and the end of
               a turn what ends it there?
               No: another tokenizer, another row, a wrong place; another chat template.
    entries    is the record's own log-probability that of its token among its entries?
               No: entries of another record.
    fit        does the distribution give more to the label that the text has than to the labels
               beside it, or to those of another row? The mass of all entries that write what the
               label writes is compared, at every shared start.
               Less: shifted by so many tokens, or of another row.

The first two are exact, and hold for any teacher. The third tells something only of a teacher that
knows the text. Where one of the other labels clearly fits better, that is an error; where the right
one does, it is a proof; where neither does (an untrained teacher), nothing can be told.

Shape legend: P = shared starts of a sequence.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distill.alignment.align import Spans
from distill.data.dataset import StoreDataset
from distill.data.left_out import in_blocks
from distill.data.sides import Asked
from logitstore.checking.evidence import CANNOT_TELL, FITS, LEAST_SEQUENCES, Evidence, is_clear
from logitstore.checking.odd_places import MOST_ODD, odd_places
from logitstore.checking.text_check import TextCheck
from logitstore.errors import InputError

Floats = npt.NDArray[np.float64]

_GROUPS, _NEIGHBOURS = 8, 4
_STARTS = 48  # of a sequence
_ENTRIES = 16  # of a record
#: Labels that are tried in the place of the right one, by how many tokens further they stand.
SHIFTS = (-2, -1, 1, 2)
#: Nats between a record's own log-probability and that of its token among the entries: codes are
#: rounded, to at most four steps of 1/96, and entries are scaled to sum to one with the tail.
_ROUNDING = 0.15
#: The least mass that makes a difference clear.
_CLEAR_MASS = 0.05
#: A shift counts only if it fits so many times better.
_TIMES_OWN = 2
_GO_ON = "--no_self_test trains all the same."


@dataclass(frozen=True)
class Tried(Evidence):
    """What was found; the mean mass that records give to labels."""

    @property
    def doubt(self) -> str:
        """Say what speaks for a mistake where nothing could be told; empty if nothing does."""
        if not self.is_doubtful:
            return ""
        return (
            f"the teacher is sure of what it says (its first entry has {self.sure:.0%} of the "
            f"mass), and gives {self.own:.0%} to the labels of its text, {self.other:.0%} to those "
            "of another row. Its tokenizer or its template may be another model's"
        )


def try_records(data: StoreDataset) -> Tried:
    """Try whether the records of a store are those of its text and of the student's labels.

    Args:
        data: The store as the student reads it.

    Raises:
        InputError: They are not; says what was compared, and what it looks like.
    """
    # Neighbours, since what is swapped is swapped with one of these.
    chosen = in_blocks(len(data), _GROUPS * _NEIGHBOURS, _GROUPS)
    _check_text(data, chosen)
    asked = [each for each in map(data.asked, chosen) if each is not None]
    if data.is_at_boundaries:
        _tried(data, [_as_records(each) for each in asked])
    return _tried(data, asked)


def _as_records(asked: Asked) -> Asked:
    """Take what was asked at the student's boundaries for the records of a sequence."""
    answers = asked.answers
    assert answers is not None
    places = answers.byte_starts.astype(np.int64), answers.byte_lengths.astype(np.int64)
    return asked._replace(
        records=answers,
        teacher=Spans(*places, is_eos=np.zeros(len(answers), np.bool_)),
        alignment=asked.alignment._replace(shared_starts=asked.answered),
    )


def _tried(data: StoreDataset, asked: Sequence[Asked]) -> Tried:
    """Ask the questions about entries and fit."""
    _check_entries(data, asked)
    masses = [] if not data.store.spec.has_ids else _masses(data, asked)
    if len(masses) < LEAST_SEQUENCES:
        return Tried(sequences=len(asked))
    return _fit(data, masses)


def _check_text(data: StoreDataset, chosen: Sequence[int]) -> None:
    """Compare the teacher's tokens with the text at their places, before anything is aligned."""
    store, teacher = data.store, data.teacher
    written = teacher.written(np.arange(teacher.size))
    check = TextCheck(teacher.rewritten, written, bool(store.spec.boundaries_of))
    places = [data.sequences[int(i)] for i in chosen]
    read = zip(map(store.text, places), store.read_many(places), strict=True)
    # A server's answer is imported with the end that the teacher wrote, whatever its template does.
    has_ends = not store.spec.boundaries_of and "imported" not in store.spec.rendering
    odd = odd_places(read, check, store.spec.eos_ids if has_ends else (), written)
    if odd is None:
        return
    advice = (
        "Tokens and text were written by two chat templates: capture it again"
        if odd.is_end
        else "Its tokenizer, rows or places are others: capture it again, or see "
        f"`logitstore verify {store.path} --deep`"
    )
    raise _misaligned(data, f"{odd.what}. {advice}")


def _check_entries(data: StoreDataset, asked: Sequence[Asked]) -> None:
    """Compare what records say of their own token twice."""
    spec = data.store.spec
    if not spec.has_ids or not spec.top_k or "tail_logmass" in spec.missing:
        return
    off = [each for each in asked if _share_off(each) > MOST_ODD]
    if len(off) > MOST_ODD * len(asked):
        raise _misaligned(
            data,
            f"in {len(off)} of {len(asked)} sequences records say of their own token two different "
            f"log-probabilities, as in row {off[0].text.row:,}: their entries are those of other "
            "records. Capture it again",
        )


def _share_off(asked: Asked) -> float:
    """Compute the share of records whose token has another log-probability as an entry."""
    records = asked.records
    padded = records.padded()
    if padded.ids is None or not len(records) or not padded.mask.any():
        return 0.0
    own = records.token_logprob.astype(np.float64)
    known = np.isfinite(own) & padded.mask.any(1)
    is_own = (padded.ids == records.token_ids[:, None]) & padded.mask
    as_entry = np.where(is_own, padded.logprobs, -np.inf).max(1)
    least = np.where(padded.mask, padded.logprobs, np.inf).min(1)
    off = np.where(is_own.any(1), np.abs(own - as_entry), own - least) > _ROUNDING
    return float(off[known].mean()) if known.any() else 0.0


class _Masses(NamedTuple):
    """What the records of a sequence give to labels.

    Attributes:
        row: The dataset's row.
        entries: (P,) of each record, the bytes that its entries write, and their probabilities.
        labels: Bytes that all labels of the sequence write, in order.
        at: (P,) the label of each record.
    """

    row: int
    entries: list["_Entries"]
    labels: list[bytes]
    at: list[int]

    def given_to(self, labels: Sequence[bytes]) -> Floats:
        """Compute the mass that each record gives to what a label writes."""
        pairs = zip(self.entries, labels, strict=True)
        return np.array([entries.mass(label) for entries, label in pairs], np.float64)

    def shifted(self, by: int) -> Floats:
        """Compute the mass at the label so many further on; NaN where there is none."""
        places = [place + by for place in self.at]
        is_there = [0 <= place < len(self.labels) for place in places]
        chosen = [self.labels[p] if ok else b"" for p, ok in zip(places, is_there, strict=True)]
        return np.where(is_there, self.given_to(chosen), np.nan)


class _Entries(list[tuple[bytes, float]]):
    """What each entry of a record writes, at least a byte, and its probability."""

    def __init__(self, said: Iterable[tuple[bytes, float]]) -> None:
        super().__init__(said)
        self._by_byte: dict[int, list[tuple[bytes, float]]] = {}
        for written, p in self:
            self._by_byte.setdefault(written[0], []).append((written, p))
        self._masses: dict[bytes, float] = {}  # many labels are alike

    def mass(self, label: bytes) -> float:
        """Add up the entries that write the beginning of a label, or begin with it."""
        mass = self._masses.get(label)
        if mass is None:
            mass = self._masses[label] = self._added_up(label.removeprefix(b" ") or label)
        return mass

    def _added_up(self, label: bytes) -> float:
        alike: Sequence[tuple[bytes, float]] = self
        if label:
            alike = self._by_byte.get(label[0], [])
        return sum(
            p for written, p in alike if written.startswith(label) or label.startswith(written)
        )


def _masses(data: StoreDataset, asked: Sequence[Asked]) -> list[_Masses]:
    """Collect records and labels of the sequences, of several that are alike one."""
    found: dict[bytes, _Masses] = {}
    for each in asked:
        made = _of_sequence(data, each)
        if made is not None:
            found.setdefault(each.text.supervised_bytes, made)
    return list(found.values())


def _of_sequence(data: StoreDataset, asked: Asked) -> _Masses | None:
    starts = asked.alignment.shared_starts
    is_text = ~asked.teacher.is_eos[starts[:, 0]] & ~asked.student.is_eos[starts[:, 1]]
    starts = starts[is_text][:_STARTS]
    padded = asked.records.padded(_ENTRIES)
    if padded.ids is None or not len(starts):
        return None
    written = data.teacher.token_bytes
    entries = []
    for t in starts[:, 0].tolist():
        ids, mask = padded.ids[t], padded.mask[t]
        said = zip(ids[mask].tolist(), np.exp(padded.logprobs[t][mask]).tolist(), strict=True)
        of_record = (((written[i] or b"") if i < len(written) else b"", p) for i, p in said)
        entries.append(_Entries((b.removeprefix(b" ") or b, p) for b, p in of_record if b))
    labels = data.reader.tokenizer.written(asked.label_ids)
    return _Masses(asked.text.row, entries, labels, starts[:, 1].tolist())


def _fit(data: StoreDataset, masses: Sequence[_Masses]) -> Tried:
    """Compare the right labels with others."""
    own = [each.shifted(0) for each in masses]
    clear = []
    for by in SHIFTS:
        others = [each.shifted(by) for each in masses]
        if is_clear(_gains(others, own), _CLEAR_MASS) and _mean(others) > _TIMES_OWN * _mean(own):
            clear.append((_mean(others), by))
    if clear:
        most, by = max(clear)
        raise _misaligned(
            data,
            f"its records fit the label {abs(by)} {'before' if by < 0 else 'behind'} theirs better "
            f"than their own: {most:.0%} of the mass against {_mean(own):.0%}. They are shifted, "
            "or the teacher is untrained. Capture or import it again",
        )
    other = _of_other_rows(data, masses, own)
    gains = _gains(own, other)
    outcome = FITS if is_clear(gains, _CLEAR_MASS) else CANNOT_TELL
    first = [
        np.array([max(p for _, p in said) for said in each.entries if said]) for each in masses
    ]
    return Tried(_mean(own), _mean(other), _mean(first), outcome, len(masses))


def _of_other_rows(
    data: StoreDataset, masses: Sequence[_Masses], own: Sequence[Floats]
) -> list[Floats]:
    """Compute the masses at labels of the next row; reject records that fit another row's."""
    better, next_row = [], []
    for i, each in enumerate(masses):
        by_row = []
        for other in (*masses[i + 1 :], *masses[:i]):
            count = min(len(each.at), len(other.at))
            labels = [other.labels[place] for place in other.at[:count]]
            by_row.append(_Masses(each.row, each.entries[:count], [], []).given_to(labels))
        next_row.append(by_row[0])
        gains = [float(np.mean(theirs - own[i][: len(theirs)])) for theirs in by_row]
        better += [each.row] if max(gains) > 2 * _CLEAR_MASS else []
    if 2 * len(better) > len(masses):
        raise _misaligned(
            data,
            f"the records of {len(better)} of {len(masses)} rows fit the text of another row "
            f"better than their own, as those of row {better[0]:,} do. Capture or import it again",
        )
    return next_row


def _gains(these: Sequence[Floats], those: Sequence[Floats]) -> Floats:
    """Compute, for each sequence, how much more mass the one has than the other, on average."""
    counts = [min(len(a), len(b)) for a, b in zip(these, those, strict=True)]
    differences = [a[:n] - b[:n] for a, b, n in zip(these, those, counts, strict=True)]
    known = [d[np.isfinite(d)] for d in differences]
    return np.array([each.mean() for each in known if len(each)], np.float64)


def _mean(masses: Sequence[Floats]) -> float:
    every = np.concatenate([each[np.isfinite(each)] for each in masses])
    return float(every.mean()) if len(every) else 0.0


def _misaligned(data: StoreDataset, why: str) -> InputError:
    return InputError(f"{data.store.path}: {why}; {_GO_ON}", kind="self-test")
