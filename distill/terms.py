"""The terms of the training loss, one value a position, before any reduction.

Between the batch (:mod:`distill.data`), which knows where the teacher's pairs lie, and the losses,
which know nothing but aligned rows: what to ask of the student, and which row goes where.

Shape legend: B = rows of the batch, N = labels, P = pairs of a loss, K = entries or mapped ids.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.losses.mapped_kl import mapped_kl
from distill.losses.uld import uld
from distill.query import HeadAnswer, HeadQuery, Lookup

Batch = Mapping[str, Any]


class Term(NamedTuple):
    """One term of the loss at every position that has it.

    Attributes:
        values_P: (P,) with gradient.
        index_P: (P,) the label that each value lies on.
        bound_P: (P,) how far the live teacher's value can be from it, at most.
    """

    values_P: Tensor
    index_P: Tensor
    bound_P: Tensor


def query_of(batch: Batch) -> HeadQuery:
    """All that the terms of this batch need of the student."""
    rows_N, teacher = batch["rows"], batch["teacher"]
    labels_N = batch["labels"].flatten()[rows_N + 1]  # row t - 1 predicts token t
    top_k, wanted_N = 0, None
    lookups: dict[str, Lookup] = {}
    if "uld" in teacher:
        top_k = teacher["uld"]["entry_logprobs"].shape[1]
        wanted_N = torch.zeros_like(rows_N, dtype=torch.bool)
        wanted_N[teacher["uld"]["index"]] = True
    if "mapped_kl" in teacher:
        ids_PK = teacher["mapped_kl"]["ids"]
        ids_NK = ids_PK.new_full((len(rows_N), ids_PK.shape[1]), -1)
        ids_NK[teacher["mapped_kl"]["index"]] = ids_PK
        lookups["mapped_kl"] = Lookup(ids_NK)
    return HeadQuery(labels_N, top_k, wanted_N, lookups=lookups)


def terms_of(batch: Batch, answer: HeadAnswer) -> dict[str, Term]:
    """`ce` first, then a term for each loss of the batch, in its order."""
    ce_N = -answer.label_logprob_N
    every_N = torch.arange(len(ce_N), device=ce_N.device)
    terms = {"ce": Term(ce_N, every_N, torch.zeros_like(ce_N).detach())}
    for name, arrays in batch["teacher"].items():
        terms[name] = (_uld if name == "uld" else _mapped_kl)(arrays, answer)
    return terms


def _uld(teacher: Mapping[str, Tensor], answer: HeadAnswer) -> Term:
    index_P, label_N = teacher["index"], answer.label_logprob_N
    if answer.top_logprobs_NK is None:  # not asked: no record of the batch has an entry
        top_PK = label_N.new_zeros(teacher["entry_logprobs"].shape)
    else:
        top_PK = answer.top_logprobs_NK[index_P]
    scale_P = label_N.new_zeros(len(index_P)).index_add(
        0, teacher["earlier_pair"], label_N[teacher["earlier_index"]]
    )
    values_P, gap_P = uld(
        top_PK,
        teacher["entry_logprobs"],
        teacher["tail_logmass"],
        student_log_scale_N=scale_P,
        teacher_log_scale_N=teacher["log_scale"],
    )
    return Term(values_P, index_P, gap_P + teacher["codec_bound"])


def _mapped_kl(teacher: Mapping[str, Tensor], answer: HeadAnswer) -> Term:
    """No bound: merging tokens into one bucket changes the target, it does not approximate it."""
    index_P = teacher["index"]
    logprobs_NK, rest_N = answer.found["mapped_kl"]
    assert rest_N is not None
    values_P = mapped_kl(
        logprobs_NK[index_P],
        rest_N[index_P],
        teacher["logmass"],
        teacher["rest_logmass"],
    )
    return Term(values_P, index_P, torch.zeros_like(values_P).detach())


def row_sums(batch: Batch, terms: Mapping[str, Term]) -> Tensor:
    """(B, 3 * terms + 1): value, bound and count of each term, then aligned labels, of each row."""
    example_N, size = batch["example"], len(batch["aligned"])
    columns = [
        each_P.new_zeros(size).index_add(0, example_N[term.index_P], each_P.detach())
        for term in terms.values()
        for each_P in (term.values_P, term.bound_P, torch.ones_like(term.bound_P))
    ]
    return torch.stack([*columns, batch["aligned"].to(columns[0].dtype)], 1)


def named(
    means: Mapping[str, float], bounds: Mapping[str, float], weights: Mapping[str, float]
) -> dict[str, float]:
    """Means of the terms under the names they are logged by."""
    report = {f"{name}_loss": mean for name, mean in means.items()}
    if weights:
        report["kd_loss"] = sum(weight * means[name] for name, weight in weights.items())
    if "uld" in weights:
        report["kd_gap"] = weights["uld"] * bounds["uld"]
    return report
