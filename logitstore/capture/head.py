"""What is kept of a teacher's distribution, computed chunk by chunk from hidden states.

The [tokens, vocabulary] tensor of a batch never exists: a stand-in for the output embedding's
forward catches the hidden states, picks the supervised positions, and a chunk at a time goes
through the head. Architectures that change logits after the embedding (Cohere multiplies by
`logit_scale`, Granite divides by `logits_scaling`, Gemma 2 soft-caps) are followed by their
configuration. The first batch is checked against `model(...).logits`; where they differ, the
model's own logits are used from then on, loudly.

Shape legend: B = rows, L = padded length, D = hidden width, V = vocabulary, n = positions asked
for, K = entries, T = extra temperatures.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitstore.errors import InputError

log = logging.getLogger(__name__)

_CHUNK_BYTES = 64 * 1024 * 1024  # of float32 logits at a time
_AGREE = 2e-3  # largest difference in logits that another order of bf16 rounding explains, relative


@dataclass(frozen=True)
class HeadSettings:
    """What to keep.

    Attributes:
        top_k: Entries of a record at most.
        max_tail: Keep the fewest entries that leave no more than this outside; None: always top_k.
        temperatures: Extra temperatures to store the log-normaliser for.
    """

    top_k: int
    max_tail: float | None = None
    temperatures: tuple[float, ...] = ()


@dataclass(frozen=True)
class HeadResult:
    """Per position, float32 on the CPU; entries most probable first."""

    token_logprob: Tensor  # (n,)
    entry_logprobs: Tensor  # (n, K)
    entry_ids: Tensor  # (n, K) int32
    entry_count: Tensor  # (n,)
    tail_logmass: Tensor  # (n,)
    entropy: Tensor  # (n,)
    lognorm: Tensor  # (n, T)


def summarise(logits_nV: Tensor, targets_n: Tensor, settings: HeadSettings) -> list[Tensor]:
    """The fields of `HeadResult`, in order, from the full logits of a few positions.

    Sums are float32 over the whole vocabulary; the tail is a log-sum-exp over what is outside the
    entries, since 1 - sum cancels to noise where the teacher is sure.
    """
    logp_nV = logits_nV.float().log_softmax(-1)
    entries_nK, ids_nK = logp_nV.topk(min(settings.top_k, logp_nV.shape[-1]), dim=-1)
    token_n = logp_nV.gather(1, targets_n[:, None]).squeeze(1)
    entropy_n = torch.special.entr(logp_nV.exp()).sum(-1)
    lognorm_nT = logp_nV.new_zeros(len(logp_nV), len(settings.temperatures))
    for i, temperature in enumerate(settings.temperatures):
        lognorm_nT[:, i] = (logp_nV / temperature).logsumexp(-1)
    tail_n = logp_nV.scatter_(1, ids_nK, -torch.inf).logsumexp(-1)
    count_n = torch.full_like(targets_n, entries_nK.shape[1])
    if settings.max_tail is not None:
        count_n, tail_n = _fewest(entries_nK, tail_n, settings.max_tail)
    return [token_n, entries_nK, ids_nK.int(), count_n, tail_n, entropy_n, lognorm_nT]


def _fewest(entries_nK: Tensor, tail_n: Tensor, max_tail: float) -> tuple[Tensor, Tensor]:
    """The smallest count whose tail is within bounds, or all; and the tail it leaves."""
    # left[:, k] = log mass outside the first k + 1 entries, summed from the small end.
    parts = torch.cat([entries_nK[:, 1:], tail_n[:, None]], 1)
    left = parts.flip(1).logcumsumexp(1).flip(1)
    within = left.exp() <= max_tail
    within[:, -1] = True
    keep = within.int().argmax(1)
    return keep + 1, left.gather(1, keep[:, None]).squeeze(1)


class TeacherHead:
    """Runs the teacher and keeps what `HeadSettings` asks for.

    Args:
        model: A causal language model in eval mode.
        settings: What to keep.
    """

    def __init__(self, model: Any, settings: HeadSettings) -> None:
        self.model, self.settings = model, settings
        self._embedding: nn.Module | None = model.get_output_embeddings()
        self._checked = False
        config = model.config.get_text_config()
        self._multiply = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        self._cap = getattr(config, "final_logit_softcapping", None)

    @torch.inference_mode()
    def __call__(
        self, inputs: dict[str, Tensor], positions_n: Tensor, targets_n: Tensor
    ) -> HeadResult:
        """Summaries of the logit rows at `positions_n`.

        Args:
            inputs: Of the model: input_ids and attention_mask, (B, L).
            positions_n: Flat indices into B x L of the rows that predict the targets.
            targets_n: The tokens they predict.
        """
        if not self._checked:
            self._check(inputs, positions_n)
        if self._embedding is None:
            logits = self.model(**inputs).logits.flatten(0, 1)
            return self._gather(lambda i: logits[positions_n[i]], targets_n)
        with self._catching() as caught:
            self.model(**inputs)
        hidden_nD = caught[0].flatten(0, 1)[positions_n]
        return self._gather(lambda i: self._logits(hidden_nD[i]), targets_n)

    def _logits(self, hidden_nD: Tensor) -> Tensor:
        assert self._embedding is not None
        logits: Tensor = self._embedding(hidden_nD) * self._multiply
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    def _gather(self, logits_of: Callable[[slice], Tensor], targets_n: Tensor) -> HeadResult:
        width = int(self.model.config.get_text_config().vocab_size)
        step = max(1, _CHUNK_BYTES // (4 * width))
        chunks: list[list[Tensor]] = []
        for start in range(0, len(targets_n), step):
            part = slice(start, min(start + step, len(targets_n)))
            chunks.append(summarise(logits_of(part), targets_n[part], self.settings))
        return HeadResult(*(torch.cat(field).cpu() for field in zip(*chunks, strict=True)))

    @contextmanager
    def _catching(self) -> Iterator[list[Tensor]]:
        """Within, the output embedding hands its input here and returns next to nothing."""
        caught: list[Tensor] = []
        embedding: Any = self._embedding

        def stand_in(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
            caught.append(hidden)
            return hidden[..., :1]

        embedding.forward = stand_in
        try:
            yield caught
        finally:
            del embedding.forward  # the class's own forward shows again

    def _check(self, inputs: dict[str, Tensor], positions_n: Tensor) -> None:
        """Once: does head(hidden) equal the model's own logits?"""
        self._checked = True
        few = positions_n[:64]
        theirs = self.model(**inputs).logits.flatten(0, 1)[few].float()
        if not torch.isfinite(theirs.logsumexp(-1)).all():
            return  # reported by the job, which knows the row
        if self._embedding is None:
            log.warning("The teacher has no output embedding; its own logits are used whole.")
            return
        with self._catching() as caught:
            self.model(**inputs)
        reason = "its output embedding is not called in its forward"
        if len(caught) == 1 and caught[0].shape[:2] == inputs["input_ids"].shape:
            ours = self._logits(caught[0].flatten(0, 1)[few]).float()
            if ours.shape == theirs.shape:
                # Compared as distributions: a masked vocabulary (-inf) is equal where both are.
                gap = (ours.log_softmax(-1) - theirs.log_softmax(-1)).nan_to_num(0.0).abs().max()
                if gap <= _AGREE * max(1.0, float(theirs.abs().nan_to_num(0, 0, 0).max())):
                    return
                reason = f"log-probabilities differ by up to {float(gap):.3g}"
        log.warning(
            "The teacher's head cannot be computed from its hidden states (%s): its own logits are "
            "used, which needs memory for batch x vocabulary. Lower --tokens-per-batch if it does "
            "not fit.",
            reason,
        )
        self._embedding = None


def check_vocabulary(model: Any, tokenizer_size: int, vocab_size: int) -> None:
    """The teacher must be able to predict every id its tokenizer makes.

    Raises:
        InputError: Its output embedding has fewer rows than the tokenizer has ids, or another
            number than its configuration says.
    """
    embedding = model.get_output_embeddings()
    weight = getattr(embedding, "weight", None)
    rows = vocab_size if weight is None else int(weight.shape[0])
    if rows != vocab_size:
        raise InputError(
            f"the teacher's output embedding has {rows} rows, its config.json says vocab_size "
            f"{vocab_size}. Save the model again with the right configuration."
        )
    if tokenizer_size > vocab_size:
        raise InputError(
            f"the teacher predicts {vocab_size} ids, but its tokenizer makes {tokenizer_size}. "
            "Use the tokenizer that belongs to this model, or resize its embeddings."
        )
