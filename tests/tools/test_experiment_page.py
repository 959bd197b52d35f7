"""The benchmark page says of the experiment what its runs say, and no surer than they are."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tools.bench_page import page
from tools.experiment_page import KEPT, PARTS, PLOT, SAID, Line, lines, plot, table, teachers
from tools.experiment_quality import FULL, QUICK, jobs, take_over


def line(*differences: float) -> Line:
    return Line("main", "uld", [2.0 + d for d in differences], list(differences))


def runs(**differences: list[float]) -> list[dict[str, Any]]:
    """Runs of `main` at 2, 3, … bits by seed for cross-entropy, and as far from it as given."""
    all_of_them = {"ce": [0.0] * 3, **differences}
    return [
        {
            "part": "main",
            "loss": loss,
            "seed": seed,
            "k": 64,
            "teacher": 1,
            "bits_per_byte": 2 + seed + d,
        }
        for loss, each in all_of_them.items()
        for seed, d in enumerate(each)
    ]


def test_a_loss_is_compared_seed_by_seed() -> None:
    """Seeds that are a whole bit apart do not hide a tenth that all of them agree on."""
    baseline, found = lines(runs(uld=[-0.1, -0.1, -0.1]))
    assert baseline.differences == []
    assert found.differences == pytest.approx([-0.1] * 3)
    assert found.verdict == "better"


def test_better_and_worse_are_said_where_the_95_percent_interval_leaves_out_zero() -> None:
    # mean 0.2, standard deviation 0.1: 4.303 * 0.1 / sqrt(3) = 0.2484
    assert line(0.1, 0.2, 0.3).half_width == pytest.approx(0.2484, abs=1e-4)
    assert line(0.1, 0.2, 0.3).verdict == "worse?"
    assert line(0.2, 0.3, 0.4).verdict == "worse"
    assert line(-0.2, -0.3, -0.4).verdict == "better"
    assert line(-0.1, 0.2, 0.3).verdict == "undecided"
    assert line(0.0, 0.1, 0.1).verdict == "undecided"


def test_one_seed_decides_nothing() -> None:
    assert line(-0.5).half_width is None
    assert line(-0.5).verdict == "undecided"


def kept() -> Any:
    return json.loads(KEPT.read_text())


def test_what_is_kept_is_one_whole_run_of_the_experiment() -> None:
    names = [(r["part"], r["loss"], r["k"], r["seed"]) for r in kept()["runs"]]
    assert names == [(job.part, job.loss, job.k, job.seed) for job in jobs(FULL)]
    assert kept()["scale"] == json.loads(json.dumps(vars(FULL)))
    assert {job.part for job in jobs(QUICK)} == PARTS.keys()


def test_every_figure_of_the_conclusions_is_in_the_table() -> None:
    said = SAID.read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    figures = re.findall(r"[+-]\d\.\d{3}|(?<![\d.])[12]\.\d{3}(?!\d)", said)
    shown = table(kept())
    assert len(figures) > 10
    assert [figure for figure in figures if figure not in shown] == []


def test_the_page_has_it_whatever_was_measured() -> None:
    shown = page({})
    assert table(kept()) in shown
    assert f"]({PLOT.name})" in shown


def test_the_plot_is_that_of_the_table_and_is_read_in_dark_too() -> None:
    drawn = plot(kept())
    assert drawn == PLOT.read_text(encoding="utf-8")
    assert "prefers-color-scheme:dark" in drawn
    root = ET.fromstring(drawn)
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    wanted = [d for each in lines(kept()["runs"]) for d in each.differences]
    assert len(circles) == len(wanted)
    assert [c.get("class") for c in circles] == ["less" if d < 0 else "more" for d in wanted]


def test_only_whole_parts_are_taken_over_and_keep_their_teacher(tmp_path: Path) -> None:
    wanted = [job for job in jobs(FULL) if job.part in ("main", "warm")]
    runs = [
        job._asdict() | {"bits_per_byte": 2.5, "time_s": 1.0, "teacher": 1.25} for job in wanted
    ]
    known, out = tmp_path / "known.json", tmp_path / "out"
    known.write_text(json.dumps({"runs": runs[:-1]}))  # a student of `warm` is missing
    take_over(out, known, FULL)
    found = [json.loads(path.read_text()) for path in (out / "runs").iterdir()]
    assert len(found) == sum(job.part == "main" for job in wanted)
    assert {(run["part"], run["teacher"]) for run in found} == {("main", 1.25)}


def test_students_are_compared_with_those_of_the_same_teacher() -> None:
    two = [{**run, "teacher": run["part"]} for run in kept()["runs"]]
    with pytest.raises(ValueError, match="several teachers"):
        list(lines(two))
    theirs = [{**run, "teacher": 1.5 + (run["part"] == "warm")} for run in kept()["runs"]]
    assert teachers(theirs)[2.5] == [PARTS["warm"]]
    assert "2.500 of another tokenizer, trained weights, little text." in table({"runs": theirs})
