"""The figures that advice cites are those of the experiments' tables, and they bear the advice."""

import json
from collections.abc import Mapping
from functools import cache

import pytest

from distill.losses.advice import ADVICE
from distill.losses.evidence import EVIDENCE, Measured, measured
from tools import experiment_labels_page, experiment_real_page
from tools.experiment_page import Line
from tools.labels.settings import CONTENDERS
from tools.real.settings import CONTENDERS as REAL_CONTENDERS


@cache
def lines_of_tables() -> Mapping[str, Line]:
    """Each line of both experiments' tables, by the name that evidence has for it."""
    labels = json.loads(experiment_labels_page.KEPT.read_text())
    found = {
        "/".join(("labels", *key.setting, key.contender)): line
        for key, line in experiment_labels_page.lines(labels).items()
        if key.weight == "1"
    }
    real = experiment_real_page.grouped(json.loads(experiment_real_page.KEPT.read_text()))
    for setting, contender in real:
        line = experiment_real_page.line_of(real, setting, contender, "bits_per_byte")
        assert line is not None
        found["/".join(("real", *setting, contender))] = line
    return found


@pytest.mark.parametrize("each", EVIDENCE, ids=lambda each: each.line)
def test_a_figure_is_that_of_its_table(each: Measured) -> None:
    line = lines_of_tables()[each.line]
    assert line.differences
    assert each.difference == round(line.mean, 4)
    assert each.seeds == len(line.differences)
    assert each.is_sure == (line.verdict in ("better", "worse"))


@pytest.mark.parametrize("each", EVIDENCE, ids=lambda each: each.line)
def test_a_figure_is_of_the_way_that_it_is_cited_for(each: Measured) -> None:
    experiment, *_, contender = each.line.split("/")
    if experiment == "real":
        made = REAL_CONTENDERS[contender]
        loss, is_new = made.loss, each.line.startswith("real/new/")
    else:
        loss, is_new = CONTENDERS[contender].loss, "/new/" in each.line
        assert ("/same/" in each.line) == (contender == "control")
    assert (each.loss, each.is_new) == (loss.split(":")[0], is_new)


def test_what_is_advised_for_two_tokenizers_is_the_best_that_was_measured() -> None:
    """Of the same students and rate, no other line is better; ties are within noise."""
    advised = {
        way.where: way for way in ADVICE if way.where in ("a new student", "a trained student")
    }
    for is_new, where in ((True, "a new student"), (False, "a trained student")):
        way, rates = advised[where], {e.setting for e in EVIDENCE if e.is_new == is_new}
        for rate in rates:
            same = [e for e in EVIDENCE if (e.is_new, e.setting) == (is_new, rate)]
            across = [e for e in same if e.loss != "tail_kl"]
            own = [e for e in across if (e.loss, e.options) == (way.loss, way.options)]
            assert own
            assert min(e.difference for e in across) == own[0].difference


def test_what_was_not_measured_is_not_cited() -> None:
    events = {"map": "events"}
    assert measured("gold", {}, "trained") == ""
    assert measured("mapped_kl", {"map": "prefix"}, "trained") == ""
    assert measured("mapped_kl", events, "unknown") == measured("mapped_kl", events, "trained")
    assert measured("mapped_kl", events, "new") == "\N{MINUS SIGN}0.0316 at 1e-3 (3 runs)"
