"""Show what a run logs as a table of 80 columns, where Trainer prints dictionaries."""

import sys
from collections.abc import Mapping
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

_WIDTH = 80
#: What has a column, the most wanted first, and how it is written; a loss's own come after these.
_COLUMNS = {
    "step": "d",
    "epoch": ".2f",
    "loss": ".4f",
    "ce_loss": ".4f",
    "kd_loss": ".4f",
    "covered_fraction": ".1%",
    "learning_rate": ".2e",
    "tokens_per_second": ",.0f",
    "store_wait_fraction": ".1%",
    "grad_norm": ".3g",
}
_HEADINGS = {
    "covered_fraction": "covered",
    "learning_rate": "rate",
    "tokens_per_second": "tokens/s",
    "store_wait_fraction": "wait",
}
_EVALUATED = "eval_"
#: Of an evaluation: how long it took.
_TIMES = ("runtime", "samples_per_second", "steps_per_second")


class LogTable:
    """Lays out logs, with a heading where the columns change."""

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}

    def lines(self, logs: Mapping[str, Any], step: int) -> list[str]:
        """Write a log as lines; none for the totals at the end, which are said elsewhere.

        Args:
            logs: What Trainer logs, by name.
            step: The step at which it does.
        """
        if "train_runtime" in logs:
            return []
        if any(name.startswith(_EVALUATED) for name in logs):
            return [_evaluation(logs, step)]
        numbers = {k: v for k, v in logs.items() if isinstance(v, int | float)} | {"step": step}
        wanted = [name for name in _COLUMNS if name in numbers]
        wanted += [n for n in numbers if n.endswith("_loss") and n not in wanted]
        written = {name: format(numbers[name], _COLUMNS.get(name, ".4f")) for name in wanted}
        columns = _fitting({n: max(len(_heading(n)), len(text), 6) for n, text in written.items()})
        lines = list[str]()
        if columns.keys() != self._columns.keys() or any(
            len(written[name]) > width for name, width in self._columns.items()
        ):
            self._columns = columns
            lines.append("  ".join(_heading(n).rjust(w) for n, w in self._columns.items()))
        lines.append("  ".join(written[n].rjust(w) for n, w in self._columns.items()))
        return lines


def _fitting(widths: Mapping[str, int]) -> dict[str, int]:
    """Choose the first columns, as many as fit beside each other."""
    chosen, used = dict[str, int](), -2
    for name, width in widths.items():
        used += 2 + width
        if used > _WIDTH:
            break
        chosen[name] = width
    return chosen


def _heading(name: str) -> str:
    return _HEADINGS.get(name, name)


def _evaluation(logs: Mapping[str, Any], step: int) -> str:
    names = (name.removeprefix(_EVALUATED) for name in logs if name.startswith(_EVALUATED))
    place = {name: i for i, name in enumerate(_COLUMNS)}
    found = sorted((n for n in names if n not in _TIMES), key=lambda n: place.get(n, len(place)))
    parts = [f"{_heading(n)} {format(logs[_EVALUATED + n], _COLUMNS.get(n, '.4f'))}" for n in found]
    return f"held out, at step {step:,}: {', '.join(parts)}"


class _Lines(TrainerCallback):
    """Prints the table to stderr."""

    def __init__(self, table: LogTable) -> None:
        self._table = table

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if state.is_world_process_zero:
            for line in self._table.lines(given.get("logs") or {}, state.global_step):
                print(line, file=sys.stderr, flush=True)


class _Bar(ProgressCallback):
    """Shows Trainer's bar, and the table above it."""

    def __init__(self, table: LogTable) -> None:
        super().__init__()
        self._table = table

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **given: Any,
    ) -> None:
        bar: Any = self.training_bar
        if state.is_world_process_zero and bar is not None:
            for line in self._table.lines(logs or {}, state.global_step):
                bar.write(line, file=sys.stderr)


def show_as_table(trainer: Trainer) -> None:
    """Let a trainer show a table of its logs where it would print dictionaries."""
    table = LogTable()
    for old, new in ((PrinterCallback, _Lines), (ProgressCallback, _Bar)):
        if trainer.pop_callback(old) is not None:
            trainer.add_callback(new(table))
