"""A capture that would keep nothing, or too little, stops; what else is lost is in a table."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

import logitstore
from logitstore.console.left_out import LeftOut, is_surely_more, left_out_text, lost
from logitstore.errors import InputError
from logitstore.format.statuses import REASONS, left_out_of, reason_of
from logitstore.info import facts, info_text
from logitstore.store import open_store
from logitstore.testing import tiny
from logitstore.writing import some_records
from tests.kit import templates
from tests.kit.rows import rows_file, texts_file

MONOLOGUE = [{"role": "user", "content": "Who?"}]


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = templates.chatml()
    folder = tmp_path_factory.mktemp("lost") / "chatty"
    return tiny.save(folder, tiny.llama(len(tokenizer)), tokenizer)


def talks(right: int, wrong: int) -> list[dict[str, Any]]:
    good = templates.turns("Who?", "The teacher.")
    return [{"messages": good}] * right + [{"messages": MONOLOGUE}] * wrong


def test_rows_of_which_none_gives_a_record_are_refused_before_anything_is_written(
    chatty: Path, tmp_path: Path
) -> None:
    """With exit status 0 it was a store of 0 records."""
    data = datasets.Dataset.from_list(talks(0, 3))
    says = (
        r"none of its 3 rows gives a record: 3 no_supervised_text \(first: row 0\): nothing in it "
        r"is supervised\. Check the roles of its messages"
    )
    with pytest.raises(InputError, match=says) as refused:
        logitstore.capture(chatty, data, tmp_path / "s", top_k=8, max_lost=1)
    assert refused.value.kind == "lost-rows"
    assert list(tmp_path.iterdir()) == []


def test_more_than_a_twentieth_lost_is_refused_with_reason_row_and_the_way_out(
    chatty: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = datasets.Dataset.from_list(talks(17, 3))
    says = (
        r"3 of its 20 rows would have no records, more than --max-lost 0\.05: 3 no_supervised_text "
        r"\(first: row 17\): .* To leave them out, add --max-lost 1\."
    )
    with pytest.raises(InputError, match=says):
        logitstore.capture(chatty, data, tmp_path / "s", top_k=8)
    assert list(tmp_path.iterdir()) == []
    store = logitstore.capture(chatty, data, tmp_path / "s", top_k=8, max_lost=0.15)
    assert not caplog.records
    assert (len(store), store.is_complete) == (20, True)
    logitstore.capture(chatty, datasets.Dataset.from_list(talks(39, 1)), tmp_path / "t", top_k=8)


def test_the_table_of_what_was_not_used_is_in_info_and_in_its_json(
    chatty: Path, tmp_path: Path
) -> None:
    data = datasets.Dataset.from_list([*talks(2, 1), {"messages": []}, *talks(0, 1)])
    store = logitstore.capture(
        chatty, data, tmp_path / "s", top_k=8, max_lost=1, shard_text_bytes=40
    )
    assert len(store.shards) > 2, "the first row of a reason lies in a later shard"
    about = json.loads(json.dumps(facts(store)))
    assert [(x["reason"], x["count"], x["share"], x["first_row"]) for x in about["left_out"]] == [
        ("no_supervised_text", 2, 0.4, 2),
        ("empty", 1, 0.2, 3),
    ]
    lines = info_text(about).split("\n\n")[2].splitlines()
    assert lines[0] == "not used    3 of 5 sequences"
    assert lines[2].split()[:4] == ["2", "40.0%", "2", "no_supervised_text:"]
    assert "Check the roles of its messages" in " ".join(lines[3].split())


def test_rows_without_text_and_what_a_flag_asked_for_are_not_lost(
    teacher: Path, tmp_path: Path
) -> None:
    data = texts_file(tmp_path / "rows.jsonl", ["", "", "The teacher reads.", "x " * 40, "y " * 40])
    how: dict[str, Any] = {"top_k": 8, "max_length": 20, "overflow": "skip"}
    store = logitstore.capture(teacher, str(data), tmp_path / "s", **how)
    assert store.statuses == {"empty": 2, "ok": 1, "too_long": 2}
    table = {each["reason"]: each for each in facts(store)["left_out"]}
    assert {name: each["is_lost"] for name, each in table.items()} == {
        "empty": False,
        "too_long": True,
    }


def test_a_store_without_a_record_is_never_sealed(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that are looked at first do not show it: here, because they are not looked at."""
    monkeypatch.setattr("logitstore.capture.process.check_sample", lambda *_: None)
    data = texts_file(tmp_path / "rows.jsonl", ["", ""])
    for _ in range(2):  # and not by the next run, either
        with pytest.raises(
            InputError, match=r"no row has a record, so it is not sealed"
        ) as refused:
            logitstore.capture(teacher, str(data), tmp_path / "s", top_k=8)
        assert refused.value.kind == "lost-rows"
        assert not (tmp_path / "s" / "DONE").exists()


def test_what_was_lost_beyond_the_rows_looked_at_is_warned_of(
    chatty: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("logitstore.capture.process.check_sample", lambda *_: None)
    data = datasets.Dataset.from_list(talks(3, 1))
    logitstore.capture(chatty, data, tmp_path / "s", top_k=8)
    assert "1 of 4 sequences have no records, more than --max-lost 0.05" in caplog.text
    assert "(first: row 3)" in caplog.text


# ---- the table ----


def test_a_sample_that_loses_more_by_chance_is_no_reason_to_stop() -> None:
    """Of 200 rows of a set that loses just what it may, chance makes 12 or more in every fifth."""
    assert not is_surely_more(12, 200, 100_000, 0.05)
    assert is_surely_more(20, 200, 100_000, 0.05)
    assert is_surely_more(11, 200, 200, 0.05), "these are all rows"
    assert not is_surely_more(10, 200, 200, 0.05)
    assert not is_surely_more(0, 0, 0, 0.0)
    assert is_surely_more(1, 1000, 1000, 0.0)


def test_every_status_has_a_reason_and_a_step_that_is_a_sentence() -> None:
    for reason in [*REASONS.values(), reason_of("of another version")]:
        assert not reason.why.endswith(".")
        assert reason.step.endswith(".")
    used = {"ok": 1, "split": 2, "unfinished": 3, "stopped": 4, "prompt": 5}
    assert left_out_of(used) == []
    of_stranger = left_out_of({"ok": 1, "strange\x1b[2J": 3}, {"strange\x1b[2J": 7})
    text = left_out_text(of_stranger)
    assert "\x1b" not in text
    assert "logitstore show" in text
    assert (lost(of_stranger), of_stranger[0].first_row) == (3, 7)


def test_a_table_says_of_what_and_survives_json() -> None:
    line = LeftOut("empty", 3, 40, None, *REASONS["empty"])
    assert LeftOut.from_facts(json.loads(json.dumps(line.facts()))) == line
    assert left_out_text([line], "rows", " looked at").splitlines()[0] == (
        "not used    3 of 40 rows looked at"
    )
    assert left_out_text([]) == ""


def test_an_unfinished_store_and_one_of_equal_rows_have_a_table_too(
    teacher: Path, tmp_path: Path
) -> None:
    data = rows_file(tmp_path / "r.jsonl", {"text": ""}, {"text": "The teacher reads."})
    store = logitstore.capture(teacher, str(data), tmp_path / "s", top_k=8, shard_text_bytes=1)
    (tmp_path / "s" / "DONE").unlink()
    (tmp_path / "s" / "shards" / f"{store.shards[-1]:05d}.zarr.zip").unlink()
    opened = open_store(tmp_path / "s", allow_partial=True)
    assert facts(opened)["left_out"][0]["first_row"] == 0


def test_the_most_frequent_reasons_are_named_and_no_more() -> None:
    many = left_out_of({"empty": 5, "too_long": 4, "no_supervised_text": 3, "ok": 1})
    said = some_records.reasons_in_words(many)
    assert "5 empty" in said
    assert "4 too_long" in said
    assert "no_supervised_text" not in said
