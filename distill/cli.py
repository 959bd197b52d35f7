"""`distill`: train a student from a store, and measure it.

torch and transformers are imported by the command that needs them, so `distill --help` is quick.
Facts go to stdout, talk to stderr; exit status 2 means that the request was at fault.
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

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train students from a logit store, and measure them.",
)

#: They stand in results.json, which is small.
MOST_SAMPLES = 32


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,  # the flags are TrainingArguments', and so is their help
)
def train(context: typer.Context) -> None:
    """Train a student: --model_name_or_path S --store STORE --loss uld:1.5 --output_dir OUT.

    Takes every flag of transformers' TrainingArguments, or --config run.yaml, where flags win.
    `distill train --help` lists them.
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
    model: Annotated[str, typer.Argument(help="A transformers folder, or a hub id.")],
    data: Annotated[
        str | None, typer.Argument(help="A dataset, as `logitstore capture` takes it.")
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="With commas between them: " + ", ".join(METRICS))
    ] = METRICS[0],
    store: Annotated[
        str | None, typer.Option(help="Of held-out text: for agreement, uld and calibration.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset.")] = None,
    config_name: Annotated[
        str | None, typer.Option("--config-name", "--config_name", help="Of a hub dataset.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option("--text-column", "--text_column", help="Column to read as text.")
    ] = None,
    references_column: Annotated[
        str | None,
        typer.Option(
            "--references-column",
            "--references_column",
            help="Texts that do as well as the completion: a list a row. Default: references.",
        ),
    ] = None,
    supervise: Annotated[
        str | None, typer.Option(help="Of conversations: all assistant turns, or the last.")
    ] = None,
    chat_template_path: Annotated[
        str | None,
        typer.Option(
            "--chat-template-path",
            "--chat_template_path",
            help="A Jinja file or tokenizer folder. Default: the model's own template.",
        ),
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            "--chat-template-kwargs",
            "--chat_template_kwargs",
            help="Variables of the chat template for every row, as JSON.",
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a model on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
    max_length: Annotated[
        int | None, typer.Option("--max-length", "--max_length", help="Tokens of a window.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "--max_new_tokens", help="Of a written answer.")
    ] = 64,
    samples: Annotated[
        int, typer.Option(help="Keep what it writes after so many prompts, or halves of texts.")
    ] = 0,
    tokens_per_batch: Annotated[
        int, typer.Option("--tokens-per-batch", "--tokens_per_batch", help="Padded tokens at once.")
    ] = DEFAULT_TOKENS_PER_BATCH,
    as_json: Annotated[bool, typer.Option("--json", help="The run object as JSON.")] = False,
) -> None:
    """A model on a dataset, and against a teacher's store, comparable across tokenizers.

    On DATA: bits_per_byte (lower is better); token_f1, exact_match and rouge of what it writes
    after each prompt. Against --store: agreement of the most probable tokens, uld, calibration.
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
        str | None, typer.Option(help="The run name to compare with. Default: the first run's.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Also write a page for a browser: report.html."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The comparison as JSON.")] = False,
) -> None:
    """A table of students, figure by figure; those of one name are seeds of one contender.

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
    store: Annotated[str, typer.Argument(help="A store, as `logitstore capture` wrote it.")],
    student: Annotated[str, typer.Argument(help="A transformers folder, or a hub id.")],
    sequences: Annotated[int, typer.Option(help="Look at so many, spread over the store.")] = 1000,
    max_length: Annotated[
        int | None, typer.Option("--max-length", "--max_length", help="Student tokens of a row.")
    ] = None,
    chat_template_path: Annotated[
        str | None,
        typer.Option("--chat-template-path", "--chat_template_path", help="The student's."),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", "--allow_partial", help="Of an unfinished store.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The facts as JSON.")] = False,
) -> None:
    """How far a student's tokenizer can follow a store, and which loss that speaks for."""
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
    as_json: Annotated[bool, typer.Option("--json", help="The facts as JSON.")] = False,
) -> None:
    """Versions and devices, for a bug report. Nothing that says who or where you are."""
    from distill import environment

    facts = environment.facts()
    print(json.dumps(facts, indent=1) if as_json else environment.table(facts))


def _talk_to_stderr() -> redirect_stdout[TextIO]:
    """Libraries print, some where they are imported; stdout is for what was asked for."""
    return redirect_stdout(sys.stderr)


def _check_choices(
    metrics: str, dtype: str, max_length: int | None, tokens_per_batch: int
) -> list[str]:
    """The metrics, each once."""
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
    """The console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers fork after tokenising
    entry.run(app, "distill")
