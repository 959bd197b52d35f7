"""The loss of a batch from the teacher's arrays, in whatever loop it is trained.

:mod:`distill.training.trainer` says what the loss is. Here it is computed: the head of the student
is asked for what the terms read, piece by piece, and each term is divided by its own count.

Shape legend: N = labels, P = pairs of a loss.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.data.batch_cuts import Pieces, piece_of
from distill.data.joined import StudentData, stores_of
from distill.head.query import HeadAnswer, Partition
from distill.head.student_head import Make, StudentHead
from distill.losses import find, is_own
from distill.losses.loss import Inside
from distill.student.encoder_decoder import SEEN
from distill.training.arguments import Uncovered
from distill.training.batch_query import query_of
from distill.training.loss_terms import (
    Term,
    bad_rows,
    counted,
    joined,
    placed,
    shares_of,
    terms_of,
    unpacked,
)
from distill.training.own_weights import of
from distill.training.weighing import Sequences
from logitstore.errors import InputError


class BatchLoss:
    """A function of a model and a batch: the loss, or the terms that it is made of.

    Args:
        data: The store as the student reads it, or several, for losses and options of its own.
        head: The student's head.
        weights: The weight of each loss of `data`, in order.
        ce_weight: The weight of cross-entropy.
        uncovered: What is done about labels that no pair of a loss covers.
        summed: Adds up a tensor over all processes; None: do not scale the losses to cross-entropy
            (`--balance`).
    """

    def __init__(
        self,
        data: StudentData,
        head: StudentHead,
        weights: Mapping[str, float],
        *,
        ce_weight: float = 1.0,
        uncovered: Uncovered = "hard",
        summed: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.data, self.head, self.weights = data, head, dict(weights)
        self.ce_weight, self.uncovered, self._summed = ce_weight, uncovered, summed
        #: What all terms but cross-entropy are multiplied with, see `--kd_schedule`.
        self.kd_factor = 1.0
        self._on_device: dict[str, Partition] | None = None

    def counts(self, batches: Sequence[Mapping[str, Any]]) -> Tensor:
        """Count (1 + losses,) the values of each term in these batches of this process."""
        return counted(batches, tuple(self.weights), self.uncovered, stores=stores_of(self.data))

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Any], counts: Tensor
    ) -> tuple[Tensor, dict[str, Term]]:
        """Compute a batch's share of the loss, and its terms.

        Args:
            model: The model, or what a wrapper made of it.
            batch: As :mod:`distill.data.dataset` lays it out, on the device.
            counts: Of all batches that make one step together, at least 1 each.

        Returns:
            The loss, with its gradient; the terms have none where the batch is cut, as it is taken
            already.
        """
        return self._run(
            model,
            batch,
            lambda terms: self.total(
                terms, [t.values_P.sum() / n for t, n in zip(terms.values(), counts, strict=True)]
            ),
        )

    @torch.no_grad()
    def terms(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Term]:
        """Compute the terms of a batch, without gradient."""
        nothing = torch.zeros((), device=batch["rows"].device)
        return self._run(model, batch, lambda _terms: nothing)[1]

    def _run(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        total: Callable[[Mapping[str, Term]], Tensor],
    ) -> tuple[Tensor, dict[str, Term]]:
        """Compute the terms, piece by piece if the batch is cut, and add up `total` of them."""
        batch = unpacked(batch)
        pieces: Pieces | None = batch.get("pieces")
        by_start = {} if pieces is None else {piece.start: piece for piece in pieces.each}
        shares: list[dict[str, Term]] = []
        shares_NS = shares_of(batch)

        def objective(answer: HeadAnswer, start: int, stop: int) -> Tensor:
            teacher = batch["teacher"]
            if by_start and stop - start < len(batch["rows"]):
                teacher = piece_of(teacher, by_start[start])
            of_stores_NS = None if shares_NS is None else shares_NS[start:stop]
            sequences = Sequences(batch["example"][start:stop], len(batch["aligned"]))
            terms = terms_of(
                teacher, answer, self.data.options, self.uncovered, of_stores_NS, sequences
            )
            shares.append(terms if pieces is None else placed(terms, start))
            return total(terms)

        query = query_of(batch, self.data.options, self.partitions(batch["rows"].device))
        ranges = None if pieces is None else [(each.start, each.stop) for each in pieces.each]
        seen, make = seen_of(batch), self._make(batch, query.labels_N)
        loss = self.head.loss(model, seen, batch["rows"], query, objective, ranges, make)
        return loss, joined(shares)

    def _make(self, batch: Mapping[str, Any], labels_N: Tensor) -> Make | None:
        """Return what the weights of losses make of a batch, which is unpacked; None: nothing."""
        student: Any = self.head.model
        weights = of(student)
        if weights is None:
            return None
        read = batch.get("decoder_input_ids", batch["input_ids"])
        read_N = read.flatten()[batch["rows"]].long()

        def make(hidden_ND: Tensor) -> dict[str, Tensor]:
            def embed_trained(ids: Tensor) -> Tensor:
                rows: Tensor = student.get_input_embeddings()(ids)
                return rows.float()

            embed = torch.no_grad()(embed_trained)
            states = hidden_ND.float()
            inside = Inside(states, read_N, labels_N, batch["example"], embed, embed_trained)
            with torch.autocast(hidden_ND.device.type, enabled=False):
                return {
                    f"{use}.{name}": tensor
                    for use, module in weights.items()
                    for name, tensor in module(
                        inside, batch["teacher"][use], self.data.options
                    ).items()
                }

        return make

    def partitions(self, device: torch.device) -> Mapping[str, Partition]:
        """Return what the ids of losses are events of, on the device, where they stay.

        They depend on both tokenizers alone, so evaluation has the same ones.
        """
        if self._on_device is None:
            # Stores of one tokenizer share a partition.
            made = self.data.partitions
            moved = {id(each): each.to(device) for each in made.values()}
            self._on_device = {name: moved[id(each)] for name, each in made.items()}
        return self._on_device

    def total(self, terms: Mapping[str, Term], means: Sequence[Tensor]) -> Tensor:
        """Weight and add the terms; the sum depends on the student even if nothing is to learn."""
        loss = terms["ce"].values_P[:0].sum()
        ce, *others = means
        kd = sum((w * mean for w, mean in zip(self.weights.values(), others, strict=True)), loss)
        if self.ce_weight:  # 0 times an infinite loss is NaN
            loss = loss + self.ce_weight * ce
        if self._summed is not None:
            kd = self.balance(ce, kd) * kd
        return loss + (kd if self.kd_factor == 1 else self.kd_factor * kd)

    def balance(self, ce: Tensor, kd: Tensor) -> Tensor:
        """Compute CE / KD of the whole distributed batch, without gradient; 1 if KD is not > 0."""
        assert self._summed is not None
        whole_ce, whole_kd = self._summed(torch.stack([ce.detach(), kd.detach()]))
        return torch.where(whole_kd > 0, whole_ce / whole_kd, 1)


def seen_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Choose what the model itself is given, as it would be by any other collator."""
    seen: dict[str, Any] = {key: batch[key].long() for key in SEEN if key in batch}
    if "position_ids" in seen:
        # Models make the mask of packed sequences where they are given no other, nor a cache.
        del seen["attention_mask"]
        seen["use_cache"] = False
    return seen


def check_finite(
    where: str,
    loss: Tensor,
    terms: Mapping[str, Term],
    counts: Tensor,
    batch: Mapping[str, Any],
) -> None:
    """Stop where a loss is not finite, before it touches the weights.

    Args:
        where: The step, for the message.
        loss: The loss.
        terms: What it is made of.
        counts: What each term was divided by.
        batch: Of which.

    Raises:
        InputError: Names the rows of the dataset, and the terms.
    """
    if bool(torch.isfinite(loss)):
        return
    means = [t.values_P.detach().sum() / n for t, n in zip(terms.values(), counts, strict=True)]
    parts = ", ".join(f"{n} {float(mean):g}" for n, mean in zip(terms, means, strict=True))
    bad = [n for n, mean in zip(terms, means, strict=True) if not bool(torch.isfinite(mean))]
    advice = "Lower --learning_rate or raise --warmup_steps; with --fp16, try --bf16."
    if bad and all(map(is_own, bad)):
        own = ", ".join(str(find(name)) for name in bad)
        advice = f"Cross-entropy is finite there, so look at {own} first. Then: {advice}"
    raise InputError(
        f"{where}{rows_text(bad_rows(terms, batch))}: the loss is {loss.item():g} ({parts}); "
        f"training stopped before this step touched the weights. {advice}"
    )


def rows_text(rows: Sequence[int]) -> str:
    """Name rows of the dataset in a message: if there are many, the first eight."""
    shown = ", ".join(f"{row:,}" for row in rows[:8]) + (", …" if len(rows) > 8 else "")
    return f"row{'' if len(rows) == 1 else 's'} {shown} of the dataset"
