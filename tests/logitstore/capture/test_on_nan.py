"""Logits that are not finite: the row is named and the capture stops, or it is skipped, counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitstore
from logitstore.checking.verify import verify_store
from logitstore.errors import InputError
from logitstore.info import facts, info_text
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from tests.kit import reader_from_spec
from tests.kit.rows import texts_file

SETTINGS: dict[str, Any] = {"top_k": 8, "shard_text_bytes": 400}
BAD = "~"  # a token of its own
TEXTS = [*tiny.corpus()[:20], f"a {BAD} here", *tiny.corpus()[20:], f"{BAD}{BAD}", "the end"]
BAD_ROWS = [20, 49]


@pytest.fixture(scope="module", params=["nan", "inf"])
def broken(request: Any, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same teacher, but where it reads one token."""
    model = AutoModelForCausalLM.from_pretrained(teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings[tokenizer.convert_tokens_to_ids(BAD)] = float(request.param)
    return tiny.save(tmp_path_factory.mktemp("nan") / "broken", model, tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts_file(tmp_path_factory.mktemp("nan") / "rows.jsonl", TEXTS)


def run(teacher: Path, data: Path, out: Path, **settings: Any) -> logitstore.LogitStore:
    return logitstore.capture(teacher, str(data), out, **(SETTINGS | settings))


def test_the_row_is_named_and_nothing_of_its_shard_is_written(
    broken: Path, data: Path, tmp_path: Path
) -> None:
    says = (
        r"row 20: the teacher's logits are not finite \(NaN or infinite\)\. Nothing of this shard "
        r"was written; .*--dtype float32.*--on-nan skip"
    )
    with pytest.raises(InputError, match=says):
        run(broken, data, tmp_path / "s")
    there = len(list((tmp_path / "s" / "shards").iterdir()))
    assert there >= 1
    assert verify_store(tmp_path / "s", allow_partial=True, deep=True).damaged == []
    # The same store goes on, once the user has decided to do without such rows.
    store = run(broken, data, tmp_path / "s", on_nan="skip")
    assert store.is_complete
    assert facts(store)["statuses"]["not_finite"] == 2


def test_skipped_rows_have_a_line_and_no_records_and_are_counted_where_the_user_looks(
    broken: Path,
    teacher: Path,
    data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = run(broken, data, tmp_path / "s", on_nan="skip", log_json=tmp_path / "log")
    status = [store.text(i).status for i in range(len(store))]
    assert [i for i, s in enumerate(status) if s == "not_finite"] == BAD_ROWS
    assert [store.text(i).segments[0].text for i in BAD_ROWS] == [TEXTS[i] for i in BAD_ROWS]
    assert [len(store[i]) for i in BAD_ROWS] == [0, 0]
    assert "2 not_finite · 49 ok" in info_text(facts(store))
    warned = [r.message for r in caplog.records if "not finite" in r.message]
    assert len(warned) == 1
    assert "2 of 51 sequences have no records" in warned[0]
    lines = (tmp_path / "s.journal.jsonl").read_text().splitlines()
    noted = [x["row"] for x in map(json.loads, lines) if x["event"] == "not finite"]
    assert noted == BAD_ROWS
    logged = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert [x["row"] for x in logged if x["event"] == "not finite"] == BAD_ROWS

    good = run(teacher, data, tmp_path / "good")
    for i in set(range(len(TEXTS))) - set(BAD_ROWS):
        for name in ("token_ids", "entry_logprobs", "entry_ids", "entropy", "byte_starts"):
            np.testing.assert_array_equal(getattr(store[i], name), getattr(good[i], name))
    assert verify_store(store.path, deep=True).damaged == []
    assert len(reader_from_spec.read_store(store.path)[2]) == len(TEXTS)


def test_a_teacher_that_is_finite_writes_the_same_records_either_way(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    stop, skip = (run(teacher, data, tmp_path / x, on_nan=x) for x in ("stop", "skip"))
    assert stop.digest == skip.digest
    shards = [{n: b for n, b in tree(s.path).items() if "shards" in n} for s in (stop, skip)]
    assert shards[0] == shards[1]


def test_a_window_that_is_not_finite_leaves_the_rows_other_windows_alone(
    broken: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": f"{tiny.corpus()[0] * 3} {BAD} {tiny.corpus()[1] * 3}"}))
    store = run(broken, path, tmp_path / "s", on_nan="skip", max_length=16, stride=2)
    status = [store.text(i).status for i in range(len(store))]
    assert {"split", "not_finite"} == set(status)
    assert [len(store[i]) > 0 for i in range(len(store))] == [s == "split" for s in status]
    assert "".join(
        s.text for i in range(len(store)) for s in store.text(i).segments if s.supervised
    )


def test_a_shard_of_nothing_finite_is_a_shard(broken: Path, tmp_path: Path) -> None:
    path = texts_file(tmp_path / "bad.jsonl", [BAD * 3, "the end"])
    store = run(broken, path, tmp_path / "s", on_nan="skip", shard_text_bytes=1)
    assert [store.text(0).status, len(store[0]), len(store.shards)] == ["not_finite", 0, 2]
    assert verify_store(store.path, deep=True).damaged == []


def test_a_store_of_nothing_finite_is_not_sealed(broken: Path, tmp_path: Path) -> None:
    path = texts_file(tmp_path / "bad.jsonl", [BAD * 3])
    with pytest.raises(InputError, match="no row has a record, so it is not sealed"):
        run(broken, path, tmp_path / "s", on_nan="skip")
    assert not (tmp_path / "s" / "DONE").exists()


def test_another_word_for_what_to_do_is_refused(teacher: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--on-nan is ignore, expected stop or skip\."):
        run(teacher, data, tmp_path / "s", on_nan="ignore")
