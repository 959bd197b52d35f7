"""Before an hour of teacher time: what a row looks like, what is counted, what is to come."""

import json
from pathlib import Path
from typing import Any

import pytest

import logitstore
from logitstore.capture import preview
from logitstore.capture.estimate import sample as sample_module
from logitstore.capture.estimate import trial_batches
from logitstore.errors import InputError, MismatchError
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from tests.kit.commands import Run
from tests.kit.rows import rows_file, texts_file

WORDS = "the teacher reads"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    texts = [*tiny.corpus(), "", "long " * 800]
    return texts_file(tmp_path / "rows.jsonl", texts)


def test_the_first_row_is_shown_with_its_supervised_tokens_marked(
    teacher: Path, tmp_path: Path
) -> None:
    data = rows_file(
        tmp_path / "rows.jsonl",
        {"prompt": "", "completion": ""},
        {"prompt": "Q: \x1b[31m", "completion": "a 🙃"},
    )
    shown = preview(str(teacher), str(data), tmp_path / "s", top_k=8).sample.first
    head, text = shown.split("\n  ")
    assert head.startswith("row 1: ok, ")
    assert text.startswith("(start)Q")
    assert r"\x1b[" in text, "a terminal would obey this"
    own = text[text.index("⟦") :]
    assert own.endswith("⟦(end)⟧")
    assert own.replace("⟧⟦", "").removeprefix("⟦").startswith("a")
    assert r"\xf0" in own, "the bytes of a character in several tokens"


def test_a_long_row_is_shown_at_its_first_supervised_tokens(teacher: Path, tmp_path: Path) -> None:
    row = {"prompt": "p " * 150, "completion": "c " * 900}
    shown = preview(
        str(teacher), str(rows_file(tmp_path / "r.jsonl", row)), tmp_path / "s", top_k=8
    ).sample.first
    assert "windows, the first" in shown
    assert len(shown) < 1000
    assert "tokens … " in shown
    assert shown.count("⟦") == 1 + 60  # one in the explanation


def test_a_dry_run_says_what_is_to_come_and_writes_nothing(
    run: Run, teacher: Path, data: Path, tmp_path: Path
) -> None:
    before = tree(tmp_path)
    out = tmp_path / "s"
    command = ["capture", teacher, data, "--out", out, "--top-k", 8, "--shard-text-bytes", 400]
    code, text, _ = run(*command, "--dry-run", "--log-json", tmp_path / "log")
    assert code == 0
    assert text.startswith("row 0: ok, ")
    assert "50 of 50 rows looked at: 1 empty · 48 ok · " in text
    assert " split\n" in text
    assert "to come: about " in text
    assert " tokens/s" in text
    code, text, _ = run(*command, "--dry-run", "--json")
    assert json.loads(text)["statuses"]["ok"] == 48
    assert tree(tmp_path) == before


def test_what_is_said_to_come_comes(teacher: Path, data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"top_k": 8, "shard_text_bytes": 2000}
    said = preview(str(teacher), str(data), tmp_path / "s", **settings)
    store = logitstore.capture(str(teacher), str(data), tmp_path / "s", **settings)
    assert said.records == int(store.token_counts.sum())
    assert said.sample.statuses.total() == len(store)
    size = sum(p.stat().st_size for p in (tmp_path / "s" / "shards").iterdir())
    assert said.file_bytes == pytest.approx(size, rel=0.35)
    assert said.missing_shards == said.shards == store.plan.shard_count


def test_a_dry_run_of_a_begun_store_is_about_what_is_missing(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"top_k": 8, "shard_text_bytes": 2000}
    out = tmp_path / "s"
    whole = preview(str(teacher), str(data), out, **settings)
    logitstore.capture(str(teacher), str(data), out, **settings)
    (out / "DONE").unlink()
    (out / "shards" / "00000.zarr.zip").unlink()
    before = tree(out)
    part = preview(str(teacher), str(data), out, **settings)
    assert (part.missing_shards, part.shards) == (1, whole.shards)
    assert 0 < part.records < whole.records
    with pytest.raises(MismatchError, match=r"capture\.top_k is 8 in the store, 9 now"):
        preview(str(teacher), str(data), out, **settings | {"top_k": 9})
    assert tree(out) == before


def test_a_sample_is_spread_over_the_dataset(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_module, "_SAMPLE_ROWS", 5)
    texts = [*["short"] * 40, *[WORDS * 5] * 40]
    data = rows_file(tmp_path / "r.jsonl", *({"text": t} for t in texts))
    said = preview(str(teacher), str(data), tmp_path / "s", top_k=8)
    assert said.sample.rows == 5
    assert {s.line.row for s in said.sample.sequences} == {0, 19, 39, 59, 79}
    store = logitstore.capture(str(teacher), str(data), tmp_path / "s", top_k=8)
    assert said.records == pytest.approx(int(store.token_counts.sum()), rel=0.25)


def test_rows_without_anything_to_learn_are_previewed_too(teacher: Path, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "r.jsonl", {"text": ""}, {"text": ""})
    said = preview(str(teacher), str(data), tmp_path / "s", top_k=8)
    assert said.facts()["to_come"] is None
    assert "2 of 2 rows looked at: 2 empty" in str(said)
    assert "to come: unknown, since no row looked at has anything to capture" in str(said)


def test_a_capture_shows_the_same_before_and_the_forecast_after_two_batches(
    run: Run,
    teacher: Path,
    data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = ["capture", teacher, data, "--out", tmp_path / "s", "--top-k", 8]
    log = tmp_path / "log.jsonl"
    with caplog.at_level("INFO"):
        code, out, _ = run(*command, "--tokens-per-batch", 600, "--log-json", log)
    assert code == 0
    assert "row 0: ok" not in out, "stdout is for data"
    said = [r.getMessage() for r in caplog.records]
    first = next(i for i, m in enumerate(said) if m.startswith("row 0: ok, "))
    coming = next(i for i, m in enumerate(said) if m.startswith("to come: about "))
    assert first < coming
    events = [json.loads(line) for line in log.read_text().splitlines()]
    known = [e["event"] for e in events]
    assert known == ["begin", "capture", "forecast", "shard", "sealed", "finished"]
    forecast, shard = events[2:4]
    assert forecast["records"] == shard["records"]
    assert shard["stored_bytes"] == (tmp_path / "s/shards/00000.zarr.zip").stat().st_size
    assert all(e["time"] and e["since_s"] >= 0 for e in events)


def test_what_the_journal_has_the_log_has_in_the_same_words(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    logitstore.capture(teacher, data, tmp_path / "s", top_k=8, log_json=tmp_path / "log")
    journal, log = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("s.journal.jsonl", "log")
    )
    mine = {"time", "host", "process", "since_s"}
    facts = [{k: v for k, v in line.items() if k not in mine} for line in journal]
    assert [line["event"] for line in facts] == ["capture", "shard", "sealed"]
    in_log = [{k: v for k, v in line.items() if k not in mine} for line in log]
    assert [line for line in in_log if line in facts] == facts


@pytest.mark.parametrize("generate", [False, True])
def test_a_long_capture_is_headed_by_what_estimate_says(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generate: bool
) -> None:
    """Before there is a store, so who does not like it has nothing to remove."""
    settings: dict[str, Any] = {"top_k": 8}
    if generate:
        prompts = [{"prompt": text} for text in tiny.corpus()]
        data = rows_file(tmp_path / "prompts.jsonl", *prompts)
        settings |= {"generate": True, "max_new_tokens": 4}
    said = preview(teacher, data, **settings)
    monkeypatch.setattr(
        trial_batches, "_TRIAL_SHARE", 100.0
    )  # a trial costs more than these few rows
    log = tmp_path / "log.jsonl"
    had_store = []
    forecast_capture = trial_batches.forecast_capture

    def watched(*args: Any, **more: Any) -> Any:
        had_store.append((tmp_path / "s").exists())
        return forecast_capture(*args, **more)

    monkeypatch.setattr(trial_batches, "forecast_capture", watched)
    store = logitstore.capture(teacher, data, tmp_path / "s", log_json=log, **settings)
    assert had_store == [False]
    events = [json.loads(line) for line in log.read_text().splitlines()]
    (coming,) = (e for e in events if e["event"] == "forecast")
    assert events[1] == coming
    expected = json.loads(json.dumps(said.costs()))
    for fact in ("tokens", "records", "file_bytes", "teacher"):
        assert coming[fact] == expected[fact]
    # nothing that was read beforehand is in the store
    logitstore.capture(teacher, data, tmp_path / "t", **settings)
    assert store.digest == logitstore.open_store(tmp_path / "t").digest


def test_a_log_that_cannot_be_written_is_refused_before_anything_is(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"--log-json .*nowhere/log: cannot be written \(No such"):
        logitstore.capture(
            str(teacher), str(data), tmp_path / "s", top_k=8, log_json=tmp_path / "nowhere/log"
        )
    assert not (tmp_path / "s").exists()
