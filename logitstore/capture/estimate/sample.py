"""Look at some rows as the teacher will read them, before its weights are loaded.

The rows are spread over the whole dataset: the first is shown with its supervised tokens marked,
the others are counted by status. Trial batches are made of them too (see `trial_batches.py`).
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from logitstore.capture.sequences.row_reader import RowReader
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.text_sizes import TextSizes
from logitstore.console.counts import counted
from logitstore.console.terminal import printable
from logitstore.format.numpy_types import Bools

_SAMPLE_ROWS = 200
_SAMPLE_BYTES = 2_000_000
_SHOWN_TOKENS = 60


@dataclass
class Sample:
    """Holds some rows as the teacher will read them.

    Attributes:
        first: Text of the first row with a supervised token, marked; of any row if none has one.
        rows: Number of rows looked at.
        text_bytes: Bytes of their text.
        statuses: Number of sequences by status.
        sequences: All sequences of these rows.
        turns: Supervised turns of them that are not as they should be, by kind.
        seconds: Time that reading them took.
    """

    first: str = ""
    rows: int = 0
    text_bytes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    sequences: list[TeacherSequence] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Count the tokens that the teacher reads."""
        return sum(s.length for s in self.sequences if s.records)

    @property
    def records(self) -> int:
        return sum(s.records for s in self.sequences)


def take_sample(reader: RowReader, sizes: TextSizes) -> Sample:
    """Look at rows evenly spread over the dataset, always with the first one.

    Args:
        reader: Turns a row into sequences.
        sizes: How much text every row of the dataset has.

    Raises:
        InputError: A row cannot be rendered.
    """
    count = len(sizes.places)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE_ROWS)).astype(np.int64))
    sample, has_shown_records, began = Sample(), False, time.monotonic()
    for row in (int(r) for r in chosen):
        reader.turns.clear()
        sequences = reader.sequences(row)
        sample.turns += reader.turns
        has_records = any(s.records for s in sequences)
        if sample.rows == 0 or (has_records and not has_shown_records):
            sample.first = marked_text(reader.wholes(row)[0], sequences)
        has_shown_records = has_shown_records or has_records
        sample.rows += 1
        sample.text_bytes += int(sizes.of([row])[0])
        sample.statuses.update(s.line.status for s in sequences)
        sample.sequences += sequences
        if sample.text_bytes >= _SAMPLE_BYTES:
            break
    sample.seconds = time.monotonic() - began
    return sample


def marked_text(whole: TeacherSequence, sequences: Sequence[TeacherSequence]) -> str:
    """Write a row with its supervised tokens between ⟦ and ⟧, safe to print in a terminal."""
    first = sequences[0]
    data = "".join(s.text for s in whole.line.segments).encode()
    text = first.text
    pieces = []
    shown = _shown_tokens(text.has_record)
    for before, i in zip([-1, *shown], shown, strict=False):
        if i != before + 1:
            pieces.append(f" … {counted(i - before - 1, 'token')} … ")
        piece = data[text.text_starts[i] : text.text_ends[i]].decode(errors="backslashreplace")
        name = printable(piece) or ("(end)" if text.is_eos[i] else "(start)" if i == 0 else "")
        pieces.append(f"⟦{name}⟧" if text.has_record[i] else name)
    if shown and shown[-1] + 1 < first.length:
        pieces.append(f" … {counted(first.length - shown[-1] - 1, 'token')} more")
    head = f"row {first.line.row:,}: {first.line.status}, {counted(whole.length, 'token')}"
    if len(sequences) > 1:
        are_windows = all(s.line.status == "split" for s in sequences)
        head += f" in {len(sequences)} {'windows' if are_windows else 'parts'}, the first"
    return f"{head}, supervised ones in ⟦ ⟧:\n  {''.join(pieces)}" if pieces else head


def _shown_tokens(has_record: Bools) -> list[int]:
    """Choose tokens to show: the first ones, some context, and the first supervised ones."""
    begin = int(np.argmax(has_record)) if has_record.any() else 0
    context = (
        range(min(begin, _SHOWN_TOKENS // 4)),
        range(max(begin - _SHOWN_TOKENS // 4, 0), begin),
    )
    supervised = range(begin, min(begin + _SHOWN_TOKENS, len(has_record)))
    return sorted({*context[0], *context[1], *supervised})


def sample_text(sample: Sample, rows: int, missing_shards: int, shards: int) -> str:
    """Write the marked row and the counts, for people."""
    counts = " · ".join(f"{n:,} {status}" for status, n in sorted(sample.statuses.items()))
    return (
        f"{sample.first}\n{sample.rows:,} of {counted(rows, 'row')} looked at: {counts}\n"
        f"{missing_shards:,} of {counted(shards, 'shard')} to do"
    )
