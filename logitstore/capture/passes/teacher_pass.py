"""Run batches of sequences through the teacher: token ids in, encoded records out.

The sequences of a shard are sorted by length and cut into batches of at most `budget` padded
tokens, so there is little padding, and a batch is a function of shard and budget alone. Which
sequences share a batch changes a record in its last bits only: the sums of a matrix product are
taken in another order. tests/logitstore/capture/test_batching.py holds how much that is, for models
of several families:

* float32: less than 0.001 nats in any log-probability, a fifth of the step they are stored in.
* bfloat16, float16: no more than half precision itself costs, that is, no further from another
  batch's distribution than from what the same weights say in float32 (L1, on average).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitstore.capture.boundaries.branches import BranchReader, placed, selected
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.head import TeacherHead, check_vocabulary
from logitstore.capture.teacher.summary import HeadResult, HeadSettings
from logitstore.capture.teacher.teacher import Teacher
from logitstore.capture.teacher.weights import input_device, load_model
from logitstore.errors import InputError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.fields import fields_of
from logitstore.format.spec import StoreSpec
from logitstore.text.token_budget import by_token_budget
from logitstore.writing.encode import RawRecords, encode_records


def batches(sequences: Sequence[TeacherSequence], budget: int) -> Iterator[list[int]]:
    """Cut the sequences with records into batches of at most `budget` padded tokens."""
    chosen = [i for i, s in enumerate(sequences) if s.records]
    for batch in by_token_budget([sequences[i].length for i in chosen], budget):
        yield [chosen[n] for n in batch]


class SequenceRecords(NamedTuple):
    """Holds the records of one sequence; None for a sequence that was skipped.

    Attributes:
        own: At the teacher's own tokens.
        boundaries: At the boundaries of a student's tokens; None also where none is asked about.
    """

    own: EncodedRecords | None
    boundaries: EncodedRecords | None = None


class Forwarded(NamedTuple):
    """Holds what the teacher said of a batch.

    Attributes:
        result: (n,) summaries of the prediction of every supervised token.
        sequence_n: The sequence of each, by its place in the batch.
        answers: Summaries behind every branch, in the order of `branches.placed`; None: no branch.
    """

    result: HeadResult
    sequence_n: Tensor
    answers: HeadResult | None = None


class TeacherPass:
    """Loads a teacher, and turns batches of sequences into records.

    Args:
        teacher: The teacher without its weights.
        spec: What the store keeps.
        device: The device to load it on, unless it has a device map.
        on_nan: `stop` at logits that are not finite, or `skip` the sequence.

    Raises:
        InputError: Weights and tokenizer or configuration do not belong together.
    """

    def __init__(
        self, teacher: Teacher, spec: StoreSpec, device: torch.device, on_nan: str = "stop"
    ) -> None:
        self.spec, self._pad_id, self._on_nan = spec, teacher.tokenizer.pad_id, on_nan
        if device.type != "cpu" and device.index is not None:
            torch.accelerator.set_device_index(device.index)  # for kernels that ask for "the" one
        model = load_model(teacher, device)
        self.model = model
        #: Device of the input; with a device map, that of the first layer.
        self.device = device if teacher.device_map is None else input_device(model)
        check_vocabulary(model, teacher.tokenizer.size, spec.vocab_size)
        self._head = TeacherHead(model, _head_settings(spec))
        self._branches = BranchReader(model, self._head, self.device, self._pad_id)

    def read(self, batch: Sequence[TeacherSequence]) -> list[SequenceRecords]:
        """Read a batch: records of each sequence; None for skipped ones (`on_nan`).

        Raises:
            InputError: The teacher's logits are not finite, and `on_nan` is `stop`.
        """
        return self.encode(batch, *self.forward(batch))

    def encode(
        self,
        batch: Sequence[TeacherSequence],
        result: HeadResult,
        sequence_n: Tensor,
        answers: HeadResult | None = None,
    ) -> list[SequenceRecords]:
        """Encode the records of a forwarded batch; the half of `read` that needs no device.

        Args:
            batch: The sequences.
            result, sequence_n, answers: What `forward` returned for them.

        Raises:
            InputError: As for `read`.
        """
        own = self._encode_own(batch, result, sequence_n)
        asked = [n for n, s in enumerate(batch) if s.questions is not None and own[n] is not None]
        if not asked:
            return [SequenceRecords(records) for records in own]
        at_boundaries = self._encode_boundaries(batch, asked, result, answers)
        return [SequenceRecords(r, at_boundaries.get(n)) for n, r in enumerate(own)]

    def _encode_own(
        self, batch: Sequence[TeacherSequence], result: HeadResult, sequence_n: Tensor
    ) -> list[EncodedRecords | None]:
        bad = _not_finite(result, sequence_n)
        if bad and self._on_nan == "stop":
            raise _stopped_by(batch[bad[0]])
        good = [s for i, s in enumerate(batch) if i not in bad]
        if not good:
            return [None] * len(batch)
        if bad:
            is_good = ~torch.isin(sequence_n, torch.tensor(bad))
            result, sequence_n = selected(result, is_good), sequence_n[is_good]
        _check_scale(result, batch, sequence_n)
        encoded = encode_records(_raw_records(good, result, self.spec), self.spec)
        parts = iter(encoded.split([s.records for s in good]))
        return [None if i in bad else next(parts) for i in range(len(batch))]

    def _encode_boundaries(
        self,
        batch: Sequence[TeacherSequence],
        asked: Sequence[int],
        result: HeadResult,
        answers: HeadResult | None,
    ) -> dict[int, EncodedRecords]:
        """Encode the answers to a student's questions, by place in the batch; not the bad ones."""
        whole, sequence_n = _answers(batch, asked, result, answers)
        bad = _not_finite(whole, sequence_n)
        if bad and self._on_nan == "stop":
            raise _stopped_by(batch[bad[0]])
        good = [n for n in asked if n not in bad]
        whole = selected(whole, ~torch.isin(sequence_n, torch.tensor(bad, dtype=torch.long)))
        raw = _raw_answers([batch[n] for n in good], whole, self.spec)
        parts = encode_records(raw, self.spec).split([_count(batch[n]) for n in good])
        return dict(zip(good, parts, strict=True))

    def forward(self, batch: Sequence[TeacherSequence]) -> Forwarded:
        """Summarise the prediction of every supervised token, and what is said behind branches."""
        branches = placed(batch)
        cache = self._branches.cache_for(batch) if branches else None
        rows = self._rows(batch)
        result, sequence_n = self._forward(self._head, batch, cache)
        if not branches:
            return Forwarded(result, sequence_n)
        return Forwarded(result, sequence_n, self._branches.read(branches, cache, rows))

    def most_probable(self, batch: Sequence[TeacherSequence], count: int) -> HeadResult:
        """Find the `count` most probable tokens (or all there are), whatever the spec keeps."""
        count = min(count, self.spec.vocab_size)
        return self._forward(TeacherHead(self.model, HeadSettings(count)), batch)[0]

    @property
    def devices(self) -> int:
        """Count the devices that hold weights."""
        return len({p.device for p in self.model.parameters() if not p.is_meta}) or 1

    def _rows(self, batch: Sequence[TeacherSequence]) -> Tensor:
        """Pad the tokens of a batch: (B, L)."""
        input_ids = torch.full((len(batch), max(s.length for s in batch)), self._pad_id)
        for i, s in enumerate(batch):
            input_ids[i, : s.length] = torch.from_numpy(s.text.token_ids)
        return input_ids

    def _forward(
        self, head: TeacherHead, batch: Sequence[TeacherSequence], cache: Any = None
    ) -> tuple[HeadResult, Tensor]:
        """Read the rows of a batch; keep their keys and values if there is a cache."""
        input_ids = self._rows(batch)
        mask = torch.zeros_like(input_ids)
        kept = torch.zeros_like(input_ids, dtype=torch.bool)
        for i, s in enumerate(batch):
            mask[i, : s.length] = 1
            kept[i, : s.length] = torch.from_numpy(s.text.has_record)
        at = kept.flatten().nonzero().squeeze(1)
        inputs: dict[str, Any] = {
            "input_ids": input_ids.to(self.device),
            "attention_mask": mask.to(self.device),
        }
        if cache is not None:
            inputs |= {"past_key_values": cache, "use_cache": True}
        # A record belongs to the token it predicted: the logit row before it.
        result = head(
            inputs,
            (at - 1).to(self.device),
            input_ids.flatten()[at].to(self.device),
            _places(batch).to(self.device) if head.settings.draws else None,
        )
        return result, at // input_ids.shape[1]


def _head_settings(spec: StoreSpec) -> HeadSettings:
    return HeadSettings(
        spec.top_k,
        spec.max_tail,
        spec.temperatures,
        logit_std=spec.has_logit_std,
        draws=spec.draws,
        seed=spec.seed or 0,
    )


def _places(batch: Sequence[TeacherSequence]) -> Tensor:
    """Locate every token with a record: (n, 3) row, part and position in its sequence."""
    parts = []
    for s in batch:
        position = np.flatnonzero(s.text.has_record)
        row, part = (np.full_like(position, value) for value in (s.line.row, s.line.part))
        parts.append(np.stack([row, part, position], 1))
    return torch.from_numpy(np.concatenate(parts))


def _not_finite(result: HeadResult, sequence_n: Tensor) -> list[int]:
    """Find the sequences with a distribution that has NaN in it."""
    bad_n = torch.isnan(result.entry_logprobs).any(1) | torch.isnan(result.tail_logmass)
    return sorted({int(i) for i in sequence_n[bad_n]})


def _check_scale(result: HeadResult, batch: Sequence[TeacherSequence], sequence_n: Tensor) -> None:
    """Reject excluded tokens (logits of -inf), which leave no standard deviation."""
    if result.logit_std is None or result.logit_std.isfinite().all():
        return
    first = int(sequence_n[~result.logit_std.isfinite()][0])
    raise InputError(
        f"row {batch[first].line.row:,}: the teacher excludes tokens (their logits are -inf), so "
        "its logits have no standard deviation. Nothing of this shard was written. Capture without "
        "--logit-std into another --out."
    )


def _stopped_by(sequence: TeacherSequence) -> InputError:
    return InputError(
        f"row {sequence.line.row:,}: the teacher's logits are not finite (NaN or infinite). "
        "Nothing of this shard was written; every shard before it is good. Check the teacher's "
        "weights, or try --dtype float32 in a new store; or add --on-nan skip, which leaves such "
        "rows without records and counts them."
    )


def _raw_records(
    batch: Sequence[TeacherSequence], result: HeadResult, spec: StoreSpec
) -> RawRecords:
    """Join what the teacher said of each record with where the record lies in the text."""

    def of_text(name: str) -> np.ndarray[Any, Any]:
        return np.concatenate([getattr(s.text, name)[s.text.has_record] for s in batch])

    return RawRecords(
        token_ids=of_text("token_ids"),
        byte_starts=of_text("byte_starts"),
        byte_lengths=of_text("byte_lengths"),
        **_said(result, spec),
    )


def _said(result: HeadResult, spec: StoreSpec) -> dict[str, Any]:
    """Select the summaries that a store keeps."""
    held = {field.name for field in fields_of(spec)}
    return {name: t.numpy() for name, t in vars(result).items() if t is not None and name in held}


def _count(sequence: TeacherSequence) -> int:
    return 0 if sequence.questions is None else len(sequence.questions)


def _answers(
    batch: Sequence[TeacherSequence],
    asked: Sequence[int],
    result: HeadResult,
    answers: HeadResult | None,
) -> tuple[HeadResult, Tensor]:
    """Collect the answers to the questions of some sequences, and the sequence of each.

    An answer is a record of the sequence's own, or what was said behind its next branch.
    """
    own = np.cumsum([0, *(s.records for s in batch)])
    behind = np.cumsum(
        [0, *(0 if s.questions is None else len(s.questions.branches) for s in batch)]
    )
    index = [np.zeros(0, np.int64)]
    for n in asked:
        questions = batch[n].questions
        assert questions is not None
        is_branch = questions.records < 0
        branch = own[-1] + behind[n] + np.cumsum(is_branch) - 1
        index.append(np.where(is_branch, branch, own[n] + questions.records))
    both = result if answers is None else HeadResult.on_host([result, answers])
    sequence_n = np.repeat(np.array(asked), [_count(batch[n]) for n in asked])
    return selected(both, torch.from_numpy(np.concatenate(index))), torch.from_numpy(sequence_n)


def _raw_answers(
    batch: Sequence[TeacherSequence], result: HeadResult, spec: StoreSpec
) -> RawRecords:
    """Join answers with where the student's tokens lie in the text."""

    def of_questions(name: str) -> np.ndarray[Any, Any]:
        empty = np.zeros(0, np.int64)
        return np.concatenate([empty, *(getattr(s.questions, name) for s in batch)])

    return RawRecords(
        token_ids=of_questions("token_ids"),
        byte_starts=of_questions("byte_starts"),
        byte_lengths=of_questions("byte_lengths"),
        **_said(result, spec),
    )
