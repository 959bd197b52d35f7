"""Samples of what a student writes, for people to read: a few prompts and its answers.

A row with a prompt is asked as `distill evaluate --metrics token_f1` asks it; of a text, its first
half is the prompt. The rows are spread evenly over the dataset and do not depend on the model, so
students of any tokenizer stand side by side.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from distill.evaluation.answers import Question, question_of, write_answers
from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.records import Segment
from logitstore.rows.renderer import Renderer

#: Characters of a prompt, of what the dataset has there, and of what is written, at most.
_LONGEST = 1000
#: Of a text, so much is read at most: half of it is the prompt.
_TEXT_CHARACTERS = 800

Sample = dict[str, Any]


def write_samples(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    render: Renderer,
    count: int,
    *,
    max_new_tokens: int,
    tokens_per_batch: int,
) -> list[Sample]:
    """Let the model answer prompts from all over the dataset.

    Args:
        model: On its device.
        tokenizer: The model's.
        render: The rows as it reads them.
        count: Samples to write; fewer where fewer rows have a prompt.
        max_new_tokens: Tokens of an answer at most.
        tokens_per_batch: Padded tokens of a batch, prompts and answers together.

    Returns:
        Each with ``row``, ``prompt``, ``reference`` (what the dataset goes on with) and ``answer``.

    Raises:
        InputError: No row can be asked, or the model cannot write.
    """
    asked = list(_spread(render, count))
    if not asked:
        raise InputError(
            f"{render.rows.name}: none of its {counted(len(render.rows), 'row')} has a prompt, or "
            "a text of two words, so there is nothing to go on from. Leave --samples out."
        )
    answers = write_answers(
        model,
        tokenizer,
        [question for _, question in asked],
        pad_id=render.tokenizer.pad_id,
        max_new_tokens=max_new_tokens,
        tokens_per_batch=tokens_per_batch,
        ends=render.tokenizer.eos_ids,
    )
    return [
        {
            "row": row,
            "prompt": _end(question.prompt),
            "reference": _cut(question.reference),
            "answer": _cut(answer),
        }
        for (row, question), answer in zip(asked, answers, strict=True)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _end(text: str) -> str:
    return text if len(text) <= _LONGEST else f"…{text[-_LONGEST:]}"


def _spread(render: Renderer, count: int) -> Iterator[tuple[int, Question]]:
    """Choose of each of `count` equal stretches of rows the first that has a prompt."""
    bounds = [len(render.rows) * i // count for i in range(count + 1)]
    for start, stop in pairwise(bounds):
        for row in range(start, stop):
            question = _question(render, row)
            if question is not None:
                yield row, question
                break


def _question(render: Renderer, row: int) -> Question | None:
    segments = render(row).segments
    has_prompt = render.template is not None or not all(s.supervised for s in segments)
    return question_of(render, segments) if has_prompt else _half(render, segments)


def _half(render: Renderer, segments: Sequence[Segment]) -> Question | None:
    """Cut a text between words into a prompt and what follows it; None of less than two words."""
    text = "".join(s.text for s in segments)[:_TEXT_CHARACTERS]
    middle = text.find(" ", len(text) // 2)
    if middle <= 0 or not text[middle:].strip() or not text[:middle].strip():
        return None
    tokens = render.tokenizer.encode([Segment(text[:middle], False)], add_eos=False)
    return Question(tokens.token_ids.tolist(), text[middle:], text[:middle])
