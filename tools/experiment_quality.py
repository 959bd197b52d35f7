"""Does it help? Students by every loss, across tokenizers and with one, in held-out bits per byte.

    python -m tools.experiment_quality [--quick] [--out build/quality]

A teacher is trained on Python's documentation and sources, once; then a hundred short students
on other documents, each with three seeds, by public commands alone:

    main     each loss, from random weights, little text; the student's tokenizer is of another kind
    ample    some of them with ten times the text
    warm     some of them from weights that were trained on another text before
    gentle   those again with settings for trained students: ample text twice, a tenth of the
             learning rate
    k        mapped KL and ULD from stores with 4 and 16 entries a token
    same     the student shares the teacher's tokenizer: `tail_kl` against a live teacher, whole and
             cut as a store cuts it

A loss is a mean over its own pairs here (`--uncovered none`), as in its paper: what the labels
without a pair do when the hard label stands in for them is another question.

It may be stopped at any time; a second run continues it. On another machine, `--known` copies the
finished parts of an earlier `results.json`; those had another teacher, since processors round
differently even with the same seeds. In the end, `results.json` and the table and plot
(`results.md`, `results.svg`) are in the folder; `python -m tools.experiment_page` copies them
into BENCHMARKS.md. It takes five hours on two cores.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from logitstore.console.progress import progress
from tools.benchmark import surroundings
from tools.demo import settings as demo
from tools.demo.commands import CommandError, Commands
from tools.demo.corpus import load_corpus, write_jsonl
from tools.demo.settings import Shape, cores
from tools.demo.students import TRAINING, evaluate_command
from tools.experiment_page import plot, table


@dataclass(frozen=True)
class Scale:
    """The sizes of the texts, the models and the training runs."""

    teacher: Shape
    student: Shape
    teacher_bytes: int
    tokenizer_bytes: int
    text_bytes: dict[str, int]
    heldout_bytes: int
    teacher_steps: int
    steps: dict[str, int]
    warm_steps: int
    seeds: tuple[int, ...]


FULL = Scale(
    teacher=Shape(width=256, layers=4, vocabulary=4096),
    student=Shape(width=96, layers=2, vocabulary=2048),
    teacher_bytes=6_000_000,
    tokenizer_bytes=400_000,
    text_bytes={"little": 100_000, "ample": 1_000_000},
    heldout_bytes=100_000,
    teacher_steps=2_000,
    steps={"little": 250, "ample": 750, "gentle": 200},
    warm_steps=500,
    seeds=(0, 1, 2),
)
QUICK = Scale(
    teacher=Shape(width=64, layers=1, vocabulary=600),
    student=demo.QUICK.student,
    teacher_bytes=demo.QUICK.teacher_bytes,
    tokenizer_bytes=demo.QUICK.tokenizer_bytes,
    text_bytes={"little": 8_000, "ample": 12_000},
    heldout_bytes=demo.QUICK.heldout_bytes,
    teacher_steps=demo.QUICK.teacher_steps,
    steps={"little": 3, "ample": 3, "gentle": 3},
    warm_steps=3,
    seeds=demo.QUICK.seeds,
)

#: In place of a loss: a student before training.
UNTRAINED = "untrained"
#: The losses, with the papers' weights where they name one.
LOSSES = {
    "ce": ("--loss", "ce"),
    "uld by position": ("--loss", "uld:1.5", "--pairing", "position"),
    "uld by bytes": ("--loss", "uld:1.5"),
    "multilevel_ot": ("--loss", "multilevel_ot:0.15"),
    "mapped_kl": ("--loss", "mapped_kl:1", "--map", "prefix"),
    "mapped_kl, a fifth": ("--loss", "mapped_kl:0.2", "--map", "prefix"),
    "mapped_kl, strict": ("--loss", "mapped_kl:1", "--map", "strict"),
    "alm": ("--loss", "alm:1"),
    "alm, balanced": ("--loss", "alm:1", "--balance"),
    "mapped_kl + uld": ("--loss", "mapped_kl:1,uld:1.5", "--map", "prefix"),
    "mapped_kl + alm": ("--loss", "mapped_kl:1,alm:1", "--map", "prefix"),
    "alm + uld": ("--loss", "alm:1,uld:1.5"),
    "tail_kl": ("--loss", "tail_kl:1"),
    "live KL": ("--loss", "ce"),
    "live KL, top 64": ("--loss", "ce", "--top_k", "64"),
    "live KL, top 512": ("--loss", "ce", "--top_k", "512"),
    UNTRAINED: (),
}


class Job(NamedTuple):
    """One student to train and measure.

    Attributes:
        part: The part of the experiment, from the head of this file.
        loss: The loss, one of `LOSSES`.
        seed: The seed of its weights, its order of rows and its dropout.
        data: The text that it is trained on.
        k: The entries a record of its store.
        start: The weights that it begins with: a folder beside `out`.
    """

    part: str
    loss: str
    seed: int
    data: str = "little"
    k: int = 64
    start: str = "other"

    @property
    def name(self) -> str:
        return "-".join([self.part, self.loss, str(self.k), str(self.seed)]).replace(" ", "_")

    @property
    def store(self) -> str:
        return f"store-{self.data}-{self.k}"


def jobs(scale: Scale) -> list[Job]:
    """List all students, the most informative first."""
    same = ("tail_kl", *(name for name in LOSSES if name.startswith("live KL")))
    others = ("mapped_kl, a fifth", "mapped_kl, strict", "alm, balanced")
    across = [name for name in LOSSES if name not in (*same, *others, UNTRAINED)]
    some = ("ce", "uld by bytes", "mapped_kl", "alm")
    wanted: list[partial[Job]] = [partial(Job, "main", loss) for loss in across]
    wanted += [partial(Job, "same", x, start="same") for x in ("ce", *same)]
    wanted += [partial(Job, "k", x, k=k) for k in (4, 16) for x in ("uld by bytes", "mapped_kl")]
    wanted += [partial(Job, "ample", x, data="ample") for x in some]
    wanted += [partial(Job, "warm", x, start="warm") for x in (*some, UNTRAINED)]
    gentle = (*some, *others, UNTRAINED)
    wanted += [partial(Job, "gentle", x, data="ample", start="warm") for x in gentle]
    return [job(seed=seed) for job in wanted for seed in scale.seeds]


# ---- what it is made of ----


def run(out: Path, scale: Scale, known: Path | None) -> dict[str, Any]:
    """Run all that no earlier run has finished; return what `results.json` holds."""
    commands = Commands(cache=out.resolve() / "cache")
    prepare_text(out, scale)
    make_models(out, scale)
    capture_all(out, commands)
    warm_up(out, scale, commands)
    if known is not None:
        take_over(out, known, scale)
    teacher = commands.json(evaluate_command(out / "teacher", out), threads=cores())
    runs = train_all(out, scale, commands, teacher["bits_per_byte"])
    measured = {"teacher": teacher, "runs": runs}
    return surroundings(["torch", "transformers"]) | {"scale": json_of(scale)} | measured


def take_over(out: Path, known: Path, scale: Scale) -> None:
    """Take the students of every part that is complete in `known` as trained."""
    found = {Job(**{name: run[name] for name in Job._fields}): run for run in read(known)["runs"]}
    wanted = jobs(scale)
    lacking = {job.part for job in wanted if job not in found}
    for job in wanted:
        if job.part not in lacking and not result_of(out, job).exists():
            keep(result_of(out, job), found[job])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def json_of(scale: Scale) -> Any:
    return json.loads(json.dumps(vars(scale)))


def prepare_text(out: Path, scale: Scale) -> None:
    """Write the texts, split by document; the little one is the beginning of the ample one."""
    if (out / "data").exists():
        return
    corpus = load_corpus(
        teacher_bytes=scale.teacher_bytes,
        student_bytes=max(scale.text_bytes.values()),
        heldout_bytes=scale.heldout_bytes,
    )
    part = out / "data.part"
    part.mkdir(parents=True, exist_ok=True)
    for name, size in scale.text_bytes.items():
        write_jsonl(part / f"{name}.jsonl", first_bytes(spread(corpus.student), size))
    write_jsonl(part / "heldout.jsonl", corpus.heldout)
    write_jsonl(part / "teacher.jsonl", corpus.teacher)
    write_jsonl(part / "before.jsonl", first_bytes(corpus.teacher, scale.text_bytes["ample"]))
    part.rename(out / "data")


def spread(rows: list[str]) -> list[str]:
    """Reorder rows so that the beginning has all kinds of documents: every tenth row first."""
    return [row for start in range(10) for row in rows[start::10]]


def first_bytes(rows: Sequence[str], size: int) -> list[str]:
    found, total = [], 0
    for row in rows:
        if total >= size:
            break
        found.append(row)
        total += len(row.encode())
    return found


def make_models(out: Path, scale: Scale) -> None:
    """Make the teacher, and random students of both tokenizers, in a separate process."""
    if (out / "init").exists():
        return
    from tools.demo import models  # torch and transformers

    rows = [json.loads(line)["text"] for line in (out / "data" / "teacher.jsonl").open()]
    text = first_bytes(rows[::-1], scale.tokenizer_bytes)
    ours = models.byte_bpe(text, scale.teacher.vocabulary)
    theirs = models.unigram(text, scale.student.vocabulary)
    model = models.train_teacher(
        rows, ours, scale.teacher, steps=scale.teacher_steps, threads=cores()
    )
    models.save(out / "teacher", model, ours)
    part = out / "init.part"
    shutil.rmtree(part, ignore_errors=True)
    for kind, tokenizer in (("other", theirs), ("same", ours)):
        for seed in scale.seeds:
            student = models.new_model(scale.student, tokenizer, seed)
            models.save(part / kind / str(seed), student, tokenizer)
    part.rename(out / "init")


def capture_all(out: Path, commands: Commands) -> None:
    """Capture a store for each text and k, and one without ids for the text of the warm start."""
    wanted = [("little", 64), ("little", 16), ("little", 4), ("ample", 64), ("before", 1)]
    for data, k in wanted:
        store = out / f"store-{data}-{k}"
        if (store / "DONE").exists():
            continue
        source = str(out / "data" / f"{data}.jsonl")
        flags = ["--out", str(store), "--top-k", str(k), "--logit-std"]
        commands.run(
            ["logitstore", "capture", str(out / "teacher"), source, *flags], threads=cores()
        )


def warm_up(out: Path, scale: Scale, commands: Commands) -> None:
    """Train students on another text first, as those of a hub were."""
    for seed in scale.seeds:
        warm = out / "init" / "warm" / str(seed)
        if (warm / "results.json").exists():
            continue
        shutil.rmtree(warm, ignore_errors=True)
        job = Job("before", "ce", seed, data="before", k=1)
        commands.run(train_command(out, job, scale.warm_steps, warm), threads=cores())


def train_all(out: Path, scale: Scale, commands: Commands, teacher: float) -> list[dict[str, Any]]:
    """Train students in parallel, one for each core; each run records its teacher's quality."""
    wanted = jobs(scale)
    done = []
    with (
        ThreadPoolExecutor(max_workers=cores()) as pool,
        progress(len(wanted), "students", "students") as shown,
    ):
        try:
            for found in pool.map(lambda job: student(out, job, scale, commands, teacher), wanted):
                done.append(found)
                shown.update(1, latest=f"{found['loss']} at {found['bits_per_byte']:.3f}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            commands.close()
            raise
    return done


def student(
    out: Path, job: Job, scale: Scale, commands: Commands, teacher: float
) -> dict[str, Any]:
    """Train and measure one student, unless an earlier run has."""
    result = result_of(out, job)
    if result.exists():
        found: dict[str, Any] = read(result)
        return found
    folder = out / "students" / job.name
    shutil.rmtree(folder, ignore_errors=True)
    log = out / "logs" / job.name
    if job.loss == UNTRAINED:
        shutil.copytree(initial(out, job), folder)
    else:
        steps = scale.steps["gentle" if job.part == "gentle" else job.data]
        command = train_command(out, job, steps, folder)
        commands.run(command, threads=1, log=log.with_suffix(".train.log"))
    measured = commands.json(
        evaluate_command(folder, out), threads=1, log=log.with_suffix(".evaluate.log")
    )
    found = job._asdict() | {name: measured[name] for name in ("bits_per_byte", "time_s")}
    found["teacher"] = teacher
    keep(result, found)
    shutil.rmtree(folder)  # a hundred students would take a gigabyte
    return found


def result_of(out: Path, job: Job) -> Path:
    return out / "runs" / f"{job.name}.json"


def keep(result: Path, found: dict[str, Any]) -> None:
    result.parent.mkdir(parents=True, exist_ok=True)
    part = result.with_suffix(".part")
    part.write_text(json.dumps(found) + "\n")
    part.rename(result)


def initial(out: Path, job: Job) -> Path:
    return out / "init" / job.start / str(job.seed)


def train_command(out: Path, job: Job, steps: int, folder: Path) -> list[str]:
    live = ("tools.live_teacher", str(out / "teacher"))
    return [
        *(live if job.loss.startswith("live KL") else ("distill", "train")),
        *("--model_name_or_path", str(initial(out, job))),
        *("--store", str(out / job.store)),
        *LOSSES[job.loss],
        *(() if LOSSES[job.loss][1] == "ce" else ("--uncovered", "none")),
        *("--output_dir", str(folder), "--run_name", job.name),
        *("--max_steps", str(steps), "--seed", str(job.seed)),
        *TRAINING,
        *(("--learning_rate", "2e-4") if job.part == "gentle" else ()),  # the last one wins
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test; figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path("build/quality"))
    parser.add_argument("--known", type=Path, help="a results.json to take students over from")
    args = parser.parse_args()
    scale = QUICK if args.quick else FULL
    args.out.mkdir(parents=True, exist_ok=True)
    mark = args.out / "scale.json"
    if mark.exists() and json.loads(mark.read_text()) != json_of(scale):
        sys.exit(f"error: {args.out}: begun at other sizes. Name another folder with --out.")
    mark.write_text(json.dumps(json_of(scale)) + "\n")
    try:
        results = run(args.out, scale, args.known)
    except CommandError as error:
        sys.exit(f"error: {error}\nRun it again to go on from here.")
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "results.md").write_text(table(results) + "\n")
    (args.out / "results.svg").write_text(plot(results))
    print(table(results))


if __name__ == "__main__":
    main()
