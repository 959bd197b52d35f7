"""The terms of the training loss, one value per position, before any reduction.

This file connects the batch (:mod:`distill.data.dataset`), which knows the label of each of the
teacher's pairs, with the losses, which see aligned rows only. It makes the query to the student's
head, and passes each row of the answer to the loss that asked for it.

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

Shape legend: B = rows of the batch, N = labels, P = pairs of a loss, or values of a term: its
pairs with `none`, else all labels; K = ids that a loss asks for.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.data.batch_cuts import INDEX, PAIR, members_of
from distill.data.ragged import rectangles
from distill.head.query import HeadAnswer, HeadQuery, Lookup, Partition, Ranking
from distill.losses import find
from distill.losses.loss import Ask, Options, Student
from distill.training.arguments import Uncovered
from logitstore.errors import InputError

Batch = Mapping[str, Any]
_NO_PARTITIONS: Mapping[str, Partition] = MappingProxyType({})


class Term(NamedTuple):
    """A term of the loss. Its mean is the sum of its values over their number.

    Attributes:
        values_P: (P,) with gradient.
        index_P: (P,) the label that each value belongs to.
        bound_P: (P,) the most by which the value against the live teacher can differ from it.
    """

    values_P: Tensor
    index_P: Tensor
    bound_P: Tensor


def unpacked(batch: Batch) -> dict[str, Any]:
    """Unpack a batch on the device into rectangles, with int64 where it indexes.

    A batch travels at the size of the records it was made of, see :mod:`distill.data.ragged`.
    """
    wide = {key: batch[key].long() for key in ("rows", "example")}
    teacher = {name: rectangles(arrays) for name, arrays in batch["teacher"].items()}
    return {**batch, **wide, "teacher": teacher}


def query_of(
    batch: Batch, options: Options, partitions: Mapping[str, Partition] = _NO_PARTITIONS
) -> HeadQuery:
    """Join all that the terms of this batch, which is unpacked, need of the student.

    Args:
        batch: The batch, on a device.
        options: Options of losses.
        partitions: What the ids of a loss are events of, by the loss's name and on the batch's
            device. The ids of other losses are tokens.
    """
    rows_N, teacher = batch["rows"], batch["teacher"]
    labels_N = batch["labels"].flatten()[rows_N + 1].long()  # row t - 1 predicts token t
    asks = {name: find(name).ask(arrays, options) for name, arrays in teacher.items()}
    indices = {name: arrays["index"] for name, arrays in teacher.items()}
    columns = max((ask.columns for ask in asks.values()), default=0)
    return HeadQuery(
        labels_N,
        max((ask.top_k for ask in asks.values()), default=0),
        _where_top_k(asks, indices, rows_N),
        _columns_of_top_k(asks, partitions),
        lookups={
            name: _lookup(ask, ask.ids_PK, indices[name], len(rows_N), partitions.get(name))
            for name, ask in asks.items()
            if ask.ids_PK is not None
        },
        ranking=Ranking(batch["example"], len(batch["aligned"]), columns) if columns else None,
        has_logits=any(ask.has_logits for ask in asks.values()),
    )


def _where_top_k(
    asks: Mapping[str, Ask], indices: Mapping[str, Tensor], rows_N: Tensor
) -> Tensor | None:
    """Mark (N,) the labels at which some loss wants the largest log-probabilities."""
    wanting = [indices[name] for name, ask in asks.items() if ask.top_k]
    if not wanting:
        return None
    wanted_N = torch.zeros_like(rows_N, dtype=torch.bool)
    for index_P in wanting:
        wanted_N[index_P] = True
    return wanted_N


def _columns_of_top_k(
    asks: Mapping[str, Ask], partitions: Mapping[str, Partition]
) -> Tensor | None:
    """Find (V,) the tokens that the largest log-probabilities are chosen from; None: all.

    Raises:
        InputError: Two losses choose from different ones, and a head answers once.
    """
    chosen = {
        name: partitions[name].of_V == 0
        for name, ask in asks.items()
        if ask.top_k and ask.has_top_of_first_event and name in partitions
    }
    if not chosen:
        return None
    asking = [name for name, ask in asks.items() if ask.top_k]
    if len(asking) > 1:
        raise InputError(
            f"--loss {','.join(asking)}: each reads the student's most probable tokens, and not "
            "among the same ones, which one answer of its head cannot have. Train with one of them."
        )
    return chosen[asking[0]]


def _lookup(
    ask: Ask, ids_PK: Tensor, index_P: Tensor, labels: int, partition: Partition | None
) -> Lookup:
    """Lay the ids of a loss's pairs on the labels that the pairs lie on."""
    ids_NK = ids_PK.new_full((labels, ids_PK.shape[1]), -1)
    ids_NK[index_P] = ids_PK
    return Lookup(ids_NK, ask.temperature, ask.has_rest, partition)


def counts_of(batch: Batch, losses: Sequence[str], uncovered: Uncovered) -> list[int]:
    """Count the values of `ce`, then of the term of each loss, before the model is run."""
    labels = len(batch["rows"])
    if uncovered != "none":
        return [labels] * (1 + len(losses))
    return [labels, *(len(batch["teacher"][name]["index"]) for name in losses)]


def terms_of(
    teacher: Mapping[str, Mapping[str, Tensor]],
    answer: HeadAnswer,
    options: Options,
    uncovered: Uncovered,
) -> dict[str, Term]:
    """Compute `ce`, then the term of each loss of the batch or of a piece of it, in its order."""
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
            if uncovered != "none":
                term = _of_all_labels(name, term, arrays, stand_in_N)
            terms[name] = term
    return terms


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
        f"--loss {name}: expected one value for each pair, a tensor of shape ({pairs},), found "
        f"{found}. Return the values as they are: the mean is taken over the whole batch later.",
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
    values_P, index_P, bound_P = of_pairs
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
    """Mark (N,) the labels that each loss covers."""
    marked = {}
    for name, arrays in batch["teacher"].items():
        marked[name] = torch.zeros_like(batch["rows"], dtype=torch.bool)
        for each in ("index", *(member + INDEX for member in members_of(arrays))):
            marked[name][arrays[each].long()] = True
    return marked


def _labels_of_each(pair_N: Tensor, pairs: int) -> Tensor:
    """Count (P,) the labels that each pair covers; those of no pair are counted last, and left."""
    is_in_N = pair_N.where(pair_N >= 0, pairs)
    return pair_N.new_zeros(pairs + 1).index_add(0, is_in_N, torch.ones_like(pair_N))[:-1]


def placed(terms: Mapping[str, Term], start: int) -> dict[str, Term]:
    """Renumber the labels of a piece's terms as in the batch, and drop their gradient."""
    return {
        name: Term(term.values_P.detach(), term.index_P + start, term.bound_P)
        for name, term in terms.items()
    }


def joined(shares: Sequence[Mapping[str, Term]]) -> dict[str, Term]:
    """Join the terms of all pieces of a batch."""
    return {
        name: Term(*(torch.cat(parts) for parts in zip(*(s[name] for s in shares), strict=True)))
        for name in shares[0]
    }


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
        for each_P in (term.values_P, term.bound_P, torch.ones_like(term.bound_P))
    ]
    by_loss = list(covered_of(batch).values()) if len(batch["teacher"]) > 1 else []
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
