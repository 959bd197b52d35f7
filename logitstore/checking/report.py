"""What a check of a store found: damage, file by file."""

from dataclasses import asdict, dataclass, field
from typing import Any

from logitstore.errors import CorruptStoreError


@dataclass(frozen=True)
class Damage:
    """A file that is not what was committed.

    Attributes:
        file: The name of the file, relative to the store.
        rows: The first and last dataset row that cannot be trusted; None if not known.
        reason: What is wrong.
        kind: As of a `CorruptStoreError`: a short code that stays the same.
    """

    file: str
    rows: tuple[int, int] | None
    reason: str
    kind: str = CorruptStoreError.kinds[0]

    def __post_init__(self) -> None:
        assert self.kind in CorruptStoreError.kinds, self.kind

    def to_json(self) -> dict[str, Any]:
        """Return the damage as `logitstore verify --json` prints it."""
        return asdict(self) | {"rows": list(self.rows) if self.rows else None}


@dataclass
class VerifyReport:
    """The result of a check.

    Attributes:
        shards: The number of shards that the store should have.
        checked_before: How many of them an interrupted check had found whole.
        rows: The number of dataset rows in them.
        is_complete: Whether the capture has finished.
        damaged: All damage that was found.
        boundaries: The results of the stores inside it, by folder; their damage is in `damaged`
            too.
    """

    shards: int = 0
    rows: int = 0
    is_complete: bool = True
    damaged: list[Damage] = field(default_factory=list)
    boundaries: "dict[str, VerifyReport]" = field(default_factory=dict)
    checked_before: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as `logitstore verify --json` prints it."""
        inside = {name: report.to_json() for name, report in self.boundaries.items()}
        before = {"checked_before": self.checked_before} if self.checked_before else {}
        return (
            {
                "shards": self.shards,
                "rows": self.rows,
                "complete": self.is_complete,
                "damaged": [d.to_json() for d in self.damaged],
            }
            | before
            | ({"boundaries": inside} if inside else {})
        )
