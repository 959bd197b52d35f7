"""Measuring a model: bits per byte here, answers and a teacher's judgement in their own modules.

Bits per byte say how well a model predicts a text, comparable across tokenizers:

    bits_per_byte = sum over predicted tokens of -log2 p(token | before)  /  their UTF-8 bytes

Nobody is charged for what nobody could predict: a first token with nothing before it (no BOS) is
left out of both bits and bytes, and so is text that a tokenizer drops. End-of-sequence tokens are
not added: they have no bytes, so they would charge many short rows more than one long one.

A row longer than the model reads is cut into windows that overlap by half: every token but those of
the first window has at least half a window before it, and each is counted once.

Shape legend: B = windows of a batch, T = their padded length, N = predicted tokens in them.
"""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from distill.data.example import Store
from distill.evaluation import against_store, answers
from distill.evaluation.forward import ask, batch_of
from distill.evaluation.samples import write_samples
from distill.head.student_head import StudentHead
from distill.report.model_card import renew_results
from distill.report.results import RunObject, peak_rss_bytes, read_results, write_results
from distill.student.encoder_decoder import Sides
from distill.student.loading import check_embeddings, load_student
from distill.student.text import StudentReader
from logitstore import open_store
from logitstore.console.progress import progress
from logitstore.errors import InputError
from logitstore.rows.dataset import Rows, load_rows
from logitstore.rows.renderer import Renderer
from logitstore.text.chat_template import ChatTemplate, parse_kwargs
from logitstore.text.tokenizer import ByteTokenizer, TokenizedText

#: Padded tokens of a batch: enough to keep two cores busy, few enough for any machine.
TOKENS_PER_BATCH = 8192
#: Longest window: models claim to read far more than attention over it is worth here.
LONGEST_WINDOW = 4096


class Window(NamedTuple):
    """Part of a row: what the model reads, and which of it is counted."""

    token_ids: np.ndarray[Any, np.dtype[np.int64]]  # (t,)
    is_counted: np.ndarray[Any, np.dtype[np.bool_]]  # (t,), never at t = 0


class Score(NamedTuple):
    """Bits and bytes of a text, over all of it that was predicted."""

    bits: float
    bytes: int
    tokens: int
    rows: int
    bytes_left_out: int  # supervised bytes that no predicted token covers
    rows_skipped: int  # without any predicted token

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.bytes


def evaluate(
    model_name: str,
    data: str | None = None,
    *,
    metrics: Sequence[str] = ("bits_per_byte",),
    store: str | None = None,
    split: str | None = None,
    config_name: str | None = None,
    text_column: str | None = None,
    references_column: str | None = None,
    supervise: str | None = None,
    chat_template_path: str | None = None,
    chat_template_kwargs: str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    max_length: int | None = None,
    max_new_tokens: int = 64,
    samples: int = 0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> RunObject:
    """Measures a model folder or hub id on a dataset, or on a teacher's store, as a run object.

    Where `distill train` made the folder, its run object is taken over, and its file completed.

    Raises:
        LogitStoreError: When model, data or store cannot be loaded, a metric lacks what it needs,
            or nothing can be measured.
    """
    started = time.perf_counter()
    check_metrics(metrics, data=data, store=store, samples=samples)
    if references_column is not None and not set(answers.METRICS) & set(metrics):
        raise InputError(
            f"--references-column {references_column}: none of --metrics {','.join(metrics)} reads "
            f"it. Leave it out, or add one of {', '.join(answers.METRICS)}."
        )
    trained = read_results(Path(model_name))  # now: damage is better met before the work
    opened = None if store is None else open_store(store)
    rows = None
    if data is not None:
        rows = load_rows(
            data,
            split=split,
            config_name=config_name,
            text_column=text_column,
            references_column=references_column,
        )
    if "rouge" in metrics:
        answers.rouge()  # what is not installed is better met before the work, too
    model, tokenizer = load_student(model_name, revision=revision, dtype=dtype)
    check_embeddings(model, ByteTokenizer(tokenizer))
    templates = {"path": chat_template_path, "kwargs": chat_template_kwargs}
    reader = None
    if opened is not None:
        reader = reader_of(opened, model, tokenizer, max_length=max_length, **templates)
    nn.Module.to(model, torch.accelerator.current_accelerator() or torch.device("cpu"))
    figures: RunObject = {}
    if rows is not None:
        render = renderer_of(
            rows,
            tokenizer,
            supervise=supervise,
            template_path=chat_template_path,
            template_kwargs=chat_template_kwargs,
        )
        asked = answers.questions(render) if set(answers.METRICS) & set(metrics) else []
        if "bits_per_byte" in metrics:
            score = bits_per_byte(
                model, render, max_length=max_length, tokens_per_batch=tokens_per_batch
            )
            figures["bits_per_byte"] = score.bits_per_byte
            figures["evaluation"] = {"data": data, "split": split, **score._asdict()}
        if asked:
            written = answers.write_answers(
                model,
                tokenizer,
                asked,
                pad_id=render.tokenizer.pad_id,
                max_new_tokens=max_new_tokens,
                tokens_per_batch=tokens_per_batch,
            )
            references = [question.references for question in asked]
            figures |= answers.score_answers(written, references, metrics)
            figures["answered"] = {
                "data": data,
                "split": split,
                "prompts": len(asked),
                "references": sum(map(len, references)),
                "max_new_tokens": max_new_tokens,
            }
        if samples:
            figures["samples"] = {
                "data": data,
                "split": split,
                "max_new_tokens": max_new_tokens,
                "texts": write_samples(
                    model,
                    tokenizer,
                    render,
                    samples,
                    max_new_tokens=max_new_tokens,
                    tokens_per_batch=tokens_per_batch,
                ),
            }
    if opened is not None and reader is not None:
        judged = [name for name in metrics if name in against_store.METRICS]
        figures |= against_store.judge(
            model, opened, reader, judged, tokens_per_batch=tokens_per_batch
        )
    used = {
        "time_s": round(time.perf_counter() - started, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    for part in ("evaluation", "answered", "judged"):
        if part in figures:
            figures[part] |= used
    if trained is not None:
        run = {**trained, **figures}
        write_results(Path(model_name), run)
        renew_results(Path(model_name), run)
        return run
    return {"name": Path(model_name).name, "seed": None, **figures}


def check_metrics(
    metrics: Sequence[str], *, data: str | None, store: str | None, samples: int = 0
) -> None:
    """Every metric must have what it is measured on, and what is given must be measured on.

    Raises:
        InputError: Names the metric or the flag.
    """
    if samples and data is None:
        raise InputError(
            f"--samples {samples}: written after prompts of a dataset, but none is given. Name it "
            "behind the model: `distill evaluate MODEL DATA`."
        )
    if data is not None and (Path(data) / "store.json").is_file():
        raise InputError(
            f"{data}: is a store, and where a dataset is expected. Give it as --store {data}, with "
            f"--metrics {','.join(against_store.METRICS)}, or name the dataset of held-out text."
        )
    of_store = [name for name in metrics if name in against_store.METRICS]
    of_data = [name for name in metrics if name not in against_store.METRICS]
    if of_data and data is None:
        raise InputError(
            f"--metrics {','.join(of_data)}: measured on a dataset, but none is given. Name it "
            "behind the model: `distill evaluate MODEL DATA`."
        )
    if of_store and store is None:
        raise InputError(
            f"--metrics {','.join(of_store)}: measured against a teacher, but no store is given. "
            "Add --store with a store of held-out text."
        )
    if store is not None and not of_store:
        raise InputError(
            f"--store {store}: none of --metrics {','.join(metrics)} reads it. Leave it out, or "
            f"add one of {', '.join(against_store.METRICS)}."
        )
    if data is not None and not of_data and not samples:
        raise InputError(
            f"{data}: none of --metrics {','.join(metrics)} reads a dataset. Leave it out, or add "
            "bits_per_byte."
        )


def reader_of(
    store: Store,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    path: str | None = None,
    kwargs: str | None = None,
) -> StudentReader:
    """How a model reads the lines of a store: conversations through its own chat template."""
    reader, template = ByteTokenizer(tokenizer), None
    if store.spec.rendering["kind"] == "conversation":
        given = parse_kwargs(kwargs, "--chat-template-kwargs")
        template = ChatTemplate.of(
            tokenizer, reader, path=path, kwargs=given, flag="--chat-template-path"
        )
    return StudentReader(
        reader,
        store.spec.rendering,
        store.path,
        template=template,
        max_length=_window_width(model, max_length),
    )


def renderer_of(rows: Rows, tokenizer: PreTrainedTokenizerBase, **settings: str | None) -> Renderer:
    """How a model reads the rows: conversations through its own chat template, without EOS.

    Raises:
        InputError: For rows of tokens, and whatever `Renderer.make` refuses.
    """
    if rows.kind == "tokens":
        raise InputError(
            f"{rows.name}: its rows are token ids of one tokenizer, but bits per byte are for "
            "comparing models of any. Name a column of strings with --text-column."
        )
    return Renderer.make(rows, tokenizer, ByteTokenizer(tokenizer), add_eos=False, **settings)


def bits_per_byte(
    model: nn.Module,
    render: Renderer,
    *,
    max_length: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Score:
    """Scores the supervised text of every row.

    Args:
        model: On its device.
        render: The rows as it reads them, see :func:`renderer_of`.
        max_length: Tokens of a window; by default what the model reads, at most LONGEST_WINDOW.
        tokens_per_batch: Padded tokens of a batch; changes speed and memory only.

    Raises:
        InputError: When nothing in the rows can be predicted.
    """
    rows, reader = render.rows, render.tokenizer
    width = _window_width(model, max_length)
    windows: list[Window] = []
    counted = left_out = skipped = 0
    with progress(len(rows), "tokenise", "rows") as shown:
        for i in range(len(rows)):
            segments, tokens, *_ = render(i)
            covered = int(tokens.byte_lengths[tokens.has_record].sum())
            counted += covered
            left_out += sum(len(s.text.encode()) for s in segments if s.supervised) - covered
            skipped += not covered
            windows += cut(tokens, width)
            shown.update(1)
    if not counted:
        raise InputError(
            f"{rows.name}: none of the {len(rows):,} rows has a byte that this model can predict. "
            "Check --split and --text-column."
        )
    sides = Sides.of(model, reader)
    bits = math.fsum(_bits(model, windows, reader.pad_id, tokens_per_batch, sides))
    total = sum(int(w.is_counted.sum()) for w in windows)
    return Score(bits, counted, total, len(rows), left_out, skipped)


def cut(tokens: TokenizedText, width: int) -> list[Window]:
    """A row as windows of at most `width` tokens; every predicted token counts in exactly one."""
    # Ends of turns within the text are events without bytes, and no more counted than its own end.
    ids, is_counted = tokens.token_ids, tokens.has_record & ~tokens.is_eos
    windows, done, start = [], 0, 0
    while done < len(ids):
        stop = min(start + width, len(ids))
        fresh = is_counted[start:stop] & (np.arange(start, stop) >= done)
        if fresh.any():
            windows.append(Window(ids[start:stop], fresh))
        done, start = stop, start + max(1, width // 2)
    return windows


def _bits(
    model: nn.Module,
    windows: Sequence[Window],
    pad_id: int,
    tokens_per_batch: int,
    sides: Sides | None,
) -> Iterator[float]:
    """Bits of each batch."""
    head = StudentHead(model)
    model.eval()
    order = sorted(range(len(windows)), key=lambda i: len(windows[i].token_ids), reverse=True)
    with progress(len(windows), "evaluate", "windows") as shown:
        for batch in _batches([windows[i] for i in order], tokens_per_batch):
            yield _batch_bits(model, head, batch, pad_id, sides)
            shown.update(len(batch))


@torch.no_grad()
def _batch_bits(
    model: nn.Module, head: StudentHead, batch: Sequence[Window], pad_id: int, sides: Sides | None
) -> float:
    places = [np.flatnonzero(window.is_counted) for window in batch]
    asked = batch_of([window.token_ids for window in batch], places, pad_id)
    answer = ask(model, head, asked, sides)
    return -float(answer.label_logprob_N.cpu().double().sum()) / math.log(2)


def _batches(windows: Sequence[Window], tokens_per_batch: int) -> Iterator[Sequence[Window]]:
    """Longest first: neighbours are of like length, and memory is known from the first batch."""
    start = 0
    while start < len(windows):
        size = max(1, tokens_per_batch // len(windows[start].token_ids))
        yield windows[start : start + size]
        start += size


def _window_width(model: Any, max_length: int | None) -> int:
    readable = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    width = min(n for n in (max_length, readable, LONGEST_WINDOW) if n)
    if width < 2:
        raise InputError(f"--max-length is {max_length}, expected at least 2 tokens.")
    return width
