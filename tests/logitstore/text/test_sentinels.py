"""Markers in place of texts: what they find is proved, and nothing else is said."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.errors import InputError
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.conversation import Conversation
from logitstore.text.matching import Stretch, Written, matches
from logitstore.text.sentinels import find_slots
from logitstore.text.slots import Slot, filled, holders
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates
from tests.kit.shapes import SHAPES
from tests.kit.templates import turns

PIECES = st.sampled_from(
    ["", " ", "\n", "a", "one", "<|im_start|>", "<|im_end|>", "assistant\n", "</s>", "[INST]", "{{",
     "%}", "\ue000", "\ue001", "\ue002", "<think>", "é", "🙂", "None", "\u3000", "\r\n"]
)  # fmt: skip
CONTENTS = st.lists(PIECES, max_size=6).map("".join)
READERS = ("every turn alike", "trimmed", "a space on both sides")


def template_of(source: str) -> ChatTemplate:
    tokenizer = templates.chatml(source)
    return ChatTemplate.of(tokenizer, ByteTokenizer(tokenizer))


@pytest.fixture(scope="module")
def made() -> dict[str, ChatTemplate]:
    tokenizers = {name: SHAPES[name].tokenizer() for name in READERS}
    return {n: ChatTemplate.of(t, ByteTokenizer(t)) for n, t in tokenizers.items()}


@settings(max_examples=60, deadline=None)
@given(said=st.lists(CONTENTS, min_size=2, max_size=6))
def test_whatever_is_said_is_found_whole(made: dict[str, ChatTemplate], said: list[str]) -> None:
    """Marks, headers, template text, private-use characters, white space at the ends."""
    messages = turns(*said)
    wanted = [m["content"] for m in messages if m["role"] == "assistant"]
    for name, template in made.items():
        found = template.render(Conversation.choose(messages, "all"), "row 0")
        trim = SHAPES[name].trim
        assert [found.said(p) for p in found.pieces] == [trim(text) for text in wanted]


def test_a_conversation_with_every_private_use_character_is_read_in_another_way() -> None:
    private = "".join(map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE)]))
    last = "".join(map(chr, range(0x100000, 0x10FFFE)))
    template = template_of(templates.CHATML)
    for said in (private, private + last):  # the second leaves no marker
        talk = Conversation.choose(turns("a", said, "b", "two"), "all")
        found = template.render(talk, "row 0")
        assert [found.said(p) for p in found.pieces] == [said, "two"]
    messages = turns("a", private + last)
    slots = holders(messages, [1])
    assert find_slots("x", messages, slots, lambda _: pytest.fail("it has no marker")) is None


@pytest.mark.parametrize(
    "written",
    [
        "{{ m.content | upper }}",
        "{{ m.content | tojson }}",
        "{{ m.content }} ({{ m.content }})",
        "{{ m.content | length }}",
        "{{ m.content[::-1] }}",
        "{{ m.content if m.content.startswith('o') else 'no' }}",
        "{{ m.content | replace('n', 'm') }}",
    ],
)
def test_what_a_template_makes_of_a_text_is_not_taken_for_it(written: str) -> None:
    template = template_of(templates.CHATML.replace("{{ m['content'] }}", written))
    messages = [*turns("a"), {"role": "assistant", "content": 'one "n"\n'}]
    text = template._write(messages, Conversation.choose(messages, "all"), "row 0")[0]

    def render(other: Any) -> str:
        return template._write(other, Conversation.choose(messages, "all"), "row 0")[0]

    found = find_slots(text, messages, holders(messages, [1]), render)
    assert found is None or found[0][1] is None


def test_a_template_that_refuses_the_marker_is_read_in_another_way() -> None:
    picky = (
        "{% for m in messages %}{% if m.content not in ('a', 'one', 'b', 'two', 'Q1', 'A1') %}"
        "{{ raise_exception('no') }}{% endif %}{% endfor %}" + templates.CHATML
    )
    found = template_of(picky).render(Conversation.choose(turns("a", "one"), "all"), "row 0")
    assert [found.said(p) for p in found.pieces] == ["one"]


def test_parts_of_a_content_are_found_each_and_joined_where_they_meet() -> None:
    parts = [{"type": "text", "text": "on"}, {"type": "text", "text": "e "}]
    messages = [*turns("a"), {"role": "assistant", "content": parts}]
    joined = "{% for p in m.content %}{{ p.text }}{% endfor %}"
    apart = "{% for p in m.content %}<{{ p.text }}>{% endfor %}"
    for written, wanted in ((joined, ["one "]), (apart, ["on", "e "])):
        body = "{% if m.content is string %}{{ m.content }}{% else %}" + written + "{% endif %}"
        template = template_of(templates.CHATML.replace("{{ m['content'] }}", body))
        found = template.render(Conversation.choose(messages, "all"), "row 0")
        assert [found.said(p) for p in found.pieces] == wanted


def test_other_texts_are_put_in_place_of_slots_and_nothing_else_changes() -> None:
    call = {"function": {"name": "f", "arguments": {"name": "f"}}}
    messages = [
        {"role": "user", "content": "f"},
        {"role": "assistant", "content": "f", "thinking": "f", "tool_calls": [call]},
    ]
    slots = holders(messages, [1])
    assert [s for h in slots for s in h.parts] == [
        Slot(1, "thinking", "f"),
        Slot(1, "assistant", "f"),
        Slot(1, "tool_calls", "f"),
    ]
    changed = filled(messages, slots, ["1", "2", "3"])
    assert changed[0] == messages[0]
    assert changed[1] == {
        "role": "assistant",
        "content": "2",
        "thinking": "1",
        "tool_calls": [{"function": {"name": "3", "arguments": {"name": "f"}}}],
    }
    assert filled(messages, slots, ["f"] * 3) == messages


@pytest.mark.parametrize(
    "calls", ["f", [None], ["f"], [{}], [{"function": None}], [{"function": {"name": 3}}], {"a": 1}]
)
def test_calls_of_no_known_form_are_no_accident(calls: Any) -> None:
    message = {"role": "assistant", "content": "one", "tool_calls": calls}
    template = template_of(templates.CHATML)
    found = template.render(Conversation.choose([*turns("a"), message], "all"), "row 0")
    is_list = isinstance(calls, list)
    assert found.unwritten == ((1,) if is_list else ())
    assert len(found.pieces) == (not is_list)


def test_texts_of_a_stranger_take_no_hours() -> None:
    """Long runs of white space, of tags and of ends: time grows with their length."""
    runs = (" " * 200_000, "<think>" + " \n" * 100_000 + "a</think>", "<|im_end|>\n" * 20_000)
    strict = template_of(templates.CHATML.replace("{{ m['content'] }}", "{{ m.content | upper }}"))
    plain = template_of(templates.CHATML)
    started = time.process_time()
    for run in runs:
        talk = Conversation.choose(turns("a", run + "x", "b", "x" + run, "c", run), "all")
        assert len(plain.render(talk, "row 0").pieces) == 3
        last = Conversation.choose(turns("a", "x" + run), "all")
        assert len(strict.render(last, "row 0").pieces) == 1
    many = Conversation.choose(turns(*(" ", "") * 1000), "all")
    assert len(plain.render(many, "row 0").pieces) == 1000
    row = [Stretch("assistant", f"{i} yes") for i in range(900)]
    pieces = [Written("assistant", f"{i} no", i, f"{i} no", 0) for i in range(900)]
    assert matches(row, pieces) is None
    assert time.process_time() - started < 20


def test_null_contents_are_not_the_word() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    null = {"role": "assistant", "content": None}
    for written in ("{{ m['content'] }}", "{{ m.content | string }}", "{{ '' ~ m.content }}"):
        template = template_of(templates.CHATML.replace("{{ m['content'] }}", written))
        for message in (null, null | {"tool_calls": [call]}, null | {"tool_calls": None}):
            talk = Conversation.choose([*turns("Say None"), message], "all")
            found = template.render(talk, "row 0")
            assert found.text.count("None") == 1
            assert not any(found.said(piece) for piece in found.pieces)


def test_a_template_that_joins_contents_takes_one_that_is_not_there() -> None:
    """As SmolLM's does: it fails on a null, and on a message without the key."""
    joins = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
        "'<|im_end|>' + '\\n' }}{% endfor %}"
    )
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    for message in (call, call | {"content": None}):
        talk = Conversation.choose([*turns("a"), message, *turns("b", "so")], "all")
        found = template_of(joins).render(talk, "row 0")
        assert [found.said(piece) for piece in found.pieces] == ["so"]
        assert found.unwritten == (1,)


def test_null_contents_stay_null_for_a_template_that_asks() -> None:
    asks = (
        "{% for m in messages %}{% if m.content is none %}<|im_start|>"
        "call {{ m.tool_calls[0].name }}<|im_end|>"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}"
        "{% endfor %}"
    )
    message = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    talk = Conversation.choose([*turns("a"), message], "all")
    assert "call f" in template_of(asks).render(talk, "row 0").text


def test_a_template_that_refuses_all_is_quoted_once() -> None:
    refuses = "{{ raise_exception('never') }}"
    talk = Conversation.choose([*turns("a"), {"role": "assistant", "content": None}], "all")
    with pytest.raises(InputError, match=r"row 0: the chat template rejects .*never"):
        template_of(refuses).render(talk, "row 0")
