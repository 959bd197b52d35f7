"""A student against its teacher's store: what both predict of the same bytes.

    agreement         of shared starts: both sides' most probable tokens write the same bytes
    agreement_prefix  likewise, or the bytes of one begin with those of the other: the two may then
                      differ in nothing but where their tokens end
    uld               mean over groups of equal bytes of the truncated ULD, with its certified gap
    calibration       expected calibration error on the store's text, the student's and the
                      teacher's

**Expected calibration error** (arXiv:1706.04599): positions are put into 15 bins of equal width by
the probability of the most probable token; the error is the mean over positions of how far their
bin's accuracy lies from its mean probability.

All ends of sequence are one event. Other tokens without bytes never agree, but with themselves
where both sides have one tokenizer.

Shape legend: B = sequences of a batch, T = padded length, N = labels, P = shared starts, G =
groups, K = entries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from distill.alignment.align import Spans, align
from distill.data.example import Store
from distill.data.ragged import rectangles, tensors_of
from distill.data.targets import Ints, teacher_spans, uld_arrays
from distill.evaluation.forward import ask, batch_of
from distill.head.query import HeadAnswer
from distill.head.student_head import StudentHead
from distill.losses.requirements import check_needs, teacher_name
from distill.losses.uld import uld
from distill.student.encoder_decoder import Sides
from distill.student.text import StudentReader
from logitstore.console.progress import progress
from logitstore.errors import InputError, MismatchError
from logitstore.records import TokenRecords
from logitstore.text.tokenizer import ByteTokenizer

#: Of the probability of the most probable token, in [0, 1].
CALIBRATION_BINS = 15
#: Which metrics a store answers.
METRICS = ("agreement", "uld", "calibration")
#: In place of the bytes of every end of sequence.
_END = b"\xff<end>"  # no text holds the byte 0xff


@dataclass
class Calibration:
    """Counts, hits and summed confidence of each bin."""

    count: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    hits: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    confidence: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))

    def add(self, confidence: npt.NDArray[Any], is_hit: npt.NDArray[np.bool_]) -> None:
        """Positions: the probability of the most probable token, and whether it is in the text."""
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


class Part(NamedTuple):
    """A sequence as both sides have it."""

    token_ids: Ints  # (t,) the student's
    labels: Ints  # (n,) places of its supervised tokens, never 0
    shared_starts: Ints  # (P, 2) teacher, student
    records: TokenRecords
    groups: dict[str, torch.Tensor] | None  # of uld


class Sums:
    """What is added up over a store."""

    def __init__(self) -> None:
        self.sequences = self.skipped = self.labels = 0
        self.shared = self.equal = self.compatible = 0
        self.groups = 0
        self.uld = self.gap = 0.0
        self.student, self.teacher = Calibration(), Calibration()


def judge(
    model: nn.Module,
    store: Store,
    reader: StudentReader,
    metrics: Sequence[str] = METRICS,
    *,
    tokens_per_batch: int = 8192,
) -> dict[str, Any]:
    """The figures of a student on a store, JSON-ready.

    Args:
        model: The student, on its device.
        store: Of text that it was not trained on.
        reader: How the student reads the store's lines.
        metrics: Of :data:`METRICS`.
        tokens_per_batch: Padded tokens of a batch; changes speed and memory only.

    Raises:
        MismatchError: When a metric needs what the store was captured without.
        InputError: When the student can read none of its sequences.
    """
    _check_needs(store, reader.tokenizer, metrics)
    same_ids = store.spec.tokenizer_fingerprint == reader.tokenizer.fingerprint
    teacher = reader.tokenizer if same_ids else ByteTokenizer.from_folder(store.tokenizer_path)
    written = (_written(teacher), _written(reader.tokenizer))
    sums, head, sides = Sums(), StudentHead(model), Sides.of(model, reader.tokenizer)
    model.eval()
    with progress(len(store), "judge", "sequences") as shown:
        for parts in _batches(_parts(store, reader, metrics, sums), tokens_per_batch):
            answer = _ask(model, head, parts, reader.tokenizer.pad_id, sides)
            _add(sums, parts, answer, metrics, written, same_ids)
            shown.update(len(parts))
    if not sums.labels:
        raise InputError(
            f"{store.path}: this student can read none of its {len(store):,} sequences. "
            f"`distill coverage {store.path} STUDENT` says why."
        )
    return _figures(sums, metrics, store)


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


def _written(tokenizer: ByteTokenizer) -> list[bytes | None]:
    """What each id stands for: bytes, the end, or nothing (None) that another one could equal."""
    found: list[bytes | None] = [each or None for each in tokenizer.token_bytes]
    for i in tokenizer.eos_ids:
        found[i] = _END
    return found


def _parts(
    store: Store, reader: StudentReader, metrics: Sequence[str], sums: Sums
) -> Iterator[Part]:
    """Every sequence that both sides have labels of, some read at once."""
    filled = np.flatnonzero(np.asarray(store.token_counts) > 0)
    for chosen in np.array_split(filled, max(1, -(-len(filled) // 64))):
        for i, records in zip(chosen, store.read_many([int(i) for i in chosen]), strict=True):
            line = store.text(int(i))
            teacher = teacher_spans(records, line, store.spec.eos_ids)
            tokens, _ = reader.read(line, teacher)
            if tokens is None:
                sums.skipped += 1
                continue
            labels = np.flatnonzero(tokens.has_record)
            spans = Spans(
                tokens.byte_starts[labels], tokens.byte_lengths[labels], tokens.is_eos[labels]
            )
            found = align(teacher, spans)
            l1 = float(store.fidelity.l1_max)
            groups = _groups(records, found.groups, l1) if "uld" in metrics else None
            yield Part(tokens.token_ids, labels, found.shared_starts, records, groups)


def _batches(parts: Iterator[Part], tokens_per_batch: int) -> Iterator[list[Part]]:
    """As many in a row as fit, padded to the longest."""
    batch: list[Part] = []
    width = 0
    for part in parts:
        wider = max(width, len(part.token_ids))
        if batch and wider * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch, wider = [], len(part.token_ids)
        batch.append(part)
        width = wider
    if batch:
        yield batch


def _ask(
    model: nn.Module, head: StudentHead, parts: Sequence[Part], pad_id: int, sides: Sides | None
) -> HeadAnswer:
    """At every label: its log-probability, and the largest ones with their ids."""
    k = max((p.groups["entry_logprobs"].shape[1] for p in parts if p.groups), default=1)
    batch = batch_of([part.token_ids for part in parts], [part.labels for part in parts], pad_id)
    return ask(model, head, batch, sides, top_k=max(k, 1))


def _add(
    sums: Sums,
    parts: Sequence[Part],
    answer: HeadAnswer,
    metrics: Sequence[str],
    written: tuple[list[bytes | None], list[bytes | None]],
    same_ids: bool,
) -> None:
    assert answer.top_ids_NK is not None
    assert answer.top_logprobs_NK is not None
    label_N, top_NK = answer.label_logprob_N.cpu(), answer.top_logprobs_NK.cpu()
    top_ids_N = answer.top_ids_NK[:, 0].cpu().numpy()
    start = 0
    for part in parts:
        stop = start + len(part.labels)
        sums.sequences += 1
        sums.labels += len(part.labels)
        own, best = part.token_ids[part.labels], top_ids_N[start:stop]
        if "calibration" in metrics:
            sums.student.add(top_NK[start:stop, 0].exp().numpy(), own == best)
            _add_teacher(sums.teacher, part.records)
        if "agreement" in metrics:
            _add_agreement(sums, part, best, written, same_ids)
        if part.groups is not None:
            _add_uld(sums, part.groups, label_N[start:stop], top_NK[start:stop])
        start = stop


def _add_teacher(sums: Calibration, records: TokenRecords) -> None:
    """Of a store that knows which tokens its entries are."""
    if records.entry_ids is None or not len(records.entry_ids):
        return
    has_entry = records.entry_count > 0
    first = (np.cumsum(records.entry_count) - records.entry_count)[has_entry]
    is_hit = records.entry_ids[first] == records.token_ids[has_entry]
    sums.add(np.exp(records.entry_logprobs[first].astype(np.float64)), is_hit)


def _add_agreement(
    sums: Sums,
    part: Part,
    best: Ints,
    written: tuple[list[bytes | None], list[bytes | None]],
    same_ids: bool,
) -> None:
    records = part.records
    assert records.entry_ids is not None
    first = np.cumsum(records.entry_count) - records.entry_count
    for t, s in part.shared_starts:
        if not records.entry_count[t]:
            continue
        theirs, ours = int(records.entry_ids[first[t]]), int(best[s])
        sums.shared += 1
        if same_ids and theirs == ours:
            sums.equal += 1
            sums.compatible += 1
            continue
        a, b = (_of(w, i) for w, i in zip(written, (theirs, ours), strict=True))
        if a is not None and b is not None:
            sums.equal += a == b
            sums.compatible += a.startswith(b) or b.startswith(a)


def _of(written: Sequence[bytes | None], token: int) -> bytes | None:
    """Heads are often padded past their tokenizer."""
    return written[token] if token < len(written) else None


def _groups(records: TokenRecords, groups: Ints, l1_max: float) -> dict[str, torch.Tensor]:
    return rectangles(tensors_of(uld_arrays(records, groups, l1_max)))


def _add_uld(
    sums: Sums, groups: dict[str, torch.Tensor], label_N: torch.Tensor, top_NK: torch.Tensor
) -> None:
    index, entries = groups["index"], groups["entry_logprobs"]
    scale = torch.zeros(len(index), dtype=label_N.dtype).index_add(
        0, groups["earlier_pair"], label_N[groups["earlier_index"]]
    )
    loss, gap = uld(
        top_NK[index, : entries.shape[1]],
        entries,
        groups["tail_logmass"],
        student_log_scale_N=scale,
        teacher_log_scale_N=groups["log_scale"],
    )
    sums.groups += len(index)
    sums.uld += float(loss.double().sum())
    sums.gap += float(gap.double().sum()) + float(groups["codec_bound"].double().sum())


def _figures(sums: Sums, metrics: Sequence[str], store: Store) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "agreement" in metrics:
        found["agreement"] = _share(sums.equal, sums.shared)
        found["agreement_prefix"] = _share(sums.compatible, sums.shared)
    if "uld" in metrics:
        found["uld"] = _share(sums.uld, sums.groups)
        found["uld_gap"] = _share(sums.gap, sums.groups)
    if "calibration" in metrics:
        found["calibration_error"] = sums.student.error
        found["teacher_calibration_error"] = sums.teacher.error
    found["judged"] = {
        "store": str(store.path),
        "store_digest": store.digest,
        "teacher": teacher_name(store),
        "sequences": sums.sequences,
        "sequences_skipped": sums.skipped,
        "labels": sums.labels,
        "shared_starts": sums.shared,
        "groups": sums.groups,
    }
    return found


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
