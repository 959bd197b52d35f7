"""Turn what an engine said of a batch into encoded records: the same for every engine."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitstore.capture.boundaries.branches import selected
from logitstore.capture.passes.completer import Completer
from logitstore.capture.passes.engine import REFUSED, Forwarded, SequenceRecords
from logitstore.capture.passes.states import not_finite, with_states
from logitstore.capture.sampling import Sampling
from logitstore.capture.sequences.prompts import PromptReader
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.hidden import CaughtStates
from logitstore.capture.teacher.summary import HeadResult, HeadSettings
from logitstore.errors import InputError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.fields import fields_of
from logitstore.format.lm_head import LmHead
from logitstore.format.spec import StoreSpec
from logitstore.writing.encode import RawRecords, encode_records

_NOBODY: Mapping[int, str] = {}


class Encoding:
    """The half of an engine that needs no teacher.

    Args:
        spec: What the store keeps.
        on_nan: `stop` at logits that are not finite, or `skip` the sequence.

    Attributes:
        place, devices, versions, is_quantized, raises_out_of_memory: As of `Engine`; what an
            engine does not say of itself is so.
    """

    place = ""
    devices = 1
    versions: Mapping[str, str] = MappingProxyType({})
    is_quantized = False
    raises_out_of_memory = False

    def __init__(self, spec: StoreSpec, on_nan: str = "stop") -> None:
        self.spec, self._on_nan = spec, on_nan

    def forward(self, batch: Sequence[TeacherSequence]) -> Forwarded:
        """Summarise the prediction of every supervised token; what makes it an engine."""
        raise NotImplementedError

    def lm_head(self) -> LmHead:
        """Take the teacher's output embedding, of an engine that has it in this process."""
        raise NotImplementedError

    def completer(
        self,
        reader: PromptReader,
        sampling: Sampling,
        budget: int,
        beat: Callable[[], None],
    ) -> Completer:
        """Make what writes completions, of an engine that does."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what it holds besides memory; most hold nothing."""

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
        refused: Mapping[int, str] = _NOBODY,
        states: CaughtStates | None = None,
    ) -> list[SequenceRecords]:
        """Encode the records of a forwarded batch; the half of `read` that needs no device.

        Args:
            batch: The sequences.
            result, sequence_n, answers, refused, states: What `forward` returned for them.

        Raises:
            InputError: As for `read`.
        """
        if refused:
            return self._encode_others(batch, result, sequence_n, refused)
        own = self._encode_own(batch, result, sequence_n, states)
        asked = [n for n, s in enumerate(batch) if s.questions is not None and own[n] is not None]
        if not asked:
            return [SequenceRecords(records) for records in own]
        at_boundaries = self._encode_boundaries(batch, asked, result, answers)
        return [SequenceRecords(r, at_boundaries.get(n)) for n, r in enumerate(own)]

    def _encode_others(
        self,
        batch: Sequence[TeacherSequence],
        result: HeadResult,
        sequence_n: Tensor,
        refused: Mapping[int, str],
    ) -> list[SequenceRecords]:
        """Encode the sequences of a batch that the engine has read; the others have no records."""
        read = [n for n in range(len(batch)) if n not in refused]
        places = torch.full((len(batch),), -1)
        places[read] = torch.arange(len(read))
        found = iter(
            self.encode([batch[n] for n in read], result, places[sequence_n]) if read else ()
        )
        return [
            SequenceRecords(None, None, REFUSED, refused[n]) if n in refused else next(found)
            for n in range(len(batch))
        ]

    def _encode_own(
        self,
        batch: Sequence[TeacherSequence],
        result: HeadResult,
        sequence_n: Tensor,
        states: CaughtStates | None,
    ) -> list[EncodedRecords | None]:
        bad = _not_finite(result, sequence_n)
        if states is not None:
            bad = sorted({*bad, *not_finite(batch, states, self.spec)})
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
        own = [None if i in bad else next(parts) for i in range(len(batch))]
        return own if states is None else with_states(own, batch, states, self.spec)

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


def head_settings(spec: StoreSpec) -> HeadSettings:
    """Say what to compute of a distribution for a store."""
    return HeadSettings(
        spec.top_k,
        spec.max_tail,
        spec.temperatures,
        logit_std=spec.has_logit_std,
        draws=spec.draws,
        seed=spec.seed or 0,
    )


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
