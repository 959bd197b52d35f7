"""What a notebook shows of a store, and of the records of a sequence. Everything is escaped."""

from html import escape

import numpy as np

from logitstore.console.terminal import printable
from logitstore.records import TokenRecords

_SHOWN_RECORDS = 20
_COLUMNS = ("record", "token id", "bytes", "p", "entropy", "outside", "entries", "largest p")


def records_html(records: TokenRecords) -> str:
    """The first records as a table; `?` for what an import's source did not say."""
    largest = records.padded(1).logprobs[:, 0] if len(records) else np.zeros(0)
    rows = []
    for t in range(min(len(records), _SHOWN_RECORDS)):
        start = int(records.byte_starts[t])
        cells = (
            str(t),
            str(int(records.token_ids[t])),
            f"{start}-{start + int(records.byte_lengths[t])}",
            _number(np.exp(records.token_logprob[t])),
            _number(records.entropy[t]),
            _number(np.exp(records.tail_logmass[t])),
            str(int(records.entry_count[t])),
            _number(np.exp(largest[t])),
        )
        rows.append("".join(f"<td>{escape(printable(cell))}</td>" for cell in cells))
    head = "".join(f"<th>{escape(name)}</th>" for name in _COLUMNS)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    more = len(records) - len(rows)
    rest = f"<p>{more:,} records more</p>" if more else ""
    return f"<table><tr>{head}</tr>{body}</table>{rest}"


def _number(value: float) -> str:
    return "?" if np.isnan(value) else f"{value:.4f}"
