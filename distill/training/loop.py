"""Batches of a store that know their loss, whoever's loop it is.

:func:`distill.training.batches.batches` makes them.
"""

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor, distributed, nn
from torch.utils.data import BatchSampler, DataLoader

from distill.data.collator import Collator
from distill.data.example import Example
from distill.data.joined import StudentData, stores_of
from distill.data.row_order import RowOrder
from distill.head.student_head import StudentHead
from distill.training.arguments import Uncovered
from distill.training.batch_loss import BatchLoss, check_finite, seen_of
from distill.training.first_batch import first_batches, try_first_batch
from distill.training.loss_terms import Term, counted, divisors, unpacked
from distill.training.router_loss import router_loss, router_weight
from logitstore.errors import InputError

log = logging.getLogger(__name__)


def warn(data: StudentData, doubt: str) -> None:
    if doubt and rank_and_size()[0] == 0:
        log.warning("%s: %s. self_test=False silences this.", data.store.path, doubt)


class Losses:
    """Makes the :class:`BatchLoss` of each student, which may be made after its batches."""

    def __init__(
        self,
        data: StudentData,
        weights: Mapping[str, float],
        ce_weight: float,
        uncovered: Uncovered,
        *,
        is_balanced: bool,
    ) -> None:
        self.data, self.weights, self.uncovered = data, dict(weights), uncovered
        self._ce_weight, self._is_balanced = ce_weight, is_balanced
        self._made: weakref.WeakKeyDictionary[nn.Module, BatchLoss] = weakref.WeakKeyDictionary()

    def of(self, model: nn.Module) -> BatchLoss:
        """Find the loss of a student, or of what a wrapper made of it."""
        student = _bare(model)
        if student not in self._made:
            self._made[student] = BatchLoss(
                self.data,
                StudentHead(student),
                self.weights,
                ce_weight=self._ce_weight,
                uncovered=self.uncovered,
                summed=_summed if self._is_balanced else None,
            )
        return self._made[student]


class Batches:
    """The batches of a store for one student; :func:`batches` makes it.

    Attributes:
        dataset: The sequences, for a loader of another trainer.
        collate: Makes a batch of some of them, likewise.
        indices: Their numbers, for a trainer that takes a `datasets.Dataset` alone, such as TRL's.
        epoch: Number of the next epoch, which decides the order of rows.
        weights: The weight of each loss beside cross-entropy, by its name.
    """

    def __init__(
        self,
        losses: Losses,
        collate: Collator,
        order: RowOrder,
        batch_size: int,
        *,
        num_workers: int = 0,
        has_tried: bool = False,
    ) -> None:
        self.dataset, self.collate, self.weights = losses.data, collate, losses.weights
        self._losses, self._order, self._batch_size = losses, order, batch_size
        self._num_workers, self._has_tried = num_workers, has_tried
        order.step_rows = batch_size * rank_and_size()[1]

    @property
    def epoch(self) -> int:
        """Number of the next epoch."""
        return self._order.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._order.epoch = epoch

    @cached_property
    def loader(self) -> DataLoader[Example]:
        """The DataLoader that iterating takes them from; it counts no epochs by itself."""
        rank, size = rank_and_size()
        sampler: Any = BatchSampler(self._order, self._batch_size, drop_last=False)
        if size > 1:
            sampler = BatchSamplerShard(sampler, num_processes=size, process_index=rank)
        return DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=self.collate,
            num_workers=self._num_workers,
        )

    @cached_property
    def indices(self) -> Any:
        """A `datasets.Dataset` of the numbers of `dataset`, which `collate_indices` reads."""
        from datasets import Dataset

        return Dataset.from_dict({"index": list(range(len(self.dataset)))})

    def collate_indices(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """Make a batch of rows of `indices`."""
        return self.collate(self.dataset.__getitems__([int(row["index"]) for row in rows]))

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.loader
        self._order.epoch += 1

    def counts(self, batches: Sequence[Mapping[str, Any]]) -> Tensor:
        """Count the values of each term in the batches of a step, over all processes.

        Args:
            batches: Those of this process that are accumulated before the optimizer's step.
        """
        counts = counted(
            batches,
            tuple(self.weights),
            self._losses.uncovered,
            stores=stores_of(self.dataset),
        )
        return _summed(counts)

    def loss(
        self, model: nn.Module, batch: Mapping[str, Any], counts: Tensor | int | None = None
    ) -> Tensor:
        """Compute a batch's share of the loss of a step.

        Over several processes it is times their number, since DistributedDataParallel and the like
        average their gradients.

        Args:
            model: The student, or what a wrapper made of it; in training mode its router's loss is
                added, where it has one.
            batch: One of these batches, on any device.
            counts: Of all batches of the step, from :meth:`counts`; or the number of their labels,
                as `Trainer` counts them in `num_items_in_batch`; None: this batch is all of it.

        Returns:
            A scalar with the student's gradient.

        Raises:
            InputError: It is not finite, or labels and logits do not belong together.
        """
        loss, terms, per_term = self._computed(model, batch, counts)
        check_finite("", loss, terms, per_term, batch)
        return loss * rank_and_size()[1]

    def terms(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, float]:
        """Compute the mean of each term over a batch, without gradient."""
        batch = _on(batch, _device_of(model))
        terms = self._losses.of(model).terms(model, batch)
        return {
            name: float(t.values_P.sum() / t.counted_P.sum())
            for name, t in terms.items()
            if len(t.values_P)
        }

    def _computed(
        self, model: nn.Module, batch: Mapping[str, Any], counts: Tensor | int | None
    ) -> tuple[Tensor, dict[str, Term], Tensor]:
        device = _device_of(model)
        per_term = divisors(self._per_term([batch], counts).to(device))
        batch_loss = self._losses.of(model)
        self._check_sides(_bare(model))
        if model.training and not self._has_tried:
            self._try(model, batch_loss)
        batch = _on(batch, device)
        loss, terms = batch_loss(model, batch, per_term)
        weight = router_weight(_bare(model))
        if weight and model.training:
            share = len(batch["rows"]) / per_term[0]
            loss = loss + router_loss(batch_loss.head.router_loss, weight, model, share)
        return loss, terms, per_term

    def _per_term(
        self, batches: Sequence[Mapping[str, Any]], counts: Tensor | int | None
    ) -> Tensor:
        """Return a count for each term."""
        if counts is None:
            return self.counts(batches)
        counts = torch.as_tensor(counts)
        if counts.dim():
            return counts
        if self._losses.uncovered == "none" and self.weights:
            raise InputError(
                "counts: the number of labels divides no term but cross-entropy with "
                "uncovered='none'. Give counts(batches) of the batches of the step."
            )
        return counts.expand(1 + len(self.weights))

    def _check_sides(self, student: Any) -> None:
        if student.config.is_encoder_decoder and self.collate.sides is None:
            raise InputError(
                f"{type(student).__name__} is an encoder-decoder, whose rows are cut in two. Add "
                "model=… where the batches are made."
            )

    def _try(self, model: nn.Module, batch_loss: BatchLoss) -> None:
        """Try once whether logits and labels belong together."""
        device = _device_of(model)
        made = [
            _on(each, device)
            for each in first_batches(self.dataset, self.collate, self._batch_size)
        ]
        seen = [(seen_of(each), unpacked(each)) for each in made]
        found = try_first_batch(batch_loss.head, model, seen)
        self._has_tried = True
        if getattr(_bare(model), "name_or_path", ""):  # a new one cannot know any text
            warn(self.dataset, found.doubt)


def _bare(model: nn.Module) -> nn.Module:
    """Take off what DistributedDataParallel and the like put around a student."""
    bare: Any = model
    while not hasattr(bare, "get_output_embeddings") and hasattr(bare, "module"):
        bare = bare.module
    found: nn.Module = bare
    return found


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a batch to a device; what is there already stays as it is."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        return {k: moved(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    return {key: moved(value) for key, value in batch.items()}


def rank_and_size() -> tuple[int, int]:
    """Tell which of how many processes this is."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _summed(here: Tensor) -> Tensor:
    """Add up a tensor over all processes."""
    if rank_and_size()[1] == 1:
        return here
    on_device = here.cuda() if distributed.get_backend() == "nccl" else here.clone()
    distributed.all_reduce(on_device)
    return on_device.to(here.device)
