"""What a dump does not say is marked as missing, counted or left out, and never made up."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.errors import InputError
from logitstore.moving.dumps.importing import import_dump
from tests.kit import dumps
from tests.kit.dumps import ENGLISH, TEXTS, Dumper, imported, settings

Row = dict[str, Any]


def chat_own(teacher: Dumper, value: float) -> tuple[Row, int]:
    """OpenAI: a token that is not among the listed has this number for its own."""
    row = teacher.chat([{"role": "user", "content": "?"}], ENGLISH[0])
    item = row["response"]["choices"][0]["logprobs"]["content"][3]
    item["logprob"] = value
    item["top_logprobs"] = [e for e in item["top_logprobs"] if e["token"] != item["token"]]
    return row, 3


def scored_own(teacher: Dumper, value: float) -> tuple[Row, int]:
    """vLLM: what its sampler ruled out, for JSON has no -inf."""
    row = teacher.scored(ENGLISH[0])
    choice = row["choices"][0]
    choice["prompt_logprobs"][4][str(choice["prompt_token_ids"][4])]["logprob"] = value
    return row, 3  # the first token has no record


def raw_own(teacher: Dumper, value: float) -> tuple[Row, int]:
    row = teacher.raw(ENGLISH[0])
    own = f"token_id:{row['input_ids'][4]}"
    others = [e for e in row["logprobs"][4] if e["token"] != own]
    row["logprobs"][4] = [*others, {"token": own, "logprob": value}]
    return row, 3


def prepared_own(teacher: Dumper, value: float) -> tuple[Row, int]:
    """Padding that its mask does not mark."""
    row = teacher.prepared(ENGLISH[0])
    own, ids = row["input_ids"][4], row["target_token_ids"][3]
    at = ids.index(own) if own in ids else -1
    ids[at], row["target_logprobs"][3][at] = own, value
    return row, 3


UNKNOWNS = [-9999.0, -1e9, float(np.finfo(np.float32).min), float("-inf")]


@pytest.mark.parametrize("value", UNKNOWNS)
@pytest.mark.parametrize("make", [chat_own, scored_own, raw_own, prepared_own])
def test_a_number_that_stands_for_not_known_is_no_measurement(
    make: Callable[[Dumper, float], tuple[Row, int]],
    value: float,
    teacher: Dumper,
    tmp_path: Path,
) -> None:
    row, t = make(teacher, value)
    store, found = imported(dumps.write_jsonl(tmp_path / "a.jsonl", [row]), teacher)
    assert found["not_in_their_list"] >= 1
    assert store.spec.missing == ("entropy", "token_logprob")
    records = store[0]
    assert np.isnan(records.token_logprob[t])
    assert np.nan_to_num(records.token_logprob).min() > -50
    assert records.entry_logprobs.min() > -50
    stop = int(records.entry_count[: t + 1].sum())
    listed = records.entry_ids[stop - int(records.entry_count[t]) : stop]
    assert int(records.token_ids[t]) not in listed.tolist()


def test_tokens_outside_their_lists_are_marked_or_dropped(teacher: Dumper, tmp_path: Path) -> None:
    path = dumps.write_jsonl(
        tmp_path / "a.jsonl", [replace(teacher, sure=4.0).raw(t) for t in TEXTS]
    )
    marked, found = imported(path, teacher)
    assert 0 < found["not_in_their_list"] < found["records"]
    assert marked.spec.missing == ("entropy", "token_logprob")
    unknown = sum(int(np.isnan(r.token_logprob).sum()) for r in marked)
    assert unknown == found["not_in_their_list"]

    other = path.rename(tmp_path / "b.jsonl")
    dropped, again = imported(other, teacher, unlisted="drop")
    assert dropped.spec.missing == ("entropy",)
    assert again["records"] == found["records"] - unknown
    for a, b in zip(marked, dropped, strict=True):
        known = ~np.isnan(a.token_logprob)
        assert a.token_ids[known].tolist() == b.token_ids.tolist()
        assert a.byte_starts[known].tolist() == b.byte_starts.tolist()
        assert a.entry_ids is not None
        assert b.entry_ids is not None
        assert np.repeat(known, a.entry_count).sum() == len(b.entry_ids)


def test_lists_of_the_whole_vocabulary_lack_nothing(teacher: Dumper, tmp_path: Path) -> None:
    whole = replace(teacher, k=400)
    path = dumps.write_jsonl(tmp_path / "a.jsonl", [whole.raw(t) for t in ENGLISH[:2]])
    store, found = imported(path, teacher)
    assert found["missing"] == []
    assert "missing" not in store.spec.capture
    logprobs = whole.logprobs(whole.ids(ENGLISH[0]))[1:]
    entropy = -(np.exp(logprobs) * logprobs).sum(1)
    np.testing.assert_allclose(store[0].entropy, entropy, atol=1 / 256)
    assert (store[0].tail_logmass == -np.inf).all()


def renormalised(row: dict[str, Any]) -> dict[str, Any]:
    lists = [np.array(values) for values in row["target_logprobs"][:-1]]
    norms = [np.log(np.exp(values).sum()) for values in lists]
    made = [(values - n).tolist() for values, n in zip(lists, norms, strict=True)]
    return row | {"target_logprobs": [*made, row["target_logprobs"][-1]]}


def test_renormalised_lists_are_refused_or_marked(teacher: Dumper, tmp_path: Path) -> None:
    rows = [renormalised(teacher.prepared(text)) for text in TEXTS]
    path = dumps.write_jsonl(tmp_path / "dump.jsonl", rows)
    with pytest.raises(InputError, match=r"its lists add up to one \(658 of the 658 that would"):
        import_dump(path, tmp_path / "s", settings(teacher))
    store, _ = imported(path, teacher, renormalised=True)
    assert store.spec.missing == ("entropy", "tail_logmass", "token_logprob")
    padded = store[0].padded()
    np.testing.assert_allclose(np.exp(padded.logprobs).sum(1), 1, atol=1e-5)

    honest = dumps.write_jsonl(tmp_path / "honest.jsonl", [teacher.prepared(t) for t in TEXTS])
    with pytest.raises(InputError, match=r"on average, so they were not renormalised"):
        import_dump(honest, tmp_path / "s", settings(teacher, renormalised=True))
    assert not (tmp_path / "s").exists()


def test_supervised_tokens_without_a_list_are_counted_and_have_no_record(
    teacher: Dumper, tmp_path: Path
) -> None:
    rows = [teacher.prepared(text) for text in ENGLISH]
    rows[0]["target_mask"] = [[0] * 8 for _ in rows[0]["target_mask"]]
    rows[1]["target_mask"][4] = [0] * 8
    store, found = imported(dumps.write_jsonl(tmp_path / "a.jsonl", rows), teacher)
    first = len(rows[0]["input_ids"]) - 1
    assert found["without_list"] == first + 1
    assert found["statuses"] == {"no_lists": 1, "ok": 7}
    assert store.text(0).supervised_bytes.decode() == ENGLISH[0]
    assert rows[1]["input_ids"][5] not in [
        int(t) for t, b in zip(store[1].token_ids, store[1].byte_starts, strict=True) if b == 0
    ]
    assert len(store[1]) == len(rows[1]["input_ids"]) - 2


def test_labels_masks_and_padding_say_what_is_trained_on(teacher: Dumper, tmp_path: Path) -> None:
    rows = [teacher.prepared(text, supervised_from=4) for text in ENGLISH]
    for row in rows:
        width = len(row["input_ids"])
        for name, filler in (
            ("input_ids", 0), ("labels", -100), ("attention_mask", 0),
            ("target_token_ids", [0] * 8), ("target_logprobs", [-1e9] * 8),
            ("target_mask", [0] * 8),
        ):  # fmt: skip
            row[name] = [*row[name], *[filler] * (40 - width)]
    store, _ = imported(dumps.write_jsonl(tmp_path / "a.jsonl", rows), teacher)
    ids = teacher.ids(ENGLISH[2])
    assert store[2].token_ids.tolist() == ids[4:]
    assert store.text(2).segments[0].supervised is False
    assert "".join(s.text for s in store.text(2).segments) == ENGLISH[2]
