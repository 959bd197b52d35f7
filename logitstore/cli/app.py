"""The `logitstore` command: make stores, look at them, check them.

Data goes to stdout, talk to stderr. Exit status: 0 fine, 1 `verify` found damage, 2 bad usage or
input (a damaged store included, where it had to be read).
"""

import inspect
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from logitstore.cli import moving
from logitstore.console import entry
from logitstore.errors import InputError
from logitstore.storage.paths import store_path, to_write

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Stores of a teacher's sorted next-token probabilities.",
)

StoreArg = Annotated[str, typer.Argument(help="Store folder or URL.", show_default=False)]
JsonOpt = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
PartialOpt = Annotated[
    bool, typer.Option("--allow-partial", help="Also read a store that is not finished.")
]


@app.callback()
def _callback() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "datasets", "fsspec", "s3fs", "botocore", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@app.command()
def capture(
    teacher: Annotated[str, typer.Argument(help="Hub id or model folder.", show_default=False)],
    dataset: Annotated[
        str,
        typer.Argument(
            help="Hub id, folder, save_to_disk folder, .jsonl, .parquet or .txt.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Store to make or resume: a folder, or s3://…", show_default=False)
    ],
    top_k: Annotated[
        int, typer.Option(help="Entries of a record at most; 0 for draws alone.")
    ] = 64,
    max_tail: Annotated[
        float | None,
        typer.Option(help="Keep the fewest entries that leave this probability outside."),
    ] = None,
    no_ids: Annotated[
        bool, typer.Option("--no-ids", help="Values only: enough for ULD, a fifth of the size.")
    ] = False,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Also keep the log-normaliser at this temperature. Repeatable."),
    ] = None,
    logit_std: Annotated[
        bool,
        typer.Option(
            "--logit-std", help="Also keep the logits' standard deviation: multilevel_ot."
        ),
    ] = False,
    draws: Annotated[
        int, typer.Option(help="Draws from outside the entries, of each record: sampled_kl.")
    ] = 0,
    seed: Annotated[
        int | None, typer.Option(help="Of what is drawn at random. Default: 0.")
    ] = None,
    generate: Annotated[
        bool,
        typer.Option("--generate", help="Rows are prompts: the teacher writes the completions."),
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a written completion at most. Default: 512.")
    ] = None,
    generate_temperature: Annotated[
        float | None, typer.Option(help="Sample completions. Default: 0, the likeliest token.")
    ] = None,
    generate_top_k: Annotated[
        int | None, typer.Option(help="Sample from so many of the likeliest tokens.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the likeliest tokens with so much together.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="A completion ends before this text. Repeatable.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset.")] = None,
    config_name: Annotated[str | None, typer.Option(help="Configuration of a hub dataset.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Read this column as text.")] = None,
    supervise: Annotated[
        str | None,
        typer.Option(help="Of conversations: all assistant turns (the default), or the last."),
    ] = None,
    chat_template_path: Annotated[
        str | None,
        typer.Option(help="A Jinja file or tokenizer folder. Default: the teacher's template."),
    ] = None,
    chat_template_kwargs: Annotated[
        str | None, typer.Option(help="Variables of the chat template for every row, as JSON.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a sequence at most. Default: what the teacher reads."),
    ] = None,
    overflow: Annotated[
        str,
        typer.Option(help="Longer rows: split into windows, truncate, or skip."),
    ] = "split",
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens of context before the new ones of a window. Default: an eighth of it."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (the model's own), float32, bfloat16 or float16.")
    ] = "auto",
    quantization: Annotated[
        str | None,
        typer.Option(
            help="Quantise the teacher: bitsandbytes-4bit, bitsandbytes-8bit, or the "
            "quantization_config of transformers as JSON."
        ),
    ] = None,
    attn_implementation: Annotated[
        str | None, typer.Option(help="sdpa, eager, flash_attention_2, … Default: the model's.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Default: the accelerator if there is one.")
    ] = None,
    device_map: Annotated[
        str | None,
        typer.Option(help="auto spreads the teacher over all devices; or a map as JSON."),
    ] = None,
    tokens_per_batch: Annotated[
        str | None,
        typer.Option(
            help="Padded tokens of a forward pass, or auto: what fits. Default: 8192, or as "
            "recorded. Records differ from one number to another by rounding alone."
        ),
    ] = None,
    on_nan: Annotated[
        str,
        typer.Option(
            help="Logits that are not finite: stop, or skip the row (counted as not_finite)."
        ),
    ] = "stop",
    shard_text_bytes: Annotated[
        int, typer.Option(help="Text of a shard: the most that a crash can cost.")
    ] = 4 * 1024 * 1024,
    codec: Annotated[
        str, typer.Option(help="portable, or compact: 4 % smaller, and its readers need pcodec.")
    ] = "portable",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    claim: Annotated[
        bool,
        typer.Option(
            "--claim", help="Share the store with other processes that say --claim; come and go."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="As estimate, for what OUT still lacks; write nothing."),
    ] = False,
    log_json: Annotated[
        Path | None, typer.Option(help="Append what happens to this file, one JSON object a line.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Run the teacher once over a dataset and write a store. Run it again to resume.

    Under torchrun, accelerate launch or srun every process takes whole shards. With --claim, any
    number of processes that see the folder do.
    """
    settings = dict[str, Any](
        top_k=top_k,
        max_tail=max_tail,
        ids=not no_ids,
        temperatures=tuple(temperature or ()),
        logit_std=logit_std,
        draws=draws,
        seed=seed,
        generate=generate,
        max_new_tokens=max_new_tokens,
        generate_temperature=generate_temperature,
        generate_top_k=generate_top_k,
        top_p=top_p,
        stop=tuple(stop or ()),
        split=split,
        config_name=config_name,
        text_column=text_column,
        supervise=supervise,
        chat_template_path=chat_template_path,
        chat_template_kwargs=chat_template_kwargs,
        max_length=max_length,
        overflow=overflow,
        stride=stride,
        revision=revision,
        dtype=dtype,
        quantization=quantization,
        attn_implementation=attn_implementation,
        device=device,
        device_map=device_map,
        tokens_per_batch=_number_or_word(tokens_per_batch),
        on_nan=on_nan,
        claim=claim,
        shard_text_bytes=shard_text_bytes,
        codec=codec,
        trust_remote_code=trust_remote_code,
    )
    if dry_run:
        _dry_run(teacher, dataset, out, settings, as_json)
        return
    from logitstore.capture.job import capture as run
    from logitstore.console.launcher import find_ranks
    from logitstore.console.signals import Stopped
    from logitstore.info import facts, info_text

    if not find_ranks().is_first:
        _be_quiet()
    try:
        store = run(teacher, dataset, out, **settings, log_json=log_json)
    except Stopped as e:
        typer.echo(str(e), err=True)
        raise typer.Exit(e.exit_status) from None
    if find_ranks().is_first:
        _print(facts(store), info_text, as_json)


#: Of `capture`, what says how to do it and not what.
_NOT_OF_ESTIMATES = ("out", "claim", "dry_run", "log_json")


def estimate(**flags: Any) -> None:
    """What a capture would take and hold: size, time, and how peaked the teacher is.

    From a sample of the rows and some batches through the teacher; writes nothing. Takes the flags
    of capture, and recommends a --top-k and a --max-tail.
    """
    from logitstore.capture.job import preview
    from logitstore.console.launcher import find_ranks

    teacher, dataset, as_json = (flags.pop(name) for name in ("teacher", "dataset", "as_json"))
    flags |= {
        "ids": not flags.pop("no_ids"),
        "temperatures": tuple(flags.pop("temperature") or ()),
        "stop": tuple(flags["stop"] or ()),
        "tokens_per_batch": _number_or_word(flags["tokens_per_batch"]),
    }
    if find_ranks().is_first:
        found = preview(teacher, dataset, **flags)
        typer.echo(json.dumps(found.facts()) if as_json else str(found))


def _with_flags_of_capture(command: Callable[..., None]) -> Callable[..., None]:
    """One list of flags serves both commands."""
    of_capture = inspect.signature(capture).parameters.values()
    chosen = [p for p in of_capture if p.name not in _NOT_OF_ESTIMATES]
    command.__signature__ = inspect.Signature(chosen)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in chosen}
    return command


app.command()(_with_flags_of_capture(estimate))


def _number_or_word(given: str | None) -> int | str | None:
    try:
        return None if given is None else int(given)
    except ValueError:
        return given  # refused later, unless it is `auto`


def _be_quiet() -> None:
    """One process of several talks; the others only warn."""
    import datasets
    import transformers

    logging.getLogger().setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _dry_run(teacher: str, dataset: str, out: str, settings: dict[str, Any], as_json: bool) -> None:
    from logitstore.capture.job import preview
    from logitstore.console.launcher import find_ranks

    if find_ranks().is_first:  # what one process would do; the others have nothing to add
        found = preview(teacher, dataset, out, **settings)
        typer.echo(json.dumps(found.facts()) if as_json else str(found))


@app.command()
def info(
    store: StoreArg,
    full: Annotated[
        bool, typer.Option("--full", help="Also how surprise, entropy, tail and entries spread.")
    ] = False,
    as_json: JsonOpt = False,
    allow_partial: PartialOpt = False,
) -> None:
    """What a store holds, how big it is, and how exact."""
    from logitstore.info import facts, info_text
    from logitstore.inspection.scalars import histogram_text, histograms
    from logitstore.store import open_store

    opened = open_store(store, allow_partial=allow_partial)
    found = facts(opened)
    if not full:
        _print(found, info_text, as_json)
        return
    spread = histograms(opened)
    if as_json:
        typer.echo(json.dumps(found | {"histograms": spread}))
    else:
        typer.echo(f"{info_text(found)}\n{histogram_text(spread)}")


@app.command()
def show(
    store: StoreArg,
    sequence: Annotated[
        int | None, typer.Argument(help="Number of the sequence.", show_default=False)
    ] = None,
    around: Annotated[
        int | None,
        typer.Option(help="The ten most probable tokens in the place of this record."),
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(help="Where the most surprising tokens and the largest tails are."),
    ] = None,
    as_json: JsonOpt = False,
    allow_partial: PartialOpt = False,
) -> None:
    """One sequence: its text, and for each record the teacher's most probable tokens."""
    from logitstore.inspection import show as inspection
    from logitstore.store import open_store

    opened = open_store(store, allow_partial=allow_partial)
    found, text = inspection.shown(opened, sequence, around, worst)
    typer.echo(json.dumps(found) if as_json else text)


@app.command()
def diff(
    a: StoreArg,
    b: Annotated[str, typer.Argument(help="Another store.", show_default=False)],
    sequences: Annotated[int, typer.Option(help="Compare so many, evenly spread.")] = 1000,
    as_json: JsonOpt = False,
    allow_partial: PartialOpt = False,
) -> None:
    """Two stores over the same rows: how they were made, and how far apart their records are."""
    from logitstore.inspection.diff import diff as compared
    from logitstore.inspection.diff import diff_text
    from logitstore.store import open_store

    if sequences < 1:
        raise InputError(f"--sequences is {sequences}, expected 1 or more.")
    one, other = (open_store(each, allow_partial=allow_partial) for each in (a, b))
    _print(compared(one, other, sequences=sequences), diff_text, as_json)


@app.command()
def report(
    store: StoreArg,
    out: Annotated[str, typer.Option("--out", "-o", help="The file.")] = "report.html",
    sequences: Annotated[int, typer.Option(help="To browse, evenly spread.")] = 24,
    as_json: JsonOpt = False,
    allow_partial: PartialOpt = False,
) -> None:
    """A store on one page for a browser, with nothing beside it: figures, and text to browse."""
    from logitstore.inspection.page import write_page
    from logitstore.store import open_store

    opened = open_store(store, allow_partial=allow_partial)
    found = write_page(opened, out, sequences=sequences)
    said = f"{out}: {found['bytes']:,} bytes, {found['sequences']} sequences to browse"
    typer.echo(json.dumps(found) if as_json else said)


@app.command()
def verify(
    store: StoreArg,
    deep: Annotated[bool, typer.Option("--deep", help="Decode everything, too.")] = False,
    by_zarr: Annotated[
        bool,
        typer.Option("--zarr", help="With --deep: decode the arrays by zarr, too, and compare."),
    ] = False,
    as_json: JsonOpt = False,
    allow_partial: PartialOpt = False,
) -> None:
    """Check every byte of a store. Exit 0 whole, 1 damaged, 2 not a store."""
    from logitstore.checking.verify import verify_store

    report = verify_store(
        store_path(store), deep=deep, by_zarr=by_zarr, allow_partial=allow_partial
    )
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        for d in report.damaged:
            rows = f" rows {d.rows[0]:,} to {d.rows[1]:,}" if d.rows else ""
            typer.echo(f"damaged: {d.file}{rows}: {d.reason}", err=True)
        damaged = len({d.file for d in report.damaged})
        state = f"{damaged} files damaged" if damaged else "whole"
        typer.echo(f"{report.shards:,} shards, {report.rows:,} rows: {state}")
    raise typer.Exit(1 if report.damaged else 0)


@app.command()
def repair(
    store: StoreArg,
    capture_too: Annotated[
        bool, typer.Option("--capture", help="Then redo what is missing, as it was captured.")
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Move damaged files to STORE.quarantine, so that a capture redoes just those. Exit 0 whole."""
    from logitstore.capture.again import capture_again
    from logitstore.checking.repair import next_step, repair_store

    path = to_write(store)
    report = repair_store(path)
    for name in report.moved:
        typer.echo(f"moved to {report.quarantine}: {name}", err=True)
    if capture_too and not report.is_complete:
        capture_again(path)
        report = repair_store(path)
    typer.echo(json.dumps(report.to_json()) if as_json else next_step(report, path))
    raise typer.Exit(0 if report.is_complete else 1)


moving.add_to(app)


def _print(found: dict[str, Any], as_text: Callable[[dict[str, Any]], str], as_json: bool) -> None:
    typer.echo(json.dumps(found) if as_json else as_text(found))


def main() -> None:
    """Console entry: errors raised on purpose become one message and an exit status."""
    entry.run(app, "logitstore")
