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

from distill.evaluation.settings import METRICS, EvaluationSettings
from logitstore.console import entry
from logitstore.console.terminal import printable
from logitstore.errors import InputError
from logitstore.text.token_budget import DEFAULT_TOKENS_PER_BATCH

app = entry.program(
    "distill",
    "Train students from a store of a teacher's predictions, and measure them.",
    epilog="`distill train` also takes every flag of TrainingArguments of transformers: "
    "`distill train --help` lists them all.",
)

#: They stand in results.json, which is small.
MOST_SAMPLES = 32

# Headings of `distill evaluate --help`.
_DATA = "Data"
_MODEL = "Model"
_RUNNING = "Running"


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,  # the flags are TrainingArguments', and so is their help
)
def train(context: typer.Context) -> None:
    """Train a student: --model_name_or_path S --store STORE --loss uld:1.5 --output_dir OUT.

    Takes every flag of TrainingArguments of transformers besides its own, and --config run.yaml, a
    file of flags. `distill train --help` lists them all.
    """
    with _talk_to_stderr():
        from distill.training.config import parse
    config, student = parse(context.args)
    with _talk_to_stderr():  # where Trainer's logs go
        from distill.training.run import train as run_training

        run = run_training(config, student)
    if config.process_index == 0:
        print(json.dumps(run, indent=1))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="The model: a transformers folder, or a hub id.")],
    data: Annotated[
        str | None, typer.Argument(help="A dataset, as `logitstore capture` takes it.")
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="What to measure, separated by commas: " + ", ".join(METRICS) + ".",
            metavar="NAMES",
        ),
    ] = METRICS[0],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the run as one JSON object; an error, too.")
    ] = False,
    store: Annotated[
        str | None,
        typer.Option(
            help="A store of held-out text, for agreement, uld and calibration.",
            rich_help_panel=_DATA,
            metavar="STORE",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of the dataset.", rich_help_panel=_DATA, metavar="NAME"),
    ] = None,
    config_name: Annotated[
        str | None,
        typer.Option(
            help="Configuration of a hub dataset that has several.",
            rich_help_panel=_DATA,
            metavar="NAME",
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="Column to read as plain text, instead of text.",
            rich_help_panel=_DATA,
            metavar="NAME",
        ),
    ] = None,
    references_column: Annotated[
        str | None,
        typer.Option(
            help="Column with a list per row of texts that are as right as the completion.",
            rich_help_panel=_DATA,
            metavar="NAME",
            show_default="references, if there is one",
        ),
    ] = None,
    supervise: Annotated[
        str | None,
        typer.Option(
            help="Turns of a conversation to measure: all of the assistant's, or the last.",
            rich_help_panel=_DATA,
            metavar="all|last",
            show_default="all",
        ),
    ] = None,
    chat_template_path: Annotated[
        str | None,
        typer.Option(
            help="Chat template to use: a Jinja file, or the folder of a tokenizer.",
            rich_help_panel=_DATA,
            metavar="PATH",
            show_default="the model's own",
        ),
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            help="Variables of the chat template for every row, as JSON.",
            rich_help_panel=_DATA,
            metavar="JSON",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a window at most.",
            rich_help_panel=_DATA,
            metavar="N",
            show_default="as many as the model reads",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            help="Branch, tag or commit of a hub model.", rich_help_panel=_MODEL, metavar="NAME"
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Number format of the weights: float32, bfloat16, float16, or auto (as the model "
            "was saved).",
            rich_help_panel=_MODEL,
            metavar="NAME",
        ),
    ] = "float32",
    max_new_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens of a written answer at most.", rich_help_panel=_RUNNING, metavar="N"
        ),
    ] = 64,
    samples: Annotated[
        int,
        typer.Option(
            help="Keep what the model writes after N prompts, or after the first halves of N "
            f"texts; {MOST_SAMPLES} at most.",
            rich_help_panel=_RUNNING,
            metavar="N",
        ),
    ] = 0,
    tokens_per_batch: Annotated[
        int,
        typer.Option(
            help="Padded tokens of a forward pass.", rich_help_panel=_RUNNING, metavar="N"
        ),
    ] = DEFAULT_TOKENS_PER_BATCH,
) -> None:
    """Measure a model on a dataset, and against a teacher's store, across tokenizers.

    On DATA: bits_per_byte (lower is better); token_f1, exact_match and rouge of what it writes
    after each prompt. With --store: agreement of the most probable tokens, uld, calibration.
    """
    chosen = _check_choices(metrics, dtype, max_length, tokens_per_batch)
    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {max_new_tokens}: expected at least 1.")
    if not 0 <= samples <= MOST_SAMPLES:
        raise InputError(f"--samples {samples}: expected 0 to {MOST_SAMPLES}.")
    with _talk_to_stderr():
        from distill.evaluation.evaluate import evaluate as run_evaluation

        settings = EvaluationSettings(
            data=data,
            metrics=chosen,
            store=store,
            split=split,
            config_name=config_name,
            text_column=text_column,
            references_column=references_column,
            supervise=supervise,
            chat_template_path=chat_template_path,
            chat_template_kwargs=chat_template_kwargs,
            revision=revision,
            dtype=dtype,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            samples=samples,
            tokens_per_batch=tokens_per_batch,
        )
        run = run_evaluation(model, settings)
    if as_json:
        print(json.dumps(run, indent=1))
    else:
        print("\n".join([_table(run, chosen), *_samples(run if samples else {})]))


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
        Path | None,
        typer.Option(
            "--out", "-o", help="Also write a page for a browser to this file.", metavar="FILE"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the comparison as one JSON object; an error, too.")
    ] = False,
) -> None:
    """Print a table of students, figure by figure. Runs of one name are seeds of one contender.

    The page adds curves, how each was trained, and what `distill evaluate --samples` kept.
    """
    from distill.report import comparison as comparing

    read = [comparing.read(path) for path in runs]
    found = comparing.compare(read, baseline)
    if out is not None:
        from distill.report.page import write_page

        places = {comparing.key_of(run): Path(path) for run, path in zip(read, runs, strict=True)}
        written = write_page(found, places, out)
        print(f"{out}: {written['bytes']:,} bytes, {written['runs']} runs", file=sys.stderr)
    print(json.dumps(found, indent=1) if as_json else comparing.table(found))


@app.command()
def coverage(
    store: Annotated[
        str, typer.Argument(help="The store: a folder, or a URL such as s3://bucket/name.")
    ],
    student: Annotated[
        str, typer.Argument(help="The student: a transformers folder, or a hub id.")
    ],
    sequences: Annotated[
        int,
        typer.Option(help="Look at N sequences, evenly spread over the store.", metavar="N"),
    ] = 1000,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Student tokens of a row at most.",
            metavar="N",
            show_default="as many as the student reads",
        ),
    ] = None,
    chat_template_path: Annotated[
        str | None,
        typer.Option(
            help="Chat template of the student: a Jinja file, or the folder of a tokenizer.",
            metavar="PATH",
            show_default="the student's own",
        ),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Also read a store that is not finished.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as one JSON object; an error, too.")
    ] = False,
) -> None:
    """Print how much of a store a student's tokenizer can use, and which loss to train with."""
    if sequences < 1:
        raise InputError(f"--sequences {sequences}: expected at least 1.")
    if max_length is not None and max_length < 2:
        raise InputError(f"--max-length {max_length}: expected at least 2 tokens.")
    with _talk_to_stderr():
        from distill.data import coverage as reports

        facts = reports.of_pair(
            store,
            student,
            sequences=sequences,
            max_length=max_length,
            chat_template_path=chat_template_path,
            allow_partial=allow_partial,
        )
    print(reports.as_json(facts) if as_json else reports.table(facts))


@app.command()
def env(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as one JSON object; an error, too.")
    ] = False,
) -> None:
    """Print versions and devices for a bug report, and nothing that says who or where you are."""
    from distill import environment

    facts = environment.facts()
    print(json.dumps(facts, indent=1) if as_json else environment.table(facts))


def _talk_to_stderr() -> redirect_stdout[TextIO]:
    """Send what libraries print, some where they are imported, to stderr: stdout is for facts."""
    return redirect_stdout(sys.stderr)


def _check_choices(
    metrics: str, dtype: str, max_length: int | None, tokens_per_batch: int
) -> list[str]:
    """Check options of `evaluate`, and list the metrics, each once."""
    chosen = list(dict.fromkeys(name.strip() for name in metrics.split(",")))
    for name in chosen:
        if name not in METRICS:
            raise InputError(f"--metrics {name}: not known. Known: {', '.join(METRICS)}. Name one.")
    types = ("float32", "bfloat16", "float16", "auto")
    if dtype not in types:
        raise InputError(f"--dtype {dtype}: expected one of {', '.join(types)}.")
    if max_length is not None and max_length < 2:
        raise InputError(f"--max-length {max_length}: expected at least 2 tokens.")
    if tokens_per_batch < 1:
        raise InputError(f"--tokens-per-batch {tokens_per_batch}: expected at least 1.")
    return chosen


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
        lines["answers"] = f"{facts['prompts']:,}, of at most {facts['max_new_tokens']:,} tokens"
        if facts["references"] > facts["prompts"]:
            lines["references"] = f"{facts['references']:,}: the best for each answer counts"
        names = {"token_f1": "token F1", "exact_match": "exact match"}
        names = {name: shown for name, shown in names.items() if name in metrics}
        if "rouge" in metrics:
            names |= {f"rouge{kind}": f"ROUGE-{kind}" for kind in ("1", "2", "L", "Lsum")}
        lines |= {shown: f"{run[name]:.1%}" for name, shown in names.items()}
    if "judged" in run and set(metrics) & {"agreement", "uld", "calibration"}:
        facts = run["judged"]
        lines["store"] = f"{facts['store']}, {facts['sequences']:,} sequences of {facts['teacher']}"
        lines |= _judged(run, metrics)
    lines["time"] = f"{facts['time_s']:.1f} s"
    return "\n".join(f"{name:<14} {value}" for name, value in lines.items())


def _judged(run: dict[str, Any], metrics: Sequence[str]) -> dict[str, str]:
    facts, lines = run["judged"], {}
    if "agreement" in metrics:
        lines["agreement"] = (
            f"{_known(run['agreement'], '.1%')} of {facts['shared_starts']:,} shared starts, "
            f"{_known(run['agreement_prefix'], '.1%')} but for where tokens end"
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
