"""`logitstore estimate`: bytes that come true, and advice that depends on the teacher."""

import json
import random
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import logitstore
from logitstore.capture import preview
from logitstore.capture.estimate import sample as sample_module
from logitstore.capture.estimate.profile import MOST_ENTRIES, profile_of
from logitstore.capture.teacher.summary import HeadResult, HeadSettings, summarise
from logitstore.cli.app import main
from logitstore.testing import tiny
from logitstore.testing.stores import tree

#: What the output embedding is multiplied by: a teacher that is sure, and one that is not.
TEACHERS = {"peaked": 8.0, "flat": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimate")
    for name, factor in TEACHERS.items():
        model = tiny.llama(400)
        with torch.no_grad():
            model.lm_head.weight.mul_(factor)
        tiny.save(folder / name, model, tiny.byte_bpe(400, bos=True))
    corpus = tiny.corpus()
    rng = random.Random(0)
    texts = [" ".join(rng.choices(corpus, k=rng.randint(1, 5))) for _ in range(225)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return folder


@pytest.fixture(autouse=True)
def _small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_module, "_SAMPLE_ROWS", 100)


def shard_bytes(store: logitstore.LogitStore) -> int:
    return sum(p.stat().st_size for p in (Path(str(store.path)) / "shards").iterdir())


@pytest.mark.parametrize(
    ("teacher", "settings"),
    [
        ("peaked", {"max_tail": 0.05}),
        ("peaked", {"ids": False, "temperatures": (2.0,)}),
        ("flat", {"shard_text_bytes": 12_000}),
        ("flat", {"top_k": 8, "draws": 20, "logit_std": True}),
    ],
)
def test_the_bytes_of_the_forecast_come_within_five_percent(
    folder: Path, tmp_path: Path, teacher: str, settings: dict[str, Any]
) -> None:
    """From 100 of 225 rows, of one to five sentences."""
    given = str(folder / teacher), str(folder / "rows.jsonl")
    said = preview(*given, **settings)
    store = logitstore.capture(*given, tmp_path / "s", **settings)
    assert said.file_bytes == pytest.approx(shard_bytes(store), rel=0.05)
    assert said.records == pytest.approx(int(store.token_counts.sum()), rel=0.02)


def test_bytes_for_another_bound_are_about_those_of_a_capture_with_it(
    folder: Path, tmp_path: Path
) -> None:
    given = str(folder / "peaked"), str(folder / "rows.jsonl")
    forecast = preview(*given)
    assert forecast.profile is not None
    store = logitstore.capture(*given, tmp_path / "s", top_k=256, max_tail=0.1)
    records = int(store.token_counts.sum())
    entries = store.shard_facts[0]["entries_mean"]
    assert forecast.profile.entries[0.1] == pytest.approx(entries, rel=0.05)
    each = forecast.bytes_per_token()[0.1]
    assert each == pytest.approx(shard_bytes(store) / records, rel=0.2)


def test_advice_is_a_bound_for_a_peaked_teacher_and_draws_for_a_flat_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(folder)
    said, commands = {}, {}
    for name in TEACHERS:
        command = ["logitstore", "estimate", str(folder / name), str(folder / "rows.jsonl")]
        monkeypatch.setattr(sys, "argv", [*command, "--json", "--temperature", "2"])
        main_until_exit()
        printed = json.loads(capsys.readouterr().out)
        said[name] = printed["to_come"]
        commands[name] = shlex.split(printed["command"])
    peaked, flat = (said[name]["teacher"]["recommended"] for name in TEACHERS)
    assert (peaked["max_tail"], peaked["draws"]) == (0.01, 0)
    assert "entries hold all but 0.01 of the probability at 95 % of the tokens" in peaked["why"]
    assert (flat["top_k"], flat["max_tail"], flat["draws"]) == (64, None, 50)
    assert "of this teacher's probability, so a bound would keep them all" in flat["why"]
    captured = ["logitstore", "capture", str(folder / "flat"), str(folder / "rows.jsonl")]
    assert commands["flat"] == [
        *captured,
        "--out",
        "store",
        "--temperature",
        "2.0",
        "--draws",
        "50",
    ]
    assert commands["peaked"][-4:-2] == ["--max-tail", "0.01"]
    for facts in said.values():
        assert facts["seconds"] > 0
        assert facts["device_hours"] == pytest.approx(facts["seconds"] / 3600)
        mass = list(facts["teacher"]["mass"].values())
        assert len(mass) == 9
        assert mass == sorted(mass)
    assert tree(folder) == before


def main_until_exit() -> None:
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code


def test_estimate_takes_what_a_capture_does_but_where_to_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["logitstore", "estimate", str(folder / "flat"), str(folder / "rows.jsonl")]
    for flags, says in (
        (["--top-k", "-1"], "--top-k is -1, expected 0 to 65535"),
        (["--out", "s"], "No such option: --out"),
    ):
        monkeypatch.setattr(sys, "argv", [*command, *flags])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert says in capsys.readouterr().err


# ---- the profile ----


def asked(logits: torch.Tensor, count: int = MOST_ENTRIES) -> HeadResult:
    return summarise(logits, torch.zeros(len(logits)).long(), HeadSettings(count))


def test_the_profile_is_that_of_the_sorted_distributions() -> None:
    scale = torch.tensor([0.3, 3.0, 10.0])[torch.arange(90) % 3, None]
    logits = torch.randn(90, 1000, generator=torch.Generator().manual_seed(0)) * scale
    found = profile_of([asked(logits[:40]), asked(logits[40:])])
    sums = logits.double().softmax(-1).sort(-1, descending=True).values.cumsum(-1)
    assert list(found.mass) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    for k, mass in found.mass.items():
        assert mass == pytest.approx(float(sums[:, k - 1].mean()), rel=1e-5)
    for bound, entries in found.entries.items():
        fewest = (sums < 1 - bound).sum(1) + 1
        assert entries == pytest.approx(float(fewest.clamp(max=256).double().mean()), rel=1e-3)
        assert found.unmet[bound] == pytest.approx(float((fewest > 256).double().mean()), abs=0.02)


def test_the_k_that_is_advised_is_enough_nearly_everywhere() -> None:
    scale = torch.tensor([6.0, 9.0, 12.0])[torch.arange(300) % 3, None]
    logits = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0)) * scale
    advice = profile_of([asked(logits)]).recommended()
    assert advice is not None
    assert advice["max_tail"] == 0.01
    sums = logits.double().softmax(-1).sort(-1, descending=True).values.cumsum(-1)
    half, whole = (
        float((sums[:, k - 1] >= 0.99).double().mean())
        for k in (advice["top_k"] // 2, advice["top_k"])
    )
    assert half < 0.95 <= whole


def test_rows_that_are_not_finite_or_few_entries_are_no_ground_for_advice() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    logits[1] = torch.nan
    assert profile_of([asked(logits)]).positions == 3
    assert profile_of([asked(logits, 8)]).recommended() is None
    assert profile_of([asked(logits, 0)]).mass == {}
    assert profile_of([asked(logits[1:2])]).recommended() is None
