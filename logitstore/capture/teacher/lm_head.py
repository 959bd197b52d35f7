"""Take a teacher's output embedding as a store keeps it, and check that it is all of its head.

Shape legend: V = vocabulary, D = width of its hidden states, n = rows that are tried.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitstore.errors import InputError
from logitstore.format.lm_head import MAX_WEIGHT_BYTES, LmHead
from logitstore.format.numpy_types import Array
from logitstore.format.spec import StoreSpec
from logitstore.models.output_embedding import PROBE_ROWS, after_the_embedding, same_logits


class LmHeadSource:
    """The output embedding of a loaded teacher.

    Args:
        model: The teacher.
        spec: What the store keeps, the output embedding among it.
        name: The teacher, for messages.

    Raises:
        InputError: It is quantised, or its logits are not made of it as known here.
    """

    def __init__(self, model: Any, spec: StoreSpec, name: str) -> None:
        assert spec.hidden is not None
        self._model, self._name = model, name
        self._shape = (spec.vocab_size, spec.hidden.width)
        self._check()

    @torch.inference_mode()
    def taken(self) -> LmHead:
        """Copy it to the CPU, in the teacher's own precision."""
        embedding, after = self._model.get_output_embeddings(), after_the_embedding(self._model)
        bias = getattr(embedding, "bias", None)
        return LmHead(
            _codes(embedding.weight),
            None if bias is None else bias.float().cpu().numpy(),
            *(None if x is None else float(x) for x in (after.factor, after.divisor, after.cap)),
        )

    @torch.inference_mode()
    def _check(self) -> None:
        embedding = self._model.get_output_embeddings()
        weight = getattr(embedding, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() != 2:
            raise self._unusable("is quantised, or not a matrix")
        if weight.element_size() not in (2, 4):
            raise self._unusable(f"is kept in {weight.dtype}")
        if tuple(weight.shape) != self._shape:
            raise self._unusable(f"has {tuple(weight.shape)} numbers, expected {self._shape}")
        size = weight.numel() * weight.element_size()
        if size > MAX_WEIGHT_BYTES:
            raise self._unusable(f"takes {size:,} bytes, and {MAX_WEIGHT_BYTES:,} fit into a file")
        rows = torch.eye(PROBE_ROWS, weight.shape[1], dtype=weight.dtype, device=weight.device)
        bias = getattr(embedding, "bias", None)
        ours = rows @ weight.T if bias is None else rows @ weight.T + bias
        is_whole = after_the_embedding(self._model).bias_V is None
        if not is_whole or not same_logits(embedding(rows), ours):
            raise self._unusable("does more than multiply, in a way that is not known here")

    def _unusable(self, why: str) -> InputError:
        return InputError(
            f"{self._name}: its output embedding {why}, so it cannot be kept. Capture without "
            "--with-lm-head, or give a teacher that is not quantised."
        )


def _codes(weight: Tensor) -> Array:
    weight = weight.detach().cpu().contiguous()
    if weight.dtype == torch.bfloat16:
        return weight.view(torch.int16).numpy().view(np.uint16)
    codes: Array = weight.numpy()
    return codes
