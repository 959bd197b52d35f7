"""A model's head for one call: hidden states to logits, and a gradient back through it.

The gradient with respect to the head's own weights is summed over chunks of positions in place;
half precision is summed in float32. Any module can be a head. A plain linear layer, which nearly
all are, needs no graph for its gradient, and can be asked for some columns alone.

Shape legend: c = positions of a chunk; D = hidden width; V = vocabulary; n = some columns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from logitstore.models.output_embedding import AfterEmbedding

#: From the gradient of logits to that of the hidden states they were made from.
Pull = Callable[[Tensor], Tensor]


class OutputHead(Protocol):
    """What a chunk's logits come from, and where their gradient goes.

    Attributes:
        weights: What of the head learns.
        sums: The gradient of each so far; None before the first.
    """

    weights: list[Tensor]
    sums: list[Tensor | None]

    def logits(self, hidden_cD: Tensor) -> Tensor:
        """(c, V) without gradient; the caller may overwrite them.

        They last until the next logits of this head, which may take their memory.
        """

    def open(self, hidden_cD: Tensor) -> tuple[Tensor, Pull]:
        """The same, and the way back: a call of it adds to `sums`."""

    def close(self) -> None:
        """No more logits are wanted of the last ones' memory."""

    def columns(self, hidden_cD: Tensor, ids_n: Tensor) -> Tensor | None:
        """(c, n) logits of some tokens, or None if that takes all of them."""


def is_plain_linear(embedding: Any) -> bool:
    """Whether a :class:`LinearHead` can stand for it: nothing else has a hand in its forward."""
    return type(embedding) is nn.Linear and "forward" not in vars(embedding)


class AnyHead:
    """A head that only autograd knows: an adapter's, a quantised one, one that hooks load."""

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

    def close(self) -> None:
        pass

    def columns(self, hidden_cD: Tensor, ids_n: Tensor) -> Tensor | None:
        return None

    def _own(self, logits_cV: Tensor) -> Tensor:
        """Free to be overwritten: what is still needed for the way back is not known."""
        is_copied_anyway = logits_cV.dtype in (torch.float16, torch.bfloat16)
        return logits_cV if is_copied_anyway else logits_cV.clone()


class LinearHead:
    """A linear layer, and what is known to come after it."""

    def __init__(self, linear: nn.Linear, after: AfterEmbedding) -> None:
        self._after = after
        bias: Tensor | None = linear.bias
        self._own = [linear.weight] if bias is None else [linear.weight, bias]
        self.weights = [p for p in self._own if p.requires_grad]
        self.sums: list[Tensor | None] = [None] * len(self.weights)
        self._dtype = _autocast_dtype(linear.weight)
        self._cast: tuple[Tensor, Tensor | None] | None = None
        self._memory: Tensor | None = None  # of logits: fresh pages cost a tenth of the product

    @property
    def _weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """In the dtype of the products. Asked for anew: a wrapper may free weights in between."""
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
        found = self.sums[i]
        if found is not None and found.dtype == slope_cV.dtype:
            found.addmm_(slope_cV.T, hidden_cD)
        else:
            _add(self.sums, i, slope_cV.T @ hidden_cD)


def _add(sums: list[Tensor | None], i: int, more: Tensor) -> None:
    found = sums[i]
    if found is None:
        sums[i] = more.to(torch.promote_types(more.dtype, torch.float32))
    else:
        found += more


def _autocast_dtype(like: Tensor) -> torch.dtype | None:
    """The dtype that autocast would have matrix products in; None where it is off."""
    kind = like.device.type
    if not torch.is_autocast_enabled(kind) or like.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(like: Tensor) -> Any:
    """For arithmetic whose dtypes are right as they are: autocast would round its sums."""
    return torch.autocast(like.device.type, enabled=False)


def _same_autocast(embedding: Any) -> Callable[[], Any]:
    """Autocast as it is now, for later; without its cache of weights, which would have no slope."""
    kind = next((p.device.type for p in embedding.parameters()), "cpu")
    if not torch.is_autocast_enabled(kind):
        return nullcontext
    dtype = torch.get_autocast_dtype(kind)

    @contextmanager
    def again() -> Iterator[None]:
        with torch.autocast(kind, dtype, cache_enabled=False):
            yield

    return again
