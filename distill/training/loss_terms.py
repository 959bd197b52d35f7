"""The terms of the training loss, one value per position, before any reduction.

This file connects the batch (:mod:`distill.data.dataset`), which knows the label of each of the
teacher's pairs, with the losses, which see aligned rows only. It passes each row of the student's
answer to :mod:`distill.training.batch_query` to the loss that asked for it.

**Labels without a pair.** A mean over the pairs of a loss trains the labels that they cover more
than all others, and that alone makes a trained student worse, whatever the teacher says: even
cross-entropy, counted twice on those labels, does. So the term of a loss is a mean over all labels,
in one of three ways (`--uncovered`):

    hard     where no pair of the loss covers a label, its cross-entropy stands in; where a pair
             compares an event that the label is a part of, that of the label given its event
    scale    nothing stands in; a covered label weighs what it weighs with `hard`
    none     nothing stands in; the mean is over the loss's own pairs, or sequences, as in papers

The same harm is done within an event of several tokens: the loss says how probable all of them are
together, and nothing about which. By the chain rule, with e(y) the event of a token y,

    KL(q || p)  =  KL over events  +  sum_y q(y) (log q(y | e(y)) - log p(y | e(y)))

so -log p(y | e(y)) of the text's own y is the missing part on average, less what no student can
change. The rest, all tokens that a teacher's record has no entry for, is one such event.

A pair covers its label and the further labels that belong to it. The value of a group of tokens
counts once, since it is of all of them together. That of a whole sequence is a mean over its
positions, so it counts once for each label that it covers, except with `none`.

**Weights of tokens** (`--token_weights`) multiply the value of a pair, with what the pair leaves
open of its label. They have a mean of one over the pairs of a sequence, as stand-ins have.

**Several stores.** A loss then has arrays of each (:mod:`distill.losses.uses`), and its term is the
mean over the stores that have the row, by their weights: at every label, stand-ins included, or
with `none` over the pairs of all of them.

Shape legend: B = rows of the batch, N = labels, P = pairs of a loss, or values of a term: its
pairs with `none`, else all labels; S = stores.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.data.batch_cuts import INDEX, PAIR, members_of
from distill.data.ragged import rectangles
from distill.head.query import HeadAnswer
from distill.losses import find
from distill.losses.loss import Options, Student
from distill.losses.uses import loss_of, store_of
from distill.training.arguments import Uncovered
from distill.training.weighing import Sequences, weight_of_each
from logitstore.errors import InputError

Batch = Mapping[str, Any]


class Term(NamedTuple):
    """A term of the loss. Its mean is the sum of its values over their number.

    Attributes:
        values_P: (P,) with gradient.
        index_P: (P,) the label that each value belongs to.
        bound_P: (P,) the most by which the value against the live teacher can differ from it.
        weight_P: (P,) what each value counts for, and was multiplied with; None: 1.
    """

    values_P: Tensor
    index_P: Tensor
    bound_P: Tensor
    weight_P: Tensor | None = None

    @property
    def counted_P(self) -> Tensor:
        """What each value counts for."""
        return torch.ones_like(self.bound_P) if self.weight_P is None else self.weight_P


def unpacked(batch: Batch) -> dict[str, Any]:
    """Unpack a batch on the device into rectangles, with int64 where it indexes.

    A batch travels at the size of the records it was made of, see :mod:`distill.data.ragged`.
    """
    wide = {key: batch[key].long() for key in ("rows", "example")}
    teacher = {name: rectangles(arrays) for name, arrays in batch["teacher"].items()}
    return {**batch, **wide, "teacher": teacher}


def counted(
    batches: Sequence[Batch], losses: Sequence[str], uncovered: Uncovered, *, stores: int = 1
) -> Tensor:
    """Count (1 + losses,) the values of `ce`, then of each loss's term, before the model is run.

    Args:
        batches: Batches, which are not unpacked.
        losses: Names of the losses.
        uncovered: What is done about labels that no pair covers.
        stores: How many stores the run has. A pair of several counts for the share of its own.
    """
    has_shares = uncovered == "none" and stores > 1
    counts = [_counts_of(batch, losses, uncovered) for batch in batches]
    dtype = torch.float32 if has_shares else torch.long
    return torch.tensor(counts, dtype=dtype).reshape(-1, 1 + len(losses)).sum(0)


def divisors(counts: Tensor) -> Tensor:
    """Replace by one each count of nothing, whose sum is nothing too."""
    return counts.where(counts > 0, 1)


def _counts_of(batch: Batch, losses: Sequence[str], uncovered: Uncovered) -> list[float]:
    labels = len(batch["rows"])
    if uncovered != "none":
        return [labels] * (1 + len(losses))
    found = dict.fromkeys(losses, 0.0)
    for name, arrays in batch["teacher"].items():
        index_P = arrays["index"].long()
        count = float(len(index_P))
        if (shares_NS := shares_of(batch)) is not None:
            count = float(shares_NS[index_P, store_of(name)].double().sum())
        found[loss_of(name)] += count
    return [labels, *found.values()]


def shares_of(batch: Batch) -> Tensor | None:
    """Find (N, S) what each store counts for at each label; None where there is one store."""
    shares_BS = batch.get("store_share")
    return None if shares_BS is None else shares_BS[batch["example"].long()]


def terms_of(
    teacher: Mapping[str, Mapping[str, Tensor]],
    answer: HeadAnswer,
    options: Options,
    uncovered: Uncovered,
    shares_NS: Tensor | None = None,
    sequences: Sequences | None = None,
) -> dict[str, Term]:
    """Compute `ce`, then the term of each loss of the batch or of a piece of it, in its order.

    Args:
        teacher: The arrays of each use of a loss, unpacked.
        answer: The student's.
        options: Options of losses.
        uncovered: What is done about labels that no pair covers.
        shares_NS: Of :func:`shares_of`, for these labels.
        sequences: Of these labels, for weights that are scaled in each.
    """
    ce_N = -answer.label_logprob_N
    terms = {"ce": _term("ce", ce_N, torch.arange(len(ce_N), device=ce_N.device))}
    stand_in_N = ce_N if uncovered == "hard" else torch.zeros_like(ce_N)
    # Autocast around the model's forward would take matrix products of a loss in half precision,
    # whose range e^(-cost / 0.1) of a transport plan leaves.
    with torch.autocast(ce_N.device.type, enabled=False):
        for name, arrays in teacher.items():
            student, loss = Student(name, arrays["index"], answer), find(name)
            term = _term(name, loss.values(arrays, student, options), arrays["index"])
            if uncovered == "hard":
                term = _completed(term, loss.cell(arrays, student, options), answer)
            if (weight_P := weight_of_each(arrays, answer, sequences)) is not None:
                values_P, index_P, bound_P, _ = term
                term = Term(weight_P * values_P, index_P, weight_P * bound_P)
            if uncovered != "none":
                term = _of_all_labels(name, term, arrays, stand_in_N)
            if shares_NS is not None:
                term = _shared(term, shares_NS[:, store_of(name)])
            before = terms.get(loss_of(name))
            terms[loss_of(name)] = term if before is None else _together(before, term, uncovered)
    return terms


def _shared(term: Term, share_N: Tensor) -> Term:
    """Multiply a store's values with what it counts for at their labels."""
    share_P = share_N[term.index_P]
    return Term(term.values_P * share_P, term.index_P, term.bound_P * share_P, share_P)


def _together(one: Term, other: Term, uncovered: Uncovered) -> Term:
    """Add up the values of two stores at each label, or list those of both with `none`."""
    if uncovered == "none":
        return _listed([one, other])
    return Term(one.values_P + other.values_P, one.index_P, one.bound_P + other.bound_P)


def _listed(terms: Sequence[Term]) -> Term:
    weights = [each.counted_P for each in terms if each.weight_P is not None]
    return Term(
        torch.cat([each.values_P for each in terms]),
        torch.cat([each.index_P for each in terms]),
        torch.cat([each.bound_P for each in terms]),
        torch.cat(weights) if weights else None,
    )


def _term(name: str, values: Tensor | tuple[Tensor, Tensor], index_P: Tensor) -> Term:
    """Make a term; its bound is 0 for a loss whose target does not include what was cut off."""
    both = values if isinstance(values, tuple) else (values,)
    if not all(_is_of_pairs(x, len(index_P)) for x in both):
        raise _wrong_shape(name, both, len(index_P))
    bound_P = both[1] if len(both) > 1 else torch.zeros_like(both[0]).detach()
    return Term(both[0], index_P, bound_P)


def _is_of_pairs(found: object, pairs: int) -> bool:
    return isinstance(found, Tensor) and tuple(found.shape) == (pairs,)


def _wrong_shape(name: str, values: tuple[Any, ...], pairs: int) -> InputError:
    """Say what a function returned that is no loss: a mean, say, or a value for each id."""
    found = ", ".join(
        f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        for x in values
    )
    return InputError(
        f"--loss {loss_of(name)}: expected one value for each pair, a tensor of shape ({pairs},), "
        f"found {found}. Return the values as they are: the mean is taken over the whole batch "
        "later.",
        kind="own-loss",
    )


def _completed(of_pairs: Term, cell_P: Tensor | None, answer: HeadAnswer) -> Term:
    """Add what a loss of coarser things leaves open: -log of the label's share of its event."""
    if cell_P is None:
        return of_pairs
    label_P = answer.label_logprob_N[of_pairs.index_P]
    return of_pairs._replace(values_P=of_pairs.values_P + (cell_P - label_P))


def _of_all_labels(
    name: str, of_pairs: Term, arrays: Mapping[str, Tensor], stand_in_N: Tensor
) -> Term:
    """Lay the value of each pair on its label, and the stand-in where no pair covers a label.

    The labels that are covered are never listed: to know how many, a GPU would have to be waited
    for.
    """
    values_P, index_P, bound_P, _ = of_pairs
    pair_N = _pair_of_each(arrays, len(stand_in_N))
    if find(name).is_of_sequences:
        labels_P = _labels_of_each(pair_N, len(index_P))
        values_P, bound_P = values_P * labels_P, bound_P * labels_P
    dtype = torch.promote_types(values_P.dtype, stand_in_N.dtype)
    values_N = stand_in_N.to(dtype).masked_fill(pair_N >= 0, 0)
    return Term(
        values_N.index_add(0, index_P, values_P.to(dtype)),
        torch.arange(len(pair_N), device=pair_N.device),
        bound_P.new_zeros(len(pair_N)).index_add(0, index_P, bound_P),
    )


def _pair_of_each(arrays: Mapping[str, Tensor], labels: int) -> Tensor:
    """Find (N,) the pair that covers each label; -1 for none."""
    index_P = arrays["index"]
    pair_N = torch.full((labels,), -1, device=index_P.device)
    pair_N[index_P] = torch.arange(len(index_P), device=index_P.device)
    for each in members_of(arrays):
        pair_N[arrays[each + INDEX]] = arrays[each + PAIR]
    return pair_N


def covered_of(batch: Batch) -> dict[str, Tensor]:
    """Mark (N,) the labels that each loss covers, with any store."""
    marked: dict[str, Tensor] = {}
    for name, arrays in batch["teacher"].items():
        nowhere_N = torch.zeros_like(batch["rows"], dtype=torch.bool)
        is_covered_N = marked.setdefault(loss_of(name), nowhere_N)
        for each in ("index", *(member + INDEX for member in members_of(arrays))):
            is_covered_N[arrays[each].long()] = True
    return marked


def _labels_of_each(pair_N: Tensor, pairs: int) -> Tensor:
    """Count (P,) the labels that each pair covers; those of no pair are counted last, and left."""
    is_in_N = pair_N.where(pair_N >= 0, pairs)
    return pair_N.new_zeros(pairs + 1).index_add(0, is_in_N, torch.ones_like(pair_N))[:-1]


def placed(terms: Mapping[str, Term], start: int) -> dict[str, Term]:
    """Renumber the labels of a piece's terms as in the batch, and drop their gradient."""
    return {
        name: term._replace(values_P=term.values_P.detach(), index_P=term.index_P + start)
        for name, term in terms.items()
    }


def joined(shares: Sequence[Mapping[str, Term]]) -> dict[str, Term]:
    """Join the terms of all pieces of a batch."""
    return {name: _listed([share[name] for share in shares]) for name in shares[0]}


def bad_rows(terms: Mapping[str, Term], batch: Batch) -> list[int]:
    """List the dataset rows with a value that is not finite; all if only their sum is not."""
    example_N, bad = batch["example"], torch.zeros(len(batch["aligned"]), dtype=torch.bool)
    for term in terms.values():
        bad_P = ~torch.isfinite(term.values_P.detach())
        bad[example_N[term.index_P[bad_P]].cpu()] = True
    rows: list[int] = batch["row"].cpu()[bad if bool(bad.any()) else ~bad].tolist()
    return rows


def row_sums(batch: Batch, terms: Mapping[str, Term]) -> Tensor:
    """Sum up, for each row, the value, bound and count of each term, and its covered labels.

    Returns:
        (B, 3 * terms + 1), and where there are several losses a column more for each, the labels
        that its own pairs cover.
    """
    example_N, size = batch["example"], len(batch["aligned"])
    columns = [
        each_P.new_zeros(size).index_add(0, example_N[term.index_P], each_P.detach())
        for term in terms.values()
        for each_P in (term.values_P, term.bound_P, term.counted_P)
    ]
    by_loss = list(covered_of(batch).values()) if len(terms) > 2 else []
    covered = [
        columns[0].new_zeros(size).index_add(0, example_N, is_covered_N.to(columns[0].dtype))
        for is_covered_N in by_loss
    ]
    return torch.stack([*columns, batch["aligned"].to(columns[0].dtype), *covered], 1)


def covered_fractions(
    covered: float, of_losses: Mapping[str, float], labels: float
) -> dict[str, float]:
    """Name the shares of labels that a pair of any loss covers, and of each of several losses."""
    counts = {"covered_fraction": covered}
    counts |= {f"covered_fraction_{name}": count for name, count in of_losses.items()}
    return {name: count / max(labels, 1) for name, count in counts.items()}


def named(
    means: Mapping[str, float], bounds: Mapping[str, float], weights: Mapping[str, float]
) -> dict[str, float]:
    """Name the means of the terms as they are logged."""
    report = {f"{name}_loss": mean for name, mean in means.items()}
    if weights:
        report["kd_loss"] = sum(weight * means[name] for name, weight in weights.items())
    bounded = [name for name in weights if find(name).has_bound]
    if bounded:
        report["kd_gap"] = sum(weights[name] * bounds[name] for name in bounded)
    return report
