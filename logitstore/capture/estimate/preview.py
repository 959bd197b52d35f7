"""What `logitstore estimate` and `logitstore capture --dry-run` find out."""

from dataclasses import dataclass
from typing import Any

from logitstore.capture.estimate.forecast import Foretold, Outlook
from logitstore.capture.estimate.sample import Sample, seen


@dataclass(frozen=True)
class Preview:
    """The sample; and what is to come, where the teacher was asked."""

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
