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
from typing import Any

import numpy as np
import torch
from torch import Tensor

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

    def read(self, batch: Sequence[TeacherSequence]) -> list[EncodedRecords | None]:
        """Read a batch: records of each sequence; None for skipped ones (`on_nan`).

        Raises:
            InputError: The teacher's logits are not finite, and `on_nan` is `stop`.
        """
        return self.encode(batch, *self.forward(batch))

    def encode(
        self, batch: Sequence[TeacherSequence], result: HeadResult, sequence_n: Tensor
    ) -> list[EncodedRecords | None]:
        """Encode the records of a forwarded batch; the half of `read` that needs no device.

        Args:
            batch: The sequences.
            result, sequence_n: What `forward` returned for them.

        Raises:
            InputError: As for `read`.
        """
        bad = _not_finite(result, sequence_n)
        if bad and self._on_nan == "stop":
            raise _stopped_by(batch[bad[0]])
        good = [s for i, s in enumerate(batch) if i not in bad]
        if not good:
            return [None] * len(batch)
        if bad:
            is_good = ~torch.isin(sequence_n, torch.tensor(bad))
            result, sequence_n = _only(result, is_good), sequence_n[is_good]
        _check_scale(result, batch, sequence_n)
        encoded = encode_records(_raw_records(good, result, self.spec), self.spec)
        parts = iter(encoded.split([s.records for s in good]))
        return [None if i in bad else next(parts) for i in range(len(batch))]

    def forward(self, batch: Sequence[TeacherSequence]) -> tuple[HeadResult, Tensor]:
        """Summarise the prediction of every supervised token, with the sequence each belongs to."""
        return self._forward(self._head, batch)

    def most_probable(self, batch: Sequence[TeacherSequence], count: int) -> HeadResult:
        """Find the `count` most probable tokens (or all there are), whatever the spec keeps."""
        count = min(count, self.spec.vocab_size)
        return self._forward(TeacherHead(self.model, HeadSettings(count)), batch)[0]

    @property
    def devices(self) -> int:
        """Count the devices that hold weights."""
        return len({p.device for p in self.model.parameters() if not p.is_meta}) or 1

    def _forward(
        self, head: TeacherHead, batch: Sequence[TeacherSequence]
    ) -> tuple[HeadResult, Tensor]:
        length = max(s.length for s in batch)
        input_ids = torch.full((len(batch), length), self._pad_id)
        mask = torch.zeros_like(input_ids)
        kept = torch.zeros_like(input_ids, dtype=torch.bool)
        for i, s in enumerate(batch):
            input_ids[i, : s.length] = torch.from_numpy(s.text.token_ids)
            mask[i, : s.length] = 1
            kept[i, : s.length] = torch.from_numpy(s.text.has_record)
        at = kept.flatten().nonzero().squeeze(1)
        # A record belongs to the token it predicted: the logit row before it.
        result = head(
            {"input_ids": input_ids.to(self.device), "attention_mask": mask.to(self.device)},
            (at - 1).to(self.device),
            input_ids.flatten()[at].to(self.device),
            _places(batch).to(self.device) if head.settings.draws else None,
        )
        return result, at // length


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


def _only(result: HeadResult, keep_n: Tensor) -> HeadResult:
    """Keep some of the positions."""
    kept: dict[str, Any] = {}
    for name, field in vars(result).items():
        kept[name] = None if field is None else field[keep_n]
    return HeadResult(**kept)


def _raw_records(
    batch: Sequence[TeacherSequence], result: HeadResult, spec: StoreSpec
) -> RawRecords:
    """Join what the teacher said of each record with where the record lies in the text."""

    def of_text(name: str) -> np.ndarray[Any, Any]:
        return np.concatenate([getattr(s.text, name)[s.text.has_record] for s in batch])

    held = {field.name for field in fields_of(spec)}
    said = {name: t.numpy() for name, t in vars(result).items() if t is not None and name in held}
    return RawRecords(
        token_ids=of_text("token_ids"),
        byte_starts=of_text("byte_starts"),
        byte_lengths=of_text("byte_lengths"),
        **said,
    )
