"""A student against its teacher's store: what both predict of the same bytes.

    agreement         of shared starts: both sides' most probable tokens write the same bytes
    agreement_prefix  likewise, or the bytes of one begin with those of the other: the two may then
                      differ in nothing but where their tokens end
    uld               mean over groups of equal bytes of the truncated ULD, with its certified gap;
                      without groups in which a token of either side writes other bytes
    calibration       expected calibration error on the store's text, the student's and the
                      teacher's

All ends of sequence are one event. Other tokens without bytes never agree, but with themselves
where both sides have one tokenizer.

Sequences are read in order, and a few batches' worth of them is cut into batches of like length.
What is added up of each is in :mod:`distill.evaluation.sums`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from distill.alignment.align import align
from distill.data.example import Store
from distill.data.ragged import rectangles, tensors_of
from distill.data.targets import (
    student_spans,
    teacher_spans,
    teacher_tokenizer,
    verbatim_groups,
)
from distill.evaluation.forward import ask, batch_of
from distill.evaluation.settings import STORE_METRICS
from distill.evaluation.sums import Agreement, Calibrations, Part, Predicted, Sum, UldDistance
from distill.head.query import HeadAnswer
from distill.head.student_head import StudentHead
from distill.losses import option_values
from distill.losses.aligned import Aligned
from distill.losses.requirements import check_needs, teacher_name
from distill.losses.uld import LOSS as ULD
from distill.student.encoder_decoder import Sides
from distill.student.odd_turns import OddTurns
from distill.student.text import StudentReader
from logitstore.console.counts import counted
from logitstore.console.left_out import LeftOut
from logitstore.console.progress import progress
from logitstore.errors import InputError, MismatchError
from logitstore.format.statuses import reason_of
from logitstore.records import SequenceText, TokenRecords
from logitstore.text.token_budget import DEFAULT_TOKENS_PER_BATCH, by_token_budget
from logitstore.text.tokenizer import ByteTokenizer

#: Sequences that are decoded at once.
_READ_AT_ONCE = 64
#: Batches' worth of sequences that are sorted by length: enough to leave little padding, and few
#: enough to keep their records in memory.
_SORTED_BATCHES = 4


def judge(
    model: nn.Module,
    store: Store,
    reader: StudentReader,
    metrics: Sequence[str] = STORE_METRICS,
    *,
    tokens_per_batch: int = DEFAULT_TOKENS_PER_BATCH,
) -> dict[str, Any]:
    """Measure a student against the teacher of a store.

    Args:
        model: The student, on its device.
        store: Of text that it was not trained on.
        reader: How the student reads the store's lines.
        metrics: Of `STORE_METRICS`.
        tokens_per_batch: Padded tokens of a batch; changes speed and memory only.

    Returns:
        The figures, and under `judged` what they were measured on; JSON-ready.

    Raises:
        MismatchError: When a metric needs what the store was captured without.
        InputError: When the student can read none of its sequences.
    """
    _check_needs(store, reader.tokenizer, metrics)
    teacher = teacher_tokenizer(store, reader.tokenizer)
    sums = _sums(teacher, reader.tokenizer, metrics)
    parts = _Parts(store, teacher, reader, has_groups="uld" in metrics)
    with progress(len(store), "judge", "sequences") as shown:
        for part, predicted in _predicted(model, reader.tokenizer, parts, tokens_per_batch):
            for each in sums:
                each.add(part, predicted)
            shown.update(1)
    if not parts.labels:
        why = "".join(f": {each.reason}, {each.why}" for each in parts.left_out[:1])
        why += f" ({parts.refusal})" if parts.refusal else ""
        raise InputError(
            f"{store.path}: this student can read none of its "
            f"{counted(len(store), 'sequence')}{why}. "
            f"`distill coverage {store.path} STUDENT` says more.",
            kind="lost-rows",
        )
    figures: dict[str, Any] = {}
    counts = {"shared_starts": 0, "groups": 0}
    for each in sums:
        figures |= each.figures()
        counts |= each.counts()
    figures["judged"] = {
        "store": str(store.path),
        "store_digest": store.digest,
        "teacher": teacher_name(store),
        "sequences": parts.read,
        "sequences_skipped": parts.skipped,
        "left_out": [each.facts() for each in parts.left_out],
        "turns": [each.facts() for each in parts.turns.found()],
        "labels": parts.labels,
        **counts,
    }
    return figures


def _check_needs(store: Store, student: ByteTokenizer, metrics: Sequence[str]) -> None:
    if "uld" in metrics:
        check_needs(store, student, "uld")
    lacks = "--top-k 0" if not store.spec.top_k else "" if store.spec.has_ids else "--no-ids"
    if "agreement" in metrics and lacks:
        raise MismatchError(
            f"{store.path}: captured with {lacks}, but agreement must know the teacher's most "
            "probable tokens. Leave it out of --metrics, or run `logitstore capture …` again "
            f"without {lacks}."
        )


def _sums(teacher: ByteTokenizer, student: ByteTokenizer, metrics: Sequence[str]) -> list[Sum]:
    """Make what is to be added up."""
    sums: list[Sum] = []
    if "agreement" in metrics:
        sums.append(Agreement(teacher, student))
    if "uld" in metrics:
        sums.append(UldDistance())
    if "calibration" in metrics:
        sums.append(Calibrations())
    return sums


class _Parts:
    """Reads every sequence that both sides have labels of.

    Attributes:
        read: Sequences so far.
        labels: So far, in them.
        skipped: Sequences so far that the student cannot read.
        refusal: What its chat template said when it first refused one.
        turns: Those that it does not write whole.
    """

    def __init__(
        self, store: Store, teacher: ByteTokenizer, reader: StudentReader, *, has_groups: bool
    ) -> None:
        self._store, self._teacher, self._reader = store, teacher, reader
        self._has_groups = has_groups
        self.read = self.labels = self.skipped = 0
        self._lost: Counter[str] = Counter()
        self._first_rows: dict[str, int] = {}
        self.refusal = ""
        self.turns = OddTurns()

    @property
    def left_out(self) -> list[LeftOut]:
        """Say why sequences were skipped so far."""
        of = self.read + self.skipped
        return [
            LeftOut(reason, n, of, self._first_rows[reason], *reason_of(reason))
            for reason, n in self._lost.most_common()
        ]

    def __iter__(self) -> Iterator[Part]:
        store = self._store
        filled = np.flatnonzero(np.asarray(store.token_counts) > 0)
        for chosen in np.array_split(filled, max(1, -(-len(filled) // _READ_AT_ONCE))):
            for i, records in zip(chosen, store.read_many([int(i) for i in chosen]), strict=True):
                part = self._part(records, store.text(int(i)))
                if part is None:
                    self.skipped += 1
                else:
                    self.read += 1
                    self.labels += len(part.labels)
                    yield part

    def _part(self, records: TokenRecords, line: SequenceText) -> Part | None:
        """Align a sequence; None where the student cannot read it."""
        teacher = teacher_spans(records, line, self._store.spec.eos_ids, self._teacher)
        read = self._reader.explain(line, teacher)
        if (tokens := read.tokens) is None:
            self._lost[read.reason] += 1
            self._first_rows.setdefault(read.reason, line.row)
            self.refusal = self.refusal or read.refusal
            return None
        self.turns.add(read.turns, line.row)
        labels = np.flatnonzero(tokens.has_record)
        student = student_spans(tokens)
        found = align(teacher, student)
        groups = None
        if self._has_groups:
            l1_max = float(self._store.fidelity.l1_max)
            pairs = verbatim_groups(found, teacher, student)
            aligned = Aligned(records, pairs, l1_max=l1_max)
            groups = rectangles(tensors_of(ULD.arrays(aligned, option_values({}))))
        return Part(tokens.token_ids, labels, found.shared_starts, records, groups)


def _batches(parts: _Parts, tokens_per_batch: int) -> Iterator[list[Part]]:
    """Cut the parts into batches, out of a pool of some batches' worth at a time."""
    pool: list[Part] = []
    tokens = 0
    for part in parts:
        pool.append(part)
        tokens += len(part.token_ids)
        if tokens >= _SORTED_BATCHES * tokens_per_batch:
            yield from _cut(pool, tokens_per_batch)
            pool, tokens = [], 0
    yield from _cut(pool, tokens_per_batch)


def _cut(pool: Sequence[Part], tokens_per_batch: int) -> Iterator[list[Part]]:
    for batch in by_token_budget([len(part.token_ids) for part in pool], tokens_per_batch):
        yield [pool[i] for i in batch]


def _predicted(
    model: nn.Module, student: ByteTokenizer, parts: _Parts, tokens_per_batch: int
) -> Iterator[tuple[Part, Predicted]]:
    """Run the student on the parts, and yield each with what it predicts there."""
    head, sides = StudentHead(model), Sides.of(model, student)
    model.eval()
    for batch in _batches(parts, tokens_per_batch):
        answer = _ask(model, head, batch, student.pad_id, sides)
        yield from zip(batch, _split(answer, batch), strict=True)


def _ask(
    model: nn.Module, head: StudentHead, parts: Sequence[Part], pad_id: int, sides: Sides | None
) -> HeadAnswer:
    """Ask for the log-probability of every label, and the largest ones with their ids."""
    k = max((p.groups["entry_logprobs"].shape[1] for p in parts if p.groups), default=1)
    batch = batch_of([part.token_ids for part in parts], [part.labels for part in parts], pad_id)
    return ask(model, head, batch, sides, top_k=max(k, 1))


def _split(answer: HeadAnswer, parts: Sequence[Part]) -> Iterator[Predicted]:
    """Split what was answered at all labels of a batch by its parts."""
    assert answer.top_ids_NK is not None
    assert answer.top_logprobs_NK is not None
    label_N, top_NK = answer.label_logprob_N.cpu(), answer.top_logprobs_NK.cpu()
    top_ids_N = answer.top_ids_NK[:, 0].cpu().numpy()
    start = 0
    for part in parts:
        of_part = slice(start, start + len(part.labels))
        yield Predicted(label_N[of_part], top_ids_N[of_part], top_NK[of_part])
        start = of_part.stop
