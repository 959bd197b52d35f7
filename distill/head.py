"""What a loss may see of the student, without a [tokens, vocabulary] tensor.

Every loss here needs the student only through a few numbers per position: the log-probability of
the label, its own largest log-probabilities, its log-probabilities at given ids, and the log of its
mass outside them. :class:`StudentHead` computes those from the hidden states and the output
embedding, a chunk of positions at a time, and computes each chunk again in the backward pass. So
the memory of distillation is that of chunked cross-entropy, whatever the loss. What may be asked,
and how it is answered from a chunk's logits, is in :mod:`distill.query`. A ranking of columns over
whole sequences takes two rounds: sums of probability first, then the columns that they chose.

**How.** A model's own forward hands its last hidden states to its output embedding. For the length
of one call a stand-in takes the place of that module's forward: it answers the query right there
and hands the model a handful of logits to go on with. A hook then makes the answer the model's
output. Both happen inside the model's forward, so wrappers (DistributedDataParallel, FSDP) have the
weights gathered and see the tensors that the gradient will come back through.

**What comes after the embedding** in some models is done here too: a scale (Cohere multiplies,
Granite divides), soft-capping (Gemma 2), a bias (BART). On the first call the handful of logits
that went through the model's own code is compared with ours; where they differ, this and all later
calls use the model's own logits, and one warning says so.

Shape legend: B, T = batch, tokens; M = B * T; D = hidden width; V = student vocabulary; N =
positions asked for; c = positions of a chunk; S = sequences; k = columns of a ranking.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.query import HeadAnswer, HeadQuery, answer_rows, column_mass, rank_columns
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
                return HeadAnswer.of(answer)
            self._fall_back("does not make its logits from its output embedding as known here")

        def own_logits(_module: nn.Module, _args: Any, output: Any) -> dict[str, Tensor]:
            logits_NV = logits_of(output).flatten(0, -2).index_select(0, rows_N)
            return answer_rows(logits_NV, query, _columns([logits_NV.detach()], [query]))

        with _taking_over(self._model, own_logits):
            return HeadAnswer.of(model_or_wrapped(**inputs))

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
            logits_NV = head_of(hidden_ND)
            return answer_rows(logits_NV, query, _columns([logits_NV.detach()], [query]))

        parts = [query.part(start, start + size) for start in range(0, count, size)]
        # Detached, not under no_grad: autocast would keep a copy of the weight without gradient.
        logits = (head_of(x.detach()).detach() for x in torch.split(hidden_ND, size))
        columns_Sk = _columns(logits, parts)

        def answer_chunk(hidden_cD: Tensor, part: HeadQuery) -> dict[str, Tensor]:
            return answer_rows(head_of(hidden_cD), part, columns_Sk)

        answers = [
            checkpoint(
                answer_chunk,
                hidden_cD,
                part,
                use_reentrant=False,
                preserve_rng_state=False,  # nothing random happens in there
            )
            for hidden_cD, part in zip(torch.split(hidden_ND, size), parts, strict=True)
        ]
        return {name: torch.cat([each[name] for each in answers]) for name in answers[0]}

    def _fall_back(self, why: str) -> None:
        if not self.dense:
            self.dense = True
            warnings.warn(
                f"{type(self._model).__name__} {why}. The student's own logits are used instead: "
                "same losses, but memory for every token times the vocabulary. "
                "StudentHead(…, dense=True) asks for that without this warning.",
                stacklevel=3,
            )


def _columns(logits: Iterable[Tensor], parts: Sequence[HeadQuery]) -> Tensor | None:
    """(S, k) the columns that each sequence's positions choose together; None: no ranking asked."""
    ranking = parts[0].ranking
    if ranking is None:  # then none of the logits is ever made
        return None
    mass_SV: Tensor | None = None
    for logits_cV, part in zip(logits, parts, strict=True):
        assert part.ranking is not None
        mass_SV = column_mass(mass_SV, logits_cV, part.ranking)
    assert mass_SV is not None
    return rank_columns(mass_SV, ranking.k)


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
