"""Does it help, and what does it cost? The answer that BENCHMARKS.md begins with.

Nothing is measured here. What students gain is taken from what the experiments keep beside this
file, what it costs from the page's own sections, so the answer cannot say anything else than they.
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tools import experiment_labels_page, experiment_page, experiment_real_page
from tools.experiment_page import Line
from tools.labels.settings import Setting as Labels
from tools.real.settings import DATA, SETTINGS

TITLE = "Does it help, and what does it cost?"
PLOT = Path(__file__).with_name("first_screen.svg")
#: The default loss for two tokenizers, as the experiments name it.
_DEFAULT = "map events"
#: Of those with a real teacher: contender, loss.
_OF_REAL = {"tail_kl": "tail_kl", "the default": "mapped_kl", "uld by position": "uld:1.5"}


class Student(NamedTuple):
    """A student that was trained with a loss and with cross-entropy alone.

    Attributes:
        who: The student.
        teacher: The teacher.
        loss: The loss.
        line: What came of it.
    """

    who: str
    teacher: str
    loss: str
    line: Line


class Cost(NamedTuple):
    """Something that a user pays.

    Attributes:
        what: For people.
        row: The rows of the page that say it: their first cell, as a regular expression.
    """

    what: str
    row: str


_SMALL, _REAL = "a made one, 5 million weights", "SmolLM2-135M-Instruct"
_OF_64 = r"bytes a token, synthetic · portable · {}, K = 64"
COSTS = (
    Cost(
        "time of a step from a store, by loss; with cross-entropy alone 1", r"\w+ · time of CE only"
    ),
    Cost("memory of that step, likewise", r"\w+ · memory of CE only"),
    Cost(
        "of a live teacher's forward passes, saved",
        r"\w+ · saved beside a live teacher, of its forward",
    ),
    Cost(
        "of a step, spent waiting for the store", r"\w+ · of the time, spent waiting for the store"
    ),
    Cost(
        "time of a capture; the teacher's bare forward passes 1",
        r"length = \d+ · wall time of the bare forward",
    ),
    Cost("bytes a token: 64 entries, a vocabulary of 128k", _OF_64.format("entries")),
    Cost("without ids, enough for `uld`", _OF_64.format("log-probabilities only")),
    Cost("with `--max-tail 0.05`", _OF_64.format("entries, --max-tail 0.05")),
)
#: Of those on labels: the student and its teacher's tokenizer, setting, contender, loss.
_OF_LABELS = (
    ("new, another tokenizer, normal rate", ("unigram", "new", "normal"), _DEFAULT, "mapped_kl"),
    ("trained, another, normal rate", ("unigram", "trained", "normal"), _DEFAULT, "mapped_kl"),
    ("trained, another, gentle rate", ("unigram", "trained", "gentle"), _DEFAULT, "mapped_kl"),
    ("trained, another, normal rate", ("unigram", "trained", "normal"), "alm", "alm"),
    ("trained, another, gentle rate", ("unigram", "trained", "gentle"), "alm", "alm"),
    ("trained, another, normal rate", ("unigram", "trained", "normal"), "uld", "uld:1.5"),
    ("trained, another, gentle rate", ("unigram", "trained", "gentle"), "uld", "uld:1.5"),
    ("trained, its teacher's, normal rate", ("same", "trained", "normal"), "control", "tail_kl"),
    ("trained, its teacher's, gentle rate", ("same", "trained", "gentle"), "control", "tail_kl"),
)


def students() -> Iterator[Student]:
    """Collect what the experiments keep: those with real teachers first."""
    real = experiment_real_page.grouped(json.loads(experiment_real_page.KEPT.read_text()))
    for setting, (contender, loss) in product(SETTINGS, _OF_REAL.items()):
        line = experiment_real_page.line_of(real, setting, contender, "bits_per_byte")
        if line is not None and line.differences:
            yield Student(f"{setting.student}, {DATA[setting.data]}", _REAL, loss, line)
    labels = experiment_labels_page.lines(json.loads(experiment_labels_page.KEPT.read_text()))
    for who, of, contender, loss in _OF_LABELS:
        line = labels.get(experiment_labels_page.Key(Labels(*of), contender, "1"))
        if line is not None and line.differences:
            yield Student(who, _REAL, loss, line)
    quality = json.loads(experiment_page.KEPT.read_text())
    for line in experiment_page.lines(quality["runs"]):
        if (line.part, line.name) == ("same", "tail_kl"):
            yield Student("new, its teacher's, normal rate", _SMALL, line.name, line)


_WHAT = """\
Held-out bits per byte of a student that was trained with a loss from a store, less those of the
same student trained with cross-entropy alone: negative is better. All students are small and their
runs short; what larger ones gain is not known from here."""
_ENDS = "No figure of a GPU is claimed. Everything else is folded below: open what you doubt."


def section(below: str) -> str:
    """Write the answer.

    Args:
        below: The rest of the page, whose tables have the costs.
    """
    found = list(students())
    costs = [f"| {cost.what} | {said} |" for cost in COSTS if (said := _range(below, cost.row))]
    return "\n".join(
        [
            f"## {TITLE}",
            "",
            _counted([each.line.verdict for each in found]),
            "",
            _WHAT,
            "",
            "| student | teacher | loss | against `ce` | 95 % | seeds | |",
            "|---|---|---|--:|--:|--:|---|",
            *(f"| {' | '.join(_cells(each))} |" for each in found),
            "",
            f"![Each seed's difference to cross-entropy, and its 95 % interval]({PLOT.name})",
            "",
            "| cost, on two processor cores | measured |",
            "|---|--:|",
            *costs,
            "",
            _ENDS,
            "",
        ]
    )


def _counted(verdicts: Sequence[str]) -> str:
    """Say how many are better, beyond the noise of seeds."""
    better, worse = (sum(v == word for v in verdicts) for word in ("better", "worse"))
    rest = len(verdicts) - better - worse
    return (
        f"**Of {len(verdicts)} students that learnt from a store, {better} are better than "
        f"cross-entropy alone beyond 95 %, {worse} worse, {rest} not decided.**"
    )


def plot() -> str:
    """Draw the differences and their intervals, as SVG."""
    lines = [each.line._replace(name=f"{each.who}: {each.loss}") for each in students()]
    return experiment_page.drawing(lines, tick=0.05, labels=340)


def _cells(student: Student) -> Sequence[str]:
    line = student.line
    width = "" if line.half_width is None else f"± {line.half_width:.4f}"
    seeds = str(len(line.differences))
    return (
        student.who,
        student.teacher,
        f"`{student.loss}`",
        f"{line.mean:+.4f}",
        width,
        seeds,
        line.verdict,
    )


def _range(page: str, row: str) -> str:
    """Find the values of the goals whose first cell is as said: one, or the least and the most."""
    cells = re.findall(rf"^\| {row} \| (\S+) \| \S+ \|", page, re.MULTILINE)
    ordered = sorted(cells, key=lambda cell: float(cell.replace(",", "")))
    return " to ".join(dict.fromkeys([ordered[0], ordered[-1]])) if ordered else ""


def main() -> None:
    """Write the plot."""
    PLOT.write_text(plot(), encoding="utf-8")


if __name__ == "__main__":
    main()
