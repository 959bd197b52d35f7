"""Students side by side: means over seeds, and differences seed by seed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.report import comparison
from distill.report.leaderboard import table
from logitstore.errors import InputError
from tests.kit.paths import ROOT


def run(name: str, seed: int, bits: float | None, **more: Any) -> dict[str, Any]:
    return {"name": name, "seed": seed, "bits_per_byte": bits, "time_s": 3.0, **more}


RUNS = [
    run("ce", 0, 2.0, agreement=0.5),
    run("ce", 1, 2.4, agreement=0.4),
    run("mapped", 0, 1.9, agreement=0.6),
    run("mapped", 1, 2.1, agreement=0.4),
    run("mapped", 2, 9.0),
]


def test_a_difference_is_taken_seed_by_seed() -> None:
    found = comparison.compare(RUNS)
    base, other = found["contenders"]
    assert found["baseline"] == base["name"] == "ce"
    own = other["metrics"]["bits_per_byte"]
    assert own["values"] == {"0": 1.9, "1": 2.1, "2": 9.0}
    assert own["mean"] == pytest.approx(13 / 3)
    assert (own["min"], own["max"]) == (1.9, 9.0)
    assert own["difference"] == pytest.approx((-0.1 - 0.3) / 2)  # seed 2 has no partner
    assert (own["wins"], own["pairs"]) == (2, 2)
    assert base["metrics"]["bits_per_byte"]["std"] == pytest.approx(0.2 * 2**0.5)
    assert base["metrics"]["bits_per_byte"]["difference"] is None
    assert base["metrics"]["bits_per_byte"]["verdict"] is None
    # t(1) std / sqrt(2) of two differences, of one contender: 12.706 * 0.1414 / 1.4142
    assert own["half_width"] == pytest.approx(1.2706, abs=1e-4)
    assert own["verdict"] == "undecided"
    higher = other["metrics"]["agreement"]  # where higher is better
    assert (higher["wins"], higher["pairs"]) == (1, 2)


def test_the_baseline_can_be_named_and_comes_first() -> None:
    found = comparison.compare(RUNS, "mapped")
    assert [each["name"] for each in found["contenders"]] == ["mapped", "ce"]
    assert found["contenders"][1]["metrics"]["bits_per_byte"]["difference"] == pytest.approx(0.2)
    with pytest.raises(InputError, match=r"--baseline uld: none of these.* ce, mapped"):
        comparison.compare(RUNS, "uld")


def test_students_that_nobody_measured_are_called_that() -> None:
    found = comparison.compare([run("a", 0, None), run("b", 0, None)])
    assert "`distill evaluate FOLDER DATA` measures how good they are" in found["notes"][0]
    assert comparison.compare(RUNS)["notes"] == []


def test_figures_of_other_texts_are_not_compared_without_a_word() -> None:
    def measured(text_bytes: int, left_out: int, path: str) -> dict[str, Any]:
        facts = {"data": path, "rows": 9, "bytes": text_bytes, "bytes_left_out": left_out}
        return {"evaluation": facts, "judged": {"store": "s", "store_digest": "d"}}

    # What a tokenizer cannot predict, and where the text lies, make it no other text.
    same = [run("a", 0, 1.0, **measured(90, 10, "x")), run("b", 0, 1.0, **measured(100, 0, "/y"))]
    assert comparison.compare(same)["notes"] == []
    other = comparison.compare([*same, run("c", 0, 1.0, **measured(80, 10, "\x1b[2Jz"))])
    [note] = other["notes"]
    assert note.startswith("bits/byte: not all were measured alike")
    assert "x (9 rows, 100 bytes); \\x1b[2Jz (9 rows, 90 bytes)" in note
    assert other["unlike"] == ["bits_per_byte"]
    assert other["finding"].startswith("No verdict: bits/byte was not measured alike")
    assert note in " ".join(table(other).split())


def test_figures_that_are_none_or_not_finite_or_no_numbers_are_left_out() -> None:
    runs = [run("a", 0, None), run("a", 1, float("nan")), run("b", 0, 1.0, agreement="high")]
    found = comparison.compare(runs)
    assert [m["name"] for m in found["metrics"]] == ["bits_per_byte", "time_s"]
    assert found["contenders"][0]["metrics"]["bits_per_byte"]["mean"] is None
    assert "-" in table(found)


def test_a_name_cannot_command_a_terminal_or_fill_it() -> None:
    shown = table(comparison.compare([run("\x1b[2Jhe\nllo" + "x" * 500, 0, 1.0)]))
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) < 130


def test_two_runs_of_one_contender_and_seed_are_refused() -> None:
    with pytest.raises(InputError, match=r"several runs with seed 0.*--run_name"):
        comparison.compare([run("a", 0, 1.0), run("a", 0, 2.0)])


def test_runs_without_any_figure_are_refused() -> None:
    with pytest.raises(InputError, match="none of these runs has a figure"):
        comparison.compare([{"name": "a", "seed": 0}])


def test_a_folder_and_its_file_are_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RUNS[0]))
    assert (
        comparison.read(str(tmp_path)) == comparison.read(str(tmp_path / "results.json")) == RUNS[0]
    )


@pytest.mark.parametrize("content", [None, "{", "[]", '{"seed": 1}', "[" * 100_000])
def test_a_folder_without_a_run_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"results\.json"):
        comparison.read(str(tmp_path))


def test_comparing_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RUNS[0]))
    code = (
        "import sys; from distill.cli import main; sys.argv = ['distill', 'compare', sys.argv[1], "
        "'--json']\ntry: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["baseline"] == "ce"
