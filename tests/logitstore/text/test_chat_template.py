"""Which text of a conversation is supervised, whatever template writes it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from logitstore.errors import InputError
from logitstore.records import Segment
from logitstore.text.chat_template import ChatTemplate, parse_kwargs, read_template
from logitstore.text.conversation import Conversation, read_messages
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates
from tests.kit.templates import CHATML, FAMILIES, TURN_ENDS, turns

TALKS = {
    "one turn": turns("Hi!", "Hello."),
    "three turns": turns("Hi!", "Hello.", "And?", "Nothing 42.", "Why?", "It is so."),
    "an empty turn": turns("Hi!", "", "And?", "Well."),
    "an empty last turn": turns("Hi!", "Hello.", "And?", ""),
    "nothing but empty turns": turns("Hi!", "", "And?", ""),
    "unicode": turns("🙂?", "Größe 👩‍👩‍👧‍👦 é", "東京は？", "今日も雨です。"),  # noqa: RUF001
    "lines": turns("Hi!", "a\n\nb\tc", "And?", "1. x\n2. y"),
}


def template_of(tokenizer: Any, **settings: Any) -> ChatTemplate:
    return ChatTemplate.of(tokenizer, ByteTokenizer(tokenizer), **settings)


def supervised(segments: tuple[Segment, ...]) -> list[str]:
    return [s.text for s in segments if s.supervised]


def rendered(tokenizer: Any, messages: list[Any], supervise: Any = "all", **more: Any) -> Any:
    conversation = Conversation.choose(messages, supervise, **more)
    return template_of(tokenizer).segments(conversation, "row 7")


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_template_supervises_just_what_the_assistant_said(family: str, talk: str) -> None:
    tokenizer, messages = FAMILIES[family](), TALKS[talk]
    segments = rendered(tokenizer, messages)
    assert supervised(segments) == [m["content"] for m in messages if m["role"] == "assistant"]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "".join(s.text for s in segments) == whole
    assert {s.role for s in segments if s.supervised} == {"assistant"}


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_turn_ends_in_one_event_of_no_bytes(family: str, talk: str) -> None:
    tokenizer, messages = FAMILIES[family](), TALKS[talk]
    reader = ByteTokenizer(tokenizer)
    segments = rendered(tokenizer, messages)
    tokens = reader.encode(segments, add_eos=False, add_prefix=False)
    said = [len(m["content"].encode()) for m in messages if m["role"] == "assistant"]
    assert tokens.is_eos.sum() == len(said)
    assert tokens.has_record[tokens.is_eos].all()
    assert tokens.byte_starts[tokens.is_eos].tolist() == np.cumsum(said).tolist()
    assert not tokens.byte_lengths[tokens.is_eos].any()
    ends = {tokenizer.convert_ids_to_tokens(int(i)) for i in tokens.token_ids[tokens.is_eos]}
    assert ends == {TURN_ENDS[family]}
    # ... and the rest of the records cover what was said, byte for byte.
    assert tokens.byte_lengths.sum() == sum(said)
    # They are the tokens that the model itself would be given.
    assert tokens.token_ids.tolist() == tokenizer.apply_chat_template(messages).input_ids


def test_only_the_last_turn_is_supervised_when_asked() -> None:
    for family in FAMILIES:
        talk = turns("a", "one", "b", "two")
        assert supervised(rendered(FAMILIES[family](), talk, "last")) == ["two"]


def test_of_a_prompt_and_its_completion_only_the_completion_is_supervised() -> None:
    talk = turns("a", "one", "b", "two")
    for family in FAMILIES:
        assert supervised(rendered(FAMILIES[family](), talk, first=2)) == ["two"]
    assert supervised(rendered(templates.chatml(), turns("a"), first=0)) == []


def test_a_conversation_without_messages_is_empty() -> None:
    assert rendered(templates.chatml(), []) == ()


@pytest.mark.parametrize("family", ["llama3", "gemma", "mistral"])
def test_what_a_template_trims_is_not_supervised(family: str) -> None:
    segments = rendered(FAMILIES[family](), turns("q", "  two words \n", "q", " x "))
    assert supervised(segments) == ["two words", "x"]


def test_what_a_template_keeps_is_supervised_to_the_last_space() -> None:
    for family in ("chatml", "chatml_marked"):
        segments = rendered(FAMILIES[family](), turns("q", "  two words \n", "q", " \n"))
        assert supervised(segments) == ["  two words \n", " \n"]


def test_white_space_that_only_the_template_writes_is_context() -> None:
    tokenizer = templates.chatml(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    segments = rendered(tokenizer, turns("a", "one", "b", " two"))
    assert supervised(segments) == ["one", " two"]


def test_several_marks_in_a_turn_belong_to_that_turn() -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>"
        "{% generation %}{{ m.content[:2] }}{% endgeneration %}|"
        "{% generation %}{{ m.content[2:] }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    tokenizer = templates.chatml(marked)
    talk = turns("a", "onto", "b", "unto")
    assert supervised(rendered(tokenizer, talk)) == ["on", "to", "un", "to"]
    assert supervised(rendered(tokenizer, talk, "last")) == ["un", "to"]


def test_marks_that_mark_nothing_are_as_good_as_none() -> None:
    tokenizer = templates.chatml("{# {% generation %} #}" + CHATML)
    assert supervised(rendered(tokenizer, turns("a", "one"))) == ["one"]


def test_ends_that_follow_each_other_are_no_part_of_the_turn() -> None:
    closing = CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
    segments = rendered(templates.chatml(closing), turns("a", "one", "b", "two"))
    assert supervised(segments) == ["one", "two"]


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_think_block_of_the_template_is_supervised_with_the_whole_turn_alone() -> None:
    tokenizer, talk = templates.chatml(THINKING), turns("a", "one", "b", "two")
    assert supervised(rendered(tokenizer, talk)) == ["one", "two"]
    conversation = Conversation.choose(talk, "all")
    turn = template_of(tokenizer).segments(conversation, "row 7", "turn")
    assert supervised(turn) == ["one", "<think>\n\n</think>\n\ntwo"]


LOUD = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content | upper }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_looks_into_texts_is_refused_unless_the_last_turn_is_enough() -> None:
    tokenizer, talk = templates.chatml(LOUD), turns("a", "one", "b", "two")
    with pytest.raises(InputError, match=r"row 7: .*looks into.*messages 0 to 1.*--supervise last"):
        rendered(tokenizer, talk)
    assert supervised(rendered(tokenizer, talk, "last")) == ["<think>\n\n</think>\n\nTWO"]


def test_a_template_that_refuses_a_row_is_quoted() -> None:
    with pytest.raises(InputError, match=r"row 7: .*System role not supported.*--chat-template-p"):
        rendered(templates.gemma(), turns("a", "b", system="Be short."))
    with pytest.raises(InputError, match=r"row 7: .*Roles must alternate"):
        rendered(templates.mistral(), [*turns("a", "b"), *turns("d", "e")[1:]])


def test_a_template_with_a_mistake_is_an_error_that_names_the_row() -> None:
    for broken in ("{% for m in messages %}", "{{ messages[0].nothing.more }}", "{{ 1 + 'a' }}"):
        with pytest.raises(InputError, match=r"row 7: the chat template rejects"):
            rendered(templates.chatml(broken), turns("a", "b"))


def test_system_messages_are_context_where_a_template_takes_them() -> None:
    for family in ("chatml", "chatml_marked", "llama3"):
        segments = rendered(FAMILIES[family](), turns("a", "b", system="Be short."))
        assert supervised(segments) == ["b"]
        assert "Be short." in segments[0].text


def test_tools_and_variables_reach_the_template() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    segments = rendered(FAMILIES["chatml_marked"](), turns("a", "b"), tools=tools)
    assert "add" in segments[0].text
    spoken = templates.chatml("{{ tone }}{{ mood }}" + CHATML)
    template = template_of(spoken, kwargs={"tone": "dry", "mood": "?"})
    of_row = Conversation.choose(turns("a", "b"), "all", kwargs={"mood": "gay"})
    assert template.segments(of_row, "r")[0].text.startswith("drygay")  # the row's own wins


def test_a_tokenizer_with_several_templates_uses_the_one_for_tools_with_tools() -> None:
    tokenizer = templates.chatml()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "TOOLS " + CHATML}
    plain, with_tools = (
        rendered(tokenizer, turns("a", "b")),
        rendered(tokenizer, turns("a", "b"), tools=[{"name": "f"}]),
    )
    assert with_tools[0].text == "TOOLS " + plain[0].text


def test_the_date_in_a_template_is_always_the_same() -> None:
    dated = "\n  {% if true %}Today: {{ strftime_now('%d %b %Y') }}{% endif %}\n" + CHATML
    tokenizer = templates.chatml(dated)
    text = rendered(tokenizer, turns("a", "b"))[0].text
    assert "Today: 26 Jul 2024" in text
    # Nothing else of the template has changed.
    own = tokenizer.apply_chat_template(turns("a", "b"), tokenize=False)
    assert own.startswith(text[: text.index("Today")])


def test_a_template_from_a_file_or_a_folder_takes_the_place_of_the_tokenizers(
    tmp_path: Path,
) -> None:
    file = tmp_path / "other.jinja"
    file.write_text("<|im_start|>X" + CHATML)
    templates.chatml("<|im_start|>Y" + CHATML).save_pretrained(tmp_path / "folder")
    talk = Conversation.choose(turns("a", "b"), "all")
    for path, letter in ((file, "X"), (tmp_path / "folder", "Y")):
        found = template_of(templates.chatml(), path=path)
        assert found.segments(talk, "r")[0].text.startswith(f"<|im_start|>{letter}")
        assert found.digest != template_of(templates.chatml()).digest


def test_a_template_that_is_not_there_is_an_error_that_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no chat template.*--chat-template-path FILE"):
        template_of(templates.chatml(template=""))
    with pytest.raises(InputError, match=r"--chat_template_path .*no\.jinja: cannot be read"):
        read_template(tmp_path / "no.jinja", "--chat_template_path")
    with pytest.raises(InputError, match=r"AutoTokenizer cannot load it"):
        read_template(tmp_path)
    templates.tiny.byte_bpe().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has no chat template"):
        read_template(tmp_path)


def test_variables_that_are_no_json_object_are_refused() -> None:
    assert parse_kwargs('{"a": [1]}', "--f") == {"a": [1]}
    assert parse_kwargs(None, "--f") == {}
    for wrong, why in (
        ("{a: 1}", "not JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "nested deeper"),
        ('{"a": ' + "1" * 5000 + "}", "more than 4,300 digits"),
    ):
        with pytest.raises(InputError, match=rf"--f .*{why}") as caught:
            parse_kwargs(wrong, "--f")
        assert len(str(caught.value)) < 400


def test_templates_and_conversations_survive_a_trip_to_a_worker() -> None:
    template = template_of(templates.gemma())
    assert pickle.loads(pickle.dumps(template)) == template
    talk = Conversation.choose(turns("ä", "🙂"), "all", tools=[{"n": 1}], kwargs={"k": None})
    assert Conversation.from_json(talk.to_json(), "row") == talk
    assert json.loads(talk.to_json())["supervised"] == [1]


WHOLE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "a"}], "supervised": [], "tools": None, "kwargs": {}
}  # fmt: skip


@pytest.mark.parametrize(
    "written",
    [
        "",
        "null",
        "[1]",
        "[" * 100_000,
        *(json.dumps({k: v for k, v in WHOLE.items() if k != name}) for name in WHOLE),
        *(
            json.dumps(WHOLE | {name: value})
            for name, value in (
                ("messages", None), ("messages", "ab"), ("messages", ["a"]), ("messages", [{}]),
                ("messages", [{"role": 3}]), ("messages", [{"role": "user", "content": 3}]),
                ("messages", [{"role": "user", "content": [{"type": "image"}]}]),
                ("supervised", 3), ("supervised", [1]), ("supervised", [-1]),
                ("supervised", ["0"]), ("supervised", [True]), ("tools", 3), ("tools", {}),
                ("kwargs", None), ("kwargs", [1]),
            )
        ),
    ],
)  # fmt: skip
def test_what_a_store_says_is_a_conversation_is_one_or_an_error(written: str) -> None:
    """Text of strangers, which a KeyError or a TypeError once met far from here."""
    with pytest.raises(InputError, match=r"^s: row 3"):
        Conversation.from_json(written, "s: row 3")


def test_missing_values_and_json_in_strings_are_what_arrow_makes_of_messages() -> None:
    message = {"role": "user", "content": "a"}
    padded = [message | {"tool_calls": None, "name": None}]
    for given in (padded, json.dumps([message])):
        assert read_messages(given, "r") == [message]
    assert read_messages(None, "r") == []


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ({"role": "user"}, "expected a list of messages, found dict"),
        ([{"who": "human", "value": "a"}], "message 0 is not a message.*'value', 'who'"),
        (["a"], "message 0 is not a message.*found str"),
        ([{"role": "user", "content": 3}], "message 0: its content is int"),
        ([{"role": "user", "content": [{"type": "image"}]}], "part of type image"),
        ("[", "holds a string that is not JSON"),
    ],
)
def test_what_is_no_message_is_refused_by_row(messages: Any, why: str) -> None:
    with pytest.raises(InputError, match=rf"row 3: .*{why}|row 3: {why}"):
        read_messages(messages, "row 3")


def test_a_template_without_ends_of_turns_has_no_events() -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer = templates.chatml(plain + "{% if add_generation_prompt %}assistant: {% endif %}")
    segments = rendered(tokenizer, turns("a", "one", "b", "two"))
    tokens = ByteTokenizer(tokenizer).encode(segments, add_eos=False, add_prefix=False)
    assert supervised(segments) == ["one", "two"]
    assert not tokens.is_eos.any()
    assert tokens.byte_lengths.sum() == 6


def test_an_end_that_swallows_the_space_before_it_is_still_an_event_without_bytes() -> None:
    tokenizer = templates.chatml()
    tokenizer.add_tokens([AddedToken("<|end|>", lstrip=True, special=True)], special_tokens=True)
    segments = (Segment("q ", False), Segment("one  ", True), Segment("<|end|>\n", False))
    tokens = ByteTokenizer(tokenizer).encode(segments, add_eos=False)
    (event,) = np.flatnonzero(tokens.is_eos)
    assert tokenizer.convert_ids_to_tokens(int(tokens.token_ids[event])) == "<|end|>"
    assert (tokens.byte_starts[event], tokens.byte_lengths[event]) == (5, 0)
    assert tokens.byte_lengths.sum() == 3  # the swallowed spaces are a hole


def test_one_mark_a_turn_needs_no_part_of_the_conversation_rendered_alone() -> None:
    strict = (
        "{% if messages[-1]['role'] != 'assistant' %}{{ raise_exception('unfinished') }}{% endif %}"
        + templates.CHATML_MARKED
    )
    tokenizer = templates.chatml(strict)
    assert supervised(rendered(tokenizer, turns("a", "one", "b", "two"))) == ["one", "two"]
    assert supervised(rendered(tokenizer, turns("a", "one", "b", "two"), "last")) == ["two"]
