"""Measuring a model, family by family of metrics:

    bits_per_byte                    of a text             bits_per_byte.py
    token_f1, exact_match, rouge     of its answers        answers.py
    agreement, uld, calibration      against a teacher     against_store.py

and samples of its answers, for people (samples.py). Each family is a function here that returns
what it found as a :class:`Measured`; all of them together are a run object, which
`distill compare` sets beside others.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from distill.data.example import Store
from distill.evaluation import against_store, answers
from distill.evaluation.bits_per_byte import bits_per_byte
from distill.evaluation.readers import reader_of, renderer_of
from distill.evaluation.samples import write_samples
from distill.evaluation.settings import BITS_PER_BYTE, EvaluationSettings
from distill.report.model_card import renew_results
from distill.report.results import RunObject, read_results, write_results
from distill.student.loading import check_embeddings, load_student
from distill.student.text import StudentReader
from logitstore import open_store
from logitstore.console.memory import peak_rss_bytes
from logitstore.rows.dataset import Rows, load_rows
from logitstore.rows.renderer import Renderer
from logitstore.rows.source_files import SourceFiles
from logitstore.text.tokenizer import ByteTokenizer

#: The key of samples in a run object. They are read and not measured, so nobody asks how long.
_SAMPLES = "samples"


class Subject(NamedTuple):
    """The model that is evaluated, on its device, and its tokenizer."""

    model: Any
    tokenizer: PreTrainedTokenizerBase


class Measured(NamedTuple):
    """What one family of metrics found.

    Attributes:
        figures: By name of the metric.
        key: What the facts are called in a run object.
        facts: What it was measured on.
    """

    figures: dict[str, Any]
    key: str
    facts: dict[str, Any]


def evaluate(model_name: str, settings: EvaluationSettings) -> RunObject:
    """Measure a model on a dataset, on a teacher's store, or both.

    Args:
        model_name: A folder or a hub id. Where `distill train` made the folder, its run object is
            taken over, and its file and model card are completed.
        settings: What to measure, and on what.

    Returns:
        A run object: every figure, and under `evaluation`, `answered` and `judged` what it was
        measured on, with the seconds and the peak memory of it all.

    Raises:
        LogitStoreError: Model, data or store cannot be loaded, a metric lacks what it needs, or
            nothing can be measured.
    """
    started = time.perf_counter()
    settings.check()
    trained = read_results(Path(model_name))  # now: damage is better met before the work
    measured = [measure() for measure in _families(model_name, settings)]
    used = {
        "time_s": round(time.perf_counter() - started, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    figures: RunObject = {}
    for each in measured:
        facts = each.facts if each.key == _SAMPLES else each.facts | used
        figures |= {**each.figures, each.key: facts}
    if trained is None:
        return {"name": Path(model_name).name, "seed": None, **figures}
    run = {**trained, **figures}
    write_results(Path(model_name), run)
    renew_results(Path(model_name), run)
    return run


def _families(model_name: str, settings: EvaluationSettings) -> list[Callable[[], Measured]]:
    """Load model, data and store, so that wrong inputs are met before the work.

    Returns:
        A call for each family that is asked for.
    """
    store = None if settings.store is None else open_store(settings.store)
    rows = None if settings.data is None else _load_rows(settings.data, settings)
    if "rouge" in settings.metrics:
        answers.rouge()  # raises where its package is not installed
    subject = _load(model_name, settings)
    return [
        *([] if rows is None else _families_of_rows(subject, rows, settings)),
        *([] if store is None else _families_of_store(subject, store, settings)),
    ]


def _families_of_rows(
    subject: Subject, rows: Rows, settings: EvaluationSettings
) -> Iterator[Callable[[], Measured]]:
    """List the families that are measured on a dataset."""
    render = renderer_of(
        rows,
        subject.tokenizer,
        supervise=settings.supervise,
        template_path=settings.chat_template_path,
        template_kwargs=settings.chat_template_kwargs,
        parse_special=settings.parse_special,
    )
    files = SourceFiles(rows.files, rows.name)
    if BITS_PER_BYTE in settings.metrics:
        yield partial(_unchanged, files, partial(_predict, subject, render, settings))
    if settings.answer_metrics:
        found = answers.questions(render)
        yield partial(_unchanged, files, partial(_answer, subject, render, found, settings))
    if settings.samples:
        yield partial(_unchanged, files, partial(_write_samples, subject, render, settings))


def _unchanged(files: SourceFiles, measure: Callable[[], Measured]) -> Measured:
    """Measure on rows that nothing was written to meanwhile.

    Raises:
        InputError: Something was written to their files.
    """
    measured = measure()
    files.check()
    return measured


def _families_of_store(
    subject: Subject, store: Store, settings: EvaluationSettings
) -> Iterator[Callable[[], Measured]]:
    """List the families that are measured against a teacher: all are one pass over its store."""
    reader = reader_of(
        store,
        *subject,
        max_length=settings.max_length,
        path=settings.chat_template_path,
        kwargs=settings.chat_template_kwargs,
    )
    yield partial(_judge, subject, store, reader, settings)


def _load_rows(data: str | Sequence[str], settings: EvaluationSettings) -> Rows:
    """Load the dataset."""
    return load_rows(
        data,
        split=settings.split,
        config_name=settings.config_name,
        text_column=settings.text_column,
        references_column=settings.references_column,
    )


def _load(model_name: str, settings: EvaluationSettings) -> Subject:
    """Load the model onto the accelerator, or the CPU where there is none."""
    model: Any  # transformers declares the arguments of its models' `to` wrongly
    model, tokenizer = load_student(
        model_name,
        revision=settings.revision,
        dtype=settings.dtype,
        tokenizer_name=settings.tokenizer_name_or_path,
    )
    check_embeddings(model, ByteTokenizer(tokenizer))
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    return Subject(model.to(device), tokenizer)


def _predict(subject: Subject, render: Renderer, settings: EvaluationSettings) -> Measured:
    """Measure how well the model predicts the rows."""
    score = bits_per_byte(
        subject.model,
        render,
        max_length=settings.max_length,
        tokens_per_batch=settings.tokens_per_batch,
    )
    figures = {"bits_per_byte": score.bits_per_byte}
    return Measured(figures, "evaluation", {**_source(settings), **score._asdict()})


def _answer(
    subject: Subject,
    render: Renderer,
    questions: list[answers.Question],
    settings: EvaluationSettings,
) -> Measured:
    """Measure how good the model's answers to the prompts of the rows are."""
    written = answers.write_answers(
        subject.model,
        subject.tokenizer,
        questions,
        pad_id=render.tokenizer.pad_id,
        max_new_tokens=settings.max_new_tokens,
        tokens_per_batch=settings.tokens_per_batch,
        ends=render.tokenizer.eos_ids,
    )
    references = [question.references for question in questions]
    facts = {
        **_source(settings),
        "prompts": len(questions),
        "references": sum(map(len, references)),
        "left_out": [each.facts() for each in answers.unasked(questions, len(render.rows))],
        "max_new_tokens": settings.max_new_tokens,
    }
    return Measured(answers.score_answers(written, references, settings.metrics), "answered", facts)


def _write_samples(subject: Subject, render: Renderer, settings: EvaluationSettings) -> Measured:
    """Keep some of the model's answers, for people to read."""
    texts = write_samples(
        subject.model,
        subject.tokenizer,
        render,
        settings.samples,
        max_new_tokens=settings.max_new_tokens,
        tokens_per_batch=settings.tokens_per_batch,
    )
    facts = {**_source(settings), "max_new_tokens": settings.max_new_tokens, "texts": texts}
    return Measured({}, _SAMPLES, facts)


def _judge(
    subject: Subject, store: Store, reader: StudentReader, settings: EvaluationSettings
) -> Measured:
    """Measure how far the model is from the teacher of the store."""
    figures = against_store.judge(
        subject.model,
        store,
        reader,
        settings.store_metrics,
        tokens_per_batch=settings.tokens_per_batch,
    )
    facts = figures.pop("judged")
    return Measured(figures, "judged", facts)


def _source(settings: EvaluationSettings) -> dict[str, Any]:
    """Name the dataset that something was measured on."""
    data = settings.data
    named = data if data is None or isinstance(data, str) else " + ".join(data)
    return {"data": named, "split": settings.split}
