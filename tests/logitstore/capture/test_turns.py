"""Turns of conversations in a store: what is supervised of them, and what ends them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import logitstore
from distill.alignment.align import align
from distill.data.coverage_of_pair import of_pair
from distill.data.coverage_table import table
from distill.data.left_out import usable
from distill.data.targets import student_spans, teacher_spans
from logitstore.errors import MismatchError
from logitstore.info import facts, info_text
from logitstore.moving.merge import merge
from logitstore.moving.subset import subset
from logitstore.rows.renderer import Renderer
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates
from tests.kit.shapes import CALL, EMPTY_THINKING, NEXT_ROLE, SHAPES, TALKS
from tests.kit.talks import capture, dataset_of
from tests.kit.templates import turns

LONG = [
    turns("Hi!", "  The teacher reads the long page twice. \n", "And?", "x = 1\n" * 9),
    turns("Hi!", "The old river and the sky. " * 4, "And?", "\n  it is so\n\n"),
]


def saved(folder: Path, tokenizer: Any, seed: int = 0) -> Path:
    return tiny.save(folder, tiny.llama(len(tokenizer), seed=seed), tokenizer)


def journal(store: Any) -> list[dict[str, Any]]:
    path = store.path.parent / f"{store.path.name}.journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def labels(data: Any, i: int) -> tuple[Any, Any, Any]:
    """(places of the records, of the labels, the student's tokens) of a sequence of a dataset."""
    line, records = data.store.text(i), data.store[i]
    ours = teacher_spans(records, line, data.store.spec.eos_ids, data.teacher)
    tokens = data.reader.read(line, ours).tokens
    return ours, None if tokens is None else student_spans(tokens), tokens


@pytest.mark.parametrize("shape", ["an empty think block in the last turn", "every turn alike"])
@pytest.mark.parametrize("text", ["content", "turn"])
def test_a_students_own_template_or_another_reads_what_was_asked_for(
    tmp_path: Path, text: str, shape: str
) -> None:
    thinking = SHAPES["an empty think block in the last turn"].tokenizer()
    teacher = saved(tmp_path / "t", thinking)
    rows = [{"messages": turns("Hi!", "Hello.", "And?", "Nothing.")}]
    store = capture(teacher, rows, tmp_path / "s", supervised_text=text)
    assert store.spec.rendering["supervised_text"] == text
    block = b"<think>\n\n</think>\n\n" if text == "turn" else b""
    assert store.text(0).supervised_bytes == b"Hello." + block + b"Nothing."
    student = saved(tmp_path / "student", SHAPES[shape].tokenizer(), 1)
    ours, theirs, _ = labels(dataset_of(student, store), 0)
    assert theirs is not None
    is_same = shape == "an empty think block in the last turn"
    assert int(theirs.lengths.sum()) == 14 + (len(block) if is_same else 0)
    ends = [(t, s) for t, s in align(ours, theirs).strict.tolist() if ours.is_eos[t]]
    assert len(ends) == 2 == theirs.is_eos.sum()


def test_a_store_from_before_is_read_as_it_was_by_its_own_template_and_better_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing of `supervised_text`, and holds the think block of its last turn."""
    settings = Renderer.settings.fget  # type: ignore[attr-defined]
    before = property(lambda self: {k: v for k, v in settings(self).items() if k[-4:] != "text"})
    teacher = saved(tmp_path / "t", templates.chatml(EMPTY_THINKING))
    rows = [{"messages": turns("Hi!", "Hello.")}, {"messages": turns("Hi!", "")}]
    with monkeypatch.context() as patched:
        patched.setattr(Renderer, "settings", before)
        store = capture(teacher, rows, tmp_path / "s", supervised_text="turn")
    assert "supervised_text" not in store.spec.rendering
    block = b"<think>\n\n</think>\n\n"
    assert store.text(0).supervised_bytes == block + b"Hello."
    _, own, _ = labels(dataset_of(teacher, store), 0)
    assert own.lengths.sum() == len(block) + 6
    student = saved(tmp_path / "student", templates.gemma(), 1)
    for i, said in enumerate((b"Hello.", b"")):
        ours, theirs, tokens = labels(dataset_of(student, store), i)
        assert theirs.lengths.sum() == len(said)
        assert (theirs.starts[~theirs.is_eos] >= len(block)).all()
        ends = [(t, s) for t, s in align(ours, theirs).strict.tolist() if ours.is_eos[t]]
        assert len(ends) == 1
        assert tokens.has_record.sum() == len(theirs.starts)
    # It was rendered in another way, so it is not gone on with.
    (store.path / "DONE").unlink()
    with pytest.raises(MismatchError, match=r"rendering\.supervised_text is null.*version .*began"):
        capture(teacher, rows, tmp_path / "s")


@pytest.mark.parametrize("teacher", ["a space on both sides", "trimmed", "every turn alike"])
@pytest.mark.parametrize("student", ["a space on both sides", "calls not written", "marks"])
def test_windows_are_learnt_from_once_whatever_either_template_trims(
    tmp_path: Path, teacher: str, student: str
) -> None:
    made = saved(tmp_path / "t", SHAPES[teacher].tokenizer())
    store = capture(made, [{"messages": t} for t in LONG], tmp_path / "s", max_length=48)
    assert {store.text(i).status for i in range(len(store))} == {"split"}
    data = dataset_of(saved(tmp_path / "student", SHAPES[student].tokenizer(), 1), store)
    places: dict[int, list[int]] = {0: [], 1: []}
    ends = {0: 0, 1: 0}
    for i in range(len(store)):
        ours, theirs, _ = labels(data, i)
        assert theirs is not None
        row, start = store.text(i).row, store.text(i).supervised_start
        own = store.text(i).supervised_bytes
        for at, length in zip(theirs.starts, theirs.lengths, strict=True):
            places[row] += range(start + int(at), start + int(at + length))
            assert 0 <= at <= len(own)
        ends[row] += int(theirs.is_eos.sum())
        both = align(ours, theirs).strict.tolist()
        pairs = [(t, s) for t, s in both if ours.is_eos[t] and theirs.is_eos[s]]
        assert len(pairs) == ours.is_eos.sum() == theirs.is_eos.sum()
    assert ends == {0: 2, 1: 2}
    for row, talk in enumerate(LONG):
        said = [m["content"] for m in talk if m["role"] == "assistant"]
        assert len(places[row]) == len(set(places[row]))
        assert len(places[row]) >= 0.9 * sum(len(text.strip()) for text in said)


def test_tool_calls_that_are_not_written_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    rows = [
        {"messages": [*turns("1+2?"), called]},
        {"messages": [*turns("1+2?"), called, *turns("So?", "It is 3.")]},
    ]
    teacher = saved(tmp_path / "t", templates.chatml())
    with caplog.at_level(logging.WARNING):
        store = capture(teacher, rows, tmp_path / "s", max_lost=1)
    assert [store.text(i).status for i in range(2)] == ["unwritten_tool_calls", "ok"]
    assert store.text(1).supervised_bytes == b"It is 3."
    assert len(store[0]) == 0
    assert store.provenance["turns"] == {"rows": 2, "unwritten_tool_calls": 2}
    assert "turns     of 2 rows looked at: 2 left out, whose tool calls" in info_text(facts(store))
    (noted,) = [line for line in journal(store) if line["event"] == "turns"]
    assert (noted["unwritten_tool_calls"], noted["shard"]) == (2, 0)
    (said,) = [r.getMessage() for r in caplog.records if "call tools" in r.getMessage()]
    assert "2 turns of shard 0" in said
    assert "--chat-template-path" in said


def test_turns_without_an_end_are_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = saved(tmp_path / "t", SHAPES["no end in the middle"].tokenizer())
    rows = [{"messages": turns("a", "one", "b", "two", "c", "three")} for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        store = capture(teacher, rows, tmp_path / "s", shard_text_bytes=1)
    noted = [line for line in journal(store) if line["event"] == "turns"]
    assert [line["without_end"] for line in noted] == [2, 2, 2]
    said = [r.getMessage() for r in caplog.records if "when to stop" in r.getMessage()]
    assert ["2 turns of shard 0" in said[0], "6 turns in all" in said[1]] == [True, True]
    assert len(said) == 2  # the journal has the rest
    eos = store.spec.eos_ids[0]
    assert [int((store[i].token_ids == eos).sum()) for i in range(3)] == [1, 1, 1]


def test_the_store_keeps_how_many_turns_lack_an_end_and_info_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the rows that were looked at before it began: no later byte of it may change."""
    monkeypatch.setattr("logitstore.capture.estimate.sample._SAMPLE_ROWS", 4)
    teacher = saved(tmp_path / "t", SHAPES["no end in the middle"].tokenizer())
    rows = [{"messages": turns("a", "one", "b", "two", "c", str(i))} for i in range(8)]
    store = capture(teacher, rows, tmp_path / "s", shard_text_bytes=900)
    assert store.provenance["turns"] == {"rows": 4, "without_end": 8}
    assert facts(store)["turns"] == {"rows": 4, "without_end": 8}
    line = "turns     of 4 rows looked at: 8 that no token ends, so students do not learn from"
    assert line in info_text(facts(store))
    before = tree(tmp_path / "s")
    (tmp_path / "s" / "DONE").unlink()
    (tmp_path / "s" / "shards" / "00001.zarr.zip").unlink()
    capture(teacher, rows, tmp_path / "s", shard_text_bytes=900)
    assert tree(tmp_path / "s") == before
    # Of other rows it is not known.
    cut = subset(tmp_path / "s", "0:2", tmp_path / "cut")
    more = capture(teacher, rows[:3], tmp_path / "more")
    both = merge([tmp_path / "cut", tmp_path / "more"], tmp_path / "both")
    assert more.provenance["turns"] == {"rows": 3, "without_end": 6}
    assert all("turns" not in each.provenance for each in (cut, both))
    assert "turns " not in info_text(facts(cut))


def test_a_store_whose_turns_all_end_has_no_word_of_it(tmp_path: Path) -> None:
    teacher = saved(tmp_path / "t", SHAPES["every turn alike"].tokenizer())
    store = capture(teacher, [{"messages": turns("a", "one", "b", "two")}], tmp_path / "s")
    assert "turns" not in store.provenance
    assert facts(store)["turns"] is None
    assert "turns " not in info_text(facts(store))


WRONG = [{}, [1], {"rows": 1}, {"rows": "x", "without_end": 2}, {"rows": 1, "without_end": "x"}]


@pytest.mark.parametrize("said", WRONG)
def test_what_anybody_may_have_written_into_a_store_is_no_reason_for_info_to_fail(
    tmp_path: Path, said: Any
) -> None:
    teacher = saved(tmp_path / "t", SHAPES["every turn alike"].tokenizer())
    store = capture(teacher, [{"messages": turns("a", "one")}], tmp_path / "s")
    store.provenance["turns"] = said
    assert "turns " not in info_text(facts(store))


def test_an_end_that_only_the_model_lists_is_an_end_of_the_store(tmp_path: Path) -> None:
    """What ends a tool call is not what ends an answer, so answers do not show it."""
    tokenizer = SHAPES["channels"].tokenizer()
    model = tiny.llama(len(tokenizer))
    call = tokenizer.convert_tokens_to_ids("<|call|>")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, call]
    teacher = tiny.save(tmp_path / "t", model, tokenizer)
    store = capture(teacher, [{"messages": TALKS["a call"]}], tmp_path / "s")
    assert call in store.spec.eos_ids
    at = store[0].token_ids == call
    assert at.sum() == 1
    assert not store[0].byte_lengths[at].any()
    ours, _, _ = labels(dataset_of(teacher, store), 0)
    assert ours.is_eos.sum() == 2


@pytest.mark.parametrize("kind", ["messages", "prompt"])
def test_a_written_turn_ends_with_the_token_that_the_teacher_wrote(
    tmp_path: Path, kind: str
) -> None:
    """EOS, which it would never write there, is not put in its place."""
    tokenizer = SHAPES["ended by the next role"].tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|user|>")
    model = tiny.llama(len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = 0
        model.lm_head.weight[end] *= 5
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    teacher = tiny.save(tmp_path / "t", model, tokenizer)
    texts = [*tiny.corpus()[:6], "x", "y"]
    rows = [{"messages": turns(t)} if kind == "messages" else {"prompt": t} for t in texts]
    store = capture(
        teacher, rows, tmp_path / "s", generate=True, max_new_tokens=40, generate_temperature=2.0
    )
    statuses = [store.text(i).status for i in range(len(store))]
    done = [i for i, status in enumerate(statuses) if status == "ok"]
    assert done
    for i in done:
        assert store[i].token_ids[-1] == end
        assert store[i].byte_lengths[-1] == 0
        if kind == "messages":
            assert store.text(i).segments[-1].text == "<|user|>"
        else:
            assert "<|user|>" not in "".join(s.text for s in store.text(i).segments)
    assert end in store.spec.rendering["generate"]["ends"]
    data = dataset_of(saved(tmp_path / "student", templates.gemma(), 1), store)
    for i, sequence in enumerate(data.sequences):
        ours, theirs, _ = labels(data, int(sequence))
        is_done = int(sequence) in done
        assert bool(ours.is_eos.any()) == bool(theirs.is_eos.any()) == is_done, i


def test_generated_stores_of_models_with_one_end_are_gone_on_with(tmp_path: Path) -> None:
    tokenizer = tiny.byte_bpe()
    teacher = saved(tmp_path / "t", tokenizer)
    rows = [{"prompt": "x"}]
    store = capture(teacher, rows, tmp_path / "s", generate=True, max_new_tokens=3)
    assert "ends" not in store.spec.rendering["generate"]
    assert store.spec.eos_ids == ByteTokenizer(tokenizer).eos_ids


def test_the_end_of_an_answer_is_the_templates_where_the_model_lists_ordinary_text(
    tmp_path: Path,
) -> None:
    tokenizer = templates.chatml()
    model = tiny.llama(len(tokenizer))
    listed = tokenizer("e").input_ids[0]
    with torch.no_grad():
        model.lm_head.weight[listed] *= 5
    model.generation_config.eos_token_id = [listed]
    teacher = tiny.save(tmp_path / "t", model, tokenizer)
    rows = [{"messages": turns(t)} for t in tiny.corpus()[:5]]
    store = capture(
        teacher, rows, tmp_path / "s", generate=True, max_new_tokens=40, generate_temperature=1.0
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    done = [i for i in range(len(store)) if store.text(i).status == "ok"]
    assert done
    assert all(store[i].token_ids[-1] == end for i in done)
    assert listed not in store.spec.eos_ids


def test_a_last_turn_ends_as_the_template_ends_last_turns(tmp_path: Path) -> None:
    """Not as it ends those in the middle, where the model lists ordinary text as its end."""
    tokenizer = SHAPES["channels"].tokenizer()
    model = tiny.llama(len(tokenizer))
    listed = tokenizer("e").input_ids[0]
    last, middle = tokenizer.convert_tokens_to_ids(["<|return|>", "<|end|>"])
    with torch.no_grad():
        model.lm_head.weight[listed] *= 5
        model.lm_head.weight[[last, middle]] = 0
    model.generation_config.eos_token_id = [listed]
    teacher = tiny.save(tmp_path / "t", model, tokenizer)
    rows = [{"messages": turns(t)} for t in tiny.corpus()[:5]]
    store = capture(
        teacher, rows, tmp_path / "s", generate=True, max_new_tokens=40, generate_temperature=1.0
    )
    done = [i for i in range(len(store)) if store.text(i).status == "ok"]
    ends = {int(store[i].token_ids[-1]) for i in done}
    assert last in ends
    assert middle not in ends
    assert "<|return|>" in {store.text(i).segments[-1].text for i in done}


def test_spaces_in_front_of_an_end_stay_with_it_in_windows(tmp_path: Path) -> None:
    tokenizer = SHAPES["a space on both sides"].tokenizer()
    teacher = saved(tmp_path / "t", tokenizer)
    rows = [{"messages": turns("a", "one two " * n, "b", "x " * n)} for n in range(1, 9)]
    for length in (12, 13, 17):
        store = capture(teacher, rows, tmp_path / str(length), max_length=length)
        found: dict[int, int] = dict.fromkeys(range(8), 0)
        for i in range(len(store)):
            spans = teacher_spans(
                store[i], store.text(i), store.spec.eos_ids, ByteTokenizer(tokenizer)
            )
            found[store.text(i).row] += int(spans.is_eos.sum())
            at_end = spans.starts[spans.is_eos] == len(store.text(i).supervised_bytes)
            inside = np.isin(spans.starts[spans.is_eos], spans.starts + spans.lengths)
            assert (at_end | inside).all()
        assert set(found.values()) == {2}


def test_the_template_of_the_next_role_closes_the_last_turn(tmp_path: Path) -> None:
    tokenizer = templates._with(
        tiny.byte_bpe(320), NEXT_ROLE, "[gMASK]", "<|user|>", "<|assistant|>"
    )
    store = capture(
        saved(tmp_path / "t", tokenizer), [{"messages": turns("a", "one", "b", "two")}],
        tmp_path / "s",
    )  # fmt: skip
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert user in store.spec.eos_ids
    assert (store[0].token_ids == user).sum() == 2
    assert store.text(0).segments[-1].text == "<|user|>"
    assert logitstore.open_store(tmp_path / "s").is_complete


def test_turns_that_a_student_does_not_learn_whole_are_counted(tmp_path: Path) -> None:
    """Of all turns of the rows that it can use, and said where those are that it cannot."""
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    rows = [{"messages": [*turns("1+2?"), called, *turns("So?", "It is 3.")]} for _ in range(3)]
    store = capture(
        saved(tmp_path / "t", SHAPES["calls written"].tokenizer()), rows, tmp_path / "s"
    )
    student = saved(tmp_path / "student", SHAPES["no end in the middle"].tokenizer(), 1)
    data = dataset_of(student, store)
    read = [labels(data, i)[1] for i in range(3)]
    assert [int(spans.lengths.sum()) for spans in read] == [len("It is 3.")] * 3
    (unwritten,) = usable(data).turns
    assert (unwritten.reason, unwritten.count, unwritten.of) == ("turns_without_calls", 3, 6)
    talk = turns("a", "one", "b", "two")
    plain = capture(
        saved(tmp_path / "plain", templates.chatml()),
        [{"messages": talk[:2]}, *[{"messages": talk}] * 9], tmp_path / "p",
    )  # fmt: skip
    found = usable(dataset_of(student, plain))
    (endless,) = found.turns
    assert (found.used, found.looked_at, found.lost, found.is_all) == (10, 10, 0, False)
    assert (endless.reason, endless.count, endless.of) == ("turns_without_end", 9, 19)
    assert endless.first_row == 1
    facts = of_pair(str(plain.path), str(student))
    assert facts["usable"] == found.facts()
    text = " ".join(table(facts).split())
    assert "10 of 10 with records can be used" in text
    assert "not whole 9 of 19 turns, for this student turns" in text
    assert "9 47.4% 1 turns_without_end: " in text
    assert "does not learn from them when to stop" in text
    assert usable(dataset_of(tmp_path / "plain", plain)).is_all


@pytest.mark.parametrize("overflow", ["split", "truncate"])
def test_turns_of_a_row_are_counted_once_however_it_was_cut(tmp_path: Path, overflow: str) -> None:
    student = saved(tmp_path / "student", SHAPES["no end in the middle"].tokenizer(), 1)
    teacher = saved(tmp_path / "plain", templates.chatml())
    rows = [{"messages": turns("a", "one two three", "b", "four five six. " * 20)}] * 2
    store = capture(teacher, rows, tmp_path / "s", overflow=overflow, max_length=90)
    found = [store.text(i) for i in range(len(store))]
    assert {line.status[:5] for line in found} == {overflow[:5]}
    assert (len(found) > len(rows)) == (overflow == "split")
    (endless,) = usable(dataset_of(student, store)).turns
    assert (endless.count, endless.of) == (2, 4)
