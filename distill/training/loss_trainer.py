"""Compute the loss of a batch from the teacher's arrays: a Trainer with another loss.

`trainer.py` says what the loss is, and where in a step it is computed.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from distill.data.batch_cuts import Pieces, piece_of
from distill.data.dataset import StoreDataset
from distill.data.example import Store
from distill.data.self_test import Tried
from distill.head.query import HeadAnswer, Partition
from distill.head.student_head import StudentHead
from distill.student.encoder_decoder import SEEN
from distill.training.config import CachedTeacherConfig
from distill.training.first_batch import FirstBatch, first_batches, try_first_batch
from distill.training.loss_terms import (
    Term,
    bad_rows,
    counts_of,
    joined,
    placed,
    query_of,
    terms_of,
    unpacked,
)
from distill.training.meter import Meter
from distill.training.router_loss import router_loss
from distill.training.untrained import Untrained
from logitstore.errors import InputError

log = logging.getLogger(__name__)


class LossTrainer(Trainer):
    """A Trainer whose loss is that of a store's records; `CachedTeacherTrainer` sets it up."""

    # The loss below is already divided by the counts of the whole accumulated batch.
    # Read by transformers >= 5.19; the floor in pyproject.toml says so.
    loss_is_scaled_for_ga = True
    args: CachedTeacherConfig
    store: Store
    data: StoreDataset
    head: StudentHead
    weights: dict[str, float]
    options: dict[str, Any]
    self_test: dict[str, Any]
    is_new: bool
    _has_tried: bool
    _router_weight: float
    _meter: Meter
    _untrained: Untrained | None
    _on_device: dict[str, Partition] | None
    _rows: list[int]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute a micro-batch's share of the loss of its whole accumulated, distributed batch.

        Args:
            model: The model, or what a wrapper made of it.
            inputs: A batch as :mod:`distill.data.dataset` lays it out, on the device.
            return_outputs: Whether to return `(loss, terms)`.
            num_items_in_batch: Counts of the whole batch, one a term; None: this is all of it.
        """
        counts = self._counts([inputs]) if num_items_in_batch is None else num_items_in_batch
        assert isinstance(counts, Tensor)
        counts = counts.to(inputs["rows"].device).clamp(min=1)
        if model.training and not self._has_tried:
            self._try_student(model)
        loss, terms = self._loss(model, inputs, counts)
        learnt = loss
        routed: Tensor | None = None
        if self._router_weight and model.training:
            share = self._counts([inputs])[0] / counts[0]
            found = self.head.router_loss
            routed = router_loss(found, self._router_weight, model, share)
            loss = loss + routed
        if model.training:
            means = [t.values_P.sum() / n for t, n in zip(terms.values(), counts, strict=True)]
            self._stop_if_not_finite(loss, dict(zip(terms, means, strict=True)), terms, inputs)
            bounds = [t.bound_P.sum() / n for t, n in zip(terms.values(), counts, strict=True)]
            self._meter.add(inputs, means, bounds, routed)
            if self._untrained is not None:
                self._untrained.add(learnt, len(inputs["rows"]))
            # DDP and FSDP average gradients over ranks, which the factor undoes.
            loss = loss * self.accelerator.num_processes
        return (loss, terms) if return_outputs else loss

    def _loss(
        self, model: nn.Module, inputs: dict[str, Any], counts: Tensor
    ) -> tuple[Tensor, dict[str, Term]]:
        """Compute the loss and its terms, piece by piece if the batch is cut.

        The terms then have no gradient: it is taken already.
        """
        inputs = unpacked(inputs)
        pieces: Pieces | None = inputs.get("pieces") if torch.is_grad_enabled() else None
        by_start = {} if pieces is None else {piece.start: piece for piece in pieces.each}
        shares: list[dict[str, Term]] = []

        def objective(answer: HeadAnswer, start: int, stop: int) -> Tensor:
            teacher = inputs["teacher"]
            if by_start and stop - start < len(inputs["rows"]):
                teacher = piece_of(teacher, by_start[start])
            terms = terms_of(teacher, answer, self.options, self.args.uncovered)
            shares.append(terms if pieces is None else placed(terms, start))
            means = [t.values_P.sum() / n for t, n in zip(terms.values(), counts, strict=True)]
            return self._total(terms, means)

        query = query_of(inputs, self.options, self._partitions())
        ranges = None if pieces is None else [(each.start, each.stop) for each in pieces.each]
        loss = self.head.loss(model, self._seen(inputs), inputs["rows"], query, objective, ranges)
        return loss, joined(shares)

    def _try_student(self, model: nn.Module) -> None:
        """Try whether logits and labels belong together, as many sequences at once as in a step."""
        made = first_batches(self.data, self.data_collator, self._train_batch_size)
        prepared = map(self._prepare_inputs, made)
        batches = [(self._seen(inputs), unpacked(inputs)) for inputs in prepared]
        tried = try_first_batch(self.head, model, batches)
        self._has_tried = True
        self._note_test("student", tried, self.args, can_doubt=not self.is_new)

    def _note_test(
        self,
        name: str,
        found: Tried | FirstBatch,
        args: CachedTeacherConfig,
        *,
        can_doubt: bool = True,
    ) -> None:
        """Keep what a test found, and warn of what it doubts."""
        self.self_test[name] = found.facts()
        if can_doubt and found.doubt and args.process_index == 0:
            log.warning("%s: %s. --no_self_test silences this.", self.store.path, found.doubt)

    def _seen(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Choose what the model itself is given, as it would be by any other collator."""
        seen: dict[str, Any] = {key: inputs[key].long() for key in SEEN if key in inputs}
        if "position_ids" in seen:
            # Models make the mask of packed sequences where they are given no other, nor a cache.
            del seen["attention_mask"]
            seen["use_cache"] = False
        return seen

    def _terms(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Term]:
        inputs = unpacked(inputs)
        query = query_of(inputs, self.options, self._partitions())
        answer = self.head(model, self._seen(inputs), inputs["rows"], query)
        return terms_of(inputs["teacher"], answer, self.options, self.args.uncovered)

    def _partitions(self) -> Mapping[str, Partition]:
        """Return what the ids of losses are events of, on the device, where they stay.

        They depend on both tokenizers alone, so evaluation has the same ones.
        """
        if self._on_device is None:
            of_loss = self.data.partitions.items()
            self._on_device = {name: each.to(self.args.device) for name, each in of_loss}
        return self._on_device

    def _total(self, terms: Mapping[str, Term], means: list[Tensor]) -> Tensor:
        """Weight and add the terms; the sum depends on the student even if nothing is to learn."""
        loss = terms["ce"].values_P[:0].sum()
        ce, *others = means
        kd = sum((w * mean for w, mean in zip(self.weights.values(), others, strict=True)), loss)
        if self.args.ce_weight:  # 0 times an infinite loss is NaN
            loss = loss + self.args.ce_weight * ce
        return loss + (self._balance(ce, kd) * kd if self.args.balance else kd)

    def _balance(self, ce: Tensor, kd: Tensor) -> Tensor:
        """Compute CE / KD of the whole distributed batch, without gradient; 1 if KD is not > 0."""
        both = torch.stack([ce.detach(), kd.detach()])
        whole_ce, whole_kd = self.accelerator.reduce(both, "sum")
        return torch.where(whole_kd > 0, whole_ce / whole_kd, 1)

    def _counts(self, batches: list[dict[str, Any]]) -> Tensor:
        """Count the values of each term in these batches of this process."""
        losses = tuple(self.weights)
        counts = [counts_of(batch, losses, self.args.uncovered) for batch in batches]
        return torch.tensor(counts, dtype=torch.long).reshape(-1, 1 + len(self.weights)).sum(0)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Count over all micro-batches and processes; Trainer's hook, here with a count a term."""
        counts: Tensor = self.accelerator.reduce(self._counts(batch_samples).to(device), "sum")
        return counts

    def _stop_if_not_finite(
        self,
        loss: Tensor,
        means: Mapping[str, Tensor],
        terms: Mapping[str, Term],
        inputs: Mapping[str, Any],
    ) -> None:
        if not bool(torch.isfinite(loss)):
            parts = ", ".join(f"{name} {mean.item():g}" for name, mean in means.items())
            raise InputError(
                f"step {self.state.global_step + 1}, {_rows(bad_rows(terms, inputs))}: the loss is "
                f"{loss.item():g} ({parts}); training stopped before this step touched the "
                "weights. Lower --learning_rate or raise --warmup_steps; with --fp16, try --bf16."
            )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        # With fp16, infinite gradients are how the loss scaler finds its scale.
        if not self.args.fp16 and not bool(torch.isfinite(torch.as_tensor(norm))):
            raise InputError(
                f"step {self.state.global_step + 1}, {_rows(self._rows)}: the gradient norm is "
                f"{torch.as_tensor(norm).item():g} though the loss is finite; training stopped "
                "before this step touched the weights. Lower --learning_rate; with --bf16, try "
                "without."
            )
        return norm

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device.

        DeepSpeed would also round the teacher's float32 to the model's dtype.
        """
        ours = ("teacher", "pieces")
        prepared = super()._prepare_inputs({k: v for k, v in inputs.items() if k not in ours})
        teacher = {
            name: {key: array.to(self.args.device) for key, array in arrays.items()}
            for name, arrays in inputs["teacher"].items()
        }
        return {**prepared, "teacher": teacher, "pieces": inputs.get("pieces")}


def _rows(rows: Sequence[int]) -> str:
    """Name rows of the dataset in a message: if there are many, the first eight."""
    shown = ", ".join(f"{row:,}" for row in rows[:8]) + (", …" if len(rows) > 8 else "")
    return f"row{'' if len(rows) == 1 else 's'} {shown} of the dataset"
