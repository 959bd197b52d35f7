"""What measured runs say of the ways to train: the figures that advice rests on, and cites.

All are differences in held-out bits per byte from cross-entropy alone, of students that began alike
and read the same rows in the same order. Less is better. They stand in the tables of
`tools/experiment_labels.md` and `tools/experiment_real.md`, in the repository.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """What a way to train was worth to some students.

    Attributes:
        loss: The loss.
        options: Its options.
        is_new: Whether the students began with random weights.
        setting: The students and how they were trained, in a few words.
        difference: The mean over seeds.
        seeds: How many.
        is_sure: Whether zero is outside of its 95 % interval.
        line: The experiment, and the line of its table.
    """

    loss: str
    options: Mapping[str, Any]
    is_new: bool
    setting: str
    difference: float
    seeds: int
    is_sure: bool
    line: str

    def __str__(self) -> str:
        runs = f"{self.seeds} runs{'' if self.is_sure else ', within noise'}"
        difference = f"{self.difference:+.4f}".replace("-", "\N{MINUS SIGN}")
        return f"{difference} {self.setting} ({runs})"


_EVENTS, _PAPERS = {"map": "events"}, {"uncovered": "none"}
_ANSWERS = "at 1e-4 on the teacher's answers"
EVIDENCE = (
    Measured(
        *("mapped_kl", _EVENTS, False, _ANSWERS, -0.0151, 3, True),
        "real/foreign/answers/the default",
    ),
    Measured(
        *("uld", {"pairing": "position"} | _PAPERS, False, _ANSWERS, 0.0381, 3, True),
        "real/foreign/answers/uld by position",
    ),
    Measured(
        *("uld", _PAPERS, False, _ANSWERS, 0.0386, 3, True),
        "real/foreign/answers/uld by bytes",
    ),
    Measured(
        *("mapped_kl", _EVENTS, True, "at 1e-3", -0.0316, 3, True),
        "labels/unigram/new/normal/map events",
    ),
    Measured(
        *("mapped_kl", _EVENTS, False, "at 1e-3", -0.0258, 2, True),
        "labels/unigram/trained/normal/map events",
    ),
    Measured(
        *("mapped_kl", _EVENTS, False, "at 2e-4", -0.0009, 2, False),
        "labels/unigram/trained/gentle/map events",
    ),
    Measured(
        *("tail_kl", {}, False, "at 1e-3", -0.0708, 3, True),
        "labels/same/trained/normal/control",
    ),
    Measured(
        *("tail_kl", {}, False, "at 2e-4", -0.0033, 3, True),
        "labels/same/trained/gentle/control",
    ),
    Measured(*("alm", {}, False, "at 1e-3", -0.0008, 3, True), "labels/unigram/trained/normal/alm"),
    Measured(
        *("alm", {}, False, "at 2e-4", -0.0001, 3, False), "labels/unigram/trained/gentle/alm"
    ),
    Measured(*("uld", {}, False, "at 1e-3", 0.0086, 3, True), "labels/unigram/trained/normal/uld"),
    Measured(*("uld", {}, False, "at 2e-4", 0.0093, 3, True), "labels/unigram/trained/gentle/uld"),
)


def measured(loss: str, options: Mapping[str, Any], weights: str) -> str:
    """Say what a way to train was worth where it was measured; empty where it was not.

    Args:
        loss: The loss.
        options: Its options.
        weights: `new`, `trained` or `unknown`; one that is not known counts as trained.
    """
    is_new = weights == "new"
    found = [
        each
        for each in EVIDENCE
        if (each.loss, each.options, each.is_new) == (loss, dict(options), is_new)
    ]
    if not found:
        return ""
    return "; ".join(map(str, found))


def harm(loss: str, weights: str) -> str:
    """Say where a loss surely made students worse, with whatever options; empty if nowhere.

    Args:
        loss: The loss.
        weights: `new`, `trained` or `unknown`; one that is not known counts as trained.
    """
    is_new = weights == "new"
    found = [each for each in EVIDENCE if (each.loss, each.is_new) == (loss, is_new)]
    return "; ".join(str(each) for each in found if each.is_sure and each.difference > 0)
