"""Events of a partition: the log of their tokens' mass, in chunks, as its definition has it."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.head import members, places
from distill.head.chunked import in_the_forward, recomputed
from distill.head.output_head import AnyHead, LinearHead
from distill.head.query import HeadQuery, Lookup, Partition, Ranking, answer_rows
from distill.head.student_head import StudentHead
from logitstore.errors import InputError
from logitstore.models.output_embedding import AfterEmbedding
from tests.kit.asking import assert_close, fields, gradients, question, some_loss
from tests.kit.families import V, build

NOTHING_AFTER = AfterEmbedding(None, None, None, None)
Answers = dict[str, Tensor]


@pytest.fixture(autouse=True)
def several_blocks_and_tables() -> Iterator[None]:
    """So few members would all be one block; a wide step between tables makes padding."""
    before = places.BLOCK_MEMBERS, members.GROWTH
    places.BLOCK_MEMBERS, members.GROWTH = 9, 3
    yield
    places.BLOCK_MEMBERS, members.GROWTH = before


# ---- the definition: token by token, in float64 ----


def shares_of(partition: Partition, width: int) -> list[dict[int, float]]:
    """Of each token, what goes to which event; what goes to none is -1's."""
    shares: list[dict[int, float]] = [{} for _ in range(width)]
    share_rV = torch.ones_like(partition.event_rV) if partition.share_rV is None else None
    for events, row in zip(
        partition.event_rV.tolist(),
        (partition.share_rV if share_rV is None else share_rV).tolist(),  # type: ignore[union-attr]
        strict=True,
    ):
        for token, (event, share) in enumerate(zip(events, row, strict=True)):
            shares[token][event] = shares[token].get(event, 0) + share
    return [each or {-1: 1.0} for each in shares]


def log_of_sum(logprobs_V: Tensor, weights: list[float]) -> Tensor:
    chosen = [v for v, weight in enumerate(weights) if weight > 0 and logprobs_V[v] > -torch.inf]
    if not chosen:
        return torch.tensor(-torch.inf, dtype=torch.float64)
    weight = torch.tensor([weights[v] for v in chosen], dtype=torch.float64)
    return (logprobs_V[chosen] + weight.log()).logsumexp(-1)


def by_definition(logits_NV: Tensor, query: HeadQuery) -> Answers:
    rows = logits_NV.double()
    label_N = rows.log_softmax(-1).gather(1, query.labels_N[:, None]).squeeze(1)
    answer = {"label_logprob_N": label_N}
    for name, lookup in query.lookups.items():
        partition, width = lookup.partition, rows.shape[1]
        each_V = [{v: 1.0} for v in range(width)]
        shares = each_V if partition is None else shares_of(partition, width)
        at: list[Tensor] = []
        rest: list[Tensor] = []
        for logits_V, listed in zip(rows, lookup.ids_NK.tolist(), strict=True):
            logprobs_V = (logits_V / lookup.temperature).log_softmax(-1)
            at += [
                log_of_sum(logprobs_V, [each.get(e, 0.0) * (e >= 0) for each in shares])
                for e in listed
            ]
            known = {e for e in listed if e >= 0}
            outside = [sum(w for e, w in each.items() if e not in known) for each in shares]
            rest.append(log_of_sum(logprobs_V, outside))
        nothing = rows.new_zeros(0)
        answer[f"{name}.at_ids"] = (torch.stack(at) if at else nothing).reshape(lookup.ids_NK.shape)
        if lookup.has_rest:
            answer[f"{name}.rest"] = torch.stack(rest) if rest else nothing
    return answer


# ---- the ways to compute it ----


def in_autograd(hidden_ND: Tensor, linear: nn.Linear, query: HeadQuery, size: int) -> Answers:
    return answer_rows(linear(hidden_ND), query)


def in_the_backward(hidden_ND: Tensor, linear: nn.Linear, query: HeadQuery, size: int) -> Answers:
    return recomputed(LinearHead(linear, NOTHING_AFTER), hidden_ND, query, size)


def by_any_head(hidden_ND: Tensor, linear: nn.Linear, query: HeadQuery, size: int) -> Answers:
    """Its logits are not contiguous, as of a model that drops some of them."""
    bias, weight = linear.bias, linear.weight

    def forward(hidden: Tensor) -> Tensor:
        return nn.functional.linear(weight, hidden).T + bias

    return recomputed(AnyHead(linear, forward, NOTHING_AFTER), hidden_ND, query, size)


WAYS: list[Callable[..., Answers]] = [in_autograd, in_the_backward, by_any_head]


def weighted(answer: Answers, start: int = 0) -> Tensor:
    """Feel every number, each with a weight of its own; -inf counts nothing."""
    parts = []
    for value in answer.values():
        flat = value if value.dim() == 2 else value[:, None]
        own = torch.arange(flat.shape[1], dtype=value.dtype) * 3.1
        weights = (own + torch.arange(start, start + len(flat), dtype=value.dtype)[:, None]).cos()
        parts.append((weights * flat.masked_fill(flat == -torch.inf, 0)).sum())
    return torch.stack(parts).sum()


def slopes(loss: Tensor, hidden_ND: Tensor, linear: nn.Linear) -> list[Tensor]:
    wanted = [hidden_ND, linear.weight, linear.bias]
    return list(torch.autograd.grad(loss, wanted, materialize_grads=True, allow_unused=True))


def assert_all_ways_agree(
    hidden_ND: Tensor, linear: nn.Linear, query: HeadQuery, size: int
) -> Answers:
    want = by_definition(linear(hidden_ND), query)
    want_slopes = slopes(weighted(want), hidden_ND, linear)
    for way in WAYS:
        got = way(hidden_ND, linear, query, size)
        assert got.keys() == want.keys()
        assert_close(got, want, rtol=1e-10, atol=1e-10)
        assert_close(slopes(weighted(got), hidden_ND, linear), want_slopes, rtol=1e-9, atol=1e-10)
    ranges = [(a, min(a + size, len(hidden_ND))) for a in range(0, len(hidden_ND), size)]
    loss = in_the_forward(
        LinearHead(linear, NOTHING_AFTER),
        hidden_ND,
        query,
        ranges or [(0, 0)],
        lambda answer, start, _stop: weighted(fields(answer), start),
    )
    assert_close(loss, weighted(want), rtol=1e-9, atol=1e-9)
    assert_close(slopes(loss, hidden_ND, linear), want_slopes, rtol=1e-9, atol=1e-10)
    return want


# ---- what is asked ----


def head_of(width: int, seed: int = 0) -> nn.Linear:
    gen = torch.Generator().manual_seed(seed)
    linear = nn.Linear(3, width, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(2 * torch.randn(width, 3, generator=gen))
        linear.bias.copy_(torch.randn(width, generator=gen))
    return linear


def some_partition(gen: torch.Generator, width: int, count: int, r: int) -> Partition:
    """Events of uneven size, a few tokens of none; with r > 0 shares, and some of them 0."""
    skewed = (torch.rand(max(1, r), width, generator=gen) ** 2 * (count + 1)).long() - 1
    if not r:
        return Partition(skewed[0].int(), count)
    share_rV = torch.rand(r, width, generator=gen, dtype=torch.float64)
    share_rV[1:] *= torch.rand(r - 1, width, generator=gen) < 0.7
    return Partition(skewed, count, share_rV / share_rV.sum(0))


def some_ids(gen: torch.Generator, rows: int, count: int, k: int) -> Tensor:
    ids = torch.stack([torch.randperm(max(count, k), generator=gen)[:k] for _ in range(rows)])
    return ids.masked_fill((ids >= count) | (torch.rand(ids.shape, generator=gen) < 0.3), -1)


@pytest.mark.parametrize("r", [0, 1, 2, 3, 4])
@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    width=st.integers(1, 30),
    beyond=st.integers(0, 3),
    count=st.integers(1, 12),
    rows=st.integers(1, 7),
    k=st.integers(1, 6),
    size=st.integers(1, 8),
    temperature=st.sampled_from([1.0, 0.7]),
    has_rest=st.booleans(),
)
def test_events_have_their_tokens_mass_and_hand_it_their_slope(
    r: int,
    seed: int,
    width: int,
    beyond: int,
    count: int,
    rows: int,
    k: int,
    size: int,
    temperature: float,
    has_rest: bool,
) -> None:
    """Odd shapes, shares, events without tokens, tokens without events, several lookups at once."""
    gen = torch.Generator().manual_seed(seed)
    partition = some_partition(gen, width, count, r)
    ids = some_ids(gen, rows, count, k)
    tokens = some_ids(gen, rows, width, min(k, width))
    query = HeadQuery(
        torch.randint(width + beyond, (rows,), generator=gen),
        lookups={
            "tokens": Lookup(tokens, 1.3),
            "events": Lookup(ids, temperature, has_rest, partition),
            "again": Lookup(ids.flip(0).int(), 1.0, True, partition),
        },
    )
    hidden = torch.randn(rows, 3, generator=gen, dtype=torch.float64, requires_grad=True)
    assert_all_ways_agree(hidden, head_of(width + beyond, seed), query, size)


EDGES = {
    "an event without tokens": ([0, 0, 2, 2, 2], 4, [[1, 0], [3, 1], [2, 3]]),
    "all events listed": ([0, 1, 1, 0, 2], 3, [[0, 1, 2], [2, 0, 1], [1, 2, 0]]),
    "one event that holds everything": ([0] * 5, 1, [[0], [-1], [0]]),
    "no token in any event": ([-1] * 5, 2, [[0, 1], [-1, 0], [-1, -1]]),
    "nothing listed": ([0, 1, 1, 0, 2], 3, [[-1, -1]] * 3),
    "nothing to list": ([0, 1, 1, 0, 2], 3, [[], [], []]),
    "no event at all": ([-1] * 5, 0, [[-1], [-1], [-1]]),
    "an empty partition of a padded head": ([], 2, [[0, 1], [-1, 0], [-1, -1]]),
}


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("beyond", [0, 2])
@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str, beyond: int, size: int) -> None:
    """-inf where there is no mass, and no NaN from it in the gradient; labels in and outside."""
    of, count, ids = EDGES[name]
    partition = Partition(torch.tensor(of, dtype=torch.long), count)
    events = Lookup(torch.tensor(ids, dtype=torch.long).reshape(3, -1), partition=partition)
    hidden = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    width = 5 + beyond
    query = HeadQuery(torch.tensor([0, 2, width - 1]), lookups={"events": events})
    want = assert_all_ways_agree(hidden, head_of(width), query, size)
    if name in ("all events listed", "one event that holds everything") and not beyond:
        assert want["events.rest"][0] == -torch.inf
    if name == "an event without tokens":
        assert (want["events.at_ids"][:2] == -torch.inf).sum() == 3


def test_no_position_gives_an_empty_answer() -> None:
    partition = Partition(torch.tensor([0, 0, 1, 1, 2]), 3)
    ids = torch.zeros(0, 4, dtype=torch.long)
    query = HeadQuery(
        torch.zeros(0, dtype=torch.long), lookups={"a": Lookup(ids, 1, True, partition)}
    )
    hidden = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    for way in (in_autograd, in_the_backward):
        got = way(hidden, head_of(5), query, 4)
        assert {name: tuple(x.shape) for name, x in got.items()} == {
            "label_logprob_N": (0,),
            "a.at_ids": (0, 4),
            "a.rest": (0,),
        }
        assert all(not x.any() for x in slopes(weighted(got), hidden, head_of(5))[:1])


@pytest.mark.parametrize("r", [0, 1, 2, 3, 4])
def test_tokens_that_the_model_rules_out_make_no_nan(r: int) -> None:
    """Logits of -inf, for some of an event's tokens, for all of them, for all of the rest's."""
    gen = torch.Generator().manual_seed(r)
    partition = some_partition(gen, 11, 4, r)
    ids = torch.tensor([[0, 1], [2, 3], [1, 3]])
    query = HeadQuery(torch.tensor([0, 1, 0]), lookups={"a": Lookup(ids, partition=partition)})
    for ruled_out in ([4], range(1, 11), range(5, 11)):
        linear = head_of(11)
        with torch.no_grad():
            linear.bias[list(ruled_out)] = -torch.inf
        query = replace(query, labels_N=torch.zeros(3, dtype=torch.long))
        hidden = torch.randn(3, 3, generator=gen, dtype=torch.float64, requires_grad=True)
        want = by_definition(linear(hidden), query)
        want_slope = torch.autograd.grad(weighted(want), hidden)
        for way in (in_autograd, in_the_backward):
            got = way(hidden, linear, query, 2)
            assert_close(got, want, rtol=1e-10, atol=1e-10)
            grads = torch.autograd.grad(weighted(got), hidden)
            assert_close(grads, want_slope, rtol=1e-9, atol=1e-10)


# ---- laws ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("chunk_tokens", [4, 100])
def test_singletons_give_the_very_same_answers_as_tokens(
    dtype: torch.dtype, chunk_tokens: int
) -> None:
    """Bit for bit, and the gradient too."""
    model, (inputs, rows, query) = build("llama").to(dtype), question()
    query = HeadQuery(query.labels_N, lookups=query.lookups)
    singletons = Partition(torch.arange(V, dtype=torch.int32), V)
    events = {name: each._replace(partition=singletons) for name, each in query.lookups.items()}
    head = StudentHead(model, chunk_tokens=chunk_tokens)
    want = head(model, inputs, rows, query)
    got = head(model, inputs, rows, replace(query, lookups=events))
    assert_close(fields(got), fields(want), rtol=0, atol=0)
    assert_close(gradients(model, got), gradients(model, want), rtol=0, atol=0)


def test_whole_shares_are_a_partition() -> None:
    """Shares of one, among others of nothing."""
    gen = torch.Generator().manual_seed(3)
    plain = some_partition(gen, 23, 6, 0)
    others = torch.randint(6, (2, 23), generator=gen)
    shared = Partition(
        torch.cat([others[:1], plain.of_V[None], others[1:]]),
        6,
        torch.tensor([0.0, 1.0, 0.0])[:, None].repeat(1, 23),
    )
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    linear, ids = head_of(23), some_ids(gen, 5, 6, 3)
    found = []
    for partition in (plain, shared):
        query = HeadQuery(torch.arange(5), lookups={"a": Lookup(ids, partition=partition)})
        answer = in_the_backward(hidden, linear, query, 2)
        found.append((answer, slopes(weighted(answer), hidden, linear)))
    assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("r", [0, 3])
def test_events_and_rest_hold_all_mass(r: int) -> None:
    gen = torch.Generator().manual_seed(1)
    partition = some_partition(gen, 40, 9, r)
    ids = some_ids(gen, 6, 9, 5)
    query = HeadQuery(torch.arange(6), lookups={"a": Lookup(ids, partition=partition)})
    answer = in_the_backward(torch.randn(6, 3).double(), head_of(43), query, 4)
    total_N = answer["a.at_ids"].exp().sum(-1) + answer["a.rest"].exp()
    assert_close(total_N, torch.ones(6), rtol=1e-12, atol=0)


@pytest.mark.parametrize("r", [0, 2])
@pytest.mark.parametrize("sure", ["of what is listed", "of the rest"])
def test_mass_is_right_where_subtraction_and_float32_see_nothing(r: int, sure: str) -> None:
    """The student puts e^-200 on the rest, or on the listed events: no exponential has that."""
    width = 12
    of = torch.arange(width) // 3
    share = None if not r else torch.full((2, width), 0.5)
    partition = Partition(of if not r else torch.stack([of, of]), 4, share)
    bias = torch.randn(width).double()
    bias[3:6] += 200
    ids = torch.tensor([[1]]) if sure == "of what is listed" else torch.tensor([[0, 2]])
    query = HeadQuery(torch.tensor([4]), lookups={"a": Lookup(ids, partition=partition)})
    linear = head_of(width)
    with torch.no_grad():
        linear.bias.copy_(bias)
    hidden = torch.randn(1, 3, requires_grad=True)
    want = by_definition(linear(hidden.double()), query)
    least = want["a.rest"] if sure == "of what is listed" else want["a.at_ids"]
    assert (least < -150).all()
    linear32 = copy.deepcopy(linear).float()
    want_slope = torch.autograd.grad(weighted(want), hidden)
    for way in (in_autograd, in_the_backward):
        got = way(hidden, linear32, query, 4)
        assert got["a.rest"].dtype == torch.float32
        assert_close(got, want, rtol=1e-5, atol=1e-4)
        slope = torch.autograd.grad(weighted(got), hidden)
        assert_close(slope, want_slope, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("r", [0, 4])
def test_bfloat16_weights_are_summed_in_float32(r: int) -> None:
    gen = torch.Generator().manual_seed(5)
    model, (inputs, rows, query) = build("llama").bfloat16(), question()
    partition = some_partition(gen, V - 3, 20, r)
    ids = some_ids(gen, len(rows), 20, 6)
    query = HeadQuery(query.labels_N, lookups={"a": Lookup(ids, partition=partition)})
    logits = model(**inputs).logits.flatten(0, -2)[rows]
    want = by_definition(logits, query)
    model.zero_grad()
    weighted(want).backward()
    want_grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for chunk_tokens in (4, 100):
        got = StudentHead(model, chunk_tokens=chunk_tokens)(model, inputs, rows, query)
        assert got.found["a"].logprobs_NK.dtype == torch.float32
        assert_close(fields(got), want, rtol=1e-5, atol=2e-5)
        model.zero_grad()
        weighted(fields(got)).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                assert (p.grad - want_grads[name]).norm() <= 0.02 * want_grads[name].norm() + 1e-6


@pytest.mark.parametrize("r", [0, 2])
def test_events_beside_a_ranking_and_the_largest(r: int) -> None:
    """The ranking takes the rows' memory, so the events have their own."""
    gen = torch.Generator().manual_seed(7)
    model, (inputs, rows, query) = build("llama").double(), question()
    partition = some_partition(gen, V, 20, r)
    ids = some_ids(gen, len(rows), 20, 6)
    events = {"a": Lookup(ids, partition=partition), "cool": Lookup(ids, 0.6, False, partition)}
    query = replace(query, lookups={**query.lookups, **events})
    assert isinstance(query.ranking, Ranking)
    answers = [
        StudentHead(model, chunk_tokens=4, dense=dense)(model, inputs, rows, query)
        for dense in (True, False)
    ]
    assert_close(fields(answers[1]), fields(answers[0]), rtol=1e-9, atol=1e-10)
    want, got = (gradients(model, each) for each in answers)
    assert some_loss(answers[0]).isfinite()
    assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_a_gradient_can_be_taken_twice() -> None:
    """The second backward pass makes the logits again, where the first overwrote them."""
    gen = torch.Generator().manual_seed(2)
    partition, linear = some_partition(gen, 20, 5, 0), head_of(20)
    query = HeadQuery(
        torch.arange(4), lookups={"a": Lookup(some_ids(gen, 4, 5, 3), partition=partition)}
    )
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for size in (2, 100):
        loss = weighted(in_the_backward(hidden, linear, query, size))
        first = torch.autograd.grad(loss, hidden, retain_graph=True)
        assert_close(torch.autograd.grad(loss, hidden), first, rtol=1e-12, atol=0)


def test_a_partition_that_is_there_is_not_moved() -> None:
    partition = Partition(torch.tensor([0, 1, 0]), 2)
    assert partition.to("cpu") is partition


WRONG: dict[str, tuple[Any, str]] = {
    "two events a token": (lambda: Partition(torch.zeros(2, 3).long(), 1), "need share_rV"),
    "beyond count": (lambda: Partition(torch.tensor([0, 4]), 4), r"from -1 to 3, found 0 to 4"),
    "below -1": (lambda: Partition(torch.tensor([0, -2]), 4), r"found -2 to 0"),
    "shares of another shape": (
        lambda: Partition(torch.zeros(2, 3).long(), 1, torch.ones(1, 3)),
        r"found \(1, 3\) for \(2, 3\)",
    ),
    "shares that do not sum to one": (
        lambda: Partition(torch.zeros(2, 3).long(), 1, torch.ones(2, 3)),
        r"off by 1\. Divide",
    ),
    "shares below zero": (
        lambda: Partition(torch.zeros(2, 1).long(), 1, torch.tensor([[1.5], [-0.5]])),
        r"found a share of -0\.5",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_partition_that_is_none_is_refused(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("dense", [False, True])
def test_a_partition_of_more_tokens_than_the_head_has_is_refused(dense: bool) -> None:
    """Its places would be those of the next row."""
    model, (inputs, rows, query) = build("llama"), question()
    wide = Partition(torch.zeros(V + 1).long(), 1)
    ids = torch.zeros(len(rows), 1).long()
    query = HeadQuery(query.labels_N, lookups={"a": Lookup(ids, partition=wide)})
    with pytest.raises(InputError, match=r"tokens, but the student's head makes logits of"):
        StudentHead(model, chunk_tokens=4, dense=dense)(model, inputs, rows, query)
