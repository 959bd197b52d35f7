"""Catch a model's hidden states at its output embedding, whatever the architecture.

A model's own forward passes its last hidden states to `get_output_embeddings()`. For one call, a
stand-in replaces that module's forward. It receives the hidden states and returns a few rows of
logits for the model to go on with. What the model makes of those few rows is compared with what the
code here makes of them, which shows whether everything after the embedding is known: a scale
(Cohere multiplies, Granite divides), soft-capping (Gemma 2), a bias (BART).

Both the teacher pass and the student trainer use this.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Rows whose logits go through the model's own code when the head is checked.
PROBE_ROWS = 8


@contextmanager
def standing_in(module: Any, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace a module's forward, then restore the previous one (which may be a stand-in, too)."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@dataclass(frozen=True)
class AfterEmbedding:
    """The steps from the output of a model's embedding to its logits, as its config says.

    They run in the order in which models do them, and in the model's dtype, so that half-precision
    logits are rounded in the same way.

    Attributes:
        factor: Multiplies the logits (Cohere).
        divisor: Divides them (Granite).
        cap: Bounds them: tanh(logits / cap) * cap (Gemma 2).
        bias_V: (V,) is added to them (BART).
    """

    factor: float | None
    divisor: float | None
    cap: float | None
    bias_V: Tensor | None

    @property
    def is_nothing(self) -> bool:
        """Whether the output of the embedding is the logits."""
        return all(x is None for x in (self.factor, self.divisor, self.cap, self.bias_V))

    def __call__(self, logits: Tensor, ids: Tensor | None = None) -> Tensor:
        """Compute logits from the embedding's output.

        Args:
            logits: (…, V), or (…, n) of some tokens.
            ids: (n,) which tokens; None for all.
        """
        if self.factor is not None:
            logits = logits * self.factor
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        if self.bias_V is None:
            return logits
        bias_V = self.bias_V.to(logits.device)
        return logits + (bias_V if ids is None else bias_V[..., ids])


def after_the_embedding(model: Any) -> AfterEmbedding:
    """Read from a model's config what it does to the output of its embedding."""
    config = model.config.get_text_config(decoder=True)
    return AfterEmbedding(
        factor=getattr(config, "logit_scale", None),
        divisor=getattr(config, "logits_scaling", None),
        cap=getattr(config, "final_logit_softcapping", None),
        bias_V=getattr(model, "final_logits_bias", None),
    )


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output."""
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def same_logits(theirs: Tensor, ours: Tensor) -> bool:
    """Tell whether logits agree up to rounding; a missing scale or cap is far beyond that."""
    if theirs.numel() != ours.numel():
        return False
    tolerance = 64 * max(torch.finfo(theirs.dtype).eps, torch.finfo(ours.dtype).eps)
    return torch.allclose(
        theirs.detach().double().flatten(),
        ours.double().flatten().to(theirs.device),
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,  # a fully masked row may be anything
    )
