"""The terms of the training loss, one value a position, before any reduction.

Between the batch (:mod:`distill.data.dataset`), which knows where the teacher's pairs lie, and the
losses, which know nothing but aligned rows: what to ask of the student, and which row goes where.

Shape legend: B = rows of the batch, N = labels, P = pairs of a loss, K = entries or mapped ids, L =
labels of pairs, S = sequences with a pair, k = columns of multilevel_ot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.data.ragged import rectangles
from distill.head.query import HeadAnswer, HeadQuery, Lookup, Ranking
from distill.losses import alm, mapped_kl, multilevel_ot, sampled_kl, tail_kl, uld

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


@dataclass(frozen=True)
class LossSettings:
    """What a loss may be told besides its weight.

    Attributes:
        tail_kl_kind: Which divergence tail_kl is.
        temperature: Of both sides of tail_kl.
        alm_temperature: Of alm; `math.inf` for its limit.
    """

    tail_kl_kind: tail_kl.Kind = "forward"
    temperature: float = 1.0
    alm_temperature: float = alm.TEMPERATURE


def unpacked(batch: Batch) -> dict[str, Any]:
    """A batch that has come to the device as its terms read it: rectangles, and int64 to index by.

    A batch travels at the size of the records it was made of, see :mod:`distill.data.ragged`.
    """
    wide = {key: batch[key].long() for key in ("rows", "example")}
    teacher = {name: rectangles(arrays) for name, arrays in batch["teacher"].items()}
    return {**batch, **wide, "teacher": teacher}


def query_of(batch: Batch, settings: LossSettings) -> HeadQuery:
    """All that the terms of this batch, which is unpacked, need of the student."""
    rows_N, teacher = batch["rows"], batch["teacher"]
    labels_N = batch["labels"].flatten()[rows_N + 1].long()  # row t - 1 predicts token t
    top_k, wanted_N, ranking = 0, None, None
    if "uld" in teacher:
        top_k = teacher["uld"]["entry_logprobs"].shape[1]
        wanted_N = torch.zeros_like(rows_N, dtype=torch.bool)
        wanted_N[teacher["uld"]["index"]] = True
    if "multilevel_ot" in teacher:
        ranking = Ranking(batch["example"], len(batch["aligned"]), multilevel_ot.COLUMNS)
    lookups: dict[str, Lookup] = {}
    for name in ("mapped_kl", "tail_kl", "sampled_kl"):
        if name in teacher:
            lookups[name] = _lookup(name, teacher[name], len(rows_N), settings)
    return HeadQuery(labels_N, top_k, wanted_N, lookups=lookups, ranking=ranking)


def _lookup(
    name: str, teacher: Mapping[str, Tensor], labels: int, settings: LossSettings
) -> Lookup:
    """The ids of a loss's pairs on the labels that they lie on."""
    ids_PK = teacher["ids"]
    if name == "sampled_kl":
        ids_PK = torch.cat([ids_PK, teacher["draw_ids"]], 1)
    ids_NK = ids_PK.new_full((labels, ids_PK.shape[1]), -1)
    ids_NK[teacher["index"]] = ids_PK
    temperature = settings.temperature if name == "tail_kl" else 1.0
    return Lookup(ids_NK, temperature, has_rest=name != "sampled_kl")


def terms_of(
    teacher: Mapping[str, Mapping[str, Tensor]], answer: HeadAnswer, settings: LossSettings
) -> dict[str, Term]:
    """`ce` first, then a term for each loss of the batch, or of a piece of it, in its order."""
    ce_N = -answer.label_logprob_N
    terms = {"ce": _exact(ce_N, torch.arange(len(ce_N), device=ce_N.device))}
    # Autocast around the model's forward would take matrix products of a loss in half precision,
    # whose range e^(-cost / 0.1) of a transport plan leaves.
    with torch.autocast(ce_N.device.type, enabled=False):
        for name, arrays in teacher.items():
            terms[name] = _TERMS[name](arrays, answer, settings)
    return terms


def placed(terms: Mapping[str, Term], start: int) -> dict[str, Term]:
    """The terms of a piece as the batch counts its labels, without gradient."""
    return {
        name: Term(term.values_P.detach(), term.index_P + start, term.bound_P)
        for name, term in terms.items()
    }


def joined(shares: Sequence[Mapping[str, Term]]) -> dict[str, Term]:
    """The terms of a batch from those of its pieces."""
    return {
        name: Term(*(torch.cat(parts) for parts in zip(*(s[name] for s in shares), strict=True)))
        for name in shares[0]
    }


def _exact(values_P: Tensor, index_P: Tensor) -> Term:
    """A term without a certified bound: what truncation changed is the target, by definition."""
    return Term(values_P, index_P, torch.zeros_like(values_P).detach())


def _uld(teacher: Mapping[str, Tensor], answer: HeadAnswer, settings: LossSettings) -> Term:
    index_P, label_N = teacher["index"], answer.label_logprob_N
    if answer.top_logprobs_NK is None:  # not asked: no record of the batch has an entry
        top_PK = label_N.new_zeros(teacher["entry_logprobs"].shape)
    else:
        top_PK = answer.top_logprobs_NK[index_P]
    scale_P = label_N.new_zeros(len(index_P)).index_add(
        0, teacher["earlier_pair"], label_N[teacher["earlier_index"]]
    )
    values_P, gap_P = uld.uld(
        top_PK,
        teacher["entry_logprobs"],
        teacher["tail_logmass"],
        student_log_scale_N=scale_P,
        teacher_log_scale_N=teacher["log_scale"],
    )
    return Term(values_P, index_P, gap_P + teacher["codec_bound"])


def _mapped_kl(teacher: Mapping[str, Tensor], answer: HeadAnswer, settings: LossSettings) -> Term:
    sides = _buckets("mapped_kl", teacher, answer)
    return _exact(mapped_kl.mapped_kl(*sides), teacher["index"])


def _tail_kl(teacher: Mapping[str, Tensor], answer: HeadAnswer, settings: LossSettings) -> Term:
    sides = _buckets("tail_kl", teacher, answer)
    return _exact(tail_kl.tail_kl(*sides, settings.tail_kl_kind), teacher["index"])


def _buckets(
    name: str, teacher: Mapping[str, Tensor], answer: HeadAnswer
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student at the ids and outside them, then the teacher."""
    logprobs_NK, rest_N = answer.found[name]
    assert rest_N is not None
    index_P = teacher["index"]
    return logprobs_NK[index_P], rest_N[index_P], teacher["logmass"], teacher["rest_logmass"]


def _sampled_kl(teacher: Mapping[str, Tensor], answer: HeadAnswer, settings: LossSettings) -> Term:
    index_P, entries = teacher["index"], teacher["ids"].shape[1]
    logprobs_PK = answer.found["sampled_kl"].logprobs_NK[index_P]
    values_P = sampled_kl.sampled_kl(
        logprobs_PK[:, :entries],
        logprobs_PK[:, entries:],
        teacher["entry_logprobs"],
        teacher["tail_logmass"],
        teacher["counts"],
    )
    return _exact(values_P, index_P)


def _alm(teacher: Mapping[str, Tensor], answer: HeadAnswer, settings: LossSettings) -> Term:
    label_N = answer.label_logprob_N
    student_P = label_N.new_zeros(len(teacher["index"])).index_add(
        0, teacher["token_pair"], label_N[teacher["token_index"]]
    )
    values_P = alm.alm(student_P, teacher["logprob"], settings.alm_temperature)
    return _exact(values_P, teacher["index"])


def _multilevel_ot(
    teacher: Mapping[str, Tensor], answer: HeadAnswer, settings: LossSettings
) -> Term:
    assert answer.column_logprobs_Nk is not None
    lengths = torch.bincount(teacher["token_pair"], minlength=len(teacher["index"])).tolist()
    student_Lk = answer.column_logprobs_Nk[teacher["token_index"]]
    values_S = multilevel_ot.multilevel_ot(student_Lk, teacher["entry_logprobs"], lengths)
    return _exact(values_S, teacher["index"])


_TERMS = {
    "uld": _uld,
    "mapped_kl": _mapped_kl,
    "tail_kl": _tail_kl,
    "sampled_kl": _sampled_kl,
    "alm": _alm,
    "multilevel_ot": _multilevel_ot,
}


def bad_rows(terms: Mapping[str, Term], batch: Batch) -> list[int]:
    """The dataset rows with a value that is not finite; all of them if only their sum is not."""
    example_N, bad = batch["example"], torch.zeros(len(batch["aligned"]), dtype=torch.bool)
    for term in terms.values():
        bad_P = ~torch.isfinite(term.values_P.detach())
        bad[example_N[term.index_P[bad_P]].cpu()] = True
    found: list[int] = batch["row"].cpu()[bad if bool(bad.any()) else ~bad].tolist()
    return found


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
