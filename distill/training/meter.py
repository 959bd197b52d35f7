"""The figures that a training run logs: means over the steps since the last log, and times."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.training.loss_terms import covered_fractions, covered_of, named
from logitstore.records import NO_LABEL


class Meter:
    """A sum over micro-batches, kept on the device until `report`, so that nothing waits for it.

    A step runs from :meth:`start` to :meth:`stop`; evaluation and checkpoints are not part of one.

    Args:
        terms: Names of the terms of the loss, in order.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        self.terms = tuple(terms)
        self._several = self.terms[1:] if len(terms) > 2 else ()  # losses beside ce
        self.reset()

    def reset(self) -> None:
        """Clear all sums and totals, when a training begins."""
        self._total_tokens = self._total_s = 0.0
        self._total_skipped = self._total_changed = self._total_unaligned = 0.0
        self._total_otherwise = 0.0
        self._started: float | None = None
        self._has_router = False
        self._clear()

    def _clear(self) -> None:
        self._sums: Tensor | None = None
        self._steps, self._wait_s, self._busy_s = 0, 0.0, 0.0

    def start(self) -> None:
        """Note the time at which a step begins to wait for its data."""
        self._started = time.perf_counter()

    def received(self) -> None:
        """Note the time at which the data of the step has come."""
        assert self._started is not None
        self._wait_s += time.perf_counter() - self._started
        self._steps += 1

    def stop(self) -> None:
        """Note the time at which a step ends; without a step, do nothing."""
        if self._started is not None:
            self._busy_s += time.perf_counter() - self._started
        self._started = None

    def add(
        self,
        batch: Mapping[str, Any],
        means: Sequence[Tensor],
        bounds: Sequence[Tensor],
        routed: Tensor | None = None,
    ) -> None:
        """Add a micro-batch's share of the means of its step, on this process.

        Args:
            batch: The micro-batch.
            means: Of each term.
            bounds: Of the error of each term.
            routed: What a router's loss adds to that of the step, if the student has one.
        """
        rows = len(batch["aligned"])
        has_label = torch.bincount(batch["example"], minlength=rows) > 0
        facts = [
            batch["aligned"].sum(),
            (batch["labels"] != NO_LABEL).sum(),
            batch["tokens"].sum(),
            batch["skipped"].sum(),
            batch["text_changed"].sum(),
            (has_label & (batch["aligned"] == 0)).sum(),
            batch.get("read_otherwise", batch["aligned"][:0]).sum(),
        ]
        self._has_router = routed is not None
        last = means[0].new_zeros(()) if routed is None else routed
        by_loss = list(covered_of(batch).values()) if self._several else []
        covered = [is_covered_N.sum() for is_covered_N in by_loss]
        every = (*means, *bounds, *covered, *facts, last)
        sums = torch.stack([x.detach().float() for x in every])
        self._sums = sums if self._sums is None else self._sums + sums

    def report(self, accelerator: Any, weights: Mapping[str, float]) -> dict[str, float]:
        """Compute means over steps and processes since the last report; empty without a step.

        Every process must call it, since it gathers from all of them.
        """
        if self._sums is None:
            return {}
        times = torch.tensor([self._wait_s, self._busy_s], device=self._sums.device)
        summed = accelerator.reduce(torch.cat([self._sums, times]), reduction="sum").tolist()
        count = len(self.terms)
        means = dict(zip(self.terms, (x / self._steps for x in summed[:count]), strict=True))
        bounds = (x / self._steps for x in summed[count : 2 * count])
        report = named(means, dict(zip(self.terms, bounds, strict=True)), weights)

        of_losses = dict(zip(self._several, summed[2 * count :], strict=False))
        covered, labels, tokens, skipped, changed, alone, otherwise, routed, wait_s, busy_s = (
            summed[2 * count + len(of_losses) :]
        )
        if self._has_router:
            report["aux_loss"] = routed / self._steps
        busy_here_s = busy_s / accelerator.num_processes
        if weights:
            report |= covered_fractions(covered, of_losses, labels)
        report["store_wait_fraction"] = wait_s / busy_s
        report["tokens_per_second"] = tokens / busy_here_s
        self._total_tokens += tokens
        self._total_s += busy_here_s
        self._total_skipped += skipped
        self._total_changed += changed
        if self._total_skipped:
            report["skipped_sequences"] = self._total_skipped
        if self._total_changed:  # of those skipped
            report["template_changed_text"] = self._total_changed
        self._total_unaligned += alone if weights else 0
        if self._total_unaligned:
            report["unaligned_sequences"] = self._total_unaligned
        self._total_otherwise += otherwise
        if self._total_otherwise:
            report["read_otherwise"] = self._total_otherwise
        self._clear()
        return report

    def totals(self) -> dict[str, float]:
        """Return the totals of all reports since the training began."""
        return {
            "train_tokens": self._total_tokens,
            "train_tokens_per_second": self._total_tokens / max(self._total_s, 1e-9),
            "train_skipped_sequences": self._total_skipped,
            "train_template_changed_text": self._total_changed,
            "train_unaligned_sequences": self._total_unaligned,
        }
