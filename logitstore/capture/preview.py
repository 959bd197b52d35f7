"""What a capture will do, before an hour of teacher time is spent on it.

A sample of rows, spread over the dataset, is rendered and tokenised: the first of them is shown
with its supervised tokens marked, the others are counted by status. Some batches through the
teacher then say how long the whole will take, how large it will be, and how peaked the teacher is
(see `profile.py`): `logitstore estimate`, and `logitstore capture --dry-run` for what one store
still lacks. A capture says the same of its second batch, which costs nothing.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from logitstore.archive import pack
from logitstore.build import build_shard
from logitstore.capture.halving import HalvingReader
from logitstore.capture.overlap import read_overlapped
from logitstore.capture.profile import Profile
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
_FEW_TOKENS = 256
_TRIED_S = 10.0

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


@dataclass(frozen=True)
class StoredSize:
    """How large records are.

    Attributes:
        shard_bytes: Of a shard without records.
        record_bytes: Of a record, with its text.
        entry_bytes: Of them, of each of its entries.
        entries: Of a record, on average.
    """

    shard_bytes: float
    record_bytes: float
    entry_bytes: float
    entries: float

    def with_entries(self, entries: float) -> float:
        """Bytes of a record with another number of entries, about."""
        return self.record_bytes + self.entry_bytes * (entries - self.entries)


@dataclass(frozen=True)
class Outlook:
    """What a whole capture will take, from a sample and a few batches.

    Attributes:
        tokens: Tokens that the teacher will read.
        records: Of them supervised.
        file_bytes: What the store will grow by.
        seconds: Of teacher time, on this process alone.
        tokens_per_s: The speed that was measured.
        device_hours: Of all devices that the teacher is on.
    """

    tokens: int
    records: int
    file_bytes: int
    seconds: float
    tokens_per_s: float
    device_hours: float

    def __str__(self) -> str:
        per_token = self.file_bytes / max(self.records, 1)
        return (
            f"to come: about {self.tokens:,} tokens, {self.records:,} of them supervised; "
            f"{byte_count(self.file_bytes)} ({per_token:.0f} bytes a token); "
            f"{duration(self.seconds)} at {self.tokens_per_s:,.0f} tokens/s "
            f"({self.device_hours:.2g} device-hours)"
        )


def outlook(
    sample: Sample,
    text_bytes: int,
    shards: int,
    speed: float,
    size: StoredSize,
    devices: int = 1,
) -> Outlook:
    """Extrapolate.

    Args:
        sample: Of the dataset.
        text_bytes: Text that is still to be captured.
        shards: Shards that are still to be written.
        speed: Tokens that the teacher reads a second.
        size: What records take.
        devices: That the teacher is on.
    """
    share = text_bytes / max(sample.text_bytes, 1)
    tokens, records = sample.tokens * share, sample.records * share
    seconds = tokens / max(speed, 1e-9) + sample.seconds * share
    return Outlook(
        tokens=round(tokens),
        records=round(records),
        file_bytes=round(size.shard_bytes * shards + size.record_bytes * records),
        seconds=seconds,
        tokens_per_s=tokens / max(seconds, 1e-9),
        device_hours=seconds * devices / 3600,
    )


def stored_size(spec: StoreSpec, plan: Plan, pairs: Pairs) -> StoredSize:
    """By building two shards, of which one has every other sequence of the other.

    What compresses does so better in company; what a shard costs without records is left over.
    """
    whole = sorted(pairs, key=lambda pair: (pair[0].row, pair[0].part))
    built = [build_shard(spec, plan, 0, part) for part in (whole[::2], whole)]
    sizes = [sum(len(memoryview(piece).cast("B")) for piece in pack(m)) for m in built]
    records = [sum(len(encoded) for _, encoded in p if encoded) for p in (whole[::2], whole)]
    if records[0] in (0, records[1]):
        each = sizes[1] / max(records[1], 1)
    else:
        each = (sizes[1] - sizes[0]) / (records[1] - records[0])
    entries = sum(encoded.entry_total for _, encoded in whole if encoded)
    of_entries = sum(
        len(memoryview(data).cast("B")) for name, data in built[1].items() if _is_of_entries(name)
    )
    return StoredSize(
        max(sizes[1] - each * records[1], 0.0),
        each,
        of_entries / max(entries, 1),
        entries / max(records[1], 1),
    )


def _is_of_entries(member: str) -> bool:
    return member.startswith(("entry_ids/", "entry_logprobs/"))


def spread(sequences: Sequence[TeacherSequence], most_tokens: float) -> list[TeacherSequence]:
    """So many tokens of sequences with records, from all over the sample."""
    found = [s for s in sequences if s.records]
    step = max(1.0, sum(s.length for s in found) / most_tokens)
    return [found[int(i * step)] for i in range(math.ceil(len(found) / step))]


def try_out(
    teacher: HalvingReader, sequences: Sequence[TeacherSequence], budget: int
) -> tuple[float, Pairs]:
    """(tokens a second, records) of some batches, read as a capture reads them.

    A batch at least, and not much more than ten seconds; a short one before them is not timed, for
    with the first batch kernels are chosen and the head is checked.
    """
    speed = 0.0
    for _ in range(2):
        few = spread(sequences, _FEW_TOKENS)
        if not few:
            return 0.0, []
        speed, _ = _timed(teacher, few, budget)
    return _timed(teacher, spread(sequences, max(budget, speed * _TRIED_S)), budget)


def _timed(
    teacher: HalvingReader, chosen: Sequence[TeacherSequence], budget: int
) -> tuple[float, Pairs]:
    found: list[tuple[SequenceText, EncodedRecords | None]] = []
    began = time.monotonic()
    for batch, encoded in read_overlapped(teacher, chosen, budget):
        found += zip((chosen[i].line for i in batch), encoded, strict=True)
    seconds = time.monotonic() - began
    return sum(s.length for s in chosen) / max(seconds, 1e-9), found


@dataclass(frozen=True)
class Foretold:
    """What is to come, how the teacher's probability is spread, and what that speaks for."""

    outlook: Outlook
    size: StoredSize
    profile: Profile

    def bytes_per_token(self) -> dict[float, float]:
        """By epsilon, with the entries that it takes."""
        if not self.size.entry_bytes:  # no entries are kept
            return {}
        return {e: self.size.with_entries(n) for e, n in self.profile.entries.items()}

    def facts(self) -> dict[str, Any]:
        """As JSON: the outlook's figures, and more."""
        by_bound = {str(bound): size for bound, size in self.bytes_per_token().items()}
        return vars(self.outlook) | {
            "teacher": self.profile.facts() | {"bytes_per_token": by_bound},
        }

    def __str__(self) -> str:
        lines = [str(self.outlook)]
        if self.profile.mass:
            lines.append(str(self.profile))
            if sizes := self.bytes_per_token():
                said = " · ".join(f"{bound:g} {size:.0f}" for bound, size in sizes.items())
                lines.append(f"bytes a token for --max-tail, about: {said}")
            if recommended := self.profile.recommended():
                lines.append(str(recommended))
        return "\n".join(lines)


@dataclass(frozen=True)
class Preview:
    """What `logitstore estimate` and `logitstore capture --dry-run` find out."""

    sample: Sample
    rows: int
    shards: int
    missing_shards: int
    foretold: Foretold | None

    @property
    def outlook(self) -> Outlook | None:
        return None if self.foretold is None else self.foretold.outlook

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "rows": self.rows,
            "rows_looked_at": self.sample.rows,
            "statuses": dict(sorted(self.sample.statuses.items())),
            "first_row": self.sample.first,
            "shards_planned": self.shards,
            "shards_missing": self.missing_shards,
            "to_come": None if self.foretold is None else self.foretold.facts(),
        }

    def __str__(self) -> str:
        coming = self.foretold or "to come: nothing that the rows looked at would tell"
        return f"{seen(self.sample, self.rows, self.missing_shards, self.shards)}\n{coming}"


def seen(sample: Sample, rows: int, missing_shards: int, shards: int) -> str:
    """The marked row and the counts."""
    counts = " · ".join(f"{n:,} {status}" for status, n in sorted(sample.statuses.items()))
    return (
        f"{sample.first}\n{sample.rows:,} of {rows:,} rows looked at: {counts}\n"
        f"{missing_shards:,} of {shards:,} shards to do"
    )
