"""Look for text that a chat template has written already: special tokens stand in it by name."""

from __future__ import annotations

import logging
import re

import numpy as np
import pyarrow.compute as pc

from logitstore.rows import arrow_text as as_bytes
from logitstore.rows.dataset import Rows
from logitstore.rows.renderer import Renderer
from logitstore.text.parse_special import SpecialNames

log = logging.getLogger(__name__)

_BATCH_ROWS = 10_000


def warn_of_special(rows: Rows, render: Renderer) -> None:
    """Warn where texts hold names of special tokens, and nothing was said of how to read them."""
    if rows.kind not in ("text", "prompt_completion") or render.special is not None:
        return
    pattern = SpecialNames(render.tokenizer).pattern
    if not pattern:
        return
    in_rows, names, example = _count(rows, pattern)
    if in_rows:
        log.warning(
            "%s: %s of %s rows hold %s special tokens of the teacher's tokenizer as text, such as "
            "%s, as if a chat template had written them. A BOS comes before it once more, and a "
            "student of another tokenizer learns to spell them. Read them as tokens with "
            "--parse-special, or give `messages`.",
            rows.name,
            f"{in_rows:,}",
            f"{len(rows):,}",
            f"{names:,}",
            example,
        )


def _count(rows: Rows, pattern: str) -> tuple[int, int, str]:
    """Count the rows with such names, and all names in them; return one, too."""
    in_rows = names = 0
    example = ""
    for first in range(0, len(rows), _BATCH_ROWS):
        table = rows.arrow(first, min(first + _BATCH_ROWS, len(rows)))
        for column in rows.columns if not example else ():
            texts = as_bytes.of_text(table.column(column))
            found = texts.filter(pc.match_substring_regex(texts, pattern))
            if len(found):
                match = re.search(pattern, found[0].as_py().decode())
                example = example or (match[0] if match else "")
        counts = [
            np.asarray(pc.count_substring_regex(as_bytes.of_text(table.column(c)), pattern))
            for c in rows.columns
        ]
        in_row = np.sum(counts, axis=0)
        in_rows += int((in_row > 0).sum())
        names += int(in_row.sum())
    return in_rows, names, example
