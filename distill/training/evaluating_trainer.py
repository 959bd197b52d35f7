"""Evaluate a student on a store: sums over rows, each divided once by what it is a sum of."""

from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from distill.training.loss_terms import covered_fractions, divisors, named, row_sums
from distill.training.loss_trainer import LossTrainer


class EvaluatingTrainer(LossTrainer):
    """A `LossTrainer` whose evaluation does not depend on the size of batches."""

    _eval_sums: Tensor | None

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, None, None]:
        """Add a batch to the sums of :meth:`evaluation_loop`, row by row."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            sums = row_sums(inputs, self.batch_loss.terms(model, inputs))
        # This gather drops the rows that were repeated to give every process as many.
        total = self.accelerator.gather_for_metrics(sums).cpu().double().sum(0)
        self._eval_sums = total if self._eval_sums is None else self._eval_sums + total
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as Trainer does, but with sums that are divided once.

        Trainer's mean of batch means depends on the size of batches.
        """
        self._eval_sums = None
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        names, sums = ["ce", *self.weights], self._evaluated_sums()
        triples = sums[: 3 * len(names)].double().reshape(-1, 3)
        covered, *each = sums[3 * len(names) :].tolist()
        values, bounds = (triples[:, :2] / divisors(triples[:, 2:])).T.tolist()
        report = named(
            dict(zip(names, values, strict=True)),
            dict(zip(names, bounds, strict=True)),
            self.weights,
        )
        report["loss"] = self.args.ce_weight * report["ce_loss"] + report.get("kd_loss", 0.0)
        if self.weights:
            of_losses = dict(zip(self.weights, each, strict=False))  # of several
            report |= covered_fractions(covered, of_losses, float(triples[0, 2]))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in report.items()}
        return output._replace(metrics={**(output.metrics or {}), **metrics})

    def _evaluated_sums(self) -> Tensor:
        assert self._eval_sums is not None  # a dataset without rows is rejected when it is made
        return self._eval_sums
