"""Law: what other tools dumped of a teacher becomes what a capture of it would have been."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from logitstore.capture import capture
from logitstore.checking.verify import verify_store
from logitstore.errors import InputError, MismatchError
from logitstore.format.logprob_codec import ENTRY_STEP, TAIL_STEP, TOKEN_STEP
from logitstore.moving.dumps.importing import import_dump
from logitstore.moving.dumps.settings import ImportSettings
from logitstore.store import LogitStore, open_store
from logitstore.testing import stores, tiny
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.conversation import Conversation
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import dumps
from tests.kit.dumps import Dumper

TEXTS = tiny.corpus()[36:]
ENGLISH = tiny.corpus()[:8]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Dumper:
    return dumps.dumper(tmp_path_factory.mktemp("dumps") / "teacher")


@pytest.fixture(scope="module")
def captured(teacher: Dumper, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """The same rows, captured: the oracle."""
    rows = Dataset.from_list([{"input_ids": teacher.ids(t)} for t in TEXTS])
    return capture(teacher.folder, rows, tmp_path_factory.mktemp("captured") / "s", top_k=8)


def settings(of: Dumper, **more: Any) -> ImportSettings:
    return ImportSettings(tokenizer=str(of.folder), **({"teacher": dumps.NAME} | more))


def imported(path: Path, of: Dumper, **more: Any) -> tuple[LogitStore, dict[str, Any]]:
    store, found = import_dump(path, path.with_suffix(".store"), settings(of, **more))
    assert store is not None
    assert verify_store(store.path, deep=True).damaged == []
    return store, found


def keyed(row: dict[str, Any]) -> dict[str, Any]:
    """vLLM's own objects instead of entries with a token."""
    lists = [
        entries
        and {e["token"].removeprefix("token_id:"): {"logprob": e["logprob"]} for e in entries}
        for entries in row["logprobs"]
    ]
    return row | {"logprobs": lists}


def numbers(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers beside target_token_ids, one list a supervised token."""
    lists = row["logprobs"][1:]
    ids = [[int(e["token"].removeprefix("token_id:")) for e in entries] for entries in lists]
    return {
        "input_ids": row["input_ids"],
        "completion_mask": [0] + [1] * len(lists),
        "target_token_ids": [[], *ids],
        "logprobs": [[], *([e["logprob"] for e in entries] for entries in lists)],
    }


LAYOUTS: dict[str, tuple[Callable[[Dumper, str], dict[str, Any]], str]] = {
    "prepared": (Dumper.prepared, ".jsonl"),
    "prepared, Parquet": (Dumper.prepared, ".parquet"),
    "raw": (Dumper.raw, ".jsonl"),
    "raw, Parquet": (Dumper.raw, ".parquet"),
    "raw, by id": (lambda d, t: keyed(d.raw(t)), ".jsonl"),
    "raw, numbers": (lambda d, t: numbers(d.raw(t)), ".parquet"),
    "prompt_logprobs": (Dumper.scored, ".jsonl"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dump_becomes_what_a_capture_would_have_been(
    layout: str, teacher: Dumper, captured: LogitStore, tmp_path: Path
) -> None:
    make, ending = LAYOUTS[layout]
    write = dumps.write_jsonl if ending == ".jsonl" else dumps.write_parquet
    path = write(tmp_path / f"dump{ending}", [make(teacher, text) for text in TEXTS])
    store, found = imported(path, teacher, shard_text_bytes=300)
    assert store.plan.shard_count > 1
    assert found["records"] == sum(len(r) for r in captured)
    assert found["missing"] == list(store.spec.missing)
    assert len(store) == len(captured)
    for i, expected in enumerate(captured):
        records = store[i]
        assert store.text(i) == captured.text(i)
        for name in ("token_ids", "byte_starts", "byte_lengths", "entry_count"):
            np.testing.assert_array_equal(getattr(records, name), getattr(expected, name))
        ours, theirs = records.padded().logprobs, expected.padded().logprobs
        np.testing.assert_allclose(ours, theirs, atol=2.1 * ENTRY_STEP * 4)
        np.testing.assert_allclose(
            records.tail_logmass, expected.tail_logmass, atol=2 * TAIL_STEP + 1e-3
        )
        known = ~np.isnan(records.token_logprob)
        assert known.all() == ("token_logprob" not in store.spec.missing)
        np.testing.assert_allclose(
            records.token_logprob[known], expected.token_logprob[known], atol=2 * TOKEN_STEP
        )


def test_the_sampled_token_that_servers_add_is_no_entry(
    teacher: Dumper, captured: LogitStore, tmp_path: Path
) -> None:
    """Lists have k + 1 entries where the token is not among the k; ranks need not be said."""
    rows = [replace(teacher, sure=4.0).scored(text) for text in ENGLISH]
    for row in rows:
        for entries in row["choices"][0]["prompt_logprobs"]:
            for entry in (entries or {}).values():
                del entry["rank"]
    lengths = {len(e) for e in rows[0]["choices"][0]["prompt_logprobs"] if e}
    assert lengths == {8, 9}
    store, found = imported(dumps.write_jsonl(tmp_path / "dump.jsonl", rows), teacher)
    assert found["top_k"] == 8
    assert store.spec.missing == ("entropy",)


def test_answers_lie_behind_their_prompts(teacher: Dumper, tmp_path: Path) -> None:
    asked = [[{"role": "user", "content": text[:9]}] for text in ENGLISH]
    rows = [teacher.chat(m, text) for m, text in zip(asked, ENGLISH, strict=True)]
    path = dumps.write_jsonl(tmp_path / "chat.jsonl", rows)
    store, _ = imported(path, teacher, teacher=None)
    assert store.provenance["teacher"] == dumps.NAME  # the response says its model
    assert store.spec.rendering["kind"] == "conversation"
    assert store.spec.missing == ("entropy",)  # every token has its own log-probability
    for i, text in enumerate(ENGLISH):
        line, records = store.text(i), store[i]
        assert line.supervised_bytes.decode() == text
        assert line.segments[0].text == f"[user] {text[:9]}\n[assistant] "
        assert json.loads(line.messages or "")["messages"][-1]["content"] == text
        assert records.byte_lengths.tolist()[-1] == 0  # the end of the turn
        assert int(records.token_ids[-1]) == teacher.tokenizer.eos_token_id
        assert records.byte_lengths.sum() == len(text.encode())
    answers = teacher.chat(asked[0], ENGLISH[0])["response"]["choices"][0]["logprobs"]["content"]
    own = [item["logprob"] for item in answers]
    np.testing.assert_allclose(store[0].token_logprob, own, atol=TOKEN_STEP)


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


def test_a_prompt_of_token_ids_is_context_of_the_answer(teacher: Dumper, tmp_path: Path) -> None:
    rows = []
    for text in ENGLISH:
        chat = teacher.chat([{"role": "user", "content": "?"}], text)["response"]
        prompt = teacher.tokenizer("[user] ?\n[assistant] ").input_ids
        rows.append(chat | {"prompt_token_ids": prompt})
    store, found = imported(dumps.write_jsonl(tmp_path / "chat.jsonl", rows), teacher)
    assert store.spec.rendering["kind"] == "tokens"
    assert found["supervised_tokens"] == found["records"] == sum(len(r) for r in store)
    line = store.text(3)
    assert [(s.text, s.supervised) for s in line.segments[:2]] == [
        ("[user] ?\n[assistant] ", False),
        (ENGLISH[3], True),
    ]


def test_completions_name_their_tokens_by_text(teacher: Dumper, tmp_path: Path) -> None:
    """The legacy format, with echo: the whole prompt is scored, its first token by nothing."""
    sure = replace(teacher, sure=9.0)
    names = sure.tokenizer.convert_ids_to_tokens
    text = "Every token reads the long page twice."
    ids = sure.ids(text)[1:]  # without BOS, which completions do not show
    rows = sure.logprobs(ids)
    spelt = [sure.tokenizer.convert_tokens_to_string([t]) for t in names(ids)]
    top = [
        {sure.tokenizer.decode([i]): p for i, p in sure.top(row) if i < 2 or i > 257}
        | {spelt[t]: row[ids[t]]}
        for t, row in enumerate(rows)
    ]
    logprobs = {
        "tokens": spelt,
        "token_logprobs": [
            None,
            *(float(row[i]) for i, row in zip(ids[1:], rows[1:], strict=True)),
        ],
        "top_logprobs": [None, *top[1:]],
    }
    row = {"model": dumps.NAME, "choices": [{"text": text, "logprobs": logprobs}]}
    store, found = imported(dumps.write_jsonl(tmp_path / "echo.jsonl", [row]), teacher)
    assert found["records"] == len(ids) - 1
    assert store[0].token_ids.tolist() == ids[1:]
    assert store.text(0).supervised_bytes.decode() == text.removeprefix(spelt[0])


def test_objects_of_vllm_itself_and_lines_of_a_batch_are_read_too(
    teacher: Dumper, tmp_path: Path
) -> None:
    """A `RequestOutput` written out, and a response inside OpenAI's envelope: the same records."""
    outputs, batch = [], []
    prompt = teacher.tokenizer("[user] ?\n[assistant] ").input_ids
    for text in ENGLISH:
        said = [*teacher.tokenizer(text, add_special_tokens=False).input_ids, 0]
        rows = teacher.logprobs([*prompt, *said])[len(prompt) :]
        lists = [
            {
                str(i): {"logprob": float(row[i])}
                for i in [said[t], *(i for i, _ in teacher.top(row))]
            }
            for t, row in enumerate(rows)
        ]
        made = {"text": text, "token_ids": said, "logprobs": lists}
        outputs.append({"prompt_token_ids": prompt, "prompt_logprobs": None, "outputs": [made]})
        body = {"model": dumps.NAME, "choices": [made], "prompt_token_ids": prompt}
        batch.append({"custom_id": "1", "response": {"status_code": 200, "body": body}})
    one, found = imported(dumps.write_jsonl(tmp_path / "outputs.jsonl", outputs), teacher)
    other, _ = imported(dumps.write_jsonl(tmp_path / "batch.jsonl", batch), teacher, teacher=None)
    assert other.provenance["teacher"] == dumps.NAME
    assert found["records"] == found["supervised_tokens"] > 50
    for i, text in enumerate(ENGLISH):
        assert one.text(i).supervised_bytes.decode() == text
        assert one[i].token_ids[-1] == teacher.tokenizer.eos_token_id == 0
        assert one[i].entry_logprobs.tobytes() == other[i].entry_logprobs.tobytes()


def test_a_scored_conversation_supervises_what_the_assistant_says(
    teacher: Dumper, tmp_path: Path
) -> None:
    rows = []
    for text in ENGLISH:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
        written = teacher.tokenizer.apply_chat_template(messages, tokenize=False)
        ids = teacher.tokenizer(written, add_special_tokens=False).input_ids
        lists = [
            {str(i): {"logprob": p} for i, p in teacher.top(row)}
            for row in teacher.logprobs(ids)[1:]
        ]
        made = {"prompt_token_ids": ids, "prompt_logprobs": [None, *lists], "choices": [{}]}
        rows.append({"messages": messages, "response": made})
    store, _ = imported(dumps.write_jsonl(tmp_path / "scored.jsonl", rows), teacher)
    for i, text in enumerate(ENGLISH):
        assert store.text(i).supervised_bytes.decode() == text
        assert store[i].byte_lengths.sum() == len(text.encode())
        assert store.text(i).messages is not None
    rows[1]["response"]["prompt_token_ids"][3] += 1
    path = dumps.write_jsonl(tmp_path / "other.jsonl", rows)
    with pytest.raises(
        InputError, match=r"line 2: the chat template writes its messages as \d+ tok"
    ):
        import_dump(path, tmp_path / "s", settings(teacher))


def test_an_answer_that_the_template_writes_differently_is_counted(
    teacher: Dumper, tmp_path: Path
) -> None:
    rows = [teacher.chat([{"role": "user", "content": "?"}], text) for text in ENGLISH]
    rows[2]["response"]["choices"][0]["message"]["content"] = "Something else."
    store, found = imported(dumps.write_jsonl(tmp_path / "a.jsonl", rows), teacher)
    assert found["statuses"] == {"ok": 7, "template_changed_text": 1}
    assert len(store[2]) == 0


def test_what_was_generated_beside_a_scored_prompt_is_left_out(
    teacher: Dumper, tmp_path: Path
) -> None:
    """A server must generate a token to be asked for a prompt's probabilities."""
    rows = [teacher.scored(text) for text in ENGLISH]
    for row in rows:
        row["choices"][0]["token_ids"] = [7]
        ids = row["choices"][0]["prompt_token_ids"]
        row["labels"] = [-100] * 4 + ids[4:]
    store, found = imported(dumps.write_jsonl(tmp_path / "a.jsonl", rows), teacher)
    assert found["generated_left_out"] == len(ENGLISH)
    assert [r.token_ids.tolist() for r in store] == [teacher.ids(t)[4:] for t in ENGLISH]


def test_several_choices_are_several_rows(teacher: Dumper, tmp_path: Path) -> None:
    responses = [teacher.scored(text) for text in ENGLISH]
    one = responses[0] | {"choices": [r["choices"][0] for r in responses]}
    apart, _ = imported(dumps.write_jsonl(tmp_path / "apart.jsonl", responses), teacher)
    store, _ = imported(
        dumps.write_jsonl(tmp_path / "one.jsonl", [one]), teacher, shard_text_bytes=60
    )
    assert store.plan.shard_count > 2
    assert len(store) == len(apart) == len(ENGLISH)
    for a, b in zip(store, apart, strict=True):
        assert a.entry_logprobs.tobytes() == b.entry_logprobs.tobytes()


def test_lists_of_a_conversation_are_of_its_supervised_tokens_or_of_all(
    teacher: Dumper, tmp_path: Path
) -> None:
    reader, stored = ByteTokenizer(teacher.tokenizer), []
    template = ChatTemplate.of(teacher.tokenizer, reader)
    for whole in (True, False):
        rows = []
        for text in ENGLISH:
            messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
            written = teacher.tokenizer.apply_chat_template(messages, tokenize=False)
            ids = teacher.tokenizer(written, add_special_tokens=False).input_ids
            lists = [
                [{"token_id": i, "logprob": p} for i, p in teacher.top(row)]
                for row in teacher.logprobs(ids)[1:]
            ]
            is_own = reader.encode(
                template.segments(Conversation.choose(messages, "all"), "?"),
                add_eos=False,
                add_prefix=False,
            ).has_record
            own = [each for each, is_ in zip([None, *lists], is_own, strict=True) if is_]
            rows.append({"said": messages, "lp": [None, *lists] if whole else own})
        path = dumps.write_jsonl(tmp_path / f"{whole}.jsonl", rows)
        columns = {"logprobs_column": "lp", "messages_column": "said"}
        store, found = imported(path, teacher, **columns)
        assert found["without_list"] == 0
        stored.append([store[i] for i in range(len(store))])
    for a, b in zip(*stored, strict=True):
        assert len(a) > 5
        assert a.token_ids.tolist() == b.token_ids.tolist()
        assert a.entry_logprobs.tobytes() == b.entry_logprobs.tobytes()


# ---- the shift by one ----


@pytest.mark.parametrize(("layout", "wrong"), [("prepared", "token"), ("raw", "next")])
def test_lists_that_lie_beside_their_tokens_are_noticed(
    layout: str, wrong: str, teacher: Dumper, tmp_path: Path
) -> None:
    """The bug that every reader of such data has had; before anything is written."""
    sure = replace(teacher, sure=9.0)
    rows = [getattr(sure, layout)(text) for text in TEXTS]
    path = dumps.write_jsonl(tmp_path / "dump.jsonl", rows)
    right = {"token": "next", "next": "token"}[wrong]
    with pytest.raises(InputError, match=rf"they are shifted\. Add --aligned-to {right}\."):
        import_dump(path, tmp_path / "s", settings(teacher, aligned_to=wrong))
    assert not (tmp_path / "s").exists()
    _, found = imported(path, teacher, aligned_to=right)
    assert found["not_in_their_list"] < 0.2 * found["records"]


def test_old_prepared_data_lies_on_its_own_tokens(teacher: Dumper, tmp_path: Path) -> None:
    sure = replace(teacher, sure=9.0)
    rows = [sure.prepared(text) for text in TEXTS]
    for row in rows:
        for name in ("target_token_ids", "target_logprobs", "target_mask"):
            row[name] = [row[name][-1], *row[name][:-1]]
    path = dumps.write_jsonl(tmp_path / "old.jsonl", rows)
    with pytest.raises(InputError, match=r"hold the token before .* Add --aligned-to token\."):
        import_dump(path, tmp_path / "s", settings(teacher))
    old, _ = imported(path, teacher, aligned_to="token")
    new, _ = imported(
        dumps.write_jsonl(tmp_path / "new.jsonl", [sure.prepared(t) for t in TEXTS]), teacher
    )
    for a, b in zip(old, new, strict=True):
        assert a.entry_logprobs.tobytes() == b.entry_logprobs.tobytes()


# ---- what is missing ----


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


# ---- as safe as a capture ----


def test_an_import_that_was_stopped_goes_on_to_the_same_bytes(
    teacher: Dumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.writing.writer import StoreWriter

    path = dumps.write_jsonl(tmp_path / "a.jsonl", [teacher.raw(text) for text in TEXTS])
    made = settings(teacher, shard_text_bytes=200)
    import_dump(path, tmp_path / "whole", made)
    whole = StoreWriter.write_shard

    def stops(self: StoreWriter, index: int, *more: Any) -> bool:
        if index == 2:
            raise KeyboardInterrupt
        return whole(self, index, *more)

    monkeypatch.setattr(StoreWriter, "write_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        import_dump(path, tmp_path / "s", made)
    monkeypatch.undo()
    import_dump(path, tmp_path / "s", made)
    assert stores.tree(tmp_path / "s") == stores.tree(tmp_path / "whole")
    with pytest.raises(MismatchError, match=r"rendering\.imported"):
        import_dump(path, tmp_path / "s", replace(made, unlisted="drop"))


def test_a_dry_run_counts_and_writes_nothing(teacher: Dumper, tmp_path: Path) -> None:
    path = dumps.write_jsonl(tmp_path / "a.jsonl", [teacher.raw(text) for text in ENGLISH])
    store, found = import_dump(path, tmp_path / "s", settings(teacher), dry_run=True)
    assert store is None
    assert (found["rows"], found["top_k"], found["layout"]) == (8, 8, "raw")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl"]


def test_a_folder_of_files_is_one_dump(teacher: Dumper, tmp_path: Path) -> None:
    rows = [teacher.prepared(text) for text in ENGLISH]
    (tmp_path / "d").mkdir()
    dumps.write_parquet(tmp_path / "d" / "0.parquet", rows[:5])
    dumps.write_parquet(tmp_path / "d" / "1.parquet", rows[5:])
    store, _ = imported(tmp_path / "d", teacher, shard_text_bytes=60)
    one, _ = imported(dumps.write_parquet(tmp_path / "all.parquet", rows), teacher)
    assert store.plan.shard_count > 2
    assert [r.entry_logprobs.tobytes() for r in store] == [r.entry_logprobs.tobytes() for r in one]
    assert [store.text(i) for i in range(8)] == [one.text(i) for i in range(8)]


def test_a_dump_that_changes_while_it_is_read_is_refused(
    teacher: Dumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.moving.dumps import importing

    path = dumps.write_jsonl(tmp_path / "a.jsonl", [teacher.raw(text) for text in ENGLISH])
    looks = importing.look_through

    def changes(*arguments: Any) -> Any:
        found = looks(*arguments)
        dumps.write_jsonl(path, [teacher.raw(text) for text in ENGLISH[:-1]])
        return found

    monkeypatch.setattr(importing, "look_through", changes)
    with pytest.raises(InputError, match=r"has changed while it was imported\. Start again\."):
        import_dump(path, tmp_path / "s", settings(teacher))


def test_a_dump_that_keeps_its_size_and_time_is_refused_before_what_was_read_is_committed(
    teacher: Dumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.moving.dumps import importing

    path = dumps.write_jsonl(tmp_path / "a.jsonl", [teacher.raw(text) for text in ENGLISH])
    pairs = importing._pairs

    def changes(*arguments: Any) -> Any:
        yield from pairs(*arguments)
        about, data = path.stat(), path.read_bytes()
        path.write_bytes(data.replace(b"1", b"2"))
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))

    monkeypatch.setattr(importing, "_pairs", changes)
    with pytest.raises(InputError, match=r"has changed while it was imported\. Start again\."):
        import_dump(path, tmp_path / "s", settings(teacher))
    assert not list((tmp_path / "s" / "shards").iterdir())


def test_an_imported_store_is_merged_and_cut_and_exported_like_any(
    teacher: Dumper, tmp_path: Path
) -> None:
    from logitstore.moving.merge import merge
    from logitstore.moving.parquet.export import export_parquet
    from logitstore.moving.parquet.exported import find_export
    from logitstore.moving.parquet.reimport import reimport

    for name, texts in (("a", ENGLISH), ("b", TEXTS)):
        path = dumps.write_jsonl(tmp_path / f"{name}.jsonl", [teacher.raw(t) for t in texts])
        imported(path, teacher)
    union = merge([tmp_path / "a.store", tmp_path / "b.store"], tmp_path / "u")
    assert len(union) == len(ENGLISH) + len(TEXTS)
    export_parquet(tmp_path / "u", tmp_path / "e")
    found = find_export(tmp_path / "e")
    assert found is not None
    reimport(found, tmp_path / "back")
    assert stores.tree(tmp_path / "back") == stores.tree(tmp_path / "u")
    assert open_store(tmp_path / "back").spec.missing == ("entropy", "token_logprob")
