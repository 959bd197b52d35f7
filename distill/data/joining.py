"""Which rows of several stores are the same text, for one student.

Two rows are the same where the student is given the same to read, and learns the same of it:

    text, prompts    the same segments, and the same of them supervised
    token rows       likewise, with the student's own special tokens for the teacher's
    conversations    the same messages, and the same supervised text; how a teacher's template wrote
                     the rest is its own business
    private prompts  the student's own segments

whatever the teacher's tokenizer, or what it has of records there. A text that a store has twice is
paired by occurrence: the first with the first. Windows of a long row are paired only where both
stores cut it at the same places; where they do not, it is learnt from the first store that has it.

Shape legend: S = stores, E = examples, R = rows of a store.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distill.alignment.runs import Ints
from distill.data.dataset import StoreDataset
from distill.student.text import ENDLESS, StudentReader
from logitstore.console.progress import progress
from logitstore.records import Segment, SequenceText
from logitstore.text import own_text
from logitstore.text.token_ids import begins_bare, for_student

_DIGEST_BYTES = 16


class Joined(NamedTuple):
    """The examples of several stores.

    Attributes:
        table_ES: (E, S) the number of each example in the data of each store; -1 where it is not.
        cut_otherwise: (S,) rows of each store that an earlier one has in other windows, and that
            are therefore not used of this one.
    """

    table_ES: Ints
    cut_otherwise: Ints


class _Row(NamedTuple):
    """A row of a store: its sequences in the data, and what they are."""

    sequences: tuple[int, ...]
    key: bytes  # of what the student reads
    text: bytes  # of its supervised text
    is_split: bool


def join(every: Sequence[StoreDataset], *, of_first: bool = False) -> Joined:
    """Find the rows that several stores have.

    Args:
        every: Each store as the student reads it.
        of_first: Whether rows that the first store does not have are left out.

    Returns:
        The examples: those of the first store in its order, then what only later ones have.
    """
    examples: dict[tuple[bytes, int], list[tuple[int, ...] | None]] = {}
    texts: dict[bytes, bool] = {}  # of the rows so far; whether one is in several windows
    cut_otherwise = np.zeros(len(every), np.int64)
    for number, data in enumerate(every):
        seen = Counter[bytes]()
        rows = list(_rows(data))
        for row in rows:
            place = row.key, seen[row.key]
            seen[row.key] += 1
            if place in examples:
                examples[place][number] = row.sequences
            elif row.text in texts and (row.is_split or texts[row.text]):
                cut_otherwise[number] += 1
            elif not (of_first and number):
                examples[place] = [None] * len(every)
                examples[place][number] = row.sequences
        for row in rows:
            texts[row.text] = texts.get(row.text, False) or row.is_split
    lines = [
        [-1 if of_store is None else of_store[part] for of_store in each]
        for each in examples.values()
        for part in range(max(len(of_store) for of_store in each if of_store is not None))
    ]
    return Joined(np.array(lines, np.int64).reshape(-1, len(every)), cut_otherwise)


def _rows(data: StoreDataset) -> Iterator[_Row]:
    """Read the text of all rows with records, in order."""
    rows_n = data.sequences.of(np.asarray(data.store.sequence_rows))
    firsts = np.flatnonzero(np.diff(rows_n, prepend=-1))
    with progress(len(data), f"join {data.store.path}", "sequences") as shown:
        for first, stop in zip(firsts, [*firsts[1:], len(rows_n)], strict=True):
            numbers = range(int(first), int(stop))
            lines = [data.store.text(int(data.sequences[i])) for i in numbers]
            key, text = _digest(), _digest()
            for line in lines:
                _add(key, _read_of(line, data.reader))
                text.update(line.supervised_bytes)
            is_split = lines[0].status == "split"
            yield _Row(tuple(numbers), key.digest(), text.digest(), is_split)
            shown.update(len(lines))


def _digest() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=_DIGEST_BYTES)


def _add(key: "hashlib.blake2b", parts: Iterator[bytes]) -> None:
    for part in parts:
        key.update(len(part).to_bytes(8, "little") + part)


def _read_of(line: SequenceText, reader: StudentReader) -> Iterator[bytes]:
    """List what decides what a student reads of a line, and learns of it."""
    place = f"{line.part} {line.supervised_start} {line.status in ENDLESS}"
    if line.messages is not None and reader.template is not None:
        yield from (place.encode(), b"messages", line.messages.encode(), line.supervised_bytes)
        return
    segments: Sequence[Segment] = line.segments
    if line.messages is not None:
        where = f"{reader.path}: row {line.row:,}"
        segments = own_text.from_json(line.messages, where)
    bare = begins_bare(segments)
    if reader.are_tokens:
        segments = for_student(segments, reader.tokenizer)
    has_end = reader.rendering.get("add_eos", True) and not reader.are_tokens
    yield f"{place} {bare} {has_end}".encode()
    for text, is_supervised in _merged(segments):
        yield bytes([is_supervised]) + text.encode()


def _merged(segments: Sequence[Segment]) -> Iterator[tuple[str, bool]]:
    """Join neighbours that are both supervised, or both are not."""
    texts, kind = list[str](), False
    for segment in segments:
        if not segment.text:
            continue
        if texts and segment.supervised != kind:
            yield "".join(texts), kind
            texts = []
        kind = segment.supervised
        texts.append(segment.text)
    if texts:
        yield "".join(texts), kind


def shares(table_ES: Ints, weights: Sequence[float]) -> npt.NDArray[np.float32]:
    """Divide each example (E, S) among the stores that have it, by their weights."""
    weight_ES = np.where(table_ES >= 0, np.array(weights, np.float64), 0)
    made: npt.NDArray[np.float32] = (weight_ES / weight_ES.sum(1, keepdims=True)).astype(np.float32)
    return made
