"""Students with an encoder (T5, mT0, BART): the prompt to it, the rest to the decoder.

A causal student reads a row as one sequence. Here it is cut in front of its first label:

    encoder   everything before the first label, then EOS, as these models were trained to end it
    decoder   the start token, then everything from the first label on

So a label is predicted by the decoder's row in front of it, also the first one, and text that
later turns of a conversation are given (their prompts) is context of the decoder. A row with
nothing but a text has at most BOS, or the first token that nothing predicts, in its encoder.

Shape legend: B = rows; T, E, D = padded lengths of a row, its encoder's and its decoder's part; N =
labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from logitstore.errors import InputError
from logitstore.records import NO_LABEL
from logitstore.text.tokenizer import ByteTokenizer

#: What a model is given of a batch, where it is there.
SEEN = ("input_ids", "attention_mask", "position_ids", "decoder_input_ids")


@dataclass(frozen=True)
class Sides:
    """Cuts the rows of a batch into an encoder's and a decoder's part.

    Attributes:
        start_id: What a decoder begins with.
        eos_id: What an encoder's input ends with; None for a tokenizer without.
        pad_id: Fills both.
    """

    start_id: int
    eos_id: int | None
    pad_id: int

    @classmethod
    def of(cls, model: Any, tokenizer: ByteTokenizer) -> Self | None:
        """Read from a model how its rows are cut; None for one without an encoder.

        Raises:
            InputError: The model does not say what its decoder begins with.
        """
        if not model.config.is_encoder_decoder:
            return None
        settings = (getattr(model, "generation_config", None), model.config)
        starts = (getattr(each, "decoder_start_token_id", None) for each in settings)
        start = next((s for s in starts if s is not None), None)
        if start is None:
            raise InputError(
                f"{model.name_or_path}: an encoder-decoder whose config has no "
                "decoder_start_token_id, so what its decoder begins with is not known. Set "
                "model.config.decoder_start_token_id (for T5 its pad token) and save it once."
            )
        return cls(int(start), tokenizer.eos_token_id, tokenizer.pad_id)

    def cut(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Cut a batch that :mod:`distill.data.dataset` laid out for a causal model.

        Args:
            batch: With `input_ids`, `attention_mask` and `labels` (B, T), `rows` and `example`
                (N,); the rest is handed on.

        Returns:
            With `input_ids` and `attention_mask` (B, E); `decoder_input_ids` and `labels` (B, D);
            `rows` that count in B * D; and `tokens` of both sides.
        """
        ids, labels = batch["input_ids"], batch["labels"]
        lengths = batch["attention_mask"].sum(1)
        is_label = labels != NO_LABEL
        first = torch.where(is_label.any(1), is_label.int().argmax(1), lengths)
        bounds = list(zip(first.tolist(), lengths.tolist(), strict=True))
        end = [] if self.eos_id is None else [self.eos_id]
        encoder = [
            row[:cut].tolist() + end or [self.pad_id]
            for row, (cut, _) in zip(ids, bounds, strict=True)
        ]
        decoder = [
            [self.start_id, *row[cut:stop].tolist()]
            for row, (cut, stop) in zip(ids, bounds, strict=True)
        ]
        targets = [
            [NO_LABEL, *row[cut:stop].tolist()]
            for row, (cut, stop) in zip(labels, bounds, strict=True)
        ]
        decoder_ids = _padded(decoder, self.pad_id)
        example, width = batch["example"], ids.shape[1]
        position = batch["rows"] - example * width + 1  # of each label in its row
        read = [len(e) + len(d) for e, d in zip(encoder, decoder, strict=True)]
        return {
            **batch,
            "input_ids": _padded(encoder, self.pad_id),
            "attention_mask": _padded([[1] * len(row) for row in encoder], 0).bool(),
            "decoder_input_ids": decoder_ids,
            "labels": _padded(targets, NO_LABEL),
            "rows": example * decoder_ids.shape[1] + position - first[example].int(),
            "tokens": torch.tensor(read, dtype=torch.int32),
        }


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    padded = [[*row, *[filler] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int32)
