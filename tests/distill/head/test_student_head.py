"""StudentHead: what the model's own logits say, in chunks, in any wrapper, in little memory."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from distill.head import scaled_rows
from distill.head.chunked import recomputed
from distill.head.output_head import LinearHead
from distill.head.query import HeadAnswer, HeadQuery, Lookup, Ranking, at_one_scale
from distill.head.student_head import StudentHead
from logitstore.models.output_embedding import PROBE_ROWS, AfterEmbedding
from tests.kit.asking import B, T, assert_close, definition, fields, gradients, question, some_loss
from tests.kit.families import FAMILIES, V, build


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of so few tokens would all be one block."""
    monkeypatch.setattr(scaled_rows, "BLOCK_LOGITS", 2 * V)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 17, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_give_value_and_gradient_of_the_models_own_logits(
    family: str, chunk_tokens: int | None
) -> None:
    model, (inputs, rows, query) = build(family).double(), question()
    want = definition(model(**inputs).logits.flatten(0, -2), rows, query)
    want_grads = gradients(model, want)
    head = StudentHead(model, chunk_tokens=chunk_tokens)
    got = head(model, inputs, rows, query)
    assert not head.dense
    assert_close(fields(got), fields(want), rtol=1e-10, atol=1e-10)
    assert_close(gradients(model, got), want_grads, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("tied", [False, True])
def test_the_chunked_head_of_t5_is_its_own(tied: bool) -> None:
    """Tied, it scales its hidden states before the embedding; untied, it does not."""
    sizes = {"vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**sizes, tie_word_embeddings=tied, decoder_start_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.T5ForConditionalGeneration(config).eval().double()
    inputs, rows, query = question()
    inputs = inputs | {"decoder_input_ids": inputs["input_ids"]}
    want = definition(model(**inputs).logits.flatten(0, -2), rows, query)
    want_grads = gradients(model, want)
    head = StudentHead(model, chunk_tokens=4)
    got = head(model, inputs, rows, query)
    assert not head.dense
    assert_close(fields(got), fields(want), rtol=1e-10, atol=1e-10)
    assert_close(gradients(model, got), want_grads, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dense_path_gives_the_same_numbers(family: str) -> None:
    model, (inputs, rows, query) = build(family), question()
    want = definition(model(**inputs).logits.flatten(0, -2), rows, query)
    want_grads = gradients(model, want)
    for head in (StudentHead(model, dense=True), StudentHead(model, chunk_tokens=4)):
        got = head(model, inputs, rows, query)
        assert got.label_logprob_N.dtype == torch.float32
        assert_close(fields(got), fields(want), rtol=1e-5, atol=2e-5)
        assert_close(gradients(model, got), want_grads, rtol=1e-3, atol=2e-4)


def test_later_calls_are_like_the_first_and_leave_the_model_as_it_was() -> None:
    """The first call sends some logits through the model's own code; the others send none."""
    model, (inputs, rows, query) = build("gemma2 soft cap"), question()
    own = model(**inputs).logits
    head = StudentHead(model, chunk_tokens=4)
    first, second, third = (head(model, inputs, rows, query) for _ in range(3))
    assert_close(fields(second), fields(first), rtol=0, atol=0)
    assert_close(fields(third), fields(first), rtol=0, atol=0)
    assert_close(model(**inputs).logits, own, rtol=0, atol=0)
    assert "forward" not in model.get_output_embeddings().__dict__
    assert not model._forward_hooks


def test_the_check_happens_once_and_another_stand_in_stays_in_place() -> None:
    """Something else stands in for the embedding's forward, as offloading hooks do: it counts."""
    model, (inputs, rows, query) = build("llama"), question()
    embedding = model.get_output_embeddings()
    original, count = embedding.forward, [0]

    def counting(hidden: Tensor) -> Tensor:
        count[0] += len(hidden)
        return original(hidden)

    embedding.forward = counting
    head = StudentHead(model, chunk_tokens=4)
    for seen, ranking in (
        (len(rows) + PROBE_ROWS, None),
        (len(rows), None),
        (2 * len(rows), query.ranking),  # a ranking takes a round of its own
        (len(rows), None),
    ):
        count[0] = 0
        with torch.no_grad():
            head(model, inputs, rows, replace(query, ranking=ranking))
        assert count[0] == seen
        assert embedding.forward is counting


def test_a_failing_forward_leaves_the_model_as_it_was() -> None:
    model, (inputs, _, query) = build("llama"), question()
    with pytest.raises((IndexError, RuntimeError)):
        StudentHead(model)(model, inputs, torch.full_like(query.labels_N, B * T), query)
    assert "forward" not in model.get_output_embeddings().__dict__
    assert not model._forward_hooks


def test_what_was_not_asked_for_is_not_answered() -> None:
    model, (inputs, rows, query) = build("llama"), question()
    for chunk_tokens in (4, 100):
        head = StudentHead(model, chunk_tokens=chunk_tokens)
        answer = head(model, inputs, rows, HeadQuery(query.labels_N))
        assert list(fields(answer)) == ["label_logprob_N"]
        everywhere = head(model, inputs, rows, HeadQuery(query.labels_N, top_k=5)).top_logprobs_NK
        assert everywhere is not None
        assert torch.isfinite(everywhere).all()


def test_batch_mates_and_padding_change_nothing() -> None:
    model, (inputs, rows, query) = build("llama").double(), question()
    whole = fields(StudentHead(model, chunk_tokens=4)(model, inputs, rows, query))
    for b in range(B):
        length = int(inputs["attention_mask"][b].sum())
        mine = rows // T == b
        alone = {name: x[b : b + 1, :length] for name, x in inputs.items()}
        assert query.top_k_mask_N is not None
        part = HeadQuery(
            query.labels_N[mine],
            query.top_k,
            query.top_k_mask_N[mine],
            lookups={name: x._replace(ids_NK=x.ids_NK[mine]) for name, x in query.lookups.items()},
            ranking=Ranking(torch.zeros_like(rows[mine]), 1, 7),
            scaled_top_k=query.scaled_top_k,
            has_entropy=True,
        )
        got = StudentHead(model)(model, alone, rows[mine] - b * T, part)
        assert_close(fields(got), {n: x[mine] for n, x in whole.items()}, rtol=1e-9, atol=1e-9)


def test_only_the_rows_asked_for_have_a_gradient() -> None:
    """A bump of one position's hidden state is felt in its own row, and in no other."""
    model, (inputs, rows, query) = build("llama").double(), question()
    seen: list[Tensor] = []
    norm: Any = model.model.norm
    handle = norm.register_forward_hook(lambda _m, _a, hidden: seen.append(hidden))
    answer = StudentHead(model, chunk_tokens=4)(model, inputs, rows, query)
    handle.remove()
    (grad,) = torch.autograd.grad(answer.label_logprob_N[3], seen[0])
    felt = grad.flatten(0, 1).abs().amax(-1).nonzero().squeeze(1)
    assert felt.tolist() == [int(rows[3])]


@pytest.mark.parametrize("dense", [False, True])
def test_no_position_still_gives_every_weight_a_gradient(dense: bool) -> None:
    """Other ranks wait for it: a batch whose rows are all prompt must not hang the run."""
    model, (inputs, rows, query) = build("llama"), question()
    none = replace(query.part(0, 0), top_k_mask_N=None)
    answer = StudentHead(model, chunk_tokens=4, dense=dense)(model, inputs, rows[:0], none)
    assert {name: tuple(x.shape) for name, x in fields(answer).items()} == {
        "label_logprob_N": (0,),
        "top_logprobs_NK": (0, 5),
        "column_logprobs_Nk": (0, 7),
        "scaled_top_logprobs_NK": (0, 6),
        "entropy_N": (0,),
        "ids.at_ids": (0, 6),
        "ids.rest": (0,),
        "tempered.at_ids": (0, 6),
        "tempered.rest": (0,),
    }
    sum(value.sum() for value in fields(answer).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.parameters())


def test_a_vocabulary_smaller_than_k_and_ids_that_cover_it() -> None:
    """-inf where there is nothing, and no NaN from it in the gradient."""
    model, (inputs, rows, query) = build("llama"), question(top_k=V + 3)
    every = torch.arange(V).repeat(len(rows), 1)
    for chunk_tokens in (4, 100):
        answer = StudentHead(model, chunk_tokens=chunk_tokens)(
            model,
            inputs,
            rows,
            HeadQuery(
                query.labels_N,
                V + 3,
                lookups={"ids": Lookup(every)},
                ranking=Ranking(rows // T, B, V + 2),
                scaled_top_k=V + 1,
            ),
        )
        assert answer.top_logprobs_NK is not None
        assert answer.column_logprobs_Nk is not None
        rest_N = fields(answer)["ids.rest"]
        assert (answer.column_logprobs_Nk[:, V:] == -torch.inf).all()
        assert torch.isfinite(answer.column_logprobs_Nk[:, :V]).all()
        assert answer.scaled_top_logprobs_NK is not None
        assert (answer.scaled_top_logprobs_NK[:, V:] == -torch.inf).all()
        assert torch.isfinite(answer.scaled_top_logprobs_NK[:, :V]).all()
        assert (answer.top_logprobs_NK[:, V:] == -torch.inf).all()
        assert torch.isfinite(answer.top_logprobs_NK[:, :V]).all()
        assert (rest_N == -torch.inf).all()
        model.zero_grad()
        (some_loss(answer) + rest_N.exp().sum()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_tokens_that_the_model_rules_out_make_no_nan() -> None:
    """All tokens but the ids have a logit of -inf: nothing is outside, and no gradient is NaN."""
    model, (inputs, rows, query) = build("bart bias"), question()
    bias: Tensor = model.final_logits_bias
    bias[:, 10:] = -torch.inf
    ids = torch.arange(10).repeat(len(rows), 1)
    query = HeadQuery(query.labels_N % 10, 12, lookups={"ids": Lookup(ids)})
    answer = StudentHead(model, chunk_tokens=4)(model, inputs, rows, query)
    assert (fields(answer)["ids.rest"] == -torch.inf).all()
    assert all(torch.isfinite(grad).all() for grad in gradients(model, answer).values())


def test_positions_that_nobody_asks_for_may_be_nan() -> None:
    """What masked padding becomes in some attention kernels; the first call's check meets it."""
    model, (inputs, rows, query) = build("llama"), question()
    rows[rows == 0] = 1
    want = StudentHead(model, dense=True)(model, inputs, rows, query)

    def poison(_module: nn.Module, _args: Any, hidden: Tensor) -> Tensor:
        is_first = torch.arange(B * T).reshape(B, T, 1) == 0
        return hidden.masked_fill(is_first, torch.nan)

    norm: Any = model.model.norm
    norm.register_forward_hook(poison)
    got = StudentHead(model, chunk_tokens=4)(model, inputs, rows, query)
    assert_close(fields(got), fields(want), rtol=1e-5, atol=1e-5)


def test_the_rest_is_right_where_subtraction_would_see_nothing() -> None:
    """A student so sure of its two best tokens that all others together have e^-20 and less."""
    model, (inputs, rows, query) = build("llama"), question()
    with torch.no_grad():
        weight: Tensor = model.get_output_embeddings().weight
        weight *= 20
        logits_MV = model(**inputs).logits.flatten(0, -2)
    best_two = Lookup(logits_MV[rows].topk(2).indices)
    query = HeadQuery(query.labels_N, 1, lookups={"ids": best_two})
    want = fields(definition(logits_MV, rows, query))["ids.rest"]
    got = StudentHead(model, chunk_tokens=4)(model, inputs, rows, query)
    assert (want < -20).sum() > 3
    assert_close(fields(got)["ids.rest"], want, rtol=1e-5, atol=1e-5)
    subtracted = 1 - fields(got)["ids.at_ids"].exp().sum(-1)
    assert ((subtracted / want.exp())[want < -20] - 1).abs().min() > 0.5


#: Every width and every chunk; the widest in pieces and whole.
CHECKED = ((1, 2), (2, 3), (7, 2), (7, 100))
#: Of these, where random sums of derivatives are compared, and not each: a tenth of the time. A
#: wrong derivative changes a random sum, too.
SUMMED = ((1, 2), (7, 2))


@pytest.mark.parametrize(
    ("width", "chunk_tokens", "summed"),
    [
        *((*each, each in SUMMED) for each in CHECKED),
        *(
            pytest.param(*each, False, marks=pytest.mark.slow)
            for each in product((1, 2, 7), (2, 3, 100))
            if each not in CHECKED or each in SUMMED
        ),
    ],
)
def test_gradcheck(width: int, chunk_tokens: int, summed: bool) -> None:
    """By finite differences: odd shapes, ids and top k beyond the vocabulary, a row of padding."""
    gen = torch.Generator().manual_seed(width)
    hidden_ND = torch.randn(5, 3, generator=gen, dtype=torch.float64, requires_grad=True)
    linear = nn.Linear(3, width, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(width, 3, generator=gen))
        linear.bias.copy_(torch.randn(width, generator=gen))
    ids = torch.stack([torch.randperm(width, generator=gen)[:4] for _ in range(5)])
    ids[torch.rand(ids.shape, generator=gen) < 0.3] = -1
    ids[1] = -1
    query = HeadQuery(
        torch.randint(width, (5,), generator=gen),
        top_k=3,
        lookups={
            "a": Lookup(ids),
            "b": Lookup(ids.flip(0)),
            "cool": Lookup(ids, 0.7),
            "at": Lookup(ids, has_rest=False),
        },
        ranking=Ranking(torch.tensor([0, 0, 1, 1, 1]), 2, 3),
        scaled_top_k=2,
    )
    after = AfterEmbedding(factor=1.3, divisor=None, cap=4.0, bias_V=None)

    def answers(hidden_ND: Tensor, _weight: Tensor, _bias: Tensor) -> tuple[Tensor, ...]:
        found = recomputed(LinearHead(linear, after), hidden_ND, query, chunk_tokens)
        return tuple(x.masked_fill(x == -torch.inf, 0) for x in found.values())

    inputs = (hidden_ND, linear.weight, linear.bias)
    assert torch.autograd.gradcheck(answers, inputs, check_batched_grad=False, fast_mode=summed)


def test_a_query_can_be_cut_anywhere() -> None:
    _, rows, query = question()
    for start, stop in ((0, 5), (5, 17), (3, 3)):
        part = query.part(start, stop)
        assert part.top_k == query.top_k
        assert part.top_k_mask_N is not None
        assert part.ranking is not None
        assert (part.ranking.sequences, part.ranking.k) == (B, 7)
        per_row = [part.labels_N, part.top_k_mask_N, part.ranking.sequence_N]
        per_row += [each.ids_NK for each in part.lookups.values()]
        assert all(len(x) == min(stop, len(rows)) - start for x in per_row)
        assert part.lookups["tempered"].temperature == 2.5


@pytest.mark.parametrize("chunk_tokens", [4, 100])
def test_the_largest_of_a_set_of_tokens(chunk_tokens: int) -> None:
    """Only tokens of the set are listed, with their probability over the full vocabulary."""
    model, (inputs, rows, query) = build("llama").double(), question()
    among = torch.arange(V) % 9 == 1
    query = HeadQuery(query.labels_N, 20, top_k_columns_V=among)
    logprobs_NV = model(**inputs).logits.flatten(0, -2)[rows].log_softmax(-1)
    want = HeadAnswer(
        logprobs_NV.gather(1, query.labels_N[:, None]).squeeze(1),
        nn.functional.pad(
            logprobs_NV[:, among].sort(descending=True).values, (0, 9), value=-torch.inf
        ),
    )
    want_grads = gradients(model, want)
    got = StudentHead(model, chunk_tokens=chunk_tokens)(model, inputs, rows, query)
    assert_close(fields(got), fields(want), rtol=1e-10, atol=1e-10)
    assert_close(gradients(model, got), want_grads, rtol=1e-9, atol=1e-10)


def test_a_lookup_without_rest_has_none() -> None:
    model, (inputs, rows, query) = build("llama"), question()
    lookups = {"ids": query.lookups["ids"]._replace(has_rest=False)}
    for chunk_tokens in (4, 100):
        got = StudentHead(model, chunk_tokens=chunk_tokens)(
            model, inputs, rows, HeadQuery(query.labels_N, lookups=lookups)
        )
        assert got.found["ids"].rest_logmass_N is None


def test_logits_that_are_all_equal_have_a_finite_gradient_at_one_scale() -> None:
    """Their standard deviation is 0, where a square root has no slope."""
    logits = torch.full((2, 5), 3.0, requires_grad=True)
    at_one_scale(logits).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
