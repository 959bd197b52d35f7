"""Second texts: found by the prompt that the student reads, laid right behind the first."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from distill.data.dataset import StoreDataset
from distill.data.example import Example, flat
from distill.data.second_text import TwoTexts
from distill.student.template import template_of
from logitstore.capture import capture
from logitstore.errors import MismatchError
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import settings

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("second")
    tokenizer = tiny.unigram()
    tokenizer.chat_template = CHATML
    tiny.save(folder / "teacher", tiny.llama(len(tokenizer)), tokenizer)
    return folder


def student() -> PreTrainedTokenizerBase:
    tokenizer = tiny.byte_bpe()
    tokenizer.chat_template = CHATML
    return tokenizer


def dataset(here: Path, name: str, rows: Sequence[dict[str, Any]], **how: Any) -> StoreDataset:
    out, file = here / name, here / f"{name}.jsonl"
    if not out.exists():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        kept = {"hidden": ["last,embedding"], "device": "cpu", "self_test": False, "top_k": 4}
        capture(str(here / "teacher"), str(file), out=out, **(kept | how))
    from logitstore.store import open_store

    store, tokenizer = open_store(out), student()
    own = ByteTokenizer(tokenizer)
    template = template_of(store, tokenizer, own, settings(here / "run", loss="cot2align"))
    return StoreDataset(store, own, ("cot2align",), template=template)


def prompted(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"prompt": p, "completion": c} for p, c in pairs]


PLAIN = prompted(("a: ", "one"), ("b: ", "two"), ("a: ", "three"), ("c: ", "four"))
REASONS = prompted(("b: ", "two, so two"), ("a: ", "first of a"), ("a: ", "second of a"))


def text_of(example: Example) -> str:
    found: str = student().decode(example.token_ids[example.is_label])
    return found.strip()


def test_the_same_prompt_is_a_pair_the_first_with_the_first(here: Path) -> None:
    data = TwoTexts(dataset(here, "plain", PLAIN), dataset(here, "reasons", REASONS))
    assert data.partner_E.tolist() == [1, 0, 2, -1]
    assert data.facts() == {"sequences": 4, "with_second_text": 3}
    examples = [data[i] for i in range(4)]
    said = [text_of(each).split("<")[0] for each in flat(examples)]
    assert said[0].startswith("one")
    assert said[1].startswith("first of a")
    assert [each.row for each in flat(examples)] == [0, 0, 1, 1, 2, 2, 3]
    second = [each.teacher["cot2align"]["whole_second"] for each in flat(examples)]
    assert [int(each[0]) for each in second] == [0, 1, 0, 1, 0, 1, 0]
    assert all(len(set(each.tolist())) == 1 for each in second)
    plain = dataset(here, "plain", PLAIN)
    np.testing.assert_array_equal(examples[3].token_ids, plain[3].token_ids)
    assert data.records.tolist() == [
        int(a) + int(b)
        for a, b in zip(plain.records, [*data.second.records[[1, 0, 2]], 0], strict=True)
    ]


def test_a_batch_has_each_text_behind_its_first_whatever_the_order(here: Path) -> None:
    data = TwoTexts(dataset(here, "plain", PLAIN), dataset(here, "reasons", REASONS))
    found = [text_of(each) for each in flat(data.__getitems__([3, 1, 0]))]
    assert [each[:3] for each in found] == ["fou", "two", "two", "one", "fir"]


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return {"messages": messages}


def test_of_conversations_it_is_what_everybody_but_the_assistant_says(here: Path) -> None:
    plain = dataset(here, "chats", [chat("hi", "hello"), chat("one", "two", "three", "four")])
    reasons = dataset(
        here,
        "chats-reasons",
        [chat("one", "two, as ever", "three", "so four"), chat("hi there", "hello")],
    )
    data = TwoTexts(plain, reasons)
    assert data.partner_E.tolist() == [-1, 0]
    assert "so four" in text_of(flat([data[1]])[1])


def test_what_the_teacher_alone_saw_is_no_part_of_the_prompt(here: Path) -> None:
    """So a teacher may be asked to reason where the student is not."""
    rows = [{"teacher_prompt": "slowly: b: ", "prompt": "b: ", "completion": "by steps"}]
    data = TwoTexts(dataset(here, "plain", PLAIN), dataset(here, "private", rows))
    assert data.partner_E.tolist() == [-1, 0, -1, -1]


def test_rows_without_a_prompt_have_no_second_text(here: Path) -> None:
    texts = dataset(here, "texts", [{"text": "a row"}, {"text": "another"}])
    with pytest.raises(MismatchError, match="none of its prompts is one of") as raised:
        TwoTexts(texts, dataset(here, "texts", []))
    assert raised.value.kind == "no-common-row"


def test_a_second_text_that_this_student_cannot_use_is_left_out(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TwoTexts(dataset(here, "plain", PLAIN), dataset(here, "reasons", REASONS))
    nothing = data.second[0]._replace(skipped=True)
    monkeypatch.setattr(data.second, "__getitems__", lambda _: [nothing], raising=False)
    monkeypatch.setattr(
        StoreDataset, "__getitems__", _without_first(StoreDataset.__getitems__, nothing)
    )
    assert len(flat([data[1]])) == 1


def _without_first(read: Any, nothing: Example) -> Any:
    """Read as before, but of the store of second texts only what cannot be used."""

    def changed(self: StoreDataset, indices: Sequence[int]) -> list[Example]:
        if isinstance(self, TwoTexts):
            found: list[Example] = read(self, indices)
            return found
        return [nothing for _ in indices]

    return changed
