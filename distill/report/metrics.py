"""Name the figures that students are compared by, and write them and their runs' names."""

import math
from typing import Any, NamedTuple, TypeGuard

from logitstore.console.terminal import printable

_LONGEST_NAME, _LARGEST = 40, 1e18
_COST = ("time_s", "peak_rss_bytes")


def with_minus(number: str) -> str:
    """Write a number's hyphens as the minus signs that they stand for, also in its exponent."""
    return number.replace("-", "\N{MINUS SIGN}")


class Metric(NamedTuple):
    """One figure of a run object.

    Attributes:
        name: Its key.
        label: For people.
        lower_is_better: Or higher.
        how: The format of a value.
        unit: Of the label, in that of the key.
    """

    name: str
    label: str
    lower_is_better: bool
    how: str = ".3f"
    unit: float = 1

    def shown(self, value: float | None, sign: str = "") -> str:
        """Write a value in the unit of the label; with `sign` "+", its sign too, but of a zero."""
        if value is None:
            return "-"
        text = format(value / self.unit, f"{sign}z,{self.how}")  # z: no zero is negative
        return with_minus(text) if text.strip("+0.") else text.removeprefix("+")


#: All that is known, in the order of the columns; a table has those that some run has.
METRICS = (
    Metric("bits_per_byte", "bits/byte", lower_is_better=True),
    Metric("agreement", "agreement", lower_is_better=False),
    Metric("agreement_prefix", "agreement (prefix)", lower_is_better=False),
    Metric("uld", "ULD", lower_is_better=True),
    Metric("calibration_error", "calibration error", lower_is_better=True),
    Metric("token_f1", "token F1", lower_is_better=False),
    Metric("exact_match", "exact match", lower_is_better=False),
    Metric("rouge1", "ROUGE-1", lower_is_better=False),
    Metric("rouge2", "ROUGE-2", lower_is_better=False),
    Metric("rougeL", "ROUGE-L", lower_is_better=False),
    Metric("rougeLsum", "ROUGE-Lsum", lower_is_better=False),
    Metric("time_s", "time, s", lower_is_better=True, how=".1f"),
    Metric("peak_rss_bytes", "peak memory, MiB", lower_is_better=True, how=".0f", unit=2**20),
)


def is_cost(metric: Metric) -> bool:
    """Tell whether a metric is a cost of training, in which nobody wins."""
    return metric.name in _COST


def shown_name(name: str) -> str:
    """Shorten and clean a run's name, which may be any text, for a terminal or a page."""
    shown = printable(name)
    return shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…"


def is_number(value: Any) -> TypeGuard[int | float]:
    """Tell whether a value of a JSON file is a finite number that a table has room for."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _LARGEST and math.isfinite(value)
