"""The benchmark runs and says of each goal whether it was met; the KL it measures is true."""

import json
from typing import Any

import numpy as np
import pytest

from logitstore.format.logprob_codec import decode_entries, encode_entries
from tests.kit.forks import printed_by
from tools.store_sizes import CELLS, CODECS, order_0, raw_records, spec_of
from tools.synthetic_teacher import DEFAULTS, Arrays, synthetic_topk


def goals(found: Any) -> list[dict[str, Any]]:
    if not isinstance(found, dict):
        return []
    if found.keys() == {"value", "target", "met"}:
        return [found]
    return [goal for item in found.values() for goal in goals(item)]


def test_the_bench_runs_and_judges_every_goal_by_its_value() -> None:
    found = json.loads(printed_by("tools.bench_store", "--quick", "--json"))
    assert found["versions"]["numcodecs"]
    sizes = found["bytes a token, synthetic"]
    for codec in CODECS:
        assert CELLS.keys() <= sizes[codec].keys()
        for goal in goals(sizes[codec]):
            assert goal["met"] == (goal["value"] <= goal["target"])
        for goal in goals(found[f"reading, {codec}"]):
            assert goal["met"] == (goal["value"] >= goal["target"])
        kl = [goal for name, goal in sizes[codec].items() if name.startswith("KL in nats")]
        assert kl
        assert all(goal["met"] for goal in kl)
    compact, portable = (sizes[codec]["entries, K = 64"]["value"] for codec in CODECS[::-1])
    assert compact < portable < sizes["beside"]["Parquet, zstd"]


@pytest.fixture(scope="module")
def made() -> Arrays:
    return synthetic_topk(**DEFAULTS | {"n_tokens": 256, "vocab_size": 4096, "k": 128})


@pytest.mark.parametrize("capture", [{"top_k": 64}, {"top_k": 16}, {"top_k": 64, "max_tail": 0.05}])
def test_coding_costs_less_than_a_hundred_thousandth_of_a_nat(
    made: Arrays, capture: dict[str, Any]
) -> None:
    """The bound that sizes are measured under, by the definition: K + 1 buckets, as read."""
    raw = raw_records(made, spec_of(4096, "portable", **capture))
    coded = encode_entries(raw.entry_logprobs, raw.entry_ids, raw.entry_count, raw.tail_logmass)
    count = coded.count.astype(np.int64)
    seen, tails = decode_entries(coded.deltas, count, coded.tail_codes)
    kl, l1, at = [], [], 0
    for t, n in enumerate(count.tolist()):
        p = np.exp([*raw.entry_logprobs[t, :n].tolist(), float(raw.tail_logmass[t])])
        q = np.exp([*seen[at : at + n].tolist(), float(tails[t])])
        p, at = p / p.sum(), at + n
        kl.append(float((p * np.log(p / q)).sum()))
        l1.append(float(np.abs(p - q).sum()))
    assert 0 < np.mean(kl) <= 1e-5
    assert max(l1) < 1.1e-2
    assert np.mean(kl) == pytest.approx(coded.kl.mean(), rel=0.02)
    assert max(l1) == pytest.approx(coded.l1.max(), rel=0.01)


def test_order_0_is_the_entropy_of_single_symbols() -> None:
    assert order_0(np.array([0, 1] * 8)) == pytest.approx(2.0)
    assert order_0(np.zeros(9)) == 0
