"""What a capture will take: extrapolated from a sample of its rows and some records of them.

`trial_batches.py` makes those records beforehand; a short capture takes those of its second batch.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from logitstore.capture.estimate.profile import Profile
from logitstore.capture.estimate.sample import Sample
from logitstore.console.progress import JsonLog, byte_count, duration
from logitstore.format.encoded import EncodedRecords
from logitstore.format.spec import Plan, StoreSpec
from logitstore.format.zip_archive import pack
from logitstore.records import SequenceText
from logitstore.writing.shard_builder import build_shard

log = logging.getLogger(__name__)

Pairs = Sequence[tuple[SequenceText, EncodedRecords | None]]


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


def announce(said: Foretold, events: JsonLog) -> None:
    """To people and to the log."""
    log.info("%s", said)
    events.write("outlook", **said.facts())
