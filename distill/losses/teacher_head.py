"""The teacher's output embedding on the device, and how far rows are from its states behind it.

A store that was captured with --with-lm-head has it, so the teacher's logits are known in full:
those of a hidden state h of its are `after(W h)`. Rows of another origin, brought to the width of
its states, are compared with them by

    T-softened forward KL    sum_v q_v (log q_v - log p_v),   q = softmax(after(W h) / T),
                                                              p = softmax(after(W row) / T)

No tensor over all records and the vocabulary exists: a chunk of records is made, compared, and its
gradient taken, before the next.

Shape legend: m = records; c = those of a chunk; D = width of the teacher; V = its vocabulary.
"""

from typing import Any, Self

import torch
from torch import Tensor

#: The most logits of a chunk, and the most records; two sides of as many are there at a time.
CHUNK_LOGITS, CHUNK_RECORDS = 2**24, 208


class TeacherHead:
    """The teacher's output embedding, in the precision in which it is stored. It is not trained.

    Args:
        stored: As `store.lm_head()` reads it.
    """

    def __init__(self, stored: Any) -> None:
        codes = torch.from_numpy(
            stored.codes.view("<i2") if stored.dtype == "bf16" else stored.codes
        )
        self._weight_VD = codes.view(torch.bfloat16) if stored.dtype == "bf16" else codes
        self._bias_V = None if stored.bias is None else torch.from_numpy(stored.bias)
        self._steps = stored.factor, stored.divisor, stored.cap

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return self  # gigabytes that nobody changes

    def to(self, device: torch.device) -> None:
        """Move it to a device, where it stays."""
        self._weight_VD = self._weight_VD.to(device)
        self._bias_V = None if self._bias_V is None else self._bias_V.to(device)

    @property
    def chunk_records(self) -> int:
        """How many records are compared at a time."""
        return max(1, min(CHUNK_RECORDS, CHUNK_LOGITS // len(self._weight_VD)))

    def logits(self, rows_cD: Tensor) -> Tensor:
        """Compute (c, V) the logits of rows, float32 or wider."""
        logits_cV = (rows_cD.to(self._weight_VD.dtype) @ self._weight_VD.T).float()
        if self._bias_V is not None:
            logits_cV = logits_cV + self._bias_V
        factor, divisor, cap = self._steps
        if factor is not None:
            logits_cV = logits_cV * factor
        if divisor is not None:
            logits_cV = logits_cV / divisor
        return logits_cV if cap is None else torch.tanh(logits_cV / cap) * cap

    def distance(self, rows_mD: Tensor, states_mD: Tensor, temperature: float) -> Tensor:
        """Compute (m,) the KL of each row from the state beside it, with the rows' gradient.

        Args:
            rows_mD: The rows that are trained.
            states_mD: The teacher's states, without gradient.
            temperature: Divides both sides' logits.
        """
        found: Tensor = _Distance.apply(rows_mD, states_mD, self, temperature)  # type: ignore[no-untyped-call]
        return found


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows_mD: Tensor, states_mD: Tensor, head: TeacherHead, temperature: float
    ) -> Tensor:
        size = head.chunk_records
        pairs = zip(torch.split(rows_mD, size), torch.split(states_mD, size), strict=True)
        found = [_of_chunk(*each, head, temperature, ctx.needs_input_grad[0]) for each in pairs]
        empty = rows_mD.new_zeros(0)
        ctx.slope_mD = torch.cat([empty.reshape(0, rows_mD.shape[1]), *(s for _, s in found)])
        return torch.cat([empty, *(value for value, _ in found)])

    @staticmethod
    def backward(ctx: Any, slope_m: Tensor) -> tuple[Tensor | None, ...]:
        return slope_m[:, None] * ctx.slope_mD, None, None, None


def _of_chunk(
    rows_cD: Tensor, states_cD: Tensor, head: TeacherHead, temperature: float, has_slope: bool
) -> tuple[Tensor, Tensor]:
    """Compute the values of a chunk, and the gradient of their sum."""
    with torch.no_grad():
        q_cV = (head.logits(states_cD) / temperature).log_softmax(-1)
    rows_cD = rows_cD.detach().requires_grad_(has_slope)
    with torch.set_grad_enabled(has_slope):
        p_cV = (head.logits(rows_cD) / temperature).log_softmax(-1)
        # 0 log 0 is 0: a head may exclude tokens.
        value_c = (q_cV.exp() * (q_cV - p_cV)).where(q_cV > -torch.inf, 0.0).sum(-1)
        if not has_slope:
            return value_c, torch.zeros_like(rows_cD)
        (slope_cD,) = torch.autograd.grad(value_c.sum(), rows_cD)
    return value_c.detach(), slope_cD
