"""What a capture will do, before an hour of teacher time is spent on it.

A sample of rows, spread over the dataset, is rendered and tokenised: the first of them is shown
with its supervised tokens marked, the others are counted by status. A batch or two through the
teacher then say how long the whole will take and how large it will be.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from logitstore.build import build_shard
from logitstore.capture.batches import batches
from logitstore.capture.halving import HalvingReader
from logitstore.capture.reading import RowReader
from logitstore.capture.windows import TeacherSequence
from logitstore.encode import EncodedRecords
from logitstore.inspection.terminal import printable
from logitstore.progress import byte_count, duration
from logitstore.records import SequenceText
from logitstore.spec import Plan, StoreSpec

_SAMPLE_ROWS = 200
_SAMPLE_BYTES = 2_000_000
_SHOWN_TOKENS = 60
_SMALL_BATCH_TOKENS = 256
_LONG_S = 1.0

Pairs = Sequence[tuple[SequenceText, EncodedRecords | None]]


@dataclass
class Sample:
    """Some rows as the teacher will read them.

    Attributes:
        first: The first of them with a supervised token, marked; or what there is.
        rows: How many were looked at.
        text_bytes: Their text.
        statuses: Sequences by status.
        sequences: All of them.
    """

    first: str = ""
    rows: int = 0
    text_bytes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    sequences: list[TeacherSequence] = field(default_factory=list)

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
    found, shown_any = Sample(), False
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


@dataclass(frozen=True)
class Outlook:
    """What a whole capture will take, from a sample and a few batches.

    Attributes:
        tokens: Tokens that the teacher will read.
        records: Of them supervised.
        file_bytes: What the store will grow by.
        seconds: Of teacher time, on this process alone.
        tokens_per_s: The speed that was measured.
    """

    tokens: int
    records: int
    file_bytes: int
    seconds: float
    tokens_per_s: float

    def __str__(self) -> str:
        per_token = self.file_bytes / max(self.records, 1)
        return (
            f"to come: about {self.tokens:,} tokens, {self.records:,} of them supervised; "
            f"{byte_count(self.file_bytes)} ({per_token:.0f} bytes a token); "
            f"{duration(self.seconds)} at {self.tokens_per_s:,.0f} tokens/s"
        )


def outlook(
    sample: Sample, text_bytes: int, shards: int, speed: float, size: tuple[float, float]
) -> Outlook:
    """Extrapolate.

    Args:
        sample: Of the dataset.
        text_bytes: Text that is still to be captured.
        shards: Shards that are still to be written.
        speed: Tokens that the teacher reads a second.
        size: Bytes of a shard without records, and of a record; from `stored_size`.
    """
    share = text_bytes / max(sample.text_bytes, 1)
    tokens, records = sample.tokens * share, sample.records * share
    return Outlook(
        tokens=round(tokens),
        records=round(records),
        file_bytes=round(size[0] * shards + size[1] * records),
        seconds=tokens / max(speed, 1e-9),
        tokens_per_s=speed,
    )


def stored_size(spec: StoreSpec, plan: Plan, pairs: Pairs) -> tuple[float, float]:
    """Bytes of a shard without records, and of a record with its text, by writing some."""
    members = build_shard(spec, plan, 0, pairs)
    sizes = {name: len(memoryview(data).cast("B")) for name, data in members.items()}
    fixed = sum(size for name, size in sizes.items() if name.endswith("zarr.json"))
    records = sum(len(encoded) for _, encoded in pairs if encoded is not None)
    return float(fixed), (sum(sizes.values()) - fixed) / max(records, 1)


def try_out(
    teacher: HalvingReader, sequences: Sequence[TeacherSequence], budget: int
) -> tuple[float, Pairs]:
    """(tokens a second, what was made) of a small batch, and of a full one if that is quick."""
    found: Pairs = []
    speed = 0.0
    for size, is_timed in (
        (_SMALL_BATCH_TOKENS, False),
        (_SMALL_BATCH_TOKENS, True),
        (budget, True),
    ):
        chosen = next(batches(sequences, min(size, budget)), [])
        batch = [sequences[i] for i in chosen]
        if not batch:
            break
        began = time.monotonic()
        encoded = teacher.read(batch)
        seconds = time.monotonic() - began
        found = list(zip((s.line for s in batch), encoded, strict=True))
        speed = sum(s.length for s in batch) / max(seconds, 1e-9)
        if is_timed and seconds > _LONG_S:
            break
    return speed, found


@dataclass(frozen=True)
class Preview:
    """What `logitstore capture --dry-run` finds out."""

    sample: Sample
    rows: int
    shards: int
    missing_shards: int
    outlook: Outlook | None

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "rows": self.rows,
            "rows_looked_at": self.sample.rows,
            "statuses": dict(sorted(self.sample.statuses.items())),
            "first_row": self.sample.first,
            "shards_planned": self.shards,
            "shards_missing": self.missing_shards,
            "to_come": None if self.outlook is None else vars(self.outlook),
        }

    def __str__(self) -> str:
        coming = self.outlook or "to come: nothing that the rows looked at would tell"
        return f"{seen(self.sample, self.rows, self.missing_shards, self.shards)}\n{coming}"


def seen(sample: Sample, rows: int, missing_shards: int, shards: int) -> str:
    """The marked row and the counts."""
    counts = " · ".join(f"{n:,} {status}" for status, n in sorted(sample.statuses.items()))
    return (
        f"{sample.first}\n{sample.rows:,} of {rows:,} rows looked at: {counts}\n"
        f"{missing_shards:,} of {shards:,} shards to do"
    )
