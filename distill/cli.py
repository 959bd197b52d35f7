"""`distill`: train a student from a store, and measure it.

torch and transformers are imported by the command that needs them, so `distill --help` is quick.
Facts go to stdout, messages to stderr; exit status 2 means that the request was at fault.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from distill.data.coverage_settings import PANELS as COVERAGE_PANELS
from distill.data.coverage_settings import CoverageSettings
from distill.data.orders import BY
from distill.evaluation.settings import METRICS, MOST_SAMPLES, PANELS, EvaluationSettings
from logitstore.console import entry
from logitstore.console.counts import counted
from logitstore.console.left_out import LeftOut, left_out_text
from logitstore.console.options import (
    JsonOpt,
    PartialOpt,
    StoreArg,
    settings_from,
    with_options_of,
)
from logitstore.console.terminal import printable
from logitstore.errors import InputError

app = entry.program(
    "distill",
    "Train students from a store of a teacher's predictions, and measure them.",
    epilog="`distill train` also takes every flag of TrainingArguments of transformers: "
    "`distill train --help-all` lists them all.",
)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,  # most flags are not declared here, so neither is their help
)
def train(context: typer.Context) -> None:
    """Train a student: --model_name_or_path S --store STORE --loss uld:1.5 --output_dir OUT.

    Takes every flag of TrainingArguments of transformers besides its own, and --config run.yaml, a
    file of flags.
    """
    from distill.training.flag_names import check_names
    from distill.training.flag_values import check_values
    from distill.training.help import asked_for

    if (text := asked_for(context.args)) is not None:
        print(text, end="")
        return
    check_names(context.args)
    check_values(context.args)
    with _talk_to_stderr():
        from distill.training.command_line import parse
    config, student = parse(context.args)
    with _talk_to_stderr():  # where Trainer's logs go
        from distill.training.run import train as run_training
        from distill.training.summary import ending

        run = run_training(config, student)
    if config.process_index == 0:
        is_json = "--json" in context.args
        print(json.dumps(run, indent=1) if is_json else ending(run, str(config.output_dir)))


@app.command()
@with_options_of(EvaluationSettings, PANELS, leave_out=("store",))
def evaluate(
    model: Annotated[str, typer.Argument(help="The model: a transformers folder, or a hub id.")],
    data: Annotated[
        list[str] | None, typer.Argument(help="A dataset, as `logitstore capture` takes it.")
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="What to measure, separated by commas: " + ", ".join(METRICS) + ".",
            metavar="NAMES",
        ),
    ] = METRICS[0],
    store: Annotated[
        list[str] | None,  # or the last of several would be taken without a word
        typer.Option(
            help="A store of held-out text, for agreement, uld and calibration.",
            rich_help_panel=PANELS[0],
            metavar="STORE",
        ),
    ] = None,
    as_json: JsonOpt = False,
    **values: Any,
) -> None:
    """Measure a model on a dataset, and against a teacher's store, across tokenizers.

    On DATA: bits_per_byte (lower is better); token_f1, exact_match and rouge of what it writes
    after each prompt. With --store: agreement of the most probable tokens, uld, calibration.
    """
    settings = EvaluationSettings(
        data=_one_or_all(data or []),
        metrics=_metrics(metrics),
        store=_one_store(store or []),
        **settings_from(EvaluationSettings, values),
    )
    _check_choices(settings)
    with _talk_to_stderr():
        from distill.evaluation.evaluate import evaluate as run_evaluation

        run = run_evaluation(model, settings)
    if as_json:
        print(json.dumps(run, indent=1))
    else:
        samples = _samples(run if settings.samples else {})
        print("\n".join([_table(run, settings.metrics), *samples]))


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Student folders, or their results.json.")],
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Name of the run to compare with.", metavar="NAME", show_default="the first run"
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="Also write a page for a browser to this file.", metavar="FILE"
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Print which student is better, how sure that is, and a table. Runs of one name are its seeds.

    The page adds curves, how each was trained, and what `distill evaluate --samples` kept.
    """
    from distill.report import comparison as comparing
    from distill.report.leaderboard import table

    read = [comparing.read(path) for path in runs]
    comparison = comparing.compare(read, baseline)
    if out is not None:
        from distill.report.page import write_page

        places = {comparing.key_of(run): Path(path) for run, path in zip(read, runs, strict=True)}
        written = write_page(comparison, places, out)
        print(
            f"{out}: {written['bytes']:,} bytes, {counted(written['runs'], 'run')}", file=sys.stderr
        )
    print(json.dumps(comparison, indent=1) if as_json else table(comparison))


@app.command()
@with_options_of(CoverageSettings, COVERAGE_PANELS)
def coverage(
    store: StoreArg,
    student: Annotated[
        str, typer.Argument(help="The student: a transformers folder, or a hub id.")
    ],
    as_json: JsonOpt = False,
    **values: Any,
) -> None:
    """Print how to train a student from a store, and how right its labels would be."""
    settings = settings_from(CoverageSettings, values)
    CoverageSettings(**settings).check()
    with _talk_to_stderr():
        from distill.data.coverage import as_json as written
        from distill.data.coverage_of_pair import of_pair
        from distill.data.coverage_table import table
        from distill.losses.own import import_named

        import_named(settings.get("loss") or "")
        facts = of_pair(store, student, **settings)
    print(written(facts) if as_json else table(facts))


@app.command()
def select(
    store: StoreArg,
    keep: Annotated[
        float, typer.Option(help="Share of the rows to keep, above 0 and at most 1.", metavar="F")
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="File to write, a row number a line.", metavar="FILE")
    ],
    over: Annotated[
        str | None,
        typer.Option(
            help="Store of a smaller model over the same text, for the gain.", metavar="STORE"
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="What rows are ordered by: " + ", ".join(BY) + ".",
            metavar="NAME",
            show_default="gain",
        ),
    ] = None,
    highest: Annotated[
        bool | None,
        typer.Option(
            "--highest/--lowest",
            help="Which end to keep.",
            show_default="highest of gain, length and agreement, lowest of surprise and entropy",
        ),
    ] = None,
    allow_partial: PartialOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Choose rows of a store to train on: those that its teacher knows better than a small model.

    Writes their numbers in the order of the dataset, for `distill train --rows` and `logitstore
    subset --rows`. --top-k 0 stores suffice, of either tokenizer (MiniPLM, arXiv:2410.17215).
    """
    from distill.data.selection import select as run_selection
    from distill.data.selection import table

    facts = run_selection(
        store, out, keep=keep, over=over, by=by, highest=highest, allow_partial=allow_partial
    )
    print(json.dumps(facts, indent=1) if as_json else table(facts))


@app.command()
def push(
    student: Annotated[str, typer.Argument(help="The folder that `distill train` wrote.")],
    to: Annotated[str, typer.Argument(help="Where: hf://OWNER/NAME, made if it is not there.")],
    public: Annotated[
        bool, typer.Option("--public", help="A new repository can be seen by everybody.")
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Put a trained student on the Hugging Face Hub, with its model card. Run it again to resume.

    The token is huggingface_hub's own: HF_TOKEN, or `hf auth login`.
    """
    from distill.report.push import push as run_push

    done = run_push(student, to, public=public)
    text = f"{done['path']}: {counted(done['files'], 'file')}, {done['file_bytes']:,} bytes"
    print(json.dumps(done) if as_json else text)


@app.command()
def env(
    as_json: JsonOpt = False,
) -> None:
    """Print versions and devices for a bug report, and nothing that tells who or where you are."""
    from distill import environment

    facts = environment.facts()
    print(json.dumps(facts, indent=1) if as_json else environment.table(facts))


def _talk_to_stderr() -> redirect_stdout[TextIO]:
    """Send what libraries print, some where they are imported, to stderr: stdout is for facts."""
    return redirect_stdout(sys.stderr)


def _one_store(given: list[str]) -> str | None:
    """Take the only store.

    Raises:
        InputError: There are several.
    """
    if len(given) > 1:
        raise InputError(
            f"--store {' --store '.join(given)}: a model is compared with one teacher at a time. "
            "Run `distill evaluate` once for each store."
        )
    return given[0] if given else None


def _one_or_all(names: list[str]) -> str | list[str] | None:
    """Return a dataset as its settings have it: one name, several, or none."""
    return names[0] if len(names) == 1 else names or None


def _metrics(names: str) -> list[str]:
    """List the metrics that `--metrics` names, each once."""
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        if name not in METRICS:
            raise InputError(f"--metrics {name}: not known. Known: {', '.join(METRICS)}. Name one.")
    return chosen


def _check_choices(settings: EvaluationSettings) -> None:
    types = ("float32", "bfloat16", "float16", "auto")
    if settings.dtype not in types:
        raise InputError(f"--dtype {settings.dtype}: expected one of {', '.join(types)}.")
    max_length, tokens = settings.max_length, settings.tokens_per_batch
    if max_length is not None and max_length < 2:
        raise InputError(f"--max-length {max_length}: expected at least 2 tokens.")
    if tokens < 1:
        raise InputError(f"--tokens-per-batch {tokens}: expected at least 1.")
    if settings.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {settings.max_new_tokens}: expected at least 1.")
    if not 0 <= settings.samples <= MOST_SAMPLES:
        raise InputError(f"--samples {settings.samples}: expected 0 to {MOST_SAMPLES}.")


def _table(run: dict[str, Any], metrics: Sequence[str]) -> str:
    lines = {"model": run["name"]}
    if "bits_per_byte" in metrics:
        facts = run["evaluation"]
        lines |= {
            "data": facts["data"],
            "bits per byte": f"{run['bits_per_byte']:.4f}",
            "bytes": f"{facts['bytes']:,} predicted, {facts['bytes_left_out']:,} left out",
            "tokens": f"{facts['tokens']:,}",
            "rows": f"{facts['rows']:,}, of which {facts['rows_skipped']:,} without a predicted "
            "byte",
        }
    if set(metrics) & {"token_f1", "exact_match", "rouge"}:
        facts = run["answered"]
        lines["answers"] = (
            f"{facts['prompts']:,}, of at most {counted(facts['max_new_tokens'], 'token')}"
        )
        if facts["references"] > facts["prompts"]:
            lines["references"] = f"{facts['references']:,}: the best for each answer counts"
        names = {"token_f1": "token F1", "exact_match": "exact match"}
        names = {name: shown for name, shown in names.items() if name in metrics}
        if "rouge" in metrics:
            names |= {f"rouge{kind}": f"ROUGE-{kind}" for kind in ("1", "2", "L", "Lsum")}
        lines |= {shown: f"{run[name]:.1%}" for name, shown in names.items()}
    if "judged" in run and set(metrics) & {"agreement", "uld", "calibration"}:
        facts = run["judged"]
        lines["store"] = (
            f"{facts['store']}, {counted(facts['sequences'], 'sequence')} of {facts['teacher']}"
        )
        lines |= _judged(run, metrics)
    lines["time"] = f"{facts['time_s']:.1f} s"
    text = "\n".join(f"{name:<14} {value}" for name, value in lines.items())
    return "\n\n".join([text, *_left_out(run)])


def _left_out(run: dict[str, Any]) -> Iterator[str]:
    """Write a table of what was not used, of a dataset and of a store."""
    for part, unit in (("evaluation", "rows"), ("answered", "rows"), ("judged", "sequences")):
        left_out = [LeftOut.from_facts(each) for each in run.get(part, {}).get("left_out", ())]
        if left_out:
            yield left_out_text(left_out, unit)
        turns = [LeftOut.from_facts(each) for each in run.get(part, {}).get("turns", ())]
        if turns:
            yield left_out_text(turns, "turns", ", for this student", "not whole")


def _judged(run: dict[str, Any], metrics: Sequence[str]) -> dict[str, str]:
    facts, lines = run["judged"], {}
    if "agreement" in metrics:
        same, begins = (_known(run[f"agreement{end}"], ".1%") for end in ("", "_prefix"))
        lines["agreement"] = (
            f"at {same} of {counted(facts['shared_starts'], 'shared start')} both find the same "
            f"token most probable; at {begins} the same, or one that the other begins with"
        )
    if "uld" in metrics:
        within = _known(run["uld_gap"], ".4f")
        lines["uld"] = f"{_known(run['uld'], '.4f')}, of the live teacher within {within}"
    if "calibration" in metrics:
        lines["calibration"] = (
            f"expected error {_known(run['calibration_error'], '.1%')}, of the teacher "
            f"{_known(run['teacher_calibration_error'], '.1%')}"
        )
    return lines


def _samples(run: dict[str, Any]) -> Iterator[str]:
    for sample in run.get("samples", {}).get("texts", ()):
        yield f"\nrow {sample['row']:,}"
        for name in ("prompt", "reference", "answer"):
            yield f"  {name:<10} {printable(sample[name])}"


def _known(value: float | None, how: str) -> str:
    return "unknown" if value is None else format(value, how)


def main() -> None:
    """Run the command line: an error raised on purpose is one message and an exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers fork after tokenising
    entry.run(app, "distill")
