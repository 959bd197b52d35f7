"""Batches of sequences through the teacher: token ids in, encoded records out."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitstore.capture.head import HeadResult, HeadSettings, TeacherHead, check_vocabulary
from logitstore.capture.hf import Teacher
from logitstore.capture.windows import TeacherSequence
from logitstore.encode import EncodedRecords, RawRecords, encode_records
from logitstore.errors import InputError
from logitstore.spec import StoreSpec


def batches(sequences: Sequence[TeacherSequence], budget: int) -> Iterator[list[int]]:
    """Sequences with records, longest first, as many as fit the budget of padded tokens."""
    order = [i for i, s in enumerate(sequences) if s.records]
    order.sort(key=lambda i: (-sequences[i].length, i))
    while order:
        count = max(1, budget // sequences[order[0]].length)
        yield order[:count]
        order = order[count:]


class TeacherPass:
    """A loaded teacher that turns batches into records.

    Raises:
        InputError: Its weights and its tokenizer or configuration do not belong together.
    """

    def __init__(self, teacher: Teacher, spec: StoreSpec, device: torch.device) -> None:
        self.spec, self.device, self._pad_id = spec, device, teacher.tokenizer.pad_id
        if device.type != "cpu" and device.index is not None:
            torch.accelerator.set_device_index(device.index)  # for kernels that ask for "the" one
        model = teacher.load(device)
        check_vocabulary(model, teacher.tokenizer.size, spec.vocab_size)
        self._head = TeacherHead(model, _head_settings(spec))

    def read(self, batch: Sequence[TeacherSequence]) -> list[EncodedRecords]:
        """The records of each sequence.

        Raises:
            InputError: The teacher's logits are not finite.
        """
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
        result = self._head(
            {"input_ids": input_ids.to(self.device), "attention_mask": mask.to(self.device)},
            (at - 1).to(self.device),
            input_ids.flatten()[at].to(self.device),
            _places(batch).to(self.device) if self.spec.draws else None,
        )
        _check_finite(result, batch, at // length)
        raw = _raw_records(batch, result, self.spec)
        return encode_records(raw, self.spec).split([s.records for s in batch])


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
    """(n, 3) row, part and position in its sequence of every token with a record."""
    parts = []
    for s in batch:
        position = np.flatnonzero(s.text.has_record)
        row, part = (np.full_like(position, value) for value in (s.line.row, s.line.part))
        parts.append(np.stack([row, part, position], 1))
    return torch.from_numpy(np.concatenate(parts))


def _check_finite(result: HeadResult, batch: Sequence[TeacherSequence], row_n: Tensor) -> None:
    bad = torch.isnan(result.entry_logprobs).any(1) | torch.isnan(result.tail_logmass)
    if bad.any():
        row = batch[int(row_n[bad.nonzero()[0, 0]])].line.row
        raise InputError(
            f"row {row:,}: the teacher's logits are not finite (NaN or infinite). Nothing of "
            "this shard was written; every shard before it is good. Try --dtype float32, or "
            "check the teacher's weights, then run the same command again."
        )
    if result.logit_std is not None and not (is_number := result.logit_std.isfinite()).all():
        row = batch[int(row_n[(~is_number).nonzero()[0, 0]])].line.row
        raise InputError(
            f"row {row:,}: the teacher excludes tokens (their logits are -inf), so its logits have "
            "no standard deviation. Nothing of this shard was written. Capture without "
            "--logit-std into another --out."
        )


def _raw_records(
    batch: Sequence[TeacherSequence], result: HeadResult, spec: StoreSpec
) -> RawRecords:
    def of_records(name: str) -> np.ndarray[Any, Any]:
        return np.concatenate([getattr(s.text, name)[s.text.has_record] for s in batch])

    return RawRecords(
        token_ids=of_records("token_ids"),
        byte_starts=of_records("byte_starts"),
        byte_lengths=of_records("byte_lengths"),
        token_logprob=result.token_logprob.numpy(),
        entry_logprobs=result.entry_logprobs.numpy(),
        entry_ids=result.entry_ids.numpy() if spec.has_ids else None,
        entry_count=result.entry_count.numpy(),
        tail_logmass=result.tail_logmass.numpy(),
        entropy=result.entropy.numpy(),
        lognorm=result.lognorm.numpy() if spec.temperatures else None,
        logit_std=_array(result.logit_std),
        lognorm_std=_array(result.lognorm_std),
        sample_ids=_array(result.sample_ids),
        sample_counts=_array(result.sample_counts),
        draw_count=_array(result.draw_count),
    )


def _array(values: Tensor | None) -> np.ndarray[Any, Any] | None:
    return None if values is None else values.numpy()
