"""What a driver and its teachers say to each other. All of it can be pickled, and knows no Ray."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from logitstore.capture.estimate.sample import Sample
from logitstore.capture.settings import CaptureSettings
from logitstore.capture.text_sizes import TextSizes
from logitstore.errors import (
    BusyError,
    FormatError,
    IncompleteStoreError,
    InputError,
    LogitStoreError,
    MismatchError,
    MissingLibraryError,
    NotAStoreError,
    StorageError,
)
from logitstore.format.spec import Plan, StoreSpec
from logitstore.rows.part import Part

#: Of a file that is damaged the driver has no path; a capture that writes reads next to none.
_KINDS = (
    InputError,
    StorageError,
    MismatchError,
    BusyError,
    FormatError,
    IncompleteStoreError,
    MissingLibraryError,
    NotAStoreError,
)


@dataclass(frozen=True)
class Job:
    """What every teacher is told first.

    Attributes:
        teacher: The model; if it is a folder, its whole path.
        settings: Those of the capture; its files by whole paths.
        spec: What the store holds, as the driver found it.
        plan: Which rows are in which shard.
        provenance: How the store is made, for people.
        sample: Some rows as sequences.
        part: These rows, and those that the size of a batch is measured with.
        threads: Threads that torch uses where one process captures.
        gpus: GPUs that each teacher was promised.
    """

    teacher: str
    settings: CaptureSettings
    spec: StoreSpec
    plan: Plan
    provenance: dict[str, Any]
    sample: Sample
    part: Part
    threads: int
    gpus: float


class Begun(NamedTuple):
    """The store that was begun.

    Attributes:
        out: Its folder or URL.
        spec_sha256: Digest of its `store.json`.
        sign: Of a folder: what the driver wrote there to say that it is at work.
        budget: Padded tokens of a batch.
    """

    out: str
    spec_sha256: str
    sign: bytes | None
    budget: int


@dataclass(frozen=True)
class ShardRows:
    """The rows of a shard.

    Attributes:
        index: Number of the shard.
        part: Its rows.
        sizes: How much text they have.
    """

    index: int
    part: Part
    sizes: TextSizes


@dataclass
class Said:
    """What a teacher has to tell since it was last asked.

    Attributes:
        work: What it has read of each shard in hand, in the units of the progress.
        tokens: Tokens that it has read.
        events: Events that it wrote to the journal.
        lines: Level and text of what it logged.
    """

    work: dict[int, int] = field(default_factory=dict)
    tokens: int = 0
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    lines: list[tuple[int, str]] = field(default_factory=list)


class Done(NamedTuple):
    """A shard that is committed, and its bytes."""

    stored_bytes: int


class Left(NamedTuple):
    """A shard that was not begun, for the driver asked to stop."""


class Failure(NamedTuple):
    """An error that was raised on purpose.

    Attributes:
        kind: The error's.
        text: Its message.
        is_of_rows: Whether it is about the rows that were read, so that other shards can go on.
    """

    kind: str
    text: str
    is_of_rows: bool

    @classmethod
    def of(cls, error: LogitStoreError) -> "Failure":
        """Describe an error: not every class can be pickled."""
        is_of_rows = isinstance(error, InputError) and error.kind != "engine"
        return cls(error.kind, str(error), is_of_rows)

    def error(self) -> LogitStoreError:
        """Make an error of the same kind."""
        found = next((kind for kind in _KINDS if self.kind in kind.kinds), None)
        return InputError(self.text) if found is None else found(self.text, kind=self.kind)
