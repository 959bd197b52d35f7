"""Some rows of a dataset as the teacher will read them, before any of its weights are loaded.

They are spread over the whole of it: the first is shown with its supervised tokens marked, the
others are counted by status. What is then asked of the teacher is asked on these (see
`trial_batches.py`).
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from logitstore.capture.sequences.row_reader import RowReader
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.console.terminal import printable

_SAMPLE_ROWS = 200
_SAMPLE_BYTES = 2_000_000
_SHOWN_TOKENS = 60


@dataclass
class Sample:
    """Some rows as the teacher will read them.

    Attributes:
        first: The first of them with a supervised token, marked; or what there is.
        rows: How many were looked at.
        text_bytes: Their text.
        statuses: Sequences by status.
        sequences: All of them.
        seconds: That reading them took.
    """

    first: str = ""
    rows: int = 0
    text_bytes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    sequences: list[TeacherSequence] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens that the teacher reads."""
        return sum(s.length for s in self.sequences if s.records)

    @property
    def records(self) -> int:
        return sum(s.records for s in self.sequences)


def take_sample(reader: RowReader, text_bytes: npt.NDArray[np.int64]) -> Sample:
    """Look at rows evenly spread over the dataset, the first one always.

    Raises:
        InputError: A row cannot be rendered.
    """
    count = len(text_bytes)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE_ROWS)).astype(np.int64))
    found, shown_any, began = Sample(), False, time.monotonic()
    for row in (int(r) for r in chosen):
        sequences = reader.sequences(row)
        has_records = any(s.records for s in sequences)
        if found.rows == 0 or (has_records and not shown_any):
            found.first = marked(reader.whole(row), sequences)
        shown_any = shown_any or has_records
        found.rows += 1
        found.text_bytes += int(text_bytes[row])
        found.statuses.update(s.line.status for s in sequences)
        found.sequences += sequences
        if found.text_bytes >= _SAMPLE_BYTES:
            break
    found.seconds = time.monotonic() - began
    return found


def marked(whole: TeacherSequence, sequences: Sequence[TeacherSequence]) -> str:
    """A row as text, its supervised tokens between ⟦ and ⟧, safe to print."""
    first = sequences[0]
    data = "".join(s.text for s in whole.line.segments).encode()
    text = first.text
    pieces = []
    shown = _shown_tokens(text.has_record)
    for before, i in zip([-1, *shown], shown, strict=False):
        if i != before + 1:
            pieces.append(f" … {i - before - 1:,} tokens … ")
        piece = data[text.text_starts[i] : text.text_ends[i]].decode(errors="backslashreplace")
        name = printable(piece) or ("(end)" if text.is_eos[i] else "(start)" if i == 0 else "")
        pieces.append(f"⟦{name}⟧" if text.has_record[i] else name)
    if shown and shown[-1] + 1 < first.length:
        pieces.append(f" … {first.length - shown[-1] - 1:,} tokens more")
    head = f"row {first.line.row:,}: {first.line.status}, {whole.length:,} tokens"
    if len(sequences) > 1:
        head += f" in {len(sequences)} windows, the first"
    return f"{head}, supervised ones in ⟦ ⟧:\n  {''.join(pieces)}" if pieces else head


def _shown_tokens(has_record: npt.NDArray[np.bool_]) -> list[int]:
    """Enough of a sequence: a few tokens of context, then the first supervised ones."""
    begin = int(np.argmax(has_record)) if has_record.any() else 0
    context = (
        range(min(begin, _SHOWN_TOKENS // 4)),
        range(max(begin - _SHOWN_TOKENS // 4, 0), begin),
    )
    own = range(begin, min(begin + _SHOWN_TOKENS, len(has_record)))
    return sorted({*context[0], *context[1], *own})


def seen(sample: Sample, rows: int, missing_shards: int, shards: int) -> str:
    """The marked row and the counts."""
    counts = " · ".join(f"{n:,} {status}" for status, n in sorted(sample.statuses.items()))
    return (
        f"{sample.first}\n{sample.rows:,} of {rows:,} rows looked at: {counts}\n"
        f"{missing_shards:,} of {shards:,} shards to do"
    )
