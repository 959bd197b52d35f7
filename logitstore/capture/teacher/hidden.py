"""Catch a teacher's hidden states and round them, on the device where they are.

Shape legend: M = all tokens of a padded batch, T = states that are kept, D = their width, E =
distinct tokens.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitstore.errors import InputError
from logitstore.format.hidden import HiddenSpec, Rows
from logitstore.format.hidden_codec import BF16, FP8_MAX, LEAST_SCALE


class Rounded(NamedTuple):
    """Rows that were rounded, on the CPU.

    Attributes:
        codes: (T, D) uint8, or int16 whose bits are those of bfloat16.
        scale: (T,) float32, of fp8; else None.
        is_finite: (T,) whether every number of the row was.
    """

    codes: Tensor
    scale: Tensor | None
    is_finite: Tensor

    def rows(self, start: int, stop: int) -> Rows:
        """Take some rows as they are stored."""
        codes = self.codes[start:stop].numpy()
        if self.scale is None:
            return Rows(codes.view(np.uint16))
        return Rows(codes, self.scale[start:stop].numpy())


def rounded(rows_TD: Tensor, dtype: str) -> Rounded:
    """Round rows to fp8 with a scale each, or to bf16; the nearest number is taken.

    Args:
        rows_TD: In the precision of the model.
        dtype: `fp8` or `bf16`.
    """
    is_finite = torch.isfinite(rows_TD).all(1).cpu()
    if dtype == BF16:
        codes = rows_TD.to(torch.bfloat16).contiguous().view(torch.int16)
        return Rounded(codes.cpu(), None, is_finite)
    rows_TD = rows_TD.float()
    scale_T = (rows_TD.abs().amax(1) / FP8_MAX).clamp(min=LEAST_SCALE)
    codes = (rows_TD / scale_T[:, None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return Rounded(codes.view(torch.uint8).cpu(), scale_T.cpu(), is_finite)


class CaughtStates(NamedTuple):
    """Holds the hidden states of a batch, all of its sequences' one after the other.

    Attributes:
        last: (T, D) those states.
        embedding_ids: (E,) the distinct tokens of the batch, ascending; None: none are kept.
        embedding: (E, De) their embeddings.
    """

    last: Rounded
    embedding_ids: Tensor | None = None
    embedding: Rounded | None = None


class HiddenCatcher:
    """Rounds what is kept of the hidden states of a batch.

    Args:
        model: The teacher.
        hidden: What is kept.
        name: The teacher, for messages.
    """

    def __init__(self, model: Any, hidden: HiddenSpec, name: str) -> None:
        self._model, self._hidden, self._name = model, hidden, name
        self._last: Rounded | None = None

    def catch(self, hidden_MD: Tensor, kept_T: Tensor) -> None:
        """Round what the output head is about to read, of some tokens of the batch."""
        self._check("the output head reads", hidden_MD.shape[1], self._hidden.width)
        self._last = rounded(hidden_MD[kept_T.to(hidden_MD.device)], self._hidden.dtype)

    @torch.inference_mode()
    def taken(self, read_n: Tensor) -> CaughtStates:
        """Return what was caught last, with the embeddings of the tokens that were read.

        Args:
            read_n: All tokens of the batch.

        Raises:
            InputError: The teacher's input embedding has another width than its configuration says.
        """
        last, self._last = self._last, None
        assert last is not None, "nothing was caught: the forward has not run"
        width = self._hidden.embedding_width
        if width is None:
            return CaughtStates(last)
        ids_E = torch.from_numpy(np.unique(read_n.numpy()))
        embedding = self._model.get_input_embeddings()
        device = next(embedding.parameters()).device
        rows_ED = embedding(ids_E.to(device))
        self._check("the input embedding has", rows_ED.shape[1], width)
        return CaughtStates(last, ids_E, rounded(rows_ED, self._hidden.dtype))

    def _check(self, what: str, found: int, expected: int) -> None:
        if found != expected:
            raise InputError(
                f"{self._name}: {what} {found} numbers a token, its config.json says {expected}. "
                "Hidden states of this architecture are not known here: capture without --hidden."
            )
