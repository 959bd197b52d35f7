"""Read the reports that stages leave: apart from the stages, so that reading one needs no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_report(path: Path) -> dict[str, Any] | None:
    """Read a stage's report; None if there is none."""
    return dict(json.loads(path.read_text())) if path.exists() else None


def is_whole(report: Mapping[str, Any] | None) -> bool:
    """Tell whether a stage has measured all that it measures."""
    return report is not None and bool(report.get("is_whole", True))
