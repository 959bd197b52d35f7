"""CDM: its warping, its tokens that stand for each other, and the loss, against definitions."""

import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor
from transformers import PreTrainedModel

from distill.alignment.align import Spans, align
from distill.alignment.make_map import UNLIKE, make_map
from distill.alignment.warping import cheapest_path, warped
from distill.losses.cdm import cdm
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, dense_logprobs
from logitstore.text.tokenizer import ByteTokenizer
from tests.distill.training.test_within_events import (
    as_sure_as_the_text,
    assert_cross_entropy,
    changed,
)
from tests.kit import tokenizers
from tests.kit.loss_laws import Law, sure
from tests.kit.students import ragged_rows, trainer_of

pytest.importorskip("rapidfuzz")


class Case(NamedTuple):
    """Logits; entries of each position; (entry, token, alike) of each, 1 if that is fixed."""

    student_NV: Tensor
    teacher_NV: Tensor
    counts: list[int]
    edges: list[list[tuple[int, int, float]]]


def run(case: Case, student_NV: Tensor) -> Tensor:
    """What the trainer does: a rectangle of edges, and the head's answers to it."""
    dtype, width = student_NV.dtype, max(map(len, case.edges))
    log_p_NV = student_NV.log_softmax(-1)
    log_q_NV = case.teacher_NV.double().log_softmax(-1).sort(descending=True).values
    entries = max(case.counts)
    ranks_K = torch.arange(entries)
    log_q_NK = log_q_NV[:, :entries].to(dtype)
    has_NK = ranks_K < torch.tensor(case.counts)[:, None]
    top_NK = log_p_NV.detach().sort(descending=True).values[:, :entries]
    top_NK = torch.nn.functional.pad(top_NK, (0, entries - top_NK.shape[1]), value=-torch.inf)
    at, rest = [], []
    for i, edges in enumerate(case.edges):
        tokens = [u for _, u, _ in edges]
        own_E = log_p_NV[i, torch.tensor(tokens, dtype=torch.long)]
        at.append(torch.nn.functional.pad(own_E, (0, width - len(edges))))
        pad = [(0, 0, -math.inf)] * (width - len(edges))
        first = [tokens.index(u) for u in tokens] + [0] * len(pad)
        rest.append(([e for e, _, _ in [*edges, *pad]], first, [a for *_, a in [*edges, *pad]]))
    entry, first, alike = (torch.tensor([each[x] for each in rest]) for x in range(3))
    least_N = torch.nn.functional.pad(top_NK.masked_fill(~has_NK, torch.inf), (0, 1), value=1)
    return cdm(
        torch.stack(at),
        least_N.amin(1),
        log_q_NK.masked_fill(~has_NK, -torch.inf),
        alike.to(torch.float32),
        entry.long(),
        first.long(),
    )


def renormalised(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """KL over pairs of (q, p), both divided by their sums."""
    q, p = (torch.stack([pair[x] for pair in pairs]) for x in range(2))
    q, p = q / q.sum(), p / p.sum()
    return (q * (q / p).log()).sum()


def naive(case: Case, student_NV: Tensor) -> Tensor:
    """Position by position, from dictionaries."""
    found = []
    for i, (count, edges) in enumerate(zip(case.counts, case.edges, strict=True)):
        p_V = student_NV[i].softmax(-1)
        q_V = case.teacher_NV[i].double().softmax(-1).sort(descending=True).values
        least = p_V.sort(descending=True).values[: min(count, len(p_V))].min() if count else 2
        live = {u for u in range(len(p_V)) if p_V[u] >= least}
        taken: dict[int, Tensor] = {}
        for entry in range(count):
            able = [(a, u) for e, u, a in edges if e == entry and (a == 1 or u in live)]
            if able:
                best = max(a for a, _ in able)
                token = next(u for a, u in able if a == best)
                taken[token] = taken.get(token, 0) + q_V[entry]
        back = []
        for u in live:
            able = [(a, -e) for e, token, a in edges if token == u]
            if able:
                back.append((q_V[-max(able)[1]], p_V[u]))
        there = [(q, p_V[u]) for u, q in taken.items()]
        sides = [renormalised(pairs) for pairs in (there, back) if pairs]
        found.append(p_V.sum() * 0 + sum(sides) / 2)
    return torch.stack(found)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Vocabularies of 2 to 24, no entries up to all, each with no token, a fixed one or several."""
    n, student_width, teacher_width = (
        draw(st.integers(a, b)) for a, b in ((1, 4), (2, 24), (1, 24))
    )
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    counts = draw(st.lists(st.integers(0, teacher_width), min_size=n, max_size=n))
    sharp = [draw(st.sampled_from([0.1, 1.0, 4.0])) for _ in range(2)]
    edges = []
    for count in counts:
        own: list[tuple[int, int, float]] = []
        for entry in range(count):
            kind = int(torch.randint(3, (1,), generator=gen))
            tokens = torch.randperm(student_width, generator=gen)[: 1 if kind == 1 else 4].tolist()
            alike = [1.0] if kind == 1 else [0.99 - 0.01 * (x // 2) for x in range(len(tokens))]
            own += zip([entry] * len(tokens), tokens, alike, strict=True) if kind else []
        edges.append(own)
    student = sharp[0] * torch.randn(n, student_width, generator=gen)
    teacher = sharp[1] * torch.randn(n, teacher_width, generator=gen)
    return Case(student, teacher, counts, edges)


def same(case: Case, data: st.DataObject) -> list[Case]:
    """Offsets of both sides' logits, and another order of the student's vocabulary."""
    order = data.draw(st.permutations(range(case.student_NV.shape[1])))
    place = {old: new for new, old in enumerate(order)}
    moved = [[(e, place[u], a) for e, u, a in edges] for edges in case.edges]
    return [
        case._replace(student_NV=case.student_NV + 7.0, teacher_NV=case.teacher_NV - 3.0),
        case._replace(student_NV=case.student_NV[:, torch.tensor(order)], edges=moved),
    ]


def arguments() -> tuple[Any, ...]:
    gen = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 40, generator=gen).log_softmax(-1) for _ in range(2))
    slots = torch.arange(40).repeat(3, 1)
    alike = torch.ones(3, 40, dtype=torch.bfloat16)  # whatever the others are
    return (student, torch.full((3,), -4.0), teacher, alike, slots, slots)


FIXED = [[(entry, entry + 2, 1.0) for entry in range(8)]]
LAWS = [
    Law(
        "cdm",
        cdm,
        arguments(),
        cases(),
        run,
        naive,
        float32=(1e-4, 2e-5),
        float64=(1e-9, 1e-9),
        same=same,
        same_within=(1e-4, 2e-5),
        saturated=tuple(Case(sure(best), torch.zeros(1, 32), [8], FIXED) for best in (3, 20)),
    )
]


@given(cases())
def test_it_is_never_below_zero(case: Case) -> None:
    assert (run(case, case.student_NV.double()) >= -1e-9).all()


# ---- the warping ----


@cache
def least(cost: tuple[tuple[int, ...], ...], i: int, j: int) -> int:
    """The recurrence, as it is written."""
    before = [
        least(cost, a, b) for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if min(a, b) >= 0
    ]
    return cost[i][j] + min(before, default=0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31), st.integers(1, 6))
def test_the_path_costs_what_the_recurrence_says(n: int, m: int, seed: int, top: int) -> None:
    cost = np.random.default_rng(seed).integers(0, top, (n, m))
    path = cheapest_path(cost)
    steps = np.diff(path, axis=0)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [n - 1, m - 1]
    assert {tuple(each) for each in steps.tolist()} <= {(1, 1), (1, 0), (0, 1)}
    rows = tuple(tuple(row) for row in cost.tolist())
    assert cost[path[:, 0], path[:, 1]].sum() == least(rows, n - 1, m - 1)


def spans(strings: list[bytes]) -> Spans:
    lengths = np.array([len(each) for each in strings], np.int64)
    starts = np.cumsum(lengths) - lengths
    return Spans(starts, lengths, np.zeros(len(strings), np.bool_))


def pairs(theirs: list[bytes], ours: list[bytes], weights: list[float]) -> list[list[int]]:
    sides = spans(theirs), spans(ours)
    found = warped(*sides, align(*sides), (theirs, ours), np.array(weights, np.float64))
    assert found[:, 1].tolist() == list(range(len(ours)))
    return found.tolist()


def test_tokens_that_are_cut_otherwise_meet_the_most_alike() -> None:
    theirs, ours = [b"The", b" distil", b"led", b" x"], [b"The", b" dist", b"illed", b" x"]
    assert pairs(theirs, ours, [1, 1, 1, 1]) == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert pairs([b"abc", b"d"], [b"a", b"bc", b"d"], [1, 1]) == [[0, 0], [0, 1], [1, 2]]


def test_a_teacher_that_is_sure_still_meets_what_is_most_alike() -> None:
    """All costs are 0 then, and the distances themselves decide."""
    theirs, ours = [b"x", b"y", b"hello"], [b"x", b"y", b"hel", b"lo"]
    assert pairs(theirs, ours, [0, 0, 0]) == [[0, 0], [1, 1], [2, 2], [2, 3]]


def test_a_long_text_is_cut_where_both_begin_a_token() -> None:
    theirs, ours = [b"ab", b"c"] * 700, [b"a", b"bc"] * 700
    found = pairs(theirs, ours, [1.0] * 1400)
    assert all(abs(t - s) <= 2 for t, s in found)


# ---- what stands for what ----


@cache
def edits(a: bytes, b: bytes) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def test_tokens_without_a_twin_could_be_all_that_are_alike() -> None:
    t, s = (ByteTokenizer(tokenizers.build(kind)) for kind in ("spaces apart", "gpt2"))
    made, fixed = make_map("alike exact", t, s), make_map("strict", t, s)
    assert made.first is not None
    assert made.share is not None
    several = 0
    for v in range(t.size):
        of_v = slice(int(made.first[v]), int(made.first[v + 1]))
        found = dict(zip(made.event[of_v].tolist(), made.share[of_v].tolist(), strict=True))
        written = t.token_bytes[v]
        if fixed.event[v] >= 0 or not written:
            assert found == {int(fixed.event[v]): 1.0 if fixed.event[v] >= 0 else 0.0}
            continue
        want = {}
        for u, other in enumerate(s.token_bytes):
            if other and not (s.is_standin[u] and other >= b"\x80"):
                distance = edits(written, other) / (len(written) + len(other))
                if 0 < distance < UNLIKE:
                    want[u] = 1 - distance
        assert found == pytest.approx(want or {-1: 0.0}, abs=1e-6)
        several += len(want)
    assert several > 0


# ---- through the whole student side ----


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return tiny.llama(len(tiny.unigram()), seed=7)


def warped_by_definition(
    theirs: list[bytes], ours: list[bytes], ends: tuple[Any, Any], weights: list[float]
) -> list[int]:
    """The teacher's token of each label: the recurrence over pairs of costs, in plain loops."""

    def distance(i: int, j: int) -> float:
        if ends[0][i] or ends[1][j]:
            return float(ends[0][i] != ends[1][j])
        both = len(theirs[i]) + len(ours[j])
        return edits(theirs[i], ours[j]) / both if both else 0.0

    best: dict[tuple[int, int], tuple[tuple[int, int], Any]] = {}
    for i in range(len(theirs)):
        for j in range(len(ours)):
            d = distance(i, j)
            own = round(np.float32(d) * weights[i] * 2**20), round(np.float32(d) * 2**10)
            came = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
            before = [(best[cell][0], cell) for cell in came if cell in best]
            least = min((cost for cost, _ in before), default=(0, 0))
            step = next((cell for cost, cell in before if cost == least), None)
            best[i, j] = (least[0] + own[0], least[1] + own[1]), step
    cell, beside = (len(theirs) - 1, len(ours) - 1), dict[int, list[int]]()
    while cell is not None:
        beside.setdefault(cell[1], []).append(cell[0])
        cell = best[cell][1]
    return [
        min(sorted(beside[j]), key=lambda i: np.float32(distance(i, j))) for j in sorted(beside)
    ]


@cache
def near(written: bytes) -> list[tuple[float, int]]:
    """The student's tokens that could stand for these bytes, the most alike first."""
    others = []
    for u, other in enumerate(ByteTokenizer(tiny.byte_bpe()).token_bytes):
        both = len(written) + len(other or b"")
        if other and abs(len(written) - len(other)) < UNLIKE * both:  # at least so many edits
            far = edits(written, other) / both
            others += [(1 - far, u)] if far < UNLIKE else []
    return sorted(others, key=lambda each: (-each[0], each[1]))


def live(student: PreTrainedModel, teacher: PreTrainedModel, k: int) -> list[Tensor]:
    """The loss of each label from two live models; twins by their bytes, others by their edits."""
    readers = ByteTokenizer(tiny.unigram()), ByteTokenizer(tiny.byte_bpe())
    twin = make_map("strict", *readers).event
    found = []
    for segments in ragged_rows():
        sides = []
        for model, reader in zip((teacher, student), readers, strict=True):
            tokens = reader.encode(segments)
            at = np.flatnonzero(tokens.has_record)
            ids = tokens.token_ids
            logprobs = dense_logprobs(model, ids)[at - 1]
            sides.append((reader.written(ids[at].astype(np.int64)), tokens.is_eos[at], logprobs))
        (theirs, their_ends, q_nV), (ours, our_ends, p_mV) = sides
        entropy = -(q_nV.exp() * q_nV).sum(-1) / math.log(readers[0].size)
        beside = warped_by_definition(theirs, ours, (their_ends, our_ends), entropy.tolist())
        for j, i in enumerate(beside):
            top = q_nV[i].sort(descending=True, stable=True).indices[:k].tolist()
            fixed = {int(twin[v]) for v in top if twin[v] >= 0}
            edges = []
            for place, v in enumerate(top):
                if twin[v] >= 0:
                    edges.append((place, int(twin[v]), 1.0))
                    continue
                written = readers[0].token_bytes[v] or b""
                edges += [(place, u, a) for a, u in near(written) if u not in fixed]
            case = Case(p_mV[j : j + 1], q_nV[i : i + 1], [k], [edges])
            found.append(naive(case, case.student_NV)[0])
    return found


@pytest.mark.parametrize("rounded", [False, True])
def test_the_loss_of_a_store_is_the_live_one_within_what_rounding_can_change(
    teacher: PreTrainedModel, tmp_path: Path, rounded: bool
) -> None:
    """A stored log-probability is off by d at most, so KL by (e^2d - 1) of its terms and 2 d."""
    student, k = tiny.llama(len(tiny.byte_bpe())), 24
    store = FakeStore.from_teacher(
        teacher, tiny.unigram(), ragged_rows(), tmp_path / "t", top_k=k, rounded=rounded
    )
    how = {"loss": "cdm", "uncovered": "none", "eval_store": store}
    found = trainer_of(student, store, tmp_path, **how).evaluate()["eval_cdm_loss"]
    values = live(student, teacher, k)
    want = float(torch.stack(values).mean())
    assert want > 0.05
    assert found == pytest.approx(want, abs=4 / 64 if rounded else 1e-5)
    assert rounded == (abs(found - want) > 1e-5)


@pytest.mark.parametrize("kind", ["exact", "prefix", "mined"])
def test_a_student_that_is_its_own_teacher_loses_nothing_and_shifted_by_one_it_does(
    tmp_path: Path, kind: str
) -> None:
    model, found = tiny.llama(len(tiny.byte_bpe()), seed=7), []
    for shifted in (False, True):
        store = FakeStore.from_teacher(
            model, tiny.byte_bpe(), ragged_rows(), tmp_path / str(shifted), shifted=shifted
        )
        how = {"loss": "cdm", "cdm_map": kind, "uncovered": "none", "no_self_test": True}
        trainer = trainer_of(model, store, tmp_path, eval_store=store, **how)
        found.append(trainer.evaluate()["eval_cdm_loss"])
    assert abs(found[0]) < 1e-5 < 1e-2 < found[1]


def test_where_nothing_stands_for_anything_the_text_does(
    teacher: PreTrainedModel, tmp_path: Path
) -> None:
    """Of a store whose entries all lack a twin; with `none` nothing is learnt there."""
    student = tiny.llama(len(tiny.byte_bpe())).double()
    store = FakeStore.from_teacher(teacher, tiny.unigram(), ragged_rows(), tmp_path / "t", top_k=4)
    readers = ByteTokenizer(tiny.unigram()), ByteTokenizer(tiny.byte_bpe())
    event = make_map("alike exact", *readers)
    assert event.first is not None
    lone = next(v for v in range(readers[0].size) if readers[0].token_bytes[v]
                and event.event[event.first[v]] < 0)  # fmt: skip
    for records in store.records:
        assert records.entry_ids is not None
        records.entry_ids[:] = lone
    found = []
    for how in ({"loss": "cdm"}, {"loss": "cdm", "uncovered": "none"}, {"loss": "ce"}):
        trainer = trainer_of(student, store, tmp_path, eval_store=store, no_self_test=True, **how)
        found.append(trainer.evaluate())
    assert found[0]["eval_cdm_loss"] == pytest.approx(found[2]["eval_ce_loss"], rel=1e-5)
    assert found[1]["eval_cdm_loss"] == 0


@pytest.mark.filterwarnings("ignore:wrong labels")
@pytest.mark.parametrize("cut", ["whole", "pieces"])
def test_a_teacher_that_is_as_sure_as_the_text_is_the_text(
    teacher: PreTrainedModel, tmp_path: Path, cut: str
) -> None:
    """Whatever stands for its one entry, what is left open of a label is all of the label."""
    store = FakeStore.from_teacher(teacher, tiny.unigram(), ragged_rows(), tmp_path / "t")
    sure = changed(store, as_sure_as_the_text)
    student = tiny.llama(len(tiny.byte_bpe())).double()
    assert_cross_entropy(student, sure, tmp_path, cut, "cdm", no_self_test=True)


def test_what_is_left_open_is_how_likely_all_are_that_stand_for_something(tmp_path: Path) -> None:
    """Of a label among them: with one tokenizer, the entries. Of another, all of its surprise."""
    width, k = len(tiny.byte_bpe()), 8
    teacher, student = tiny.llama(width, seed=7), tiny.llama(width)
    store = FakeStore.from_teacher(teacher, tiny.byte_bpe(), ragged_rows(), tmp_path / "t", top_k=k)
    hard, none = (
        trainer_of(student, store, tmp_path, eval_store=store, loss="cdm", uncovered=way).evaluate()
        for way in ("hard", "none")
    )
    want, inside = [], 0
    for segments in ragged_rows():
        tokens = ByteTokenizer(tiny.byte_bpe()).encode(segments)
        at = np.flatnonzero(tokens.has_record)
        p, q = (dense_logprobs(model, tokens.token_ids)[at - 1] for model in (student, teacher))
        for p_V, q_V, label in zip(p, q, tokens.token_ids[at].tolist(), strict=True):
            best = q_V.topk(k).indices
            is_in = label in best.tolist()
            want.append(-float(p_V[best].logsumexp(0) if is_in else p_V[label]))
            inside += is_in
    assert 0 < inside < len(want)
    opened = hard["eval_cdm_loss"] - none["eval_cdm_loss"]
    assert opened == pytest.approx(float(np.mean(want)), rel=1e-3)


def test_a_student_of_another_tokenizer_learns_it(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """Chunk by chunk, and beside a loss that asks for fewer of the student's largest."""
    store = FakeStore.from_teacher(teacher, tiny.unigram(), ragged_rows(), tmp_path / "t")
    trainer = trainer_of(
        tiny.llama(len(tiny.byte_bpe())), store, tmp_path, loss="cdm,uld", max_steps=6,
        ce_weight=0.0, learning_rate=5e-2,
    )  # fmt: skip
    trainer.train()
    logged = [entry["cdm_loss"] for entry in trainer.state.log_history if "cdm_loss" in entry]
    assert np.isfinite(logged).all()
    assert logged[-1] < logged[0]
