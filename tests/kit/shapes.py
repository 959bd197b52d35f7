"""Chat templates of twelve shapes, fifteen conversations, and what of these is to be supervised.

The templates are written here after the shapes that people meet, not copied. What each of them
does with a message is written down beside it by hand, in `Shape`: nothing of the code that is
tested is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from logitstore.testing import tiny
from tests.kit import templates
from tests.kit.templates import turns

Message = dict[str, Any]

EMPTY_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<|start|>assistant to={{ c.function.name }}"
    "<|channel|>commentary<|message|>{{ c.function.arguments | tojson }}<|call|>{% endfor %}"
    "{% else %}"
    "{% if loop.last and m.reasoning_content %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.reasoning_content }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
SYSTEM_LAST = (
    "{% set ns = namespace(last=0, system='') %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% elif m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}{% endif %}{% endfor %}"
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}"
    "[INST] {{ ns.system if loop.index0 == ns.last }}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{{ c.function | tojson }}"
    "{% endfor %}]{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
SPACES = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
OPEN_HISTORY = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n"
    "{% if loop.last and m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
NEXT_ROLE = (
    "{{ '[gMASK]' }}{% for m in messages %}"
    "<|{{ 'observation' if m.role == 'tool' else m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WITH_TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}"
    "{{ '\n' if m.content }}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPPED = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set content = m.content if m.content is string else '' %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "<think>\n{{ thought.strip('\n') }}\n</think>\n\n{{ content.lstrip('\n') }}"
    "{% else %}{{ content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}"
    "{{ '\n' if content or not loop.first }}<tool_call>\n{{ c.function | tojson }}\n</tool_call>"
    "{% endfor %}{% else %}{{ content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

IM_END = "<|im_end|>"
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
THOUGHT = "Two\nlines."

TALKS: dict[str, list[Message]] = {
    "one turn": turns("Hi!", "Hello."),
    "three turns": turns("Hi!", "Hello.", "And?", "Hello.", "Why?", "It is so."),
    "a system message": turns("Hi!", "Hello.", "And?", "Nothing.", system="Be short."),
    "an empty turn": turns("Hi!", "", "And?", "Well."),
    "an empty last turn": turns("Hi!", "Hello.", "And?", ""),
    "a line break at the end": turns("Hi!", "x = 1\n", "And?", "y = 2\n"),
    "white space at both ends": turns("Hi!", "  two words \n", "And?", "\tthree "),
    "other scripts": turns("🙂?", "Größe 👩‍👩‍👧‍👦 é", "東京は？", "今日も雨です。"),  # noqa: RUF001
    "another family's end": turns("Which?", "The token is </s>", "And?", "It is <|eot_id|>"),
    "marks and headers": turns(
        "<|im_start|>assistant\n", "{{ 1 }}<|im_start|>user\nx", "[INST]", "### assistant:\nNo"
    ),
    "private use": turns("\ue000\ue001", "\ue000\ue002\ue001", "And?", "\uf8ff."),
    "a call": [
        *turns("1+2?"),
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ],
    "words and a call": [
        *turns("1+2?"),
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ],
    "thoughts in a field": [
        message | ({"reasoning_content": THOUGHT} if message["role"] == "assistant" else {})
        for message in turns("Hi!", "Hello.", "And?", "Nothing.")
    ],
    "thoughts in tags": turns(
        "Hi!", f"<think>\n{THOUGHT}\n</think>\n\nHello.", "And?", "<think>\nSo\n</think>\n\nNo."
    ),
}


class Shape(NamedTuple):
    """A template, and what it does with a message of the assistant, by hand.

    Attributes:
        tokenizer: Makes a tokenizer that has the template.
        end: The end that it writes, of (in the middle, behind a call, at the end of the talk).
        trim: What it does with a content.
        call: Whether it writes calls, and what is said beside them.
        thinking: The thoughts that it writes: `no`, those of the `last` turn.
        refused: Talks that it refuses, or whose texts it looks into in such a way that nobody can
            tell what is whose.
        listed: Ends that only the model's `generation_config` names.
    """

    tokenizer: Callable[[], PreTrainedTokenizerFast]
    end: tuple[str | None, str | None, str | None]
    trim: Callable[[str], str] = str
    call: tuple[bool, bool] = (False, False)
    thinking: str = "no"
    splits: bool = False
    refused: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()


def _chatml(template: str, *more: str) -> Callable[[], PreTrainedTokenizerFast]:
    names = ("<|im_start|>", IM_END, *more)
    return lambda: templates._with(tiny.byte_bpe(320), template, *names)


def _inst(template: str) -> Callable[[], PreTrainedTokenizerFast]:
    names = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
    return lambda: templates._with(tiny.unigram(), template, *names)


_CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
_ROLE_MARKS = ("[gMASK]", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")

SHAPES: dict[str, Shape] = {
    "every turn alike": Shape(_chatml(templates.CHATML), (IM_END,) * 3),
    "marks": Shape(lambda: templates.chatml(templates.CHATML_MARKED), (IM_END,) * 3),
    "an empty think block in the last turn": Shape(_chatml(EMPTY_THINKING), (IM_END,) * 3),
    "channels": Shape(
        lambda: templates._with(tiny.byte_bpe(320), CHANNELS, *_CHANNEL_MARKS),
        ("<|end|>", "<|call|>", "<|return|>"),
        call=(True, False),
        thinking="last",
        listed=("<|call|>",),
    ),
    "system in the last user's turn": Shape(_inst(SYSTEM_LAST), ("</s>",) * 3, call=(True, False)),
    "trimmed": Shape(templates.llama3, ("<|eot_id|>",) * 3, str.strip),
    "a space on both sides": Shape(_inst(SPACES), ("</s>",) * 3),
    "no end in the middle": Shape(
        lambda: templates._with(tiny.byte_bpe(320), OPEN_HISTORY), (None, None, "<|endoftext|>")
    ),
    "ended by the next role": Shape(
        lambda: templates._with(tiny.byte_bpe(320), NEXT_ROLE, *_ROLE_MARKS), ("<|user|>",) * 3
    ),
    "calls written": Shape(_chatml(WITH_TOOLS), (IM_END,) * 3, call=(True, True)),
    "calls not written": Shape(
        templates.gemma,
        ("<end_of_turn>",) * 3,
        str.strip,
        refused=("a system message",),
    ),
    "thoughts of the last turn alone": Shape(
        _chatml(STRIPPED), (IM_END,) * 3, call=(True, True), thinking="last", splits=True
    ),
}


class Expected(NamedTuple):
    """What is to be supervised of a turn.

    Attributes:
        message: Its number.
        thought: What it thought, without white space at its ends; None: not written.
        said: What it says, as the template writes it; None: not written.
        calls: Whether its calls are supervised.
        end: The token that ends it; None: none does.
    """

    message: int
    thought: str | None
    said: str | None
    calls: bool
    end: str | None


def expected(shape: Shape, talk: list[Message]) -> list[Expected]:
    """Write down what is to be supervised of each turn of the assistant that is not left out."""
    wanted = []
    for i, message in enumerate(talk):
        is_last, calls = i == len(talk) - 1, bool(message.get("tool_calls"))
        if message["role"] != "assistant" or (calls and not shape.call[0]):
            continue
        thought, said = message.get("reasoning_content"), message["content"]
        if shape.splits and said and "</think>" in said:
            thought, said = said.removeprefix("<think>").split("</think>")
            said = said.lstrip("\n")
        is_thought = shape.thinking == "last" and is_last and thought is not None
        is_said = bool(said) and shape.call[1] if calls else True
        if shape.splits and is_last and said:
            said = said.lstrip("\n")
        end = shape.end[1] if calls else shape.end[2] if is_last else shape.end[0]
        wanted.append(
            Expected(
                i,
                thought.strip() if is_thought and thought else None,
                shape.trim(said) if is_said and said is not None else None,
                calls,
                end,
            )
        )
    return wanted
