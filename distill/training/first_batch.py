"""Try with the first batch whether a student's logits and its labels belong together.

The student, as it is before the first step, is asked for each label of the batch: with the logit
row that predicts it, with the rows one and two before that, and with the row of another sequence.
Where another row clearly predicts the labels better, they are shifted or swapped, and that is an
error before the first step. Where the right row does, that is a proof. A new student predicts none
of them better than another, so nothing can be told; the records of its teacher have been tried
already (:mod:`distill.data.self_test`).

Rows behind the right one have read the label, so a model whose embeddings are tied may well repeat
it: they are no evidence.

Shape legend: N = labels; C = rows tried for each label.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from distill.data.evidence import CANNOT_TELL, FITS, Evidence, is_clear
from distill.head.query import HeadQuery
from distill.head.student_head import StudentHead
from logitstore.errors import InputError

#: The first is the right one; -1 is the row of the label before. Then comes another sequence's.
SHIFTS = (0, -1, -2)
_CLEAR_NATS = 0.5
#: Other rows count only if they are good: two rows that know nothing may differ, too.
_MOST_OF_OWN = 0.6


@dataclass(frozen=True)
class FirstBatch(Evidence):
    """What was found: cross-entropies in nats a label, with the right rows and with others."""

    @property
    def doubt(self) -> str:
        """Say what speaks for a mistake where nothing could be told; empty if nothing does."""
        if not self.is_doubtful:
            return ""
        return (
            f"the student is sure of what it says (its first token has {self.sure:.0%}), and the "
            f"labels of the first batch cost it {self.own:.2f} nats, those of other sequences "
            f"{self.other:.2f}. Its tokenizer may be another model's"
        )


@torch.no_grad()
def try_first_batch(
    head: StudentHead, model: nn.Module, seen: Mapping[str, Any], batch: Mapping[str, Any]
) -> FirstBatch:
    """Compare how well a student predicts its labels with how well other logit rows would.

    Every process must call it at the same time, since the model may be spread over them.

    Args:
        head: The student's head.
        model: The student, or what a wrapper made of it. It is in evaluation mode meanwhile.
        seen: What the model is given.
        batch: The batch, unpacked, on the device.

    Raises:
        InputError: Other rows predict the labels clearly better.
    """
    rows_N, example_N = batch["rows"], batch["example"]
    labels_N = batch["labels"].flatten()[rows_N + 1].long()
    places_CN = [*(_shifted(example_N, by) for by in SHIFTS), _of_another(example_N)]
    rows = torch.cat([rows_N[places.clamp(min=0)] for places in places_CN])
    was_training = model.training
    model.eval()
    answer = head(model, seen, rows, HeadQuery(labels_N.repeat(len(places_CN)), 1))
    model.train(was_training)
    if not len(rows_N):
        return FirstBatch()
    assert answer.top_logprobs_NK is not None
    sure = float(answer.top_logprobs_NK[: len(rows_N), 0].double().exp().mean())
    losses_CN = -answer.label_logprob_N.double().reshape(len(places_CN), -1)
    return replace(_judged(losses_CN, places_CN, example_N), sure=sure)


def _shifted(example_N: Tensor, by: int) -> Tensor:
    """Find (N,) the label so many further on in the same sequence; -1 where there is none."""
    count = len(example_N)
    place_N = torch.arange(count, device=example_N.device) + by
    is_there_N = (place_N >= 0) & (place_N < count)
    inside_N = place_N.clamp(0, max(count - 1, 0))
    same_N = is_there_N & (example_N[inside_N] == example_N)
    return torch.where(same_N, place_N, -1)


def _of_another(example_N: Tensor) -> Tensor:
    """Find (N,) a label of the next sequence that has labels, about as far from its beginning."""
    counts_B = torch.bincount(example_N)
    counts = counts_B[counts_B > 0]
    if len(counts) < 2:
        return torch.full_like(example_N, -1)
    which_N = ((counts_B > 0).cumsum(0) - 1)[example_N]
    first = counts.cumsum(0) - counts
    rank_N = torch.arange(len(example_N), device=example_N.device) - first[which_N]
    next_N = (which_N + 1) % len(counts)
    place_N: Tensor = first[next_N] + torch.minimum(rank_N, counts[next_N] - 1)
    return place_N


def _judged(losses_CN: Tensor, places_CN: list[Tensor], example_N: Tensor) -> FirstBatch:
    own_N, others = losses_CN[0], []
    names = [*(f"{-by} before" for by in SHIFTS[1:]), "of another sequence"]
    for name, losses_N, places_N in zip(names, losses_CN[1:], places_CN[1:], strict=True):
        is_known_N = places_N >= 0
        if _is_clear(own_N - losses_N, is_known_N, example_N):
            means = [float(each[is_known_N].mean()) for each in (own_N, losses_N)]
            others.append((means[1], means[0], name))
    if others and min(others)[0] < _MOST_OF_OWN * min(others)[1]:
        raise _misaligned(*min(others))
    other_N, is_other_N = losses_CN[-1], places_CN[-1] >= 0
    if not bool(is_other_N.any()):
        return FirstBatch(float(own_N.mean()))
    fits = _is_clear(other_N - own_N, is_other_N, example_N)
    own, other = float(own_N.mean()), float(other_N[is_other_N].mean())
    return FirstBatch(own, other, outcome=FITS if fits else CANNOT_TELL)


def _is_clear(gain_N: Tensor, is_known_N: Tensor, example_N: Tensor) -> bool:
    """Tell whether the mean gain of a sequence is large, and far from what chance makes."""
    chosen_N = is_known_N & gain_N.isfinite()
    counts_B = torch.bincount(example_N[chosen_N])
    sums_B = gain_N.new_zeros(len(counts_B)).index_add(0, example_N[chosen_N], gain_N[chosen_N])
    return is_clear((sums_B / counts_B)[counts_B > 0].cpu().numpy(), _CLEAR_NATS)


def _misaligned(better: float, own: float, which: str) -> InputError:
    return InputError(
        f"step 1: the logits {which} predict the labels of the first batch better than those that "
        f"training would use, {better:.2f} against {own:.2f} nats a label, so the student would be "
        "trained on the wrong ones. Check the model's code and its positions; --no_self_test "
        "trains all the same.",
        kind="self-test",
    )
