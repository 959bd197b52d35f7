"""The pass over keys and values says at each boundary what a plain forward pass says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from logitstore.capture.boundaries.branches import BranchReader, placed
from logitstore.capture.teacher.head import TeacherHead
from logitstore.capture.teacher.summary import HeadSettings
from logitstore.store import LogitStore
from logitstore.testing.stores import tree
from tests.kit.boundaries import CODE, inside, plain, run, sequence
from tests.kit.families import SHAPE, V, build


def tiny_model(name: str) -> Any:
    """A model of a family that does something of its own with positions or masks."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "mistral, sliding": ("Mistral", SHAPE | {"sliding_window": 8}),
        "qwen3": ("Qwen3", SHAPE | {"head_dim": 8}),
        "qwen2, sliding above": (
            "Qwen2",
            SHAPE | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        ),
        "gemma2, sliding": (
            "Gemma2",
            SHAPE | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
        ),
        "gemma3, sliding": (
            "Gemma3Text",
            SHAPE
            | {
                "head_dim": 8,
                "sliding_window": 8,
                "query_pre_attn_scalar": 8,
                "layer_types": ["sliding_attention", "full_attention"],
            },
        ),
        "bloom": ("Bloom", {"vocab_size": V, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    }
    if name not in kinds:
        return build(name)
    family, settings = kinds[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)
    model.config.use_cache = False
    return model.eval()


@pytest.mark.parametrize(
    ("family", "by_cache"),
    [
        ("llama", True),
        ("gpt2", True),
        ("opt", True),
        ("cohere scale", True),
        ("mistral, sliding", True),
        ("qwen3", True),
        ("qwen2, sliding above", True),
        ("gemma2, sliding", True),
        ("gemma3, sliding", True),
        ("bloom", False),
    ],
)
@pytest.mark.filterwarnings("ignore:.*bos_token_id must be")
def test_branches_say_what_plain_forward_passes_say(
    family: str, by_cache: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(family)
    head = TeacherHead(model, HeadSettings(8))
    reader = BranchReader(model, head, torch.device("cpu"), 0)
    batch = [sequence(20, 1), sequence(13, 2), sequence(3, 3)]
    rows, mask = torch.zeros(3, 20, dtype=torch.long), torch.zeros(3, 20, dtype=torch.long)
    for i, s in enumerate(batch):
        rows[i, : s.length] = torch.from_numpy(s.text.token_ids)
        mask[i, : s.length] = 1
    cache = reader.cache_for(batch)
    assert (cache is not None) == by_cache
    assert ("read as a row of its own" in caplog.text) == (not by_cache)
    if cache is not None:
        inputs = {"input_ids": rows, "attention_mask": mask, "past_key_values": cache}
        head(inputs | {"use_cache": True}, torch.tensor([0]), torch.tensor([1]))  # type: ignore[arg-type]
    branches = placed(batch)
    said = reader.read(branches, cache, rows)
    for n, (row, _, target, branch) in enumerate(branches):
        exact = plain(model, [*rows[row, : branch.context].tolist(), *branch.ids])
        assert torch.allclose(said.entry_logprobs[n], exact.topk(8).values, atol=1e-4)
        assert torch.allclose(said.token_logprob[n], exact[target], atol=1e-4)


def test_a_teacher_that_reads_branches_as_rows_gives_the_same_records(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BranchReader, "_works", lambda self, sequence: False)
    other = run(teacher, place, tmp_path / "s")
    assert tree(other.path / "shards") == tree(store.path / "shards")
    for i in range(len(store)):
        one, two = inside(store)[i].padded(8), inside(other)[i].padded(8)
        likely = one.logprobs > -12
        np.testing.assert_allclose(one.logprobs[likely], two.logprobs[likely], atol=2 * CODE)
