"""A student's answers to the queries of a loss, without a [tokens, vocabulary] tensor.

Every loss needs the student only through a few numbers per position: the log-probability of the
label, the largest log-probabilities, the log-probabilities at given ids, and the log of the mass
outside those. :class:`StudentHead` computes them from the hidden states and the output embedding, a
chunk of positions at a time. So distillation needs the memory of chunked cross-entropy, whatever
the loss.

* :mod:`distill.head.query`: what can be asked, and the definition of the answers.
* :mod:`distill.head.logit_rows`: the answers and their gradient, from the logits of a chunk.
* :mod:`distill.head.chunked`: the gradient of all chunks, in the forward pass or by making the
  logits again in the backward pass.

**How.** A model's own forward passes its last hidden states to its output embedding. For the length
of one call a stand-in replaces that module's forward: it answers the query and returns only a few
logits, with which the model's forward goes on. A hook then makes the answer the model's output.
Both run inside the model's forward, so wrappers (DistributedDataParallel, FSDP) have gathered the
weights and see the tensors that the gradient comes back through.

**Steps after the embedding** that some models have are done here too: a scale (Cohere multiplies,
Granite divides), soft-capping (Gemma 2), a bias (BART). On the first call the few logits that went
through the model's own code are compared with ours; where they differ, this and all later calls use
the model's own logits, and warn once.

Shape legend: B, T = batch, tokens; M = B * T; D = hidden width; V = student vocabulary; N =
positions asked for; c = positions of a chunk.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distill.head.chunked import Objective, in_the_forward, in_turn, recomputed
from distill.head.output_head import AnyHead, LinearHead, OutputHead, is_plain_linear
from distill.head.query import MADE, HeadAnswer, HeadQuery, answer_rows, column_mass, rank_columns
from logitstore.errors import InputError
from logitstore.models.output_embedding import (
    PROBE_ROWS,
    after_the_embedding,
    logits_of,
    same_logits,
    standing_in,
)

#: The most logits of a chunk: 128 MiB in float32, 261 positions of a vocabulary of 128k. With half
#: as many a matrix product over them is slower by a fifth, with twice as many no faster. And the
#: most positions: with 256, ULD needs just over a tenth of the memory of sorting both sides.
CHUNK_LOGITS, CHUNK_TOKENS = 2**25, 208
_ROUTER_LOSS = "aux_loss"
#: Makes (N, …) tensors by name of (N, D) hidden states.
Make = Callable[[Tensor], Mapping[str, Tensor]]


class StudentHead:
    """A model that answers a :class:`HeadQuery` instead of returning logits.

    Args:
        model: The bare model, before any wrapper; anything with `get_output_embeddings()`.
        chunk_tokens: Positions of a chunk; None: `chunk_tokens_of` the model's vocabulary.
        dense: Use the model's own logits of all positions together: the definition, with memory
            for every position times the vocabulary.
    """

    def __init__(
        self, model: nn.Module, *, chunk_tokens: int | None = None, dense: bool = False
    ) -> None:
        self.dense = dense
        self._model = model
        self._embedding: Any = model.get_output_embeddings()  # type: ignore[operator]
        self._is_checked = False
        #: What the last call's model said that its router's loss is, with its gradient; or None.
        self.router_loss: Tensor | None = None
        if self._embedding is None:
            self._fall_back("has no output embedding")
            self.chunk_tokens = 0
        else:
            width = int(getattr(self._embedding, "out_features", self._embedding.weight.shape[0]))
            self.chunk_tokens = chunk_tokens or chunk_tokens_of(width)

    @property
    def model(self) -> nn.Module:
        """The bare model."""
        return self._model

    def __call__(
        self,
        model_or_wrapped: nn.Module,
        inputs: Mapping[str, Any],
        rows_N: Tensor,
        query: HeadQuery,
    ) -> HeadAnswer:
        """Run `model_or_wrapped(**inputs)` and answer `query` at the logit rows `rows_N`.

        Args:
            model_or_wrapped: The model, or what DistributedDataParallel and the like made of it.
            inputs: The model's keyword arguments, without labels.
            rows_N: (N,) int64, flat indices b*T + t. The row that predicts the token at (b, t) is
                b*T + t - 1.
            query: What to compute there. N may be 0: the answer is then empty and still has a
                gradient, which other ranks wait for.

        Raises:
            InputError: If the wrapper is DataParallel, which copies the model for every call.
        """
        answer = self._run(
            model_or_wrapped,
            inputs,
            rows_N,
            lambda head, hidden_ND: recomputed(head, hidden_ND, query, self.chunk_tokens),
            lambda logits_NV: answer_rows(logits_NV, query, _columns(logits_NV, query)),
        )
        return HeadAnswer.of(answer)

    def loss(
        self,
        model_or_wrapped: nn.Module,
        inputs: Mapping[str, Any],
        rows_N: Tensor,
        query: HeadQuery,
        objective: Objective,
        ranges: Sequence[tuple[int, int]] | None,
        make: Make | None = None,
    ) -> Tensor:
        """Run the model, and add up `objective` over the answers to `query`, chunk by chunk.

        The gradient is taken in the forward pass, which saves a quarter of the head's arithmetic;
        where none is wanted, none is taken. Where that is impossible (no ranges; float16, whose
        small gradients need the loss scale that only the backward pass knows; the model's own
        logits), `objective` is called once, with the answer for all positions.

        Args:
            model_or_wrapped: As for `__call__`.
            inputs: As for `__call__`.
            rows_N: As for `__call__`.
            query: As for `__call__`.
            objective: Called with the answer for positions [start, stop), start and stop; returns a
                scalar. The loss is the sum over chunks.
            ranges: The (start, stop) of each chunk, one after the other, each of about
                `chunk_tokens` positions and, with a ranking, of whole sequences. None: one chunk.
            make: Is given the hidden states at `rows_N` within the model's forward, and makes
                (N, …) tensors by name that go with the answer, with their gradient.

        Raises:
            InputError: Something is to be made, and the student's logits are not made of hidden
                states as known here.

        Returns:
            The loss, a scalar.
        """

        def chunked(head: OutputHead, hidden_ND: Tensor) -> dict[str, Tensor]:
            made = {} if make is None else named_made(make(hidden_ND))
            if ranges and not torch.is_grad_enabled():
                return {"loss": in_turn(head, hidden_ND, query, ranges, objective, made)}
            if ranges and hidden_ND.dtype != torch.float16 and not _is_float16_autocast(hidden_ND):
                return {"loss": in_the_forward(head, hidden_ND, query, ranges, objective, made)}
            answer = recomputed(head, hidden_ND, query, self.chunk_tokens)
            return whole(HeadAnswer.of(answer | made, head.of_rows))

        def dense(logits_NV: Tensor) -> dict[str, Tensor]:
            if make is not None:
                raise InputError(
                    f"{type(self._model).__name__}: does not make its logits from hidden states as "
                    "known here, which a loss with weights of its own reads. Use another --loss."
                )
            found = answer_rows(logits_NV, query, _columns(logits_NV, query))
            return whole(HeadAnswer.of(found))

        def whole(answer: HeadAnswer) -> dict[str, Tensor]:
            return {"loss": objective(answer, 0, len(rows_N))}

        return self._run(model_or_wrapped, inputs, rows_N, chunked, dense)["loss"]

    def _run(
        self,
        wrapped: nn.Module,
        inputs: Mapping[str, Any],
        rows_N: Tensor,
        chunked: Callable[[OutputHead, Tensor], dict[str, Tensor]],
        dense: Callable[[Tensor], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Run the model, its output replaced by `chunked` of hidden states or `dense` of logits."""
        if isinstance(wrapped, nn.DataParallel):
            raise InputError(
                "the student is wrapped in torch.nn.DataParallel, which replaces the model by "
                "copies in every call; expected DistributedDataParallel or one device. Start it "
                "with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES to one device."
            )
        if not self.dense:
            answer = self._chunked(wrapped, inputs, rows_N, chunked)
            if answer is not None:
                return answer
            self._fall_back("does not make its logits from its output embedding as known here")

        def own_logits(_module: nn.Module, _args: Any, output: Any) -> dict[str, Tensor]:
            logits_NV = logits_of(output).flatten(0, -2).index_select(0, rows_N)
            return dense(logits_NV) | _router_loss(output)

        with _taking_over(self._model, own_logits):
            given: dict[str, Tensor] = wrapped(**inputs)
        return self._without_router_loss(given)

    def _without_router_loss(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep the router's loss apart from the answer, behind whose wrappers it came along."""
        self.router_loss = given.get(_ROUTER_LOSS)
        return {name: tensor for name, tensor in given.items() if name != _ROUTER_LOSS}

    def _chunked(
        self,
        wrapped: nn.Module,
        inputs: Mapping[str, Any],
        rows_N: Tensor,
        make: Callable[[OutputHead, Tensor], dict[str, Tensor]],
    ) -> dict[str, Tensor] | None:
        """Run the model with `make` in place of its head; None if the model's own logits differ."""
        head, after = self._embedding.forward, after_the_embedding(self._model)
        embedding = self._embedding
        is_plain = is_plain_linear(embedding)
        made: dict[str, Tensor] = {}
        probe: Tensor = torch.empty(0, 1)

        def stand_in(hidden: Tensor) -> Tensor:
            nonlocal probe
            hidden_MD = hidden.flatten(0, -2)
            # Its weights are those that the wrapper has gathered for this forward.
            opened = LinearHead(embedding, after) if is_plain else AnyHead(embedding, head, after)
            made.update(make(opened, hidden_MD.index_select(0, rows_N)))
            # After the chunks: autocast would keep a copy of the weight that has no gradient.
            with torch.no_grad():
                probe = head(hidden_MD[: 0 if self._is_checked else PROBE_ROWS])
            # Shaped as one sequence of a few tokens, so that the model's later steps apply to it.
            return probe.reshape(*[1] * (hidden.dim() - 2), *probe.shape)

        def hand_over(_module: nn.Module, _args: Any, output: Any) -> dict[str, Tensor]:
            if not same_logits(logits_of(output), after(probe)):
                return {}
            self._is_checked = True
            return made | _router_loss(output)

        with standing_in(self._embedding, stand_in), _taking_over(self._model, hand_over):
            given: dict[str, Tensor] = wrapped(**inputs)
        return self._without_router_loss(given) or None

    def _fall_back(self, why: str) -> None:
        if not self.dense:
            self.dense = True
            warnings.warn(
                f"{type(self._model).__name__} {why}. The student's own logits are used instead: "
                "same losses, but memory for every token times the vocabulary. "
                "StudentHead(…, dense=True) asks for that without this warning.",
                stacklevel=3,
            )


def named_made(made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name what was made as an answer has it."""
    return {f"{MADE}{name}": tensor for name, tensor in made.items()}


def _router_loss(output: Any) -> dict[str, Tensor]:
    """Take the loss of a mixture of experts' router from what the model's forward returned."""
    found = getattr(output, _ROUTER_LOSS, None)
    return {_ROUTER_LOSS: found} if isinstance(found, Tensor) else {}


def chunk_tokens_of(vocabulary: int) -> int:
    """Choose the positions of a chunk: few enough logits to keep, many enough for fast products."""
    return max(1, min(CHUNK_TOKENS, CHUNK_LOGITS // vocabulary))


def _columns(logits_NV: Tensor, query: HeadQuery) -> Tensor | None:
    """Choose (S, k) the columns with most mass over each sequence; None without a ranking."""
    if query.ranking is None:
        return None
    return rank_columns(column_mass(None, logits_NV.detach(), query.ranking), query.ranking.k)


def _is_float16_autocast(like: Tensor) -> bool:
    kind = like.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16


@contextmanager
def _taking_over(
    model: nn.Module, hook: Callable[[nn.Module, Any, Any], dict[str, Tensor]]
) -> Iterator[None]:
    """Make the hook's result the model's output.

    It runs before all other hooks: those of FSDP look in the output for the tensors that the
    gradient comes back through.
    """
    handle = model.register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()
