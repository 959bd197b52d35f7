"""A model's head during one call: it makes logits of hidden states, and takes gradients back.

The gradient with respect to the head's own weights is summed over chunks of positions in place;
half precision is summed in float32. Any module can be a head (`AnyHead`, by autograd). Nearly all
are a plain linear layer (`LinearHead`), which needs no graph for its gradient and can compute
chosen columns alone.

Shape legend: c = positions of a chunk; D = hidden width; V = vocabulary; n = some columns.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from logitstore.models.output_embedding import AfterEmbedding

#: From the gradient of logits to that of the hidden states they were made from.
Pull = Callable[[Tensor], Tensor]


class OutputHead(Protocol):
    """A head that makes a chunk's logits and sums up the gradient of its weights.

    Attributes:
        weights: The parameters of the head that are trained.
        sums: The gradient of each so far; None before the first chunk.
    """

    weights: list[Tensor]
    sums: list[Tensor | None]

    def logits(self, hidden_cD: Tensor) -> Tensor:
        """Compute (c, V) logits without gradient; the caller may overwrite them.

        They are valid until this head makes its next logits, which may use the same memory.
        """

    def open(self, hidden_cD: Tensor) -> tuple[Tensor, Pull]:
        """Compute the same logits, and a function from their gradient to that of `hidden_cD`.

        Calling that function also adds the gradient of the weights to `sums`.
        """

    def of_rows(self, rows_cD: Tensor) -> Tensor:
        """Compute (c, V) logits of other rows, with their gradient and none of the weights."""

    def close(self) -> None:
        """Release the memory of the logits made last."""

    def columns(self, hidden_cD: Tensor, ids_n: Tensor) -> Tensor | None:
        """Compute (c, n) logits of some tokens; None if this head can only compute all of them."""


def is_plain_linear(embedding: Any) -> bool:
    """Tell whether a :class:`LinearHead` computes the same: nothing has replaced its forward."""
    return type(embedding) is nn.Linear and "forward" not in vars(embedding)


class AnyHead:
    """A head of any kind, by autograd: with an adapter, quantised, or loaded by hooks."""

    def __init__(
        self, embedding: Any, forward: Callable[[Tensor], Tensor], after: AfterEmbedding
    ) -> None:
        self._forward, self._after = forward, after
        self.weights = [p for p in embedding.parameters() if p.requires_grad]
        self.sums: list[Tensor | None] = [None] * len(self.weights)
        self._autocast = _same_autocast(embedding)

    def logits(self, hidden_cD: Tensor) -> Tensor:
        with torch.no_grad(), self._autocast():
            return self._own(self._after(self._forward(hidden_cD)))

    def open(self, hidden_cD: Tensor) -> tuple[Tensor, Pull]:
        with torch.enable_grad(), self._autocast():
            hidden_cD = hidden_cD.detach().requires_grad_()
            logits_cV = self._after(self._forward(hidden_cD))

        def pull(slope_cV: Tensor) -> Tensor:
            slopes = torch.autograd.grad(
                logits_cV, [hidden_cD, *self.weights], slope_cV.to(logits_cV.dtype)
            )
            for i, slope in enumerate(slopes[1:]):
                _add(self.sums, i, slope)
            return slopes[0]

        return self._own(logits_cV.detach()), pull

    def of_rows(self, rows_cD: Tensor) -> Tensor:
        with _frozen(self.weights), self._autocast():
            return self._after(self._forward(rows_cD))

    def close(self) -> None:
        pass

    def columns(self, hidden_cD: Tensor, ids_n: Tensor) -> Tensor | None:
        return None

    def _own(self, logits_cV: Tensor) -> Tensor:
        """Copy logits that the caller may overwrite: the graph may still need the original."""
        is_copied_anyway = logits_cV.dtype in (torch.float16, torch.bfloat16)
        return logits_cV if is_copied_anyway else logits_cV.clone()


class LinearHead:
    """A head that is a plain linear layer, followed by the steps that `after` knows."""

    def __init__(self, linear: nn.Linear, after: AfterEmbedding) -> None:
        self._after = after
        bias: Tensor | None = linear.bias
        self._own = [linear.weight] if bias is None else [linear.weight, bias]
        self.weights = [p for p in self._own if p.requires_grad]
        self.sums: list[Tensor | None] = [None] * len(self.weights)
        self._dtype = _autocast_dtype(linear.weight)
        self._cast: tuple[Tensor, Tensor | None] | None = None
        # For logits, kept between chunks: fresh pages would cost a tenth of the product's time.
        self._memory: Tensor | None = None

    @property
    def _weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """Return both in the dtype of the products, without keeping uncast weights.

        A wrapper such as FSDP may free the weights between two calls.
        """
        if self._dtype is None:
            return self._own[0].detach(), self._own[1].detach() if len(self._own) > 1 else None
        if self._cast is None:
            cast = [p.detach().to(self._dtype) for p in self._own]
            self._cast = cast[0], cast[1] if len(cast) > 1 else None
        return self._cast

    def logits(self, hidden_cD: Tensor) -> Tensor:
        with torch.no_grad():
            return self._after(self._product(hidden_cD))

    def open(self, hidden_cD: Tensor) -> tuple[Tensor, Pull]:
        hidden_cD = hidden_cD.detach()
        with torch.no_grad():
            product_cV = self._product(hidden_cD)
        if self._after.is_nothing:
            return product_cV, lambda slope_cV: self._pull(hidden_cD, slope_cV)
        with torch.enable_grad():
            logits_cV = self._after(product_cV.requires_grad_())

        def pull(slope_cV: Tensor) -> Tensor:
            slope_cV = slope_cV.to(logits_cV.dtype)
            return self._pull(hidden_cD, *torch.autograd.grad(logits_cV, product_cV, slope_cV))

        return logits_cV.detach(), pull

    def of_rows(self, rows_cD: Tensor) -> Tensor:
        weight_VD, bias_V = self._weight_and_bias
        with without_autocast(rows_cD):
            return self._after(nn.functional.linear(rows_cD.to(weight_VD.dtype), weight_VD, bias_V))

    def columns(self, hidden_cD: Tensor, ids_n: Tensor) -> Tensor | None:
        weight_VD, bias_V = self._weight_and_bias
        with torch.no_grad():
            product_cn = nn.functional.linear(
                hidden_cD.to(weight_VD.dtype),
                weight_VD[ids_n],
                None if bias_V is None else bias_V[ids_n],
            )
            return self._after(product_cn, ids_n)

    def close(self) -> None:
        self._memory = None

    def _product(self, hidden_cD: Tensor) -> Tensor:
        weight_VD, bias_V = self._weight_and_bias
        rows, hidden_cD = len(hidden_cD), hidden_cD.to(weight_VD.dtype)
        if self._memory is None or len(self._memory) < rows:
            self._memory = weight_VD.new_empty(rows, len(weight_VD))
        into_cV = self._memory[:rows].detach()
        with without_autocast(hidden_cD):
            if bias_V is None:
                return torch.mm(hidden_cD, weight_VD.T, out=into_cV)
            return torch.addmm(bias_V, hidden_cD, weight_VD.T, out=into_cV)

    def _pull(self, hidden_cD: Tensor, slope_cV: Tensor) -> Tensor:
        weight_VD, _ = self._weight_and_bias
        with torch.no_grad(), without_autocast(hidden_cD):
            slope_cV = slope_cV.to(weight_VD.dtype)
            hidden_cD = hidden_cD.to(weight_VD.dtype)
            for i, weight in enumerate(self.weights):
                if weight is self._own[0]:
                    self._add_product(i, slope_cV, hidden_cD)
                else:
                    _add(self.sums, i, slope_cV.sum(0))
            return slope_cV @ weight_VD

    def _add_product(self, i: int, slope_cV: Tensor, hidden_cD: Tensor) -> None:
        total = self.sums[i]
        if total is not None and total.dtype == slope_cV.dtype:
            total.addmm_(slope_cV.T, hidden_cD)
        else:
            _add(self.sums, i, slope_cV.T @ hidden_cD)


@contextmanager
def _frozen(weights: Sequence[Tensor]) -> Iterator[None]:
    """Leave weights out of the graph that is made meanwhile."""
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _add(sums: list[Tensor | None], i: int, more: Tensor) -> None:
    total = sums[i]
    if total is None:
        sums[i] = more.to(torch.promote_types(more.dtype, torch.float32))
    else:
        total += more


def _autocast_dtype(like: Tensor) -> torch.dtype | None:
    """Return the dtype in which autocast would compute matrix products; None where it is off."""
    kind = like.device.type
    if not torch.is_autocast_enabled(kind) or like.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(like: Tensor) -> Any:
    """Turn autocast off around arithmetic in chosen dtypes: autocast would round its sums."""
    return torch.autocast(like.device.type, enabled=False)


def _same_autocast(embedding: Any) -> Callable[[], Any]:
    """Return a context that restores today's autocast later, without its cache of weights.

    Cached weights of a call without gradient would have no slope.
    """
    kind = next((p.device.type for p in embedding.parameters()), "cpu")
    if not torch.is_autocast_enabled(kind):
        return nullcontext
    dtype = torch.get_autocast_dtype(kind)

    @contextmanager
    def again() -> Iterator[None]:
        with torch.autocast(kind, dtype, cache_enabled=False):
            yield

    return again
