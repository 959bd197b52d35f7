"""Text of one chat template beside the tokens of another: told by what ends the turns, if anything.

The contents are the same, so every record lies where it must.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.data.self_test import try_records
from logitstore.checking.end_check import odd_end
from logitstore.errors import InputError
from logitstore.records import Segment, SequenceText, TokenRecords
from logitstore.rows.renderer import Renderer
from logitstore.testing import tiny
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.conversation import Conversation
from logitstore.text.token_ids import TokenRow, read_tokens
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates
from tests.kit.shapes import SHAPES, TALKS
from tests.kit.talks import capture, dataset_of, trainer_of

#: Ends turns with EOS, and is like ChatML otherwise.
OTHER_END = templates.CHATML.replace("<|im_end|>", "{{ eos_token }}")
#: Ends turns as ChatML does.
SAME_END = templates.CHATML.replace("<|im_start|>{{ m['role'] }}", "<|im_start|>[{{ m['role'] }}]")


def records_of(tokens: TokenizedText) -> TokenRecords:
    has = tokens.has_record
    ids, floats = tokens.token_ids[has].astype(np.uint32), np.zeros(has.sum(), np.float32)
    none = np.zeros(0, np.uint32)
    starts, lengths = tokens.byte_starts[has], tokens.byte_lengths[has]
    return TokenRecords(ids, starts, lengths, floats, lengths * 0, none, floats[:0], floats, floats)


def found_in(
    reader: ByteTokenizer, segments: tuple[Segment, ...], tokens: TokenizedText
) -> str | None:
    line = SequenceText(0, 0, "ok", segments)
    written = reader.written(np.arange(reader.size))
    return odd_end(line, records_of(tokens), reader.eos_ids, written)


@cache
def side(shape: str) -> tuple[ByteTokenizer, ChatTemplate]:
    tokenizer = SHAPES[shape].tokenizer()
    listed = tokenizer.convert_tokens_to_ids(list(SHAPES[shape].listed))
    reader = ByteTokenizer(tokenizer).with_ends(listed)
    template = ChatTemplate.of(tokenizer, reader)
    return reader.with_ends(template.end_ids), template


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["content", "turn"])
def test_no_honest_conversation_has_an_odd_end(shape: str, mode: Any) -> None:
    reader, template = side(shape)
    tried = 0
    for talk in TALKS.values():
        try:
            found = template.render(Conversation.choose(talk, "all"), "row 0", mode)
        except InputError:
            continue
        tokens = reader.encode(found.segments, add_eos=False, add_prefix=False)
        assert found_in(reader, found.segments, tokens) is None
        tried += int((tokens.is_eos & tokens.has_record).sum())
    assert tried >= 13


@pytest.mark.parametrize("shape", SHAPES)
def test_no_honest_row_of_tokens_has_an_odd_end(shape: str) -> None:
    """Not even one with an end at its head, or several in a row."""
    reader, _ = side(shape)
    text = reader.encode([Segment("two words", True)], add_eos=False, add_prefix=False).token_ids
    end = np.array(reader.eos_ids[-1:])
    for parts in ([text, end], [end, text], [end, end, text, end, end], [text, end, text, end]):
        ids = np.concatenate(parts)
        row = TokenRow(ids, np.ones(len(ids), np.bool_))
        segments, tokens = read_tokens(row, reader, "row 0")
        assert found_in(reader, segments, tokens) is None


def test_an_end_that_the_text_does_not_have_is_named() -> None:
    reader, template = side("every turn alike")
    talk = Conversation.choose(TALKS["three turns"], "all")
    tokens = reader.encode(template.segments(talk, "row 0"), add_eos=False, add_prefix=False)
    tokenizer = SHAPES["every turn alike"].tokenizer()
    tokenizer.chat_template = OTHER_END
    others = ChatTemplate.of(tokenizer, reader).segments(talk, "row 0")
    end, eos = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token
    said = found_in(reader, others, tokens)
    assert said is not None
    assert f"token {end} ends a turn with b'<|im_end|>'" in said
    assert f"goes on with b'{eos}" in said


@pytest.mark.parametrize("end", ["<|im_end|>", "<|other|>"])
def test_the_end_of_an_empty_turn_that_a_window_begins_with_is_in_its_context(end: str) -> None:
    """The cut has left no segment for the empty content."""
    reader, _ = side("every turn alike")
    context = f"<|im_start|>assistant\n{end}\n<|im_start|>user\nWhy?<|im_start|>assistant\n"
    segments = (Segment(context, False), Segment("So.", True), Segment("<|im_end|>", False))
    turn = [Segment("It", False), Segment("", True), Segment("<|im_end|>", False)]
    tokens = reader.encode(turn, add_eos=False)
    assert tokens.has_record.sum() == 1
    said = found_in(reader, segments, tokens)
    assert (said is None) == (end == "<|im_end|>")


def saved(folder: Path, template: str) -> Path:
    tokenizer = templates.chatml(template)
    return tiny.save(folder, tiny.llama(len(tokenizer)), tokenizer)


def swapped(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    """Store the text of this template beside the tokens of the teacher's own."""
    tokenizer = templates.chatml(template)
    other = ChatTemplate.of(tokenizer, ByteTokenizer(tokenizer))
    render = Renderer._conversation

    def both(self: Renderer, i: int, own: ChatTemplate) -> Any:
        found = render(self, i, own)
        segments = other.segments(self.conversations(i)[0], f"row {i}")
        return found._replace(segments=segments)

    monkeypatch.setattr(Renderer, "_conversation", both)


ROWS = [{"messages": templates.turns(f"{i}?", text)} for i, text in enumerate(tiny.corpus()[:12])]


def test_a_swapped_template_stops_a_capture_and_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No guard on changed text speaks: the student's template writes each content as it is."""
    teacher = saved(tmp_path / "t", templates.CHATML)
    assert try_records(dataset_of(teacher, capture(teacher, ROWS, tmp_path / "honest")))
    with monkeypatch.context() as broken:
        swapped(broken, OTHER_END)
        with pytest.raises(InputError, match="in 12 of 12 sequences turns end otherwise") as early:
            capture(teacher, ROWS, tmp_path / "s")
        assert early.value.kind == "self-test"
        store = capture(teacher, ROWS, tmp_path / "s", self_test=False)
    with pytest.raises(
        InputError, match=r"in 12 of 12 sequences turns end otherwise than in the text, .*two chat"
    ) as stopped:
        trainer_of(teacher, store, tmp_path / "o")
    assert stopped.value.kind == "self-test"
    trainer_of(teacher, store, tmp_path / "o", no_self_test=True)


def test_of_a_swapped_template_that_ends_turns_alike_nothing_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records are of the supervised tokens alone, and those are the same in both: the same ids at
    the same bytes, with the same ends. What was read before them is in no record, so two templates
    that differ there alone give stores that nobody can tell apart by their records. What is taught
    is right all the same: what the teacher said of these tokens.
    """
    teacher = saved(tmp_path / "t", templates.CHATML)
    honest = capture(teacher, ROWS, tmp_path / "honest")
    with monkeypatch.context() as broken:
        swapped(broken, SAME_END)
        store = capture(teacher, ROWS, tmp_path / "s")
    assert store.text(0).segments != honest.text(0).segments
    for one, other in zip(store, honest, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.byte_starts.tolist() == other.byte_starts.tolist()
        assert one.entry_logprobs.tobytes() == other.entry_logprobs.tobytes()
    found = [try_records(dataset_of(teacher, each)) for each in (store, honest)]
    assert found[0] == found[1]


def test_a_students_template_that_changes_what_is_said_is_met_before_the_self_test(
    tmp_path: Path,
) -> None:
    teacher = saved(tmp_path / "t", templates.CHATML)
    store = capture(teacher, ROWS, tmp_path / "s")
    changes = templates.CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}")
    student = saved(tmp_path / "student", changes)
    with pytest.raises(InputError, match=r"12 of 12 .*template_changed_text") as stopped:
        trainer_of(student, store, tmp_path / "o")
    assert stopped.value.kind != "self-test"
