"""Run the demo from top to bottom; `bash tools/demo.sh` does so after its own set-up."""

import json
import platform
import shutil
import signal
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tools.demo.clock import Clock
from tools.demo.commands import CommandError, Commands
from tools.demo.corpus import load_corpus, write_jsonl
from tools.demo.hub import choose, make_models
from tools.demo.settings import PHASES, QUICK, Settings, cores
from tools.demo.students import (
    compare_command,
    evaluate_command,
    put_back,
    teacher_away,
    train_all,
)
from tools.demo.table import table

QuickOpt = Annotated[
    bool, typer.Option("--quick", help="Tiny sizes: shows that every step works, learns nothing.")
]
TeacherOpt = Annotated[
    Literal["smollm2", "tiny"] | None,
    typer.Option(
        help="SmolLM2-135M-Instruct of a package index, or a small one that is trained here. "
        "Without this: the real one if it can be had.",
        show_default=False,
    ),
]
OutOpt = Annotated[Path, typer.Option(help="Folder for everything it makes.")]

#: What to type next: the three commands of the README's three jobs.
NEXT = """\
With a teacher, a student and text of your own (folders, or ids of a model hub):

  logitstore capture TEACHER train.jsonl --out store --top-k 64
  distill coverage store STUDENT
  distill train --model_name_or_path STUDENT --store store --output_dir trained"""


def main(
    quick: QuickOpt = False, teacher: TeacherOpt = None, out: OutOpt = Path("build/demo")
) -> None:
    """Teacher pass, store, students trained four ways, on real text; one table in the end."""
    # As Ctrl-C does: a demo that is told to end puts the teacher back first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if quick and teacher is not None:
        raise typer.BadParameter("--quick trains a teacher of its own: leave out --teacher.")
    try:
        results = run_demo(out, QUICK if quick else choose(teacher))
    except CommandError as error:
        typer.echo(f"error: {error}\nRun the demo again to go on from here.", err=True)
        raise typer.Exit(1) from None
    typer.echo(
        f"\n{table(results)}\n\nAll of it is in {out / 'results.json'}.\n"
        f"For a browser: the store in {out / 'report.html'}, the students in "
        f"{out / 'compare.html'}.\n\n{NEXT}"
    )


def run_demo(out: Path, settings: Settings) -> dict[str, Any]:
    """Run all steps in order; return what `results.json` holds.

    An interrupted run is continued; a finished one is started again.
    """
    started = time.monotonic()
    prepare(out, settings)
    commands = Commands(cache=out.resolve() / "cache")
    clock = Clock(dict(zip(PHASES, settings.guesses_s, strict=True)))
    data, teacher, store = out / "data", out / "teacher", out / "store"

    # 1. Real text, split by document.
    corpus = load_corpus(**settings.corpus_bytes)
    write_jsonl(data / "student.jsonl", corpus.student)
    write_jsonl(data / "heldout.jsonl", corpus.heldout)

    # 2. What a user has already: a teacher, and a student with another kind of tokenizer.
    clock.begin(PHASES[0])
    make_models(out, settings)

    # 3. The teacher pass: once, whatever the number of students.
    clock.begin(PHASES[1])
    commands.run(capture_command(out, settings), threads=cores())
    commands.run(["logitstore", "verify", str(store)], threads=cores())
    stored = commands.json(["logitstore", "info", str(store), "--json"], threads=1)
    report = ["logitstore", "report", str(store), "-o", str(out / "report.html")]
    commands.run(report, threads=cores())
    clock.begin(PHASES[2])
    measured = commands.json(evaluate_command(teacher, out), threads=cores())

    # 4. The students. The teacher is gone: all they have of it is the store.
    clock.begin(PHASES[3])
    with teacher_away(teacher):
        runs = train_all(out, settings, commands)

    # 5. What was measured, also as a page.
    commands.run(compare_command(out, settings), threads=1)
    results = {
        "runs": runs,
        "store": stored,
        "teacher": measured,
        "settings": describe(settings),
        "cores": cores(),
        "time_s": time.monotonic() - started,
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


def prepare(out: Path, settings: Settings) -> None:
    """Empty `out`, unless an interrupted run with the same settings left it."""
    mark = out / "settings.json"
    if out.exists() and any(out.iterdir()) and not mark.exists():
        raise typer.BadParameter(f"{out} holds something else. Name an empty folder with --out.")
    put_back(out / "teacher")
    wanted = describe(settings)
    if (out / "results.json").exists() or not mark.exists() or _read(mark) != wanted:
        shutil.rmtree(out, ignore_errors=True)
        (out / "data").mkdir(parents=True)
        mark.write_text(json.dumps(wanted, indent=2) + "\n")
    else:
        print(f"{out}: taking up the demo that was interrupted here", file=sys.stderr)


def capture_command(out: Path, settings: Settings) -> list[str]:
    """Return the command line of a capture of the student's text."""
    return [
        *("logitstore", "capture", str(out / "teacher"), str(out / "data" / "student.jsonl")),
        *("--out", str(out / "store"), "--top-k", str(settings.top_k)),
    ]


def describe(settings: Settings) -> dict[str, Any]:
    """Return everything that decides a run's results, as JSON reads it back."""
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    versions["python"] = platform.python_version()
    described: dict[str, Any] = json.loads(json.dumps(asdict(settings) | {"versions": versions}))
    return described


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


if __name__ == "__main__":
    typer.run(main)
