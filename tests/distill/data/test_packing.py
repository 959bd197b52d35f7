"""`--packing`: sequences that share a row are read as if each had one, and trained on alike."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from distill.data.collator import Collator
from distill.data.example import Example
from distill.data.packing import Places, check_packing, in_one_row, layout_of, one_a_row, packed
from logitstore.errors import InputError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.families import FAMILIES, SHAPE, V
from tests.kit.students import LOSSES, bloom, logged, ragged_rows, t5, trainer_of

#: Lengths of which some share a row, in an order that packing changes.
LENGTHS = (3, 9, 5, 4, 2, 7)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    folder = tmp_path_factory.mktemp("teacher")
    return FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), folder)


def examples_of(texts: list[list[int]]) -> list[Example]:
    """Every token but the first is a label."""
    return [
        Example(np.array(ids, np.int32), np.arange(len(ids)) > 0, {}, 0, skipped=not ids, row=b)
        for b, ids in enumerate(texts)
    ]


def some_texts(seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, V, n).tolist() for n in LENGTHS]


def cells(places: Places, lengths: list[int]) -> list[tuple[int, int]]:
    return [
        (int(r), int(c) + t)
        for r, c, n in zip(places.row, places.column, lengths, strict=True)
        for t in range(n)
    ]


# ---- where sequences lie ----


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_every_token_has_a_cell_of_its_own_in_rows_no_longer_than_the_longest(
    lengths: list[int],
) -> None:
    for layout in (one_a_row, packed, in_one_row):
        places = layout(np.array(lengths))
        found = cells(places, lengths)
        assert len(set(found)) == len(found)
        assert all(r < places.shape[0] and c < places.shape[1] for r, c in found)
    longest = max(1, *lengths)
    assert in_one_row(np.array(lengths)).shape == (1, max(1, sum(lengths)))
    for most, widest in ((None, longest * 3 // 2), (longest + 1, longest + 1), (1, longest)):
        rows, width = packed(np.array(lengths), most).shape
        assert longest <= width <= max(widest, longest)
        assert rows * width <= len(lengths) * longest


def test_what_is_shorter_shares_rows_with_little_padding() -> None:
    places = packed(np.array(LENGTHS))
    assert places.shape == (3, 11)  # 30 tokens; 54 cells if each had a row
    assert places.row.tolist() == [1, 0, 2, 2, 0, 1]
    assert places.column.tolist() == [7, 0, 0, 5, 9, 0]
    assert packed(np.array(LENGTHS), 9).shape == (4, 9)


@pytest.mark.parametrize("layout", [packed, in_one_row])
def test_a_label_is_predicted_by_the_token_before_it_in_its_own_sequence(layout: Any) -> None:
    texts = some_texts()
    batch = Collator(0, layout=layout)(examples_of(texts))
    position, rows = batch["position_ids"].flatten(), batch["rows"].long()
    assert (position[rows + 1] == position[rows] + 1).all()
    labels = batch["labels"].flatten()[rows + 1]
    assert labels.tolist() == [token for text in texts for token in text[1:]]
    assert batch["example"].tolist() == [b for b, text in enumerate(texts) for _ in text[1:]]
    assert (batch["labels"] != -100).sum() == len(rows)
    assert batch["tokens"].tolist() == list(LENGTHS)
    assert batch["attention_mask"].sum() == sum(LENGTHS)


@pytest.mark.parametrize("layout", [packed, in_one_row])
def test_a_batch_of_sequences_without_tokens_is_one_cell(layout: Any) -> None:
    batch = Collator(0, layout=layout)(examples_of([[], []]))
    assert batch["input_ids"].tolist() == [[0]]
    assert len(batch["rows"]) == 0
    assert batch["tokens"].tolist() == [0, 0]


# ---- no leakage ----


def build(family: str, attention: str) -> PreTrainedModel:
    """In float64, so that what is left is no rounding; windows short enough to matter."""
    name, settings = FAMILIES[family]
    more = {"sliding_window": 4} if name == "Gemma2" else {}
    config = getattr(transformers, f"{name}Config")(**(settings | more))
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    cls: Any = getattr(transformers, name + head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = cls._from_config(config, attn_implementation=attention)
    return model.double().eval()


def read(
    model: PreTrainedModel, texts: list[list[int]], layout: Any = packed, **more: Any
) -> tuple[list[Tensor], Tensor]:
    """Each text's logits, and the embeddings that they come from, with gradient."""
    batch = Collator(0, layout=layout)(examples_of(texts))
    embeddings: Any = model.get_input_embeddings()
    embedded = embeddings(batch["input_ids"].long()).detach().requires_grad_()
    if layout is not one_a_row:
        more = {"position_ids": batch["position_ids"].long(), "use_cache": False} | more
    else:
        more["attention_mask"] = batch["attention_mask"].long()
    logits = model(inputs_embeds=embedded, **more).logits
    places = layout(np.array(list(map(len, texts))))
    spans = zip(places.row, places.column, map(len, texts), strict=True)
    return [logits[r, c : c + n] for r, c, n in spans], embedded


MODELS = [
    (family, attention)
    for family in ("llama", "gpt2", "gemma2 soft cap", "cohere scale")
    for attention in ("sdpa", "eager")
    if (family, attention) != ("gemma2 soft cap", "sdpa")  # transformers itself refuses
]


@pytest.mark.parametrize(("family", "attention"), MODELS)
def test_no_sequence_of_a_pack_is_seen_by_another(family: str, attention: str) -> None:
    model, texts = build(family, attention), some_texts()
    check_packing(model)
    before, embedded = read(model, texts)
    for logits, text in zip(before, texts, strict=True):
        (alone,), _ = read(model, [text], one_a_row)
        torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)  # softmax in float32
    # What one of them says: no logit of another moves by a bit.
    changed = 2
    other = [*texts[:changed], some_texts(1)[changed], *texts[changed + 1 :]]
    after, _ = read(model, other)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [b != changed for b in range(len(texts))]
    # What one of them is to learn: no gradient reaches another.
    (slope,) = torch.autograd.grad(before[changed].logsumexp(-1).sum(), embedded)
    places = packed(np.array(LENGTHS))
    row, first, n = int(places.row[changed]), int(places.column[changed]), LENGTHS[changed]
    assert (slope[row, first : first + n] != 0).any(-1).all()
    slope[row, first : first + n] = 0
    assert not slope.any()


def test_with_a_mask_of_padding_alone_neighbours_would_be_seen() -> None:
    """Why the trainer hands none over: transformers then makes no mask of the positions."""
    model, texts = build("llama", "sdpa"), some_texts()
    mask = Collator(0, layout=packed)(examples_of(texts))["attention_mask"].long()
    leaking, _ = read(model, texts, attention_mask=mask)
    alone, _ = read(model, texts, one_a_row)
    apart = [
        float((a - b).detach().abs().max()) > 1e-3 for a, b in zip(leaking, alone, strict=True)
    ]
    assert any(apart)


# ---- FlashAttention ----


def in_bounds(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any
) -> tuple[Tensor, None]:
    """What FlashAttention computes, from the bounds that transformers tells it, without a GPU."""
    assert mask is None
    assert len(query) == 1, "bounds are of one row"
    (bounds, _), _ = prepare_fa_kwargs_from_position_ids(more["position_ids"])
    pieces = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x[:, :, start:stop] for x in (query, key, value)), is_causal=True
        )
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]
    return torch.cat(pieces, 2).transpose(1, 2), None


@pytest.fixture
def flash() -> Iterator[str]:
    name = "flash_attention_in_bounds"
    AttentionInterface.register(name, in_bounds)
    yield name
    AttentionInterface._global_mapping.pop(name)


def test_flash_attention_gets_one_row_and_its_bounds(flash: str) -> None:
    model, texts = build("llama", "sdpa"), some_texts()
    want, _ = read(model, texts, one_a_row)
    model.config._attn_implementation = flash
    check_packing(model)  # with another attention in its place, and back
    assert model.config._attn_implementation == flash
    assert layout_of(model) is in_one_row
    found, _ = read(model, texts, in_one_row)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


# ---- who may not ----


def small(name: str, **settings: Any) -> PreTrainedModel:
    config = getattr(transformers, f"{name}Config")(vocab_size=V, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config)
    return model


def unmasked(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any) -> Any:
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return found.transpose(1, 2), None


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Mamba", {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}),  # a state
        ("OPT", {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "word_embed_proj_dim": 16}),  # learned positions, counted by themselves
        ("Lfm2", SHAPE | {"layer_types": ["conv", "full_attention"]}),  # a convolution looks back
    ],
)  # fmt: skip
def test_a_model_that_sees_its_neighbours_is_refused_by_name(
    name: str, settings: dict[str, Any]
) -> None:
    settings = {k: v for k, v in settings.items() if k != "vocab_size"}
    model = small(name, **settings)
    with pytest.raises(InputError, match=f"reads a text otherwise .* {name}ForCausalLM with"):
        check_packing(model)
    assert model.training


def test_an_attention_that_takes_no_mask_is_refused_by_name() -> None:
    AttentionInterface.register("unmasked", unmasked)
    try:
        model = build("llama", "sdpa")
        model.config._attn_implementation = "unmasked"
        with pytest.raises(InputError, match=r"LlamaForCausalLM with unmasked attention does not"):
            check_packing(model)
    finally:
        AttentionInterface._global_mapping.pop("unmasked")


def test_an_encoder_decoder_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="is an encoder-decoder, whose decoder would read"):
        check_packing(t5())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_half_precision_is_no_leak(dtype: torch.dtype) -> None:
    check_packing(build("llama", "sdpa").to(dtype))
    check_packing(build("gpt2", "eager").to(dtype))
    with pytest.raises(InputError, match="reads a text otherwise"):
        check_packing(bloom().to(dtype))


# ---- training ----


def prepared(store: FakeStore, out: Path, **more: Any) -> Any:
    model = tiny.llama(len(tiny.byte_bpe())).double()
    how = {"max_steps": 4, "train_sampling_strategy": "random", "loss": LOSSES}
    return trainer_of(model, store, out, eval_store=store, **(how | more))


def test_a_run_reads_the_rows_it_would_read_unpacked_and_measures_the_same(
    store: FakeStore, tmp_path: Path
) -> None:
    plain, dense = (prepared(store, tmp_path, packing=p) for p in (False, True))
    padded, packs = (next(iter(t.get_train_dataloader())) for t in (plain, dense))
    assert packs["row"].tolist() == padded["row"].tolist()
    assert packs["input_ids"].numel() < padded["input_ids"].numel()
    found = dense.evaluate(metric_key_prefix="e")
    for key, value in plain.evaluate(metric_key_prefix="e").items():
        if key.endswith(("loss", "gap", "fraction")):
            assert found[key] == pytest.approx(value, rel=1e-9)


def test_every_loss_of_a_packed_batch_is_that_of_the_padded_one(tmp_path: Path) -> None:
    """Also those that read a sequence as a whole, in chunks and in one."""
    tokenizer = tiny.byte_bpe()
    more = {"logit_std": True, "draws": 8}
    teacher = tiny.llama(len(tokenizer), seed=7)
    store = FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), tmp_path / "teacher", **more)
    losses = "uld,mapped_kl,tail_kl,sampled_kl,alm,multilevel_ot"
    found = []
    for packing in (False, True):
        trainer = prepared(store, tmp_path, loss=losses, packing=packing)
        batch = trainer.data_collator(trainer.data.__getitems__(range(8)))
        loss, terms = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        loss.backward()
        slope = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        found.append((terms, slope))
    (padded, want), (packs, got) = found
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    for name, term in padded.items():
        torch.testing.assert_close(packs[name].values_P, term.values_P, rtol=1e-6, atol=1e-9)


def test_a_packed_run_goes_on_where_a_padded_one_was(store: FakeStore, tmp_path: Path) -> None:
    """A checkpoint counts sequences, and packing changes none."""
    how = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    whole = prepared(store, tmp_path / "a", save_strategy="steps", save_steps=3, **how)
    whole.train()
    again = prepared(store, tmp_path / "b", packing=True, **how)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    for key in ("loss", "grad_norm"):
        assert logged(again)[-1][key] == pytest.approx(logged(whole)[-1][key], rel=2e-6)
