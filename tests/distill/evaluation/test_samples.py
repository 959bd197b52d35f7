"""What students write after the same prompts, whatever their tokenizers."""

from typing import Any

import pytest
from datasets import Dataset

from distill.evaluation.answers import questions
from distill.evaluation.readers import renderer_of
from distill.evaluation.samples import Sample, write_samples
from logitstore.errors import InputError
from logitstore.rows.dataset import load_rows
from logitstore.testing import tiny
from tests.kit import templates


def written(rows: list[dict[str, Any]], tokenizer: Any, count: int) -> list[Sample]:
    render = renderer_of(load_rows(Dataset.from_list(rows)), tokenizer)
    return write_samples(
        tiny.llama(len(tokenizer)), tokenizer, render, count, max_new_tokens=4, tokens_per_batch=99
    )


def test_of_a_text_the_first_half_is_the_prompt_for_students_of_any_tokenizer() -> None:
    texts = ["one word less than", "x", *tiny.corpus()[36:46], "", "two words"]
    rows = [{"text": text} for text in texts]
    one, other = (written(rows, make(), 4) for make in (tiny.byte_bpe, tiny.unigram))
    assert [each["row"] for each in one] == [0, 3, 7, 10]  # evenly, and what can be asked
    for a, b in zip(one, other, strict=True):
        assert a["prompt"] + a["reference"] == texts[a["row"]]
        assert a | {"answer": ""} == b | {"answer": ""}
        assert a["answer"]
    assert one[0]["prompt"] == "one word less"


def test_a_row_with_a_prompt_is_asked_as_it_is_when_answers_are_scored() -> None:
    talk = {"messages": templates.turns("Hi!", "Hello.", "And?", "Nothing.")}
    tokenizer = next(iter(templates.FAMILIES.values()))()
    [found] = written([talk], tokenizer, 3)
    [asked] = questions(renderer_of(load_rows(Dataset.from_list([talk])), tokenizer))
    assert found["reference"] == asked.reference
    assert found["prompt"] == asked.prompt
    assert "And?" in found["prompt"]
    assert "Nothing." not in found["prompt"]


def test_long_texts_are_cut_for_reading() -> None:
    [found] = written([{"prompt": "a " * 900, "completion": "b " * 900}], tiny.byte_bpe(), 1)
    assert (len(found["prompt"]), found["prompt"][0]) == (1001, "…")
    assert (len(found["reference"]), found["reference"][-1]) == (1001, "…")


def test_rows_that_nothing_can_be_asked_of_are_an_error() -> None:
    with pytest.raises(InputError, match=r"none of its 2 rows has a prompt.*Leave --samples out"):
        written([{"text": "word"}, {"text": ""}], tiny.byte_bpe(), 2)
