"""Law: what other tools dumped of a teacher becomes what a capture of it would have been."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from logitstore.capture import capture
from logitstore.errors import InputError
from logitstore.format.logprob_codec import ENTRY_STEP, TAIL_STEP, TOKEN_STEP
from logitstore.moving.dumps.importing import import_dump
from logitstore.store import LogitStore
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.conversation import Conversation
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import dumps
from tests.kit.dumps import ENGLISH, TEXTS, Dumper, imported, settings


@pytest.fixture(scope="module")
def captured(teacher: Dumper, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """The same rows, captured: the oracle."""
    rows = Dataset.from_list([{"input_ids": teacher.ids(t)} for t in TEXTS])
    return capture(teacher.folder, rows, tmp_path_factory.mktemp("captured") / "s", top_k=8)


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
