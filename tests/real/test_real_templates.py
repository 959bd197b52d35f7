"""Real chat templates, as an installed package has them, on conversations of every form.

TRL comes with the templates of known models. They are read where they lie. The real tokenizers of
some of these models are fetched by `python -m tools.real_parts`; the others are stood in for by a
tiny one that has the marks of the template.
"""

import copy
import re
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.errors import InputError
from logitstore.records import Segment, SequenceText
from logitstore.testing import tiny
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.conversation import Conversation
from logitstore.text.ends import CALLS, THINKING
from logitstore.text.student_turns import read_turns
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.shapes import TALKS
from tests.real.vocabularies import file_of, loaded, marked, pair

_TRL = find_spec("trl")
FOLDER = Path(_TRL.origin or "").parent / "chat_templates" if _TRL else Path("missing")
#: Not those changed for training, nor those of models that see.
NAMES = [
    path.stem
    for path in sorted(FOLDER.glob("*.jinja"))
    if not re.search(r"training|vl$|idefics|llava|smolvlm|_v[2-9]$", path.stem)
]
pytestmark = pytest.mark.skipif(not NAMES, reason="TRL, whose chat templates are tried, is missing")
_MARK = re.compile(
    r"<\|[^|<>\s]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>|\[/?[A-Z_]+\]"
    r"|<channel\|>|<\|channel>"
)
#: Real tokenizer -> template of its model, and what ends a turn.
REAL = {
    "qwen3": ("qwen3", {"<|im_end|>"}),
    "llama3": ("llama3", {"<|eot_id|>"}),
    "gemma3": ("gemma3", {"<end_of_turn>"}),
    "deepseek": ("deepseekv3", {"<｜end▁of▁sentence｜>"}),  # noqa: RUF001
    "gptoss": ("gptoss", {"<|end|>", "<|return|>"}),
}
Side = tuple[Any, ByteTokenizer, ChatTemplate]


def made(tokenizer: Any, reader: ByteTokenizer) -> Side:
    template = ChatTemplate.of(tokenizer, reader)
    return tokenizer, reader.with_ends(template.end_ids), template


@cache
def side(name: str) -> Side:
    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = tiny.byte_bpe(300, bos=True)
    tokenizer.add_tokens(sorted(set(_MARK.findall(source))), special_tokens=True)
    tokenizer.chat_template = source
    return made(tokenizer, ByteTokenizer(tokenizer))


def answers(talk: str) -> list[set[str]]:
    """What may be supervised of each turn; beside calls, nothing may."""
    found = []
    for message in TALKS[talk]:
        if message["role"] == "assistant":
            said = message["content"] or ""
            texts = {said.strip(), said.split("</think>")[-1].strip()}
            found.append(texts | ({""} if message.get("tool_calls") else set()))
    return found


def said(segments: tuple[Segment, ...]) -> list[str]:
    beside = (THINKING, CALLS)
    return [s.text.strip() for s in segments if s.supervised and s.role not in beside]


def is_exact(segments: tuple[Segment, ...], talk: str) -> bool:
    """Tell whether the contents are supervised, each once, in order, and nothing else is."""
    texts = said(segments)
    for allowed in answers(talk):
        if texts and texts[0] in allowed:
            texts.pop(0)
        elif "" not in allowed:
            return False
    return not texts


@pytest.mark.parametrize("name", NAMES)
def test_a_real_template_supervises_what_was_said_or_refuses_the_row(name: str) -> None:
    tokenizer, reader, template = side(name)
    counts: Counter[str] = Counter()
    for talk, messages in TALKS.items():
        conversation = Conversation.choose(messages, "all")
        try:
            found = template.render(conversation, talk)
        except InputError as error:
            counts["refused" if "rejects" in str(error) else "not told"] += 1
            continue
        assert is_exact(found.segments, talk), (talk, said(found.segments))
        is_dated = "strftime_now" in template.source
        if not is_dated and all(m["content"] is not None for m in messages):
            own = tokenizer.apply_chat_template(messages, tokenize=False)
            assert found.text.removeprefix(own) in ("", template.closing)
        tokens = reader.encode(found.segments, add_eos=False, add_prefix=False)
        turns = len({piece.message for piece in found.pieces})
        counts["exact" if tokens.is_eos.sum() >= turns else "without an end"] += 1
    assert counts["exact"] >= 12, counts
    assert not counts["not told"], counts
    assert counts["without an end"] <= 1, counts


@pytest.mark.parametrize("name", NAMES)
def test_a_real_student_reads_what_another_real_template_wrote(name: str) -> None:
    _, reader, template = side(name)
    counts: Counter[str] = Counter()
    for teacher in ("qwen3", "llama3", "gptoss", "glm4moe"):
        for talk, messages in TALKS.items():
            conversation = Conversation.choose(messages, "all")
            try:
                theirs = side(teacher)[2].render(conversation, talk).segments
                line = SequenceText(0, 0, "ok", theirs, messages=conversation.to_json())
                read = read_turns(line, {}, template, reader, talk)
            except InputError:
                counts["refused"] += 1
                continue
            counts["read" if read is not None else "changed"] += 1
            if read is None:
                continue
            assert is_exact(read.segments, talk), (teacher, talk, said(read.segments))
            own, text = line.supervised_bytes, "".join(s.text for s in read.segments).encode()
            tokens = read.tokens
            for t in np.flatnonzero(tokens.has_record & ~tokens.is_eos):
                start, length = int(tokens.byte_starts[t]), int(tokens.byte_lengths[t])
                place = int(tokens.text_starts[t] + tokens.heads[t])
                assert own[start : start + length] == text[place : place + length]
    assert counts["changed"] <= 2, counts
    assert counts["read"] >= 44, counts


@pytest.mark.parametrize("name", [marked(name) for name in REAL])
def test_a_real_tokenizer_ends_its_turns_with_its_own_end(name: str) -> None:
    template, ends = REAL[name]
    if not Path(file_of(name)).exists() or template not in NAMES:
        pytest.skip(f"{file_of(name)} is not there: `python -m tools.real_parts` fetches it")
    tokenizer = copy.copy(loaded(name))
    tokenizer.chat_template = (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
    _, reader, written = made(tokenizer, pair(name).ours)
    for talk in ("three turns", "a line break at the end", "other scripts", "another family's end"):
        found = written.render(Conversation.choose(TALKS[talk], "all"), talk)
        tokens = reader.encode(found.segments, add_eos=False, add_prefix=False)
        assert is_exact(found.segments, talk)
        names = tokenizer.convert_ids_to_tokens(tokens.token_ids[tokens.is_eos].tolist())
        assert len(names) == len(found.pieces)
        assert set(names) <= ends
        assert tokens.byte_lengths.sum() == len("".join(map(found.said, found.pieces)).encode())
