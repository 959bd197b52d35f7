"""Views of a mixture of experts: which experts read a token is what the view says, on any batch."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, GraniteMoeConfig, PreTrainedModel

from logitstore.capture import capture
from logitstore.capture.settings import CaptureSettings
from logitstore.capture.teacher.experts import ROUTERS, Routed, View, check_experts
from logitstore.errors import InputError
from logitstore.store import LogitStore
from logitstore.testing import tiny
from tests.kit.mixtures import CONFIGS, N, mixture
from tests.kit.rows import texts_file

IDS = torch.arange(1, 40).reshape(3, 13)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_every_known_router_is_tried() -> None:
    assert {kind.split(",")[0] for kind in CONFIGS} == ROUTERS.keys()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_view_is_the_model_with_as_many_experts_a_token(kind: str) -> None:
    """As transformers runs it, with that number in its configuration."""
    plain = logits(mixture(kind))
    for active, count in (("all", N), ("N-1", N - 1)):
        want = logits(mixture(kind, num_experts_per_tok=count))
        model = mixture(kind)
        Routed(model, View(active))
        torch.testing.assert_close(logits(model), want, rtol=1e-5, atol=1e-5)
        assert (want - plain).abs().max() > 0.01


class Gate(torch.nn.Module):
    """A router whose gate is the same for every token."""

    norm_topk_prob = False

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits_N = torch.tensor(probabilities).log()

    def forward(self, tokens: torch.Tensor) -> Any:
        logits_nN = self.logits_N.expand(len(tokens), -1)
        return logits_nN, logits_nN[:, :2], None


Gate.__name__ = "MixtralTopKRouter"


def places(rows: int, length: int) -> tuple[list[Any], int]:
    return [SimpleNamespace(line=SimpleNamespace(row=i, part=0)) for i in range(rows)], length


def left_out(view: View, probabilities: list[float], rows: int, length: int) -> np.ndarray:
    """(rows * length,) the expert that each token does without."""
    gate = Gate(probabilities)
    routed = Routed(torch.nn.Sequential(gate), view)
    routed.read(*places(rows, length))
    _, weights, ids = gate(torch.zeros(rows * length, 1))
    np.testing.assert_allclose(weights, torch.tensor(probabilities)[ids], rtol=1e-6)
    used = np.sort(ids.numpy(), 1)
    assert (np.diff(used, axis=1) > 0).all()
    return sum(range(len(probabilities))) - used.sum(1)


def test_experts_are_drawn_by_the_gate_without_replacement_at_a_share_of_the_tokens() -> None:
    """By enumeration: an expert is left out as often as it comes last of all orders of draws."""
    gate, share, tokens = [0.5, 0.3, 0.15, 0.05], 0.4, 40_000
    last = np.zeros(N)
    for order in itertools.permutations(range(N)):
        probability, left = 1.0, 1.0
        for expert in order:
            probability *= gate[expert] / left
            left -= gate[expert]
        last[order[-1]] += probability
    want = share * last + (1 - share) * np.array([0, 0, 0, 1])
    found = left_out(View("N-1", share, 7), gate, tokens // 40, 40)
    shares = np.bincount(found, minlength=N) / tokens
    np.testing.assert_allclose(shares, want, atol=4 * np.sqrt(0.25 / tokens))


def test_what_a_token_draws_depends_on_its_place_and_the_seed_alone() -> None:
    gate = [0.3, 0.3, 0.2, 0.2]
    found = left_out(View("N-1", 1.0, 7), gate, 30, 20).reshape(30, 20)
    np.testing.assert_array_equal(
        left_out(View("N-1", 1.0, 7), gate, 10, 5).reshape(10, 5), found[:10, :5]
    )
    assert (left_out(View("N-1", 1.0, 8), gate, 30, 20).reshape(30, 20) != found).mean() > 0.5


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    tiny.save(folder / "teacher", mixture("mixtral"), tiny.byte_bpe())
    texts_file(folder / "rows.jsonl", [text[:60] for text in tiny.corpus()[:6]])
    return folder


def view(here: Path, name: str, **settings: Any) -> LogitStore:
    how = {"top_k": 300, "device": "cpu", **settings}
    return capture(str(here / "teacher"), str(here / "rows.jsonl"), out=here / name, **how)


def logprobs(store: LogitStore) -> np.ndarray:
    return np.concatenate([store[i].token_logprob for i in range(len(store))])


def test_a_view_is_the_same_in_any_batch_and_another_with_another_seed(here: Path) -> None:
    sampled = {"experts": "N-1", "expert_sample": 0.5}
    one = view(here, "one", seed=1, **sampled)
    alone = view(here, "alone", seed=1, tokens_per_batch=1, **sampled)
    other = view(here, "other", seed=2, **sampled)
    np.testing.assert_allclose(logprobs(alone), logprobs(one), atol=1 / 256)
    assert np.abs(logprobs(other) - logprobs(one)).max() > 0.1
    assert one.spec.teacher["experts"] == {"active": "N-1", "sample": 0.5, "seed": 1}
    assert one.digest != other.digest


def test_a_store_says_which_experts_were_used_and_nothing_where_it_was_the_router(
    here: Path,
) -> None:
    every, plain = view(here, "all", experts="all"), view(here, "plain")
    assert every.spec.teacher["experts"] == {"active": "all"}
    assert "experts" not in plain.spec.teacher
    assert np.abs(logprobs(every) - logprobs(plain)).max() > 0.01


def test_teachers_without_experts_or_with_unknown_routers_are_refused(here: Path) -> None:
    dense = tiny.llama(10).config
    with pytest.raises(InputError, match="t is a dense teacher"):
        check_experts("t", dense)
    with pytest.raises(InputError, match=r"how the routers of t \(granitemoe\) weigh their expert"):
        check_experts("t", GraniteMoeConfig(num_local_experts=4))
    with pytest.raises(InputError, match="no router of LlamaForCausalLM is one of"):
        Routed(tiny.llama(10), View("all"))
    check_experts("t", AutoConfig.from_pretrained(here / "teacher"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": "3"}, "--experts is 3, expected all or N-1"),
        ({"expert_sample": 0.1}, "--expert-sample is 0.1, but no experts are left out"),
        ({"experts": "all", "expert_sample": 0.1}, "but no experts are left out"),
        ({"experts": "N-1", "expert_sample": 0.0}, "expected a share above 0"),
        ({"experts": "N-1", "expert_sample": 1.5}, "expected a share above 0"),
        ({"experts": "N-1", "seed": 1}, "--seed is 1, but nothing is drawn at random"),
        ({"experts": "N-1", "expert_sample": 0.1, "generate": True}, "--expert-sample with --gen"),
        ({"experts": "N-1", "expert_sample": 0.1, "boundaries_of": "s"}, "with --boundaries-of"),
        ({"experts": "all", "engine": "server", "server": "http://x"}, "--experts is all, which"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CaptureSettings(**settings).check()
