"""What a loss may see of the student, without a [tokens, vocabulary] tensor.

Every loss here needs the student only through a few numbers per position: the log-probability of
the label, its own largest log-probabilities, its log-probabilities at given ids, and the log of its
mass outside them. :class:`StudentHead` computes those from the hidden states and the output
embedding, a chunk of positions at a time, and computes each chunk again in the backward pass. So
the memory of distillation is that of chunked cross-entropy, whatever the loss.

**How.** A model's own forward hands its last hidden states to its output embedding. For the length
of one call a stand-in takes the place of that module's forward: it answers the query right there
and hands the model a handful of logits to go on with. A hook then makes the answer the model's
output. Both happen inside the model's forward, so wrappers (DistributedDataParallel, FSDP) have the
weights gathered and see the tensors that the gradient will come back through.

**What comes after the embedding** in some models is done here too: a scale (Cohere multiplies,
Granite divides), soft-capping (Gemma 2), a bias (BART). On the first call the handful of logits
that went through the model's own code is compared with ours; where they differ, this and all later
calls use the model's own logits, and one warning says so.

Shape legend: B, T = batch, tokens; D = hidden width; V = student vocabulary; N = positions asked
for; c = positions of a chunk; K = top_k, or the width of `ids_NK`.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from logitstore.capture.output_embedding import (
    PROBE_ROWS,
    after_the_embedding,
    logits_of,
    same_logits,
    standing_in,
)
from logitstore.errors import InputError

#: Logits of a chunk, 128 MiB in float32: 1,024 positions of a vocabulary of 32k, 256 of 128k. Also
#: enough rows for a matrix product to run at full speed.
CHUNK_LOGITS = 2**25


@dataclass(frozen=True)
class HeadQuery:
    """What to compute at each of N positions.

    Attributes:
        labels_N: (N,) int64 in [0, V), the student's own tokens.
        top_k: How many of the largest log-probabilities; 0 for none.
        top_k_mask_N: (N,) bool, where `top_k` is wanted; None for everywhere.
        ids_NK: (N, K) int64, ids to look up; -1 is padding. None for no ids.
    """

    labels_N: Tensor
    top_k: int = 0
    top_k_mask_N: Tensor | None = None
    ids_NK: Tensor | None = None

    def part(self, start: int, stop: int) -> "HeadQuery":
        """The same question about positions start to stop."""
        mask_N, ids_NK = self.top_k_mask_N, self.ids_NK
        return HeadQuery(
            self.labels_N[start:stop],
            self.top_k,
            None if mask_N is None else mask_N[start:stop],
            None if ids_NK is None else ids_NK[start:stop],
        )


@dataclass(frozen=True)
class HeadAnswer:
    """Log-probabilities over the full student vocabulary: float32, float64 of a float64 model.

    Attributes:
        label_logprob_N: (N,) of the labels.
        top_logprobs_NK: (N, top_k) largest first; -inf beyond V and where masked. None: not asked.
        id_logprobs_NK: (N, K) at `ids_NK`; -inf in padding. None: not asked.
        rest_logmass_N: (N,) log of the mass outside `ids_NK`, -inf for none. None: not asked.
    """

    label_logprob_N: Tensor
    top_logprobs_NK: Tensor | None = None
    id_logprobs_NK: Tensor | None = None
    rest_logmass_N: Tensor | None = None


class StudentHead:
    """Runs a model and answers a :class:`HeadQuery` instead of returning logits.

    Args:
        model: The bare model, before any wrapper; anything with `get_output_embeddings()`.
        chunk_tokens: Positions of a chunk; by default so many that a chunk has `CHUNK_LOGITS`.
        dense: Take the model's own logits, all at once: the definition, in V times the memory.
    """

    def __init__(
        self, model: nn.Module, *, chunk_tokens: int | None = None, dense: bool = False
    ) -> None:
        self.dense = dense
        self._model = model
        self._embedding: Any = model.get_output_embeddings()  # type: ignore[operator]
        self._is_checked = False
        if self._embedding is None:
            self._fall_back("has no output embedding")
            self.chunk_tokens = 0
        else:
            width = int(getattr(self._embedding, "out_features", self._embedding.weight.shape[0]))
            self.chunk_tokens = chunk_tokens or max(1, CHUNK_LOGITS // width)

    def __call__(
        self,
        model_or_wrapped: nn.Module,
        inputs: Mapping[str, Any],
        rows_N: Tensor,
        query: HeadQuery,
    ) -> HeadAnswer:
        """Runs `model_or_wrapped(**inputs)` and answers `query` at the logit rows `rows_N`.

        Args:
            model_or_wrapped: The model, or what DistributedDataParallel and the like made of it.
            inputs: The model's keyword arguments, without labels.
            rows_N: (N,) int64, flat indices b*T + t. The row that predicts the token at (b, t) is
                b*T + t - 1.
            query: What to compute there. N may be 0: the answer is empty and still has a gradient,
                which other ranks wait for.

        Raises:
            InputError: If the wrapper is DataParallel, which copies the model for every call.
        """
        if isinstance(model_or_wrapped, nn.DataParallel):
            raise InputError(
                "the student is wrapped in torch.nn.DataParallel, which replaces the model by "
                "copies in every call; expected DistributedDataParallel or one device. Start it "
                "with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES to one device."
            )
        if not self.dense:
            answer = self._chunked(model_or_wrapped, inputs, rows_N, query)
            if answer is not None:
                return HeadAnswer(**answer)
            self._fall_back("does not make its logits from its output embedding as known here")

        def own_logits(_module: nn.Module, _args: Any, output: Any) -> dict[str, Tensor]:
            return _answer(logits_of(output).flatten(0, -2).index_select(0, rows_N), query)

        with _taking_over(self._model, own_logits):
            return HeadAnswer(**model_or_wrapped(**inputs))

    def _chunked(
        self, wrapped: nn.Module, inputs: Mapping[str, Any], rows_N: Tensor, query: HeadQuery
    ) -> dict[str, Tensor] | None:
        """The answer in chunks, or None if the model's own logits turn out to be others."""
        head = self._embedding.forward
        finish = after_the_embedding(self._model)
        answer: dict[str, Tensor] = {}
        probe: Tensor = torch.empty(0, 1)

        def stand_in(hidden: Tensor) -> Tensor:
            nonlocal probe
            hidden_MD = hidden.flatten(0, -2)
            hidden_ND = hidden_MD.index_select(0, rows_N)
            answer.update(self._answer_chunks(lambda h: finish(head(h)), hidden_ND, query))
            # After the chunks: autocast would keep a copy of the weight that has no gradient.
            with torch.no_grad():
                probe = head(hidden_MD[: 0 if self._is_checked else PROBE_ROWS])
            # One sequence of so few rows: whatever the model does to logits, it does to these.
            return probe.reshape(*[1] * (hidden.dim() - 2), *probe.shape)

        def hand_over(_module: nn.Module, _args: Any, output: Any) -> dict[str, Tensor]:
            if not same_logits(logits_of(output), finish(probe)):
                return {}
            self._is_checked = True
            return answer

        with standing_in(self._embedding, stand_in), _taking_over(self._model, hand_over):
            given: dict[str, Tensor] = wrapped(**inputs)
        return given or None

    def _answer_chunks(
        self, head_of: Callable[[Tensor], Tensor], hidden_ND: Tensor, query: HeadQuery
    ) -> dict[str, Tensor]:
        count, size = len(hidden_ND), self.chunk_tokens
        if count <= size:  # within the memory granted to a chunk, so nothing needs recomputing
            return _answer(head_of(hidden_ND), query)

        def answer_chunk(hidden_cD: Tensor, part: HeadQuery) -> dict[str, Tensor]:
            return _answer(head_of(hidden_cD), part)

        parts = [
            checkpoint(
                answer_chunk,
                hidden_ND[start : start + size],
                query.part(start, start + size),
                use_reentrant=False,
                preserve_rng_state=False,  # nothing random happens in there
            )
            for start in range(0, count, size)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _fall_back(self, why: str) -> None:
        if not self.dense:
            self.dense = True
            warnings.warn(
                f"{type(self._model).__name__} {why}. The student's own logits are used instead: "
                "same losses, but memory for every token times the vocabulary. "
                "StudentHead(…, dense=True) asks for that without this warning.",
                stacklevel=3,
            )


def _answer(logits_cV: Tensor, query: HeadQuery) -> dict[str, Tensor]:
    """The fields of a HeadAnswer for some rows of logits, by name, without those not asked for."""
    logits_cV = logits_cV.to(torch.promote_types(logits_cV.dtype, torch.float32))
    log_z_c = logits_cV.logsumexp(-1)
    # Differences, not views of something: an in-place change must not reach past a wrapper's hooks.
    label_c = logits_cV.gather(1, query.labels_N[:, None]).squeeze(1) - log_z_c
    answer = {"label_logprob_N": label_c}
    if query.top_k:
        answer["top_logprobs_NK"] = _top(logits_cV, log_z_c, query.top_k, query.top_k_mask_N)
    if query.ids_NK is not None:
        at_ids_cK = logits_cV.gather(1, query.ids_NK.clamp(min=0)) - log_z_c[:, None]
        answer["id_logprobs_NK"] = at_ids_cK.masked_fill(query.ids_NK < 0, -torch.inf)
        answer["rest_logmass_N"] = _rest(logits_cV, log_z_c, query.ids_NK)
    return answer


def _top(logits_cV: Tensor, log_z_c: Tensor, k: int, mask_c: Tensor | None) -> Tensor:
    """The k largest log-probabilities of each row; -inf beyond V, and in rows outside the mask."""
    rows, width = logits_cV.shape
    if mask_c is None:
        top = logits_cV.topk(min(k, width)).values - log_z_c[:, None]
        return nn.functional.pad(top, (0, k - top.shape[1]), value=-torch.inf)
    wanted = mask_c.nonzero().squeeze(1)
    top = _top(logits_cV[wanted], log_z_c[wanted], k, None)
    return top.new_full((rows, k), -torch.inf).index_copy(0, wanted, top)


def _rest(logits_cV: Tensor, log_z_c: Tensor, ids_cK: Tensor) -> Tensor:
    """Log of the mass outside the ids, summed over the other tokens themselves.

    1 - sum(p) cancels to noise exactly where the student is good.
    """
    rows, width = logits_cV.shape
    # Padding marks a column beyond the vocabulary, so that it never hides a token.
    is_id_cV = torch.zeros(rows, width + 1, dtype=torch.bool, device=logits_cV.device)
    is_id_cV.scatter_(1, torch.where(ids_cK >= 0, ids_cK, width), True)
    rest_cV = logits_cV.masked_fill(is_id_cV[:, :width], -torch.inf)
    # A row of all -inf has a NaN gradient, even times zero. (Models mask tokens with -inf, too.)
    has_rest_c = rest_cV.detach().amax(-1) > -torch.inf
    log_rest_c = rest_cV.masked_fill(~has_rest_c[:, None], 0).logsumexp(-1) - log_z_c
    return log_rest_c.masked_fill(~has_rest_c, -torch.inf)


@contextmanager
def _taking_over(
    model: nn.Module, hook: Callable[[nn.Module, Any, Any], dict[str, Tensor]]
) -> Iterator[None]:
    """Makes the hook's result the model's output.

    First of all hooks: those of FSDP look for the tensors that the gradient comes back through.
    """
    handle = model.register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()
