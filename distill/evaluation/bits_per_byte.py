"""Bits per byte: how well a model predicts a text, whatever its tokenizer.

The loss that training logs, nats a token, cannot compare models of different tokenizers. One with
a larger vocabulary cuts a text into fewer and longer tokens, each of them harder to foresee: its
mean over tokens is higher, though the model may be the better one. Three models that all need one
bit for each byte of a text have losses of 0.7, 2.1 and 4.2 nats a token, if their tokens are one,
three and six bytes long.

What does not depend on the cut is the probability of the whole text: by the chain rule it is the
product over its tokens, however many they are. So take the sum over tokens and not their mean, and
divide it by a measure of the text itself that no tokenizer has a say in: its UTF-8 bytes.

    bits_per_byte = sum over predicted tokens of -log2 p(token | before)  /  their UTF-8 bytes

It is also a size: with such a model, an arithmetic coder stores the text in so many bits for each
of its bytes. One to which all bytes are equally probable needs 8; a good one, of English text, less
than 1.

The sum is fair only if all models are asked for the same bytes:

* A first token with nothing before it (no BOS) is left out of both bits and bytes, and so is text
  that a tokenizer drops: nobody is charged for what nobody could predict.
* A token that begins in the context, or ends in it, is counted with all the bytes that it predicts:
  of `Say: ` and `the page` a SentencePiece model predicts ` the`, the space too, so the figure is
  that of `Say:` and ` the page`. Of white space that a tokenizer writes as one space, whatever it
  was, one byte counts.
* End-of-sequence tokens are not added. They have no bytes, so they would charge many short rows
  more than one long one.
* A row longer than the model reads is cut into windows that overlap by half: every token but those
  of the first window has at least half a window before it, and each is counted once.

Shape legend: B = windows of a batch, T = their padded length, N = predicted tokens in them.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from distill.evaluation.forward import ask, batch_of
from distill.evaluation.readers import window_width
from distill.head.student_head import StudentHead
from distill.student.encoder_decoder import Sides
from logitstore.console.argument_types import typed
from logitstore.console.counts import counted
from logitstore.console.left_out import LeftOut
from logitstore.console.progress import progress
from logitstore.errors import InputError
from logitstore.format.statuses import reason_of
from logitstore.records import Segment
from logitstore.rows.renderer import Renderer
from logitstore.text.token_budget import DEFAULT_TOKENS_PER_BATCH, by_token_budget
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer


class Window(NamedTuple):
    """Part of a row: what the model reads, and which of it is counted."""

    token_ids: np.ndarray[Any, np.dtype[np.int64]]  # (t,)
    is_counted: np.ndarray[Any, np.dtype[np.bool_]]  # (t,), never at t = 0


class Score(NamedTuple):
    """Bits and bytes of a text, over all of it that was predicted.

    Attributes:
        bits: Sum over the predicted tokens.
        bytes: Of the predicted tokens, also those in context.
        tokens: That were predicted.
        rows: All of them.
        bytes_left_out: Supervised bytes that no predicted token covers.
        rows_skipped: Rows without any predicted token.
        left_out: Why, as JSON.
    """

    bits: float
    bytes: int
    tokens: int
    rows: int
    bytes_left_out: int
    rows_skipped: int
    left_out: list[dict[str, Any]]

    @property
    def bits_per_byte(self) -> float:
        """Lower is better; comparable across tokenizers."""
        return self.bits / self.bytes


class Cut(NamedTuple):
    """Rows as windows, with the counts of a :class:`Score`."""

    windows: list[Window]
    bytes: int
    bytes_left_out: int
    rows_skipped: int
    left_out: list[LeftOut]


@typed("distill.bits_per_byte")
def bits_per_byte(
    model: nn.Module,
    render: Renderer,
    *,
    max_length: int | None = None,
    tokens_per_batch: int = DEFAULT_TOKENS_PER_BATCH,
) -> Score:
    """Measure how well a model predicts the supervised text of every row.

    Args:
        model: On its device.
        render: The rows as it reads them, see :func:`distill.evaluation.readers.renderer_of`.
        max_length: Tokens of a window; by default what the model reads, at most LONGEST_WINDOW.
        tokens_per_batch: Padded tokens of a batch; changes speed and memory only.

    Raises:
        InputError: When nothing in the rows can be predicted.
    """
    rows, reader = render.rows, render.tokenizer
    found = _cut_rows(render, window_width(model, max_length))
    if not found.bytes:
        why = "".join(f" Of row {each.first_row:,}: {each.why}." for each in found.left_out[:1])
        raise InputError(
            f"{rows.name}: none of the {counted(len(rows), 'row')} has a byte that this model can "
            "predict."
            f"{why} Check --split and --text-column."
        )
    sides = Sides.of(model, reader)
    bits = math.fsum(_bits(model, found.windows, reader.pad_id, tokens_per_batch, sides))
    tokens = sum(int(window.is_counted.sum()) for window in found.windows)
    left_out = [each.facts() for each in found.left_out]
    counts = found.bytes_left_out, found.rows_skipped
    return Score(bits, found.bytes, tokens, len(rows), *counts, left_out)


def _cut_rows(render: Renderer, width: int) -> Cut:
    """Tokenise all rows and cut them into windows of at most `width` tokens."""
    windows: list[Window] = []
    counted = left_out = 0
    lost: Counter[str] = Counter()
    first_rows: dict[str, int] = {}
    with progress(len(render.rows), "tokenise", "rows") as shown:
        for i in range(len(render.rows)):
            segments, tokens, *_ = render(i)
            supervised = sum(len(s.text.encode()) for s in segments if s.supervised)
            dropped = _dropped_spaces(segments, tokens, render.tokenizer)
            predicted = tokens.has_record & ~tokens.is_eos
            sizes = (tokens.text_ends - tokens.text_starts)[predicted]
            counted += int(sizes.sum()) - dropped
            left_out += supervised - int(tokens.byte_lengths.sum()) + dropped
            if not sizes.any():
                status = tokens.status if tokens.status != "ok" else "no_supervised_text"
                lost[status] += 1
                first_rows.setdefault(status, i)
            windows += cut(tokens, width)
            shown.update(1)
    total = len(render.rows)
    why = [
        LeftOut(reason, n, total, first_rows[reason], *reason_of(reason))
        for reason, n in lost.most_common()
    ]
    return Cut(windows, counted, left_out, lost.total(), why)


def _dropped_spaces(
    segments: Sequence[Segment], tokens: TokenizedText, reader: ByteTokenizer
) -> int:
    """Count the bytes of white space beyond the one space that a token writes for them, or none."""
    if not reader.joins_spaces:
        return 0
    data, dropped = "".join(segment.text for segment in segments).encode(), 0
    changed = np.flatnonzero(tokens.has_record & ~tokens.is_eos & ~tokens.is_verbatim)
    for i, written in zip(changed, reader.written(tokens.token_ids[changed]), strict=True):
        text = data[tokens.text_starts[i] : tokens.text_ends[i]].decode("utf-8", "replace")
        spaces = text[: len(text) - len(text.lstrip())]
        dropped += max(len(spaces.encode()) - written.startswith(b" "), 0)
    return dropped


def cut(tokens: TokenizedText, width: int) -> list[Window]:
    """Cut a row into windows of at most `width` tokens.

    They overlap by half, and every predicted token is counted in exactly one of them.
    """
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
    """Run the model on batches of windows, and yield the bits of each."""
    head = StudentHead(model)
    model.eval()
    lengths = [len(window.token_ids) for window in windows]
    with progress(len(windows), "evaluate", "windows") as shown:
        for batch in by_token_budget(lengths, tokens_per_batch):
            yield _batch_bits(model, head, [windows[i] for i in batch], pad_id, sides)
            shown.update(len(batch))


@torch.no_grad()
def _batch_bits(
    model: nn.Module, head: StudentHead, batch: Sequence[Window], pad_id: int, sides: Sides | None
) -> float:
    places = [np.flatnonzero(window.is_counted) for window in batch]
    asked = batch_of([window.token_ids for window in batch], places, pad_id)
    answer = ask(model, head, asked, sides)
    return -float(answer.label_logprob_N.cpu().double().sum()) / math.log(2)
