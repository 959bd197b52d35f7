"""`logitstore export`, `import`, `merge`, `push`, `split` and `subset`."""

import json
from typing import Annotated, Any

import typer

from logitstore.console.counts import counted
from logitstore.console.options import (
    JsonOpt,
    StoreArg,
    print_facts,
    settings_from,
    with_options_of,
)
from logitstore.console.settings import described, flag_of
from logitstore.errors import InputError
from logitstore.moving.dumps.settings import PANELS, ImportSettings
from logitstore.writing.plan import DEFAULT_IN_WORDS

_StoreOpt = Annotated[
    str, typer.Option(help="Store to make or resume: a folder, or s3://…", metavar="STORE")
]
_ShardOpt = Annotated[
    int | None,
    typer.Option(
        help="Bytes of text per shard, about.", metavar="N", show_default=DEFAULT_IN_WORDS
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("export")(export)
    app.command("import")(import_)
    app.command("merge")(merge)
    app.command("push")(push)
    app.command("split")(split)
    app.command("subset")(subset)


def export(
    store: StoreArg,
    to: Annotated[str, typer.Option(help="Format to write: parquet or zarr.", metavar="FORMAT")],
    out: Annotated[
        str, typer.Option(help="Folder to make; for zarr also a URL.", metavar="FOLDER")
    ],
    no_input_ids: Annotated[
        bool,
        typer.Option(
            "--no-input-ids",
            help="Parquet without the tokens between the records, which need `transformers`.",
        ),
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Write a store as Parquet, which `import` takes back, or as a zarr group of decoded arrays.

    Parquet is read by pyarrow, datasets and polars, zarr by xarray and dask. A line of Parquet has
    input_ids, attention_mask, labels and loss_mask, and what the teacher said of each token there.
    """
    if no_input_ids and to != "parquet":
        raise InputError(
            f"--to {to}: has no input_ids, so --no-input-ids would have no effect. Leave it out."
        )
    if to == "zarr":
        from logitstore.moving.zarr_export import export_zarr

        written = export_zarr(store, out)
        parts = [counted(written["arrays"], "zarr array"), counted(written["records"], "record")]
        parts.append(counted(written["entries"], "entry", "entries"))
        text = f"{written['path']}: {', '.join(parts)}"
        typer.echo(json.dumps(written) if as_json else text)
        return
    if to != "parquet":
        raise InputError(f"--to is {to}, expected parquet or zarr.")
    from logitstore.moving.parquet.export import export_parquet

    made = export_parquet(store, out, input_ids=not no_input_ids)
    files = sorted(made.rglob("*.parquet"))
    size = sum(file.stat().st_size for file in files)
    if as_json:
        typer.echo(json.dumps({"path": str(made), "files": len(files), "file_bytes": size}))
    else:
        typer.echo(f"{made}: {counted(len(files), 'Parquet file')}, {size:,} bytes")


@with_options_of(ImportSettings, PANELS)
def import_(
    dump: Annotated[
        str,
        typer.Argument(
            help="An export; or .parquet, .jsonl or .json files (all but .parquet also .gz or "
            ".zst) with lists of (id, log-probability) or responses of a server, a folder of such, "
            "or a pattern."
        ),
    ],
    out: _StoreOpt,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="The teacher's tokenizer: a folder or hub id. Needed unless DUMP is an export.",
            metavar="NAME",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and count every row; write nothing.")
    ] = False,
    as_json: JsonOpt = False,
    **values: Any,
) -> None:
    """Make a store of what other tools wrote, or of an export. Run it again to resume.

    Every row is checked before anything is written. These are read, each by its keys:

    vLLM and servers like OpenAI's: choices with logprobs, or prompt_logprobs with prompt_token_ids;
    beside them the request's messages, labels.

    SGLang: meta_info with input_top_logprobs and input_token_logprobs, or output_top_logprobs and
    output_token_logprobs; beside them input_ids or messages.

    axolotl: input_ids, target_token_ids and target_logprobs (labels, target_mask); or logprobs with
    input_ids or messages.

    TRL: logprobs and logprob_token_ids, with prompt_ids and completion_ids, or with input_ids and
    labels or prompt_length (actual_logprobs).

    DistillKit: input_ids, compressed_logprobs and bytepacked_indices; or input_ids, token_ids and
    top_values.
    """
    settings = settings_from(ImportSettings, values)
    from logitstore.moving.parquet.exported import find_export

    exported = find_export(dump)
    if exported is not None:
        _reject_idle(dump, settings)
        _reimport(exported, out, tokenizer, dry_run, as_json)
        return
    if tokenizer is None:
        raise InputError(
            f"{dump}: is not an export of a store, so the teacher's tokenizer is needed. Name its "
            "folder with --tokenizer."
        )
    from logitstore.moving.dumps.importing import import_dump
    from logitstore.moving.dumps.summary import summary_text

    made = ImportSettings(tokenizer=tokenizer, **settings)
    store, summary = import_dump(dump, out, made, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps(summary | {"path": None if store is None else str(store.path)}))
    else:
        typer.echo(summary_text(summary))
        if store is not None:
            _print_info(store, as_json=False)


def merge(
    stores: Annotated[list[str], typer.Argument(help="The stores, two or more: folders or URLs.")],
    out: _StoreOpt,
    as_json: JsonOpt = False,
) -> None:
    """Write several stores as one: parts of one capture, or captures of several datasets."""
    from logitstore.moving.merge import merge as run

    _print_info(run(stores, out), as_json)


def push(
    store: StoreArg,
    to: Annotated[
        str, typer.Argument(help="Where: hf://datasets/OWNER/NAME, made if it is not there.")
    ],
    public: Annotated[
        bool,
        typer.Option("--public", help="A new repository can be seen by everybody."),
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="Licence for the card, as the hub names it.",
            metavar="NAME",
            show_default="unknown",
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Put a finished store on the Hugging Face Hub, with a card. Run it again to resume.

    The token is huggingface_hub's own: HF_TOKEN, or `hf auth login`. The text of the store goes
    with it. Anything reads it there as `hf://datasets/OWNER/NAME`.
    """
    from logitstore.moving.hub.push import push as run

    done = run(store, to, public=public, licence=licence)
    text = f"{done['path']}: {counted(done['files'], 'file')}, {done['file_bytes']:,} bytes"
    typer.echo(json.dumps(done) if as_json else text)


def subset(
    store: StoreArg,
    rows: Annotated[
        str,
        typer.Option(
            help="A file with one row number a line, or a range such as 0:1000.", metavar="ROWS"
        ),
    ],
    out: _StoreOpt,
    shard_text_bytes: _ShardOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Write some rows of a store as a store of their own, numbered anew in their order."""
    from logitstore.moving.subset import subset as run

    _print_info(run(store, rows, out, shard_text_bytes=shard_text_bytes), as_json)


def split(
    store: StoreArg,
    share: Annotated[
        float,
        typer.Option("--eval", help="Share of the texts to hold out, such as 0.02.", metavar="F"),
    ],
    out: Annotated[
        str,
        typer.Option(
            help="Folder to make: train.txt and eval.txt, lists of rows, and eval, a store.",
            metavar="FOLDER",
        ),
    ],
    seed: Annotated[int, typer.Option(help="Which texts: others with another.", metavar="N")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """Hold a part of the texts out, to train on the rest: `distill train --rows`, `--eval_store`.

    Rows of the same text fall on the same side, and so do the windows of a row.
    """
    from logitstore.moving.split import split as run

    done = run(store, out, share=share, seed=seed)
    text = (
        f"{done['eval_store']}: {done['held_out_rows']:,} of {counted(done['rows'], 'row')} held "
        f"out\ntrain on the rest with --store {done['store']} --rows {done['train_rows']} "
        f"--eval_store {done['eval_store']}"
    )
    typer.echo(json.dumps(done) if as_json else text)


def _reject_idle(dump: str, settings: dict[str, Any]) -> None:
    """Reject settings for other tools' files: an export has all of them recorded."""
    for field in described(ImportSettings):
        if settings[field.name] != field.default:
            flag = flag_of(field)
            raise InputError(
                f"{dump}: is an export of a store and says that itself, so {flag} would have no "
                "effect. Leave it out."
            )


def _reimport(exported: Any, out: str, tokenizer: str | None, dry_run: bool, as_json: bool) -> None:
    from logitstore.moving.parquet.reimport import check_export, reimport

    if not dry_run:
        _print_info(reimport(exported, out, tokenizer), as_json)
        return
    checked = check_export(exported, out, tokenizer)
    rows, shards = counted(checked["rows"], "row"), counted(checked["shards"], "shard")
    text = f"an export of {rows} in {shards}: whole. Nothing was written."
    typer.echo(json.dumps(checked) if as_json else text)


def _print_info(store: Any, as_json: bool) -> None:
    from logitstore.info import facts, info_text

    print_facts(facts(store), info_text, as_json)
