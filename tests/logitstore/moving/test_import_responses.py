"""Answers of servers: the records lie behind their prompts, and name their tokens."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from logitstore.errors import InputError
from logitstore.format.logprob_codec import TOKEN_STEP
from logitstore.moving.dumps.importing import import_dump
from tests.kit import dumps
from tests.kit.dumps import ENGLISH, Dumper, imported, settings


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
