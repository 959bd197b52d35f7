"""Compute the loss of a batch from the teacher's arrays: a Trainer with another loss.

`trainer.py` says what the loss is, and where in a step it is computed.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from distill.data.example import Store
from distill.data.joined import StudentData
from distill.data.self_test import Tried
from distill.head.student_head import StudentHead
from distill.training.batch_loss import BatchLoss, check_finite, rows_text, seen_of
from distill.training.config import CachedTeacherConfig
from distill.training.first_batch import FirstBatch, first_batches, try_first_batch
from distill.training.kd_schedule import Schedule
from distill.training.loss_terms import Term, divisors, unpacked
from distill.training.meter import Meter
from distill.training.router_loss import router_loss
from distill.training.untrained import Untrained
from logitstore.errors import InputError
from logitstore.storage.paths import StorePath

log = logging.getLogger(__name__)


class LossTrainer(Trainer):
    """A Trainer whose loss is that of a store's records; `CachedTeacherTrainer` sets it up."""

    # The loss below is already divided by the counts of the whole accumulated batch.
    # Read by transformers >= 5.19; the floor in pyproject.toml says so.
    loss_is_scaled_for_ga = True
    args: CachedTeacherConfig
    store: Store
    data: StudentData
    batch_loss: BatchLoss
    self_test: dict[str, Any]
    is_new: bool
    _has_tried: bool
    _router_weight: float
    _kd_schedule: Schedule | None
    _meter: Meter
    _untrained: Untrained | None
    _rows: list[int]

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss of the run, by its name."""
        return self.batch_loss.weights

    @property
    def head(self) -> StudentHead:
        """The student's head."""
        return self.batch_loss.head

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
        counts = (
            self.batch_loss.counts([inputs]) if num_items_in_batch is None else num_items_in_batch
        )
        assert isinstance(counts, Tensor)
        counts = divisors(counts.to(inputs["rows"].device))
        if model.training and not self._has_tried:
            self._try_student(model)
        if self._kd_schedule is not None:
            step, steps = self.state.global_step, self.state.max_steps
            self.batch_loss.kd_factor = self._kd_schedule.at(step, steps)
        loss, terms = self._loss(model, inputs, counts)
        learnt = loss
        routed: Tensor | None = None
        if self._router_weight and model.training:
            share = self.batch_loss.counts([inputs])[0] / counts[0]
            found = self.head.router_loss
            routed = router_loss(found, self._router_weight, model, share)
            loss = loss + routed
        if model.training:
            means = [t.values_P.sum() / n for t, n in zip(terms.values(), counts, strict=True)]
            where = f"step {self.state.global_step + 1}, "
            check_finite(where, loss, terms, counts, inputs)
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
        """Compute the loss and its terms."""
        return self.batch_loss(model, inputs, counts)

    def _try_student(self, model: nn.Module) -> None:
        """Try whether logits and labels belong together, as many sequences at once as in a step."""
        made = first_batches(self.data, self.data_collator, self._train_batch_size)
        prepared = map(self._prepare_inputs, made)
        batches = [(seen_of(inputs), unpacked(inputs)) for inputs in prepared]
        tried = try_first_batch(self.head, model, batches)
        self._has_tried = True
        self._note_test("student", tried, self.args, self.store.path, can_doubt=not self.is_new)

    def _note_test(
        self,
        name: str,
        found: Tried | FirstBatch,
        args: CachedTeacherConfig,
        store: StorePath,
        *,
        can_doubt: bool = True,
    ) -> None:
        """Keep what a test found, and warn of what it doubts."""
        self.self_test[name] = found.facts()
        if can_doubt and found.doubt and args.process_index == 0:
            log.warning("%s: %s. --no_self_test silences this.", store, found.doubt)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Count over all micro-batches and processes; Trainer's hook, here with a count a term."""
        counts: Tensor = self.accelerator.reduce(
            self.batch_loss.counts(batch_samples).to(device), "sum"
        )
        return counts

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        # With fp16, infinite gradients are how the loss scaler finds its scale.
        if not self.args.fp16 and not bool(torch.isfinite(torch.as_tensor(norm))):
            raise InputError(
                f"step {self.state.global_step + 1}, {rows_text(self._rows)}: the gradient norm is "
                f"{torch.as_tensor(norm).item():g} though the loss is finite; training stopped "
                "before this step touched the weights. Lower --learning_rate; with --bf16, try "
                "without."
            )
        return norm

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device.

        DeepSpeed would also round the teacher's float32 to the model's dtype.
        """
        ours = ("teacher", "pieces", "store_share")
        prepared = super()._prepare_inputs({k: v for k, v in inputs.items() if k not in ours})
        if "store_share" in inputs:
            prepared["store_share"] = inputs["store_share"].to(self.args.device)
        teacher = {
            name: {key: array.to(self.args.device) for key, array in arrays.items()}
            for name, arrays in inputs["teacher"].items()
        }
        return {**prepared, "teacher": teacher, "pieces": inputs.get("pieces")}
