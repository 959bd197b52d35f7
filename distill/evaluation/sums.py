"""Figures that are added up over a store, sequence by sequence: each a class with `add`, `figures`.

    Agreement     whether the most probable tokens of both sides write the same bytes
    UldDistance   truncated ULD over groups of equal bytes, with its certified gap
    Calibrations  expected calibration error of the student and of its teacher

**Expected calibration error** (arXiv:1706.04599): positions are put into 15 bins of equal width by
the probability of the most probable token; the error is the mean over positions of how far their
bin's accuracy lies from its mean probability.

Shape legend: n = labels of a sequence, P = shared starts, G = groups, K = entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from distill.head.query import HeadAnswer
from distill.losses import option_values
from distill.losses.loss import Student
from distill.losses.uld import LOSS as ULD
from logitstore.records import TokenRecords
from logitstore.text.tokenizer import ByteTokenizer

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Figures = dict[str, float | None]

#: Of the probability of the most probable token, in [0, 1].
CALIBRATION_BINS = 15
#: In place of the bytes of every end of sequence.
_END = b"\xff<end>"  # no text holds the byte 0xff


class Part(NamedTuple):
    """A sequence as both sides have it.

    Attributes:
        token_ids: (t,) the student's.
        labels: (n,) places of its supervised tokens, never 0.
        shared_starts: (P, 2) record of the teacher, label of the student.
        records: The teacher's.
        groups: The arrays of the loss `uld`, of G groups; None where it is not asked for.
    """

    token_ids: Ints
    labels: Ints
    shared_starts: Ints
    records: TokenRecords
    groups: dict[str, Tensor] | None


class Predicted(NamedTuple):
    """What the student predicts at the labels of a part.

    Attributes:
        label_logprob: (n,) of the label itself.
        top_ids: (n,) the most probable token.
        top_logprobs: (n, K) the largest, in order.
    """

    label_logprob: Tensor
    top_ids: Ints
    top_logprobs: Tensor


class Sum(Protocol):
    """Something that is added up over a store."""

    def add(self, part: Part, predicted: Predicted) -> None:
        """Add a sequence."""

    def figures(self) -> Figures:
        """Compute the figures of all that was added; None where nothing was."""

    def counts(self) -> dict[str, int]:
        """Count what the figures are means of, beside labels."""


class Agreement:
    """Counts shared starts at which both sides' most probable tokens write the same bytes.

    Where both have one tokenizer, equal ids agree whatever they write.

    Args:
        teacher: The tokenizer of the store.
        student: The student's.
    """

    def __init__(self, teacher: ByteTokenizer, student: ByteTokenizer) -> None:
        self._teacher, self._student = _written(teacher), _written(student)
        self._has_same_ids = teacher.is_one_with(student)
        self._shared = self._equal = self._compatible = 0

    def add(self, part: Part, predicted: Predicted) -> None:
        """Add the shared starts of a sequence at which the teacher has an entry."""
        records = part.records
        assert records.entry_ids is not None
        first = np.cumsum(records.entry_count) - records.entry_count
        for t, s in part.shared_starts:
            if records.entry_count[t]:
                self._add(int(records.entry_ids[first[t]]), int(predicted.top_ids[s]))

    def _add(self, teacher_id: int, student_id: int) -> None:
        self._shared += 1
        if self._has_same_ids and teacher_id == student_id:
            self._equal += 1
            self._compatible += 1
            return
        a, b = _bytes_of(self._teacher, teacher_id), _bytes_of(self._student, student_id)
        if a is not None and b is not None:
            self._equal += a == b
            self._compatible += a.startswith(b) or b.startswith(a)

    def figures(self) -> Figures:
        """Compute the shares of shared starts with equal bytes, and with equal beginnings."""
        return {
            "agreement": _share(self._equal, self._shared),
            "agreement_prefix": _share(self._compatible, self._shared),
        }

    def counts(self) -> dict[str, int]:
        """Count the shared starts."""
        return {"shared_starts": self._shared}


class UldDistance:
    """Adds up the truncated ULD of groups, and by how much a full vocabulary may change it."""

    def __init__(self) -> None:
        self._groups, self._uld, self._gap = 0, 0.0, 0.0

    def add(self, part: Part, predicted: Predicted) -> None:
        """Add the groups of a sequence, scaled by the probability of their earlier tokens."""
        assert part.groups is not None
        answer = HeadAnswer(predicted.label_logprob, predicted.top_logprobs)
        student = Student("uld", part.groups["index"], answer)
        loss, gap = ULD.values(part.groups, student, option_values({}))
        self._groups += len(student.index_P)
        self._uld += float(loss.double().sum())
        self._gap += float(gap.double().sum())

    def figures(self) -> Figures:
        """Compute means over groups, of the loss and of its certified gap."""
        return {
            "uld": _share(self._uld, self._groups),
            "uld_gap": _share(self._gap, self._groups),
        }

    def counts(self) -> dict[str, int]:
        """Count the groups."""
        return {"groups": self._groups}


@dataclass
class Calibration:
    """Counts, hits and summed confidence of each bin, of one model."""

    count: Floats = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    hits: Floats = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    confidence: Floats = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))

    def add(self, confidence: npt.NDArray[Any], is_hit: Bools) -> None:
        """Add positions.

        Args:
            confidence: (n,) the probability of the most probable token.
            is_hit: (n,) whether that token is in the text.
        """
        scaled = np.ceil(np.asarray(confidence, np.float64) * CALIBRATION_BINS) - 1
        which = np.clip(scaled, 0, CALIBRATION_BINS - 1).astype(int)
        self.count += np.bincount(which, minlength=CALIBRATION_BINS)
        self.hits += np.bincount(which, is_hit, CALIBRATION_BINS)
        self.confidence += np.bincount(which, confidence, CALIBRATION_BINS)

    @property
    def error(self) -> float | None:
        """Expected calibration error; None without a position."""
        total = float(self.count.sum())
        return float(np.abs(self.hits - self.confidence).sum()) / total if total else None


class Calibrations:
    """Calibration of both sides; of a teacher only where its store has the ids of its entries."""

    def __init__(self) -> None:
        self._student, self._teacher = Calibration(), Calibration()

    def add(self, part: Part, predicted: Predicted) -> None:
        """Add the labels of a sequence, and the teacher's records of it."""
        is_hit = part.token_ids[part.labels] == predicted.top_ids
        self._student.add(predicted.top_logprobs[:, 0].exp().numpy(), is_hit)
        records = part.records
        if records.entry_ids is None or not len(records.entry_ids):
            return
        has_entry = records.entry_count > 0
        first = (np.cumsum(records.entry_count) - records.entry_count)[has_entry]
        confidence = np.exp(records.entry_logprobs[first].astype(np.float64))
        self._teacher.add(confidence, records.entry_ids[first] == records.token_ids[has_entry])

    def figures(self) -> Figures:
        """Compute the error of either side."""
        return {
            "calibration_error": self._student.error,
            "teacher_calibration_error": self._teacher.error,
        }

    def counts(self) -> dict[str, int]:
        """Count nothing: its positions are the labels."""
        return {}


def _written(tokenizer: ByteTokenizer) -> list[bytes | None]:
    """List the bytes of each id, or `_END`; None for one without bytes, which equals no other."""
    found: list[bytes | None] = [each or None for each in tokenizer.token_bytes]
    for i in tokenizer.eos_ids:
        found[i] = _END
    return found


def _bytes_of(written: Sequence[bytes | None], token: int) -> bytes | None:
    """Look up a token; heads are often padded past their tokenizer."""
    return written[token] if token < len(written) else None


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
