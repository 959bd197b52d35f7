"""Write small datasets."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def rows_file(path: Path, *rows: dict[str, Any]) -> Path:
    """Write a `.jsonl` file with a row a line; return its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts_file(path: Path, texts: Iterable[str | None]) -> Path:
    """Write a `.jsonl` file of rows with a text each; return its path."""
    return rows_file(path, *({"text": text} for text in texts))
