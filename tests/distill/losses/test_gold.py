"""GOLD's hybrid from a cached top-k: its definition, its bound, and TRL's on two live models."""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from distill.alignment.event_map import EventMap
from distill.alignment.map_entries import VocabularyMap
from distill.data.collator import Collator
from distill.losses.gold import gold
from distill.training.loss_terms import unpacked
from logitstore.errors import InputError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.distill.losses.test_trl_oracle import ROWS, side
from tests.kit.loss_laws import Law, bucket_value, sure
from tests.kit.students import ragged_rows, trainer_of


class Case(NamedTuple):
    """Logits of both; the student's twin of each teacher token, or -1; entries that are stored."""

    student_NV: Tensor
    teacher_NV: Tensor
    twin: list[int]
    counts: list[int]
    student_scale_N: Tensor
    teacher_scale_N: Tensor


def listed(rows: list[list[Tensor]]) -> Tensor:
    """A rectangle of rows of scalars, padded with -inf."""
    width = max(map(len, rows), default=0)
    minus = torch.tensor(-torch.inf, dtype=torch.float64)
    return torch.stack([torch.stack([*row, *[minus] * (width - len(row) + 1)]) for row in rows])[
        :, :width
    ]


def run(case: Case, student_NV: Tensor) -> Tensor:
    """What the trainer does: what the store holds, and the student's answers to it."""
    dtype = student_NV.dtype
    log_p_NV = student_NV.log_softmax(-1)
    log_q_NV = case.teacher_NV.double().log_softmax(-1)
    has_twin = torch.zeros(student_NV.shape[1], dtype=torch.bool)
    has_twin[[s for s in case.twin if s >= 0]] = True
    at, others, tails, ids = [], [], [], []
    for log_q_V, count in zip(log_q_NV, case.counts, strict=True):
        order = log_q_V.argsort(descending=True).tolist()
        head, rest = order[:count], order[count:]
        ids.append([case.twin[v] for v in head if case.twin[v] >= 0])
        at.append([log_q_V[v] for v in head if case.twin[v] >= 0])
        others.append([log_q_V[v] for v in head if case.twin[v] < 0])
        tails.append(log_q_V[rest].logsumexp(0) if rest else torch.tensor(-math.inf).double())
    at_NK, others_NJ = listed(at), listed(others)
    p_at, p_rest = torch.full(at_NK.shape, -torch.inf, dtype=dtype), []
    rows = []
    for i, own in enumerate(ids):
        rows.append(torch.cat([log_p_NV[i, own], p_at[i, len(own) :]]))
        left = has_twin.clone()
        left[own] = False
        p_rest.append(_total(log_p_NV[i, left]))
    apart = [_total(row[~has_twin]) for row in log_p_NV]
    among = log_p_NV.masked_fill(has_twin, -torch.inf)
    top = among.topk(min(others_NJ.shape[1], among.shape[1])).values
    top = torch.nn.functional.pad(top, (0, others_NJ.shape[1] - top.shape[1]), value=-torch.inf)
    share = sum(s >= 0 for s in case.twin) / len(case.twin)
    return gold(
        torch.stack(rows),
        top,
        torch.stack(apart),
        torch.stack(p_rest),
        at_NK.to(dtype),
        others_NJ.to(dtype),
        torch.stack(tails).to(dtype),
        torch.full((len(ids),), share, dtype=dtype),
        case.student_scale_N.to(dtype),
        case.teacher_scale_N.to(dtype),
    )


def _total(logs: Tensor) -> Tensor:
    return logs.logsumexp(0) if len(logs) else torch.tensor(-torch.inf, dtype=logs.dtype)


def naive(case: Case, student_NV: Tensor) -> Tensor:
    """Position by position in float64, from whole distributions."""
    found = []
    share = sum(s >= 0 for s in case.twin) / len(case.twin)
    matched = [s for s in case.twin if s >= 0]
    for i, count in enumerate(case.counts):
        p_V = student_NV[i].softmax(-1) * case.student_scale_N[i].double().exp()
        q_V = case.teacher_NV[i].double().softmax(-1) * case.teacher_scale_N[i].double().exp()
        order = q_V.argsort(descending=True).tolist()
        own = [(q_V[v], p_V[case.twin[v]]) for v in order[:count] if case.twin[v] >= 0]
        rest_q = 1 - sum(q for q, _ in own)
        rest_p = 1 - sum(p for _, p in own)
        jsd = bucket_value(torch.as_tensor(rest_q).double(), torch.as_tensor(rest_p), "jsd")
        for q, p in own:
            jsd = jsd + bucket_value(q, p, "jsd")
        others_q = [q_V[v] for v in order[:count] if case.twin[v] < 0]
        others_p = p_V[[s for s in range(len(p_V)) if s not in matched]]
        others_p = others_p.sort(descending=True).values
        ranked = p_V.sum() * 0
        for j, q in enumerate(others_q):
            ranked = ranked + ((others_p[j] if j < len(others_p) else 0 * q) - q).abs()
        beyond = others_p[len(others_q) :].sum() - q_V[order[count:]].sum()
        if len(others_p) > len(others_q) and beyond > 1e-12:
            ranked = ranked + beyond
        found.append(share * jsd + (1 - share) * ranked)
    return torch.stack(found)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Vocabularies of 1 to 24, with no twins up to all, ragged counts, flat to very peaked."""
    n, student_width, teacher_width = (draw(st.integers(1, top)) for top in (4, 24, 24))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    twins = draw(st.integers(0, min(student_width, teacher_width)))
    twin = [-1] * teacher_width
    places = torch.randperm(teacher_width, generator=gen)[:twins].tolist()
    for place, token in zip(places, torch.randperm(student_width, generator=gen), strict=False):
        twin[place] = int(token)
    counts = draw(st.lists(st.integers(0, teacher_width), min_size=n, max_size=n))
    sharp = [draw(st.sampled_from([0.1, 1.0, 4.0])) for _ in range(2)]
    student = sharp[0] * torch.randn(n, student_width, generator=gen)
    teacher = sharp[1] * torch.randn(n, teacher_width, generator=gen)
    scales = -3 * torch.rand(2, n, generator=gen)
    scales[:, torch.rand(n, generator=gen) < 0.5] = 0  # groups of one token
    return Case(student, teacher, twin, counts, scales[0], scales[1])


def row_of(case: Case, i: int) -> Case:
    part = slice(i, i + 1)
    return Case(
        case.student_NV[part],
        case.teacher_NV[part],
        case.twin,
        case.counts[part],
        case.student_scale_N[part],
        case.teacher_scale_N[part],
    )


def same(case: Case, data: st.DataObject) -> list[Case]:
    """Offsets of both sides' logits, and another order of the student's vocabulary."""
    order = data.draw(st.permutations(range(case.student_NV.shape[1])))
    place = {old: new for new, old in enumerate(order)}
    twin = [place[s] if s >= 0 else -1 for s in case.twin]
    return [
        case._replace(student_NV=case.student_NV + 7.0, teacher_NV=case.teacher_NV - 3.0),
        case._replace(student_NV=case.student_NV[:, torch.tensor(order)], twin=twin),
    ]


def arguments() -> tuple[Tensor, ...]:
    gen = torch.Generator().manual_seed(0)
    sides = [torch.randn(3, 60, generator=gen).log_softmax(-1) for _ in range(2)]
    student, teacher = ((x[:, :30], x[:, 30:58], x[:, 58], x[:, 59]) for x in sides)
    zeros = torch.zeros(3)
    return (*student, teacher[0], teacher[1], teacher[2], zeros + 0.5, zeros - 0.5, zeros - 0.1)


LAWS = [
    Law(
        "gold",
        gold,
        arguments(),
        cases(),
        run,
        naive,
        float32=(1e-4, 2e-5),
        float64=(1e-8, 1e-9),
        same=same,
        same_within=(1e-4, 1e-5),
        row=row_of,
        mates=(0.0, 1e-10),
        saturated=tuple(
            Case(sure(best), torch.zeros(1, 32), [*range(16), *[-1] * 16], [20], *torch.zeros(2, 1))
            for best in (3, 20)
        ),
    )
]


@given(cases())
def test_a_cut_store_is_never_above_the_whole_one_and_neither_is_below_zero(case: Case) -> None:
    whole = case._replace(counts=[len(case.twin)] * len(case.counts))
    student = case.student_NV.double()
    cut, exact = run(case, student), run(whole, student)
    assert (cut <= exact + 1e-9).all()
    assert (cut >= -1e-9).all()


def settings() -> SimpleNamespace:
    return SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=True,
        uld_token_merge_strategy="bayesian",
        uld_use_hybrid_loss=True,
        beta=0.5,
    )


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that is only asked here
        return pytest.importorskip("trl.experimental.gold.gold_trainer").ULDLoss(settings())


def test_ours_from_a_store_is_trls_from_two_live_models_and_the_rest_as_one(
    tmp_path: Path, oracle: Any
) -> None:
    """TRL leaves out what is not matched from its divergence; that term is written out here."""
    theirs, ours = tiny.unigram(), tiny.byte_bpe()
    teacher, student = tiny.llama(len(theirs), seed=7), tiny.llama(len(ours))
    store = FakeStore.from_teacher(teacher, theirs, ROWS, tmp_path / "t", top_k=len(theirs))
    trainer = trainer_of(student, store, tmp_path, loss="gold", uncovered="none")
    made = one_to_one(trainer.data.map_of("twins"))
    trainer.data.mappings["gold"] = VocabularyMap(made)
    assert made.of_token is not None
    token_of = {int(e): s for s, e in enumerate(made.of_token) if e > 0}
    matched = {v: token_of[int(e)] for v, e in enumerate(made.event[: len(theirs)]) if e > 0}
    assert 20 < len(matched) == len(set(matched.values())) < len(ours)
    oracle._vocab_mapping, oracle._teacher_matched_ids = matched, set(matched)
    oracle.mapping_tensor = torch.tensor([matched.get(v, -1) for v in range(len(theirs))])
    is_matched = torch.tensor([e > 0 for e in made.of_token.tolist()])
    for i, row in enumerate(ROWS):
        s_logits, s_labels, s_ids, s_offsets = side(student, ours, row)
        with torch.no_grad():
            t_logits, t_labels, t_ids, t_offsets = side(teacher, theirs, row)
        want = oracle(
            s_logits, t_logits, s_labels, t_labels, s_ids, t_ids, s_offsets, t_offsets
        ).squeeze()
        batch = Collator(0, ["gold"])([trainer.data[i]])
        arrays = unpacked(batch)["teacher"]["gold"]
        p_NV = s_logits.flatten(0, 1)[batch["rows"]].double().log_softmax(-1)
        own_N = p_NV.gather(1, s_ids[0, batch["rows"] + 1][:, None]).squeeze(1)
        a_P = torch.zeros(len(arrays["index"])).double()
        a_P = a_P.index_add(0, arrays["earlier_pair"], own_N[arrays["earlier_index"]])
        rest_p = 1 - (p_NV[arrays["index"]][:, is_matched].logsumexp(1) + a_P).exp()
        rest_q = 1 - (arrays["entry_logmass"].double() + arrays["log_scale"][:, None]).exp().sum(1)
        mixed = (rest_p + rest_q) / 2
        rest = (rest_p * (rest_p / mixed).log() + rest_q * (rest_q / mixed).log()) / 2
        want = want + len(matched) / len(theirs) * rest.mean()
        (want_grad,) = torch.autograd.grad(want, student.lm_head.weight)
        _, terms = trainer.compute_loss(student, batch, return_outputs=True)
        got = terms["gold"].values_P.mean()
        (grad,) = torch.autograd.grad(got, student.lm_head.weight)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grad.double(), want_grad.double(), rtol=1e-2, atol=1e-5)


def one_to_one(made: EventMap) -> EventMap:
    """Leave out a second token of the same bytes, such as a stand-in: TRL's map has one of each."""
    event, seen = made.event.copy(), {0}
    for v in range(made.tokens):
        event[v] = 0 if int(event[v]) in seen else event[v]
        seen.add(int(event[v]))
    return replace(made, event=event)


def test_a_teacher_of_one_tokenizer_is_itself_and_records_of_the_next_token_are_not(
    tmp_path: Path,
) -> None:
    teacher = tiny.llama(len(tiny.byte_bpe()), seed=7)
    found = []
    for shifted in (False, True):
        store = FakeStore.from_teacher(
            teacher, tiny.byte_bpe(), ragged_rows(), tmp_path / str(shifted), shifted=shifted
        )
        how = {"loss": "gold", "no_self_test": True, "eval_store": store}
        found.append(trainer_of(teacher, store, tmp_path, **how).evaluate()["eval_gold_loss"])
    assert abs(found[0]) < 1e-5 < 0.01 < found[1]


def test_a_student_of_another_tokenizer_learns_it(tmp_path: Path) -> None:
    """Chunk by chunk, and beside what reads other tokens it is refused."""
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    store = FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), tmp_path / "t")
    trainer = trainer_of(
        tiny.llama(len(tiny.byte_bpe())), store, tmp_path, loss="gold", max_steps=6, ce_weight=0.0
    )
    trainer.train()
    logged = [entry["gold_loss"] for entry in trainer.state.log_history if "gold_loss" in entry]
    assert np.isfinite(logged).all()
    assert logged[-1] < logged[0]
    both = trainer_of(tiny.llama(len(tiny.byte_bpe())), store, tmp_path, loss="gold,uld")
    with pytest.raises(InputError, match="each reads the student's most probable tokens"):
        both.train()
