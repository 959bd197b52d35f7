"""Try before the first step whether a student's logits and its labels belong together.

The student is asked for each label of a few sequences from all over the store, collated as training
does: with the logit row that predicts it, with the rows one and two before that, and with the rows
of other sequences. Where another row clearly predicts the labels better, they are shifted or
swapped, and that is an error before the first step. Where the right row does, that is a proof. A
new student predicts none of them better than another, so nothing can be told; the records of its
teacher have been tried already (:mod:`distill.data.self_test`).

Rows behind the right one have read the label, so a model whose embeddings are tied may well repeat
it: they are no evidence.

Shape legend: N = labels; C = rows tried for each label; n = labels of a batch; S = sequences.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from distill.data.example import Example
from distill.data.joined import StudentData
from distill.data.left_out import in_blocks
from distill.head.query import HeadQuery
from distill.head.student_head import StudentHead
from logitstore.checking.evidence import (
    Better,
    CostEvidence,
    Floats,
    better_place,
    fit,
)
from logitstore.console.counts import counted
from logitstore.errors import InputError

#: Sequences that are tried, and that are looked at to find as many with labels.
_SEQUENCES, _LOOKED_AT = 8, 32
#: The first is the right one; -1 is the row of the label before. Then come other sequences'.
_SHIFTS = (0, -1, -2)
_OTHERS = (1, -1)  # which sequence instead, counted from its own
_NAMES = (*(f"{-by} before" for by in _SHIFTS[1:]), *["of another sequence"] * len(_OTHERS))
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class FirstBatch(CostEvidence):
    """What was found: cross-entropies in nats a label, with the right rows and with others."""

    @property
    def doubt(self) -> str:
        """Say what speaks for a mistake where nothing could be told; empty if nothing does."""
        return self.doubt_of("the student", "labels")


def first_batches(
    data: StudentData, collate: Callable[[Any], Any], size: int
) -> Iterator[dict[str, Any]]:
    """Collate a few sequences with labels from all over the store.

    They are the same in every process. Most lie in shards that have been read by then.

    Args:
        data: The store as the student reads it.
        collate: The collator of the run.
        size: The most sequences of a batch that the device is known to hold.
    """
    # Of each block of neighbours one first: neighbours may be parts of one document.
    spread = in_blocks(len(data), _LOOKED_AT, _SEQUENCES)
    step = max(1, len(spread) // _SEQUENCES)
    chosen = list[Example]()
    for i in (i for first in range(step) for i in spread[first::step]):
        example = data[int(i)]
        chosen += [example] if example.is_label.any() else []
        if len(chosen) == _SEQUENCES:
            break
    for start in range(0, len(chosen), size):
        yield collate(chosen[start : start + size])


class _Labels(NamedTuple):
    """The labels of all batches, one after the other.

    Attributes:
        label_N: (N,) their ids.
        row_N: (N,) the logit row in its batch that predicts each.
        sequence_N: (N,) the sequence of each, counted over all batches.
        first_B: Of each batch, its first label; then N.
        batch_S: The batch of each sequence.
    """

    label_N: Tensor
    row_N: Tensor
    sequence_N: Tensor
    first_B: list[int]
    batch_S: list[int]

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Self:
        labels, sequences, first_B, batch_S = list[Tensor](), list[Tensor](), [0], list[int]()
        for i, batch in enumerate(batches):
            labels.append(batch["labels"].flatten()[batch["rows"] + 1].long())
            names, sequence_n = batch["example"].unique(return_inverse=True)
            sequences.append(sequence_n + len(batch_S))
            batch_S += [i] * len(names)
            first_B.append(first_B[-1] + len(sequence_n))
        row_N = torch.cat([batch["rows"] for batch in batches])
        return cls(torch.cat(labels), row_N, torch.cat(sequences), first_B, batch_S)

    def places(self) -> Tensor:
        """List (C, N) the labels whose rows are tried for each label; -1 where there is none."""
        shifted = [self._shifted(by) for by in _SHIFTS]
        return torch.stack([*shifted, *(self._of_another(by) for by in _OTHERS)])

    def _shifted(self, by: int) -> Tensor:
        """Find (N,) the label so many further on in the same sequence."""
        count = len(self.label_N)
        place_N = torch.arange(count, device=self.label_N.device) + by
        inside_N = place_N.clamp(0, max(count - 1, 0))
        is_same_N = (inside_N == place_N) & (self.sequence_N[inside_N] == self.sequence_N)
        return torch.where(is_same_N, place_N, -1)

    def _of_another(self, by: int) -> Tensor:
        """Find (N,) a label of another sequence, about as far from its beginning."""
        if len(self.batch_S) < 2:
            return torch.full_like(self.label_N, -1)
        count_S = torch.bincount(self.sequence_N)
        first_S = count_S.cumsum(0) - count_S
        partner_S = torch.tensor(_partners(self.batch_S, by), device=count_S.device)
        partner_N = partner_S[self.sequence_N]
        rank_N = torch.arange(len(self.label_N), device=count_S.device) - first_S[self.sequence_N]
        return first_S[partner_N] + torch.minimum(rank_N, count_S[partner_N] - 1)


def _partners(batch_S: Sequence[int], by: int) -> list[int]:
    """Choose another sequence for each, of its own batch where that has several."""
    found = []
    for sequence, batch in enumerate(batch_S):
        group = [other for other, of in enumerate(batch_S) if of == batch]
        group = group if len(group) > 1 else list(range(len(batch_S)))
        found.append(group[(group.index(sequence) + by) % len(group)])
    return found


@torch.no_grad()
def try_first_batch(
    head: StudentHead, model: nn.Module, batches: Sequence[tuple[Mapping[str, Any], Batch]]
) -> FirstBatch:
    """Compare how well a student predicts its labels with how well other logit rows would.

    Every process must call it at the same time with as many batches, since the model may be spread
    over them. They are asked for the same sequences, so that all or none of them stop.

    Args:
        head: The student's head.
        model: The student, or what a wrapper made of it. It is in evaluation mode meanwhile.
        batches: What the model is given, and the batch, unpacked, on the device; a pair each.

    Raises:
        InputError: Other rows predict the labels clearly better.
    """
    if not batches:
        return FirstBatch()
    labels = _Labels.of([batch for _, batch in batches])
    places_CN = labels.places()
    losses_CN = torch.full(places_CN.shape, torch.nan, dtype=torch.double, device=places_CN.device)
    sure_N = torch.zeros_like(losses_CN[0])
    was_training = model.training
    model.eval()
    for (seen, _), start, stop in zip(batches, labels.first_B, labels.first_B[1:], strict=False):
        candidate, asked = torch.nonzero((places_CN >= start) & (places_CN < stop), as_tuple=True)
        rows = labels.row_N[places_CN[candidate, asked]]
        answer = head(model, seen, rows, HeadQuery(labels.label_N[asked], 1))
        losses_CN[candidate, asked] = -answer.label_logprob_N.double()
        assert answer.top_logprobs_NK is not None
        is_own = candidate == 0
        sure_N[asked[is_own]] = answer.top_logprobs_NK[is_own, 0].double().exp()
    model.train(was_training)
    return _judged(losses_CN, places_CN, labels.sequence_N, float(sure_N.mean()))


def _judged(losses_CN: Tensor, places_CN: Tensor, sequence_N: Tensor, sure: float) -> FirstBatch:
    costs_CN = torch.where(places_CN >= 0, losses_CN, torch.nan).cpu().numpy()
    ends = torch.bincount(sequence_N).cumsum(0)[:-1].cpu().numpy()
    own, *others = (list[Floats](np.split(costs_N, ends)) for costs_N in costs_CN)
    better = better_place(own, zip(_NAMES, others, strict=True))
    if better is not None:
        raise _misaligned(better, len(own))
    mean = float(costs_CN[0].mean())
    if len(own) < 2:
        return FirstBatch(mean, sure=sure, sequences=len(own))
    other = float(costs_CN[len(_SHIFTS)].mean())
    return FirstBatch(mean, other, sure, fit(own, others[len(_SHIFTS) - 1]), len(own))


def _misaligned(better: Better, sequences: int) -> InputError:
    return InputError(
        f"step 1: the logits {better.name} predict the labels of {counted(sequences, 'sequence')} "
        f"better than those that training would use, {better.cost:.2f} against {better.own:.2f} "
        "nats a label, so the student would be trained on the wrong ones. Check the model's code "
        "and its positions; --no_self_test trains all the same.",
        kind="self-test",
    )
