"""Forecast what a capture takes, from a sample of its rows and some records of them.

A long capture gets those records before it begins (see `trial_batches.py`), a short one from its
second batch. Everything is linear in the text: tokens, records and seconds of the sample are scaled
by the text that is still to be captured, and bytes follow from the number of records.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from logitstore.capture.boundaries.cost import BoundaryCost
from logitstore.capture.estimate.profile import Profile
from logitstore.capture.estimate.sample import Sample, sample_text
from logitstore.console.counts import counted
from logitstore.console.json_log import JsonLog
from logitstore.console.progress import byte_count, duration
from logitstore.format.encoded import EncodedRecords
from logitstore.format.fields import ENTRIES
from logitstore.format.lm_head import weight_bytes
from logitstore.format.spec import Plan, StoreSpec
from logitstore.format.zip_archive import pack
from logitstore.records import SequenceText
from logitstore.storage.files import Buffer
from logitstore.writing.shard_builder import build_shard
from logitstore.writing.sidecars import bytes_of, packed_sidecar

if TYPE_CHECKING:
    from logitstore.capture.task import Task

log = logging.getLogger(__name__)

#: Sequences with their records, as a shard is built from them.
Pairs = Sequence[tuple[SequenceText, EncodedRecords | None]]


@dataclass(frozen=True)
class StoredSize:
    """Models the size of shards: fixed bytes each, plus bytes for each record.

    Attributes:
        shard_bytes: Bytes of a shard without records.
        record_bytes: Bytes of a record, with its share of the text.
        entry_bytes: Of `record_bytes`, those of one entry.
        entries_per_record: Mean entries of a record.
        hidden_bytes: Of `record_bytes`, those of hidden states.
    """

    shard_bytes: float
    record_bytes: float
    entry_bytes: float
    entries_per_record: float
    hidden_bytes: float = 0.0

    def with_entries(self, entries_per_record: float) -> float:
        """Estimate the bytes of a record that has another number of entries."""
        return self.record_bytes + self.entry_bytes * (entries_per_record - self.entries_per_record)


@dataclass(frozen=True)
class Forecast:
    """Forecasts the rest of a capture; the result of `logitstore estimate` and `--dry-run`.

    Costs are zero, and `profile` is None, as long as the teacher was not asked.

    Attributes:
        sample: The rows that were looked at.
        rows: Rows of the dataset.
        shards: Shards that are planned.
        missing_shards: Of these, still to be captured.
        missing_text_bytes: Bytes of text in these.
        tokens: Tokens that the teacher will read.
        records: Of these, supervised ones, which get a record.
        file_bytes: Bytes by which the store will grow.
        seconds: Teacher time of one process alone.
        tokens_per_s: The speed that was measured.
        device_hours: Time of all devices that the teacher is on.
        size: The size of records and shards.
        profile: How the teacher's probability is spread.
        own_share: The part of the missing shards whose records at the teacher's own tokens are
            missing, too.
        boundaries: What the boundaries of a student add.
        lm_head_bytes: Of `file_bytes`, those of the teacher's output embedding, about.
    """

    sample: Sample
    rows: int
    shards: int
    missing_shards: int
    missing_text_bytes: int
    tokens: int = 0
    records: int = 0
    file_bytes: int = 0
    seconds: float = 0.0
    tokens_per_s: float = 0.0
    device_hours: float = 0.0
    size: StoredSize | None = None
    profile: Profile | None = None
    own_share: float = 1.0
    boundaries: BoundaryCost | None = None
    lm_head_bytes: int = 0

    @classmethod
    def before_teacher(
        cls,
        task: "Task",
        sample: Sample,
        missing: Sequence[int],
        own_missing: Sequence[int] | None = None,
    ) -> Self:
        """Say what is known without the teacher: the sample, and the shards that are missing.

        Args:
            task: The capture.
            sample: Rows of the dataset.
            missing: The shards to do.
            own_missing: Of these, those without records at the teacher's own tokens; None: all.
        """
        text_bytes = task.text_of(missing)
        cost = None
        if task.student is not None:
            scale = text_bytes / max(sample.text_bytes, 1)
            cost = BoundaryCost.of(task.student, sample.sequences, scale)
        return cls(
            own_share=1.0 if own_missing is None else len(own_missing) / max(len(missing), 1),
            boundaries=cost,
            sample=sample,
            rows=len(task.rows),
            shards=task.plan.shard_count,
            missing_shards=len(missing),
            missing_text_bytes=text_bytes,
            lm_head_bytes=_lm_head_bytes(task.spec) if missing and own_missing != [] else 0,
        )

    def bytes_per_token(self) -> dict[float, float]:
        """Estimate the bytes of a record by `--max-tail`; empty where no entries are kept."""
        if self.size is None or self.profile is None or not self.size.entry_bytes:
            return {}
        return {e: self.size.with_entries(n) for e, n in self.profile.entries.items()}

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "rows": self.rows,
            "rows_looked_at": self.sample.rows,
            "statuses": dict(sorted(self.sample.statuses.items())),
            "first_row": self.sample.first,
            "shards_planned": self.shards,
            "shards_missing": self.missing_shards,
            "to_come": self.costs(),
        }

    def costs(self) -> dict[str, Any] | None:
        """Return costs and profile as JSON; None while the teacher was not asked."""
        if self.profile is None:
            return None
        hidden = 0.0 if self.size is None else self.size.hidden_bytes
        more: dict[str, Any] = {"hidden_bytes_per_token": hidden} if hidden else {}
        more |= {"lm_head_bytes": self.lm_head_bytes} if self.lm_head_bytes else {}
        sizes = {str(bound): size for bound, size in self.bytes_per_token().items()}
        return {
            "tokens": self.tokens,
            "records": self.records,
            "file_bytes": self.file_bytes,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens_per_s,
            "device_hours": self.device_hours,
            "teacher": self.profile.facts() | {"bytes_per_token": sizes},
            **more,
        } | ({} if self.boundaries is None else {"boundaries": self.boundaries.facts()})

    def costs_text(self) -> str:
        """Return costs, profile and advice as lines for people."""
        if not self.missing_shards:
            return "to come: nothing, since all shards are there"
        if self.profile is None:
            return "to come: unknown, since no row looked at has anything to capture"
        more = 0.0 if self.boundaries is None else self.boundaries.file_bytes
        more += self.lm_head_bytes
        per_token = (self.file_bytes - more) / max(self.records, 1)
        costs = (
            f"to come: about {counted(self.tokens, 'token')}, {self.records:,} of them supervised; "
            f"{byte_count(self.file_bytes)} ({per_token:.0f} bytes a token); "
            f"{duration(self.seconds)} at {self.tokens_per_s:,.0f} tokens/s "
            f"({self.device_hours:.2g} device-hours)"
        )
        lines = [costs]
        if self.lm_head_bytes:
            lines.insert(0, self._lm_head_text())
        if self.size is not None and self.size.hidden_bytes:
            lines.insert(0, self._hidden_text(self.size.hidden_bytes))
        if self.boundaries is not None:
            lines.append(str(self.boundaries))
        if self.profile.mass:
            lines.append(str(self.profile))
            if sizes := self.bytes_per_token():
                shown = " · ".join(f"{bound:g}: {size:.0f}" for bound, size in sizes.items())
                lines.append(f"bytes a token, about, with --max-tail {shown}")
            if advice := self.profile.advice_text():
                lines.append(advice)
        return "\n".join(lines)

    def _hidden_text(self, bytes_per_token: float) -> str:
        """Say what hidden states take, and what the store would take without them."""
        records = max(self.records, 1)
        taken = bytes_per_token * self.records
        left = max(self.file_bytes - self.lm_head_bytes - taken, 0.0)
        return (
            f"hidden states: about {byte_count(taken)} ({bytes_per_token:.0f} bytes a token); "
            f"without --hidden the store takes {byte_count(left)} ({left / records:.0f} a token)"
        )

    def _lm_head_text(self) -> str:
        """Say what the output embedding takes, and whose it is."""
        return (
            f"the teacher's output embedding: about {byte_count(self.lm_head_bytes)} once, which "
            "are its weights: whoever is given the store has them, under the teacher's licence"
        )

    def __str__(self) -> str:
        seen = sample_text(self.sample, self.rows, self.missing_shards, self.shards)
        return f"{seen}\n{self.costs_text()}"

    def announce(self, events: JsonLog) -> None:
        """Tell the costs to people and to `--log-json`."""
        log.info("%s", self.costs_text())
        events.write("forecast", **(self.costs() or {}))


def extrapolate(
    known: Forecast,
    *,
    tokens_per_s: float,
    size: StoredSize,
    profile: Profile,
    devices: int,
) -> Forecast:
    """Scale what was measured on the sample to the text that is still to be captured.

    Args:
        known: The forecast without costs.
        tokens_per_s: Tokens that the teacher reads a second.
        size: Bytes that records and shards take.
        profile: How the teacher's probability is spread.
        devices: Devices that the teacher is on.
    """
    sample = known.sample
    scale = known.missing_text_bytes / max(sample.text_bytes, 1)
    tokens, records = sample.tokens * scale, sample.records * scale
    seconds = tokens / max(tokens_per_s, 1e-9) + sample.seconds * scale
    file_bytes = _stored(size, known.missing_shards, records) * known.own_share
    boundaries = known.boundaries
    if boundaries is not None:
        more = _stored(size, known.missing_shards, boundaries.records)
        boundaries = replace(boundaries, file_bytes=more)
        file_bytes += more
    file_bytes += known.lm_head_bytes
    return replace(
        known,
        tokens=round(tokens),
        records=round(records),
        file_bytes=round(file_bytes),
        boundaries=boundaries,
        seconds=seconds,
        tokens_per_s=tokens / max(seconds, 1e-9),
        device_hours=seconds * devices / 3600,
        size=size,
        profile=profile,
    )


def _lm_head_bytes(spec: StoreSpec) -> int:
    """Count the bytes of the teacher's output embedding before compression; 0: it is not kept."""
    if spec.hidden is None or not spec.hidden.has_head:
        return 0
    return weight_bytes(spec.vocab_size, spec.hidden.width, str(spec.teacher["dtype"]))


def _stored(size: StoredSize, shards: int, records: float) -> float:
    return size.shard_bytes * shards + size.record_bytes * records


def stored_size(spec: StoreSpec, plan: Plan, pairs: Pairs) -> StoredSize:
    """Fit a line through the sizes of two shards: of every other sequence, and of all.

    With (n1, b1) and (n2, b2) the records and bytes of the two, a record takes the slope
    (b2 - b1) / (n2 - n1) and a shard without records the intercept b2 - slope * n2. One shard
    alone could not tell its fixed part (directory, metadata) from its records.
    """
    ordered = sorted(pairs, key=lambda pair: (pair[0].row, pair[0].part))
    both = (ordered[::2], ordered)
    half, all_members = (build_shard(spec, plan, 0, part) for part in both)
    hidden = [_hidden_bytes(spec, plan, part) for part in both]
    small = _measured(ordered[::2], half, hidden[0])
    large = _measured(ordered, all_members, hidden[1])
    slope = _slope(small, large)
    of_hidden = _slope(_Point(small.records, hidden[0]), _Point(large.records, hidden[1]))
    entries = sum(encoded.total(ENTRIES) for _, encoded in ordered if encoded)
    entry_bytes = sum(
        len(memoryview(data).cast("B"))
        for name, data in all_members.items()
        if name.startswith(("entry_ids/", "entry_logprobs/"))
    )
    return StoredSize(
        shard_bytes=max(large.total_bytes - slope * large.records, 0.0),
        record_bytes=slope,
        entry_bytes=entry_bytes / max(entries, 1),
        entries_per_record=entries / max(large.records, 1),
        hidden_bytes=of_hidden,
    )


class _Point(NamedTuple):
    records: int
    total_bytes: int


def _slope(small: _Point, large: _Point) -> float:
    if small.records in (0, large.records):  # no second point: all bytes are the records'
        return large.total_bytes / max(large.records, 1)
    return (large.total_bytes - small.total_bytes) / (large.records - small.records)


def _hidden_bytes(spec: StoreSpec, plan: Plan, pairs: Pairs) -> int:
    """Count the bytes of a file with the hidden states of these records; 0: there are none."""
    if spec.hidden is None:
        return 0
    return bytes_of(packed_sidecar(spec, plan, 0, [encoded for _, encoded in pairs]))


def _measured(pairs: Pairs, members: Mapping[str, Buffer], hidden_bytes: int) -> _Point:
    """Count the records of a shard, and its bytes as a file, and as another of hidden states."""
    records = sum(len(encoded) for _, encoded in pairs if encoded)
    return _Point(records, bytes_of(pack(members)) + hidden_bytes)
