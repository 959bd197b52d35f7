"""`logitstore export`, `import`, `merge` and `subset`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from logitstore.errors import InputError
from logitstore.writing.plan import DEFAULT_SHARD_TEXT_BYTES

StoreArg = Annotated[Path, typer.Argument(help="Store folder.", show_default=False)]
OutOpt = Annotated[Path, typer.Option(help="Store folder to make or resume.", show_default=False)]
JsonOpt = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
ShardOpt = Annotated[int, typer.Option(help="Text of a shard, about.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("export")(export)
    app.command("import")(import_)
    app.command("merge")(merge)
    app.command("subset")(subset)


def export(
    store: StoreArg,
    to: Annotated[str, typer.Option(help="parquet or zarr.", show_default=False)],
    out: Annotated[
        str, typer.Option(help="Folder to make; for zarr also a URL.", show_default=False)
    ],
    as_json: JsonOpt = False,
) -> None:
    """Write a store as Parquet, which `import` takes back, or as a zarr group of decoded arrays.

    Parquet is read by pyarrow, datasets and polars, zarr by xarray and dask.
    """
    if to == "zarr":
        from logitstore.moving.zarr_export import export_zarr

        found = export_zarr(store, out)
        text = "{path}: {arrays:,} zarr arrays, {records:,} records, {entries:,} entries"
        typer.echo(json.dumps(found) if as_json else text.format(**found))
        return
    if to != "parquet":
        raise InputError(f"--to is {to}, expected parquet or zarr.")
    from logitstore.moving.parquet.export import export_parquet

    folder = export_parquet(store, out)
    files = sorted(folder.rglob("*.parquet"))
    size = sum(file.stat().st_size for file in files)
    if as_json:
        typer.echo(json.dumps({"path": str(out), "files": len(files), "file_bytes": size}))
    else:
        typer.echo(f"{out}: {len(files):,} Parquet files, {size:,} bytes")


def import_(
    dump: Annotated[
        Path,
        typer.Argument(
            help="An export; or .parquet or .jsonl files with lists of (id, log-probability) or "
            "responses of a server, or a folder of such.",
            show_default=False,
        ),
    ],
    out: OutOpt,
    tokenizer: Annotated[
        str | None, typer.Option(help="The teacher's: a folder or hub id. Not for an export.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher's name or folder. Default: as the dump says.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Width of the teacher's logits. Default: its tokenizer's.")
    ] = None,
    aligned_to: Annotated[
        str | None,
        typer.Option(
            help="A list describes the token it lies on, or the next. Default: next for "
            "target_logprobs, else token."
        ),
    ] = None,
    unlisted: Annotated[
        str,
        typer.Option(
            help="Tokens that are not in their lists: mark the store as lacking their "
            "log-probabilities, or drop their records."
        ),
    ] = "mark",
    renormalised: Annotated[
        bool,
        typer.Option("--renormalised", help="Take lists that were made to add up to one."),
    ] = False,
    logprobs_column: Annotated[str, typer.Option(help="Column of the lists.")] = "logprobs",
    messages_column: Annotated[str, typer.Option(help="Column of conversations.")] = "messages",
    supervise: Annotated[
        str | None,
        typer.Option(help="Of conversations: all assistant turns (the default), or the last."),
    ] = None,
    chat_template_path: Annotated[
        str | None,
        typer.Option(help="A Jinja file or tokenizer folder. Default: the tokenizer's own."),
    ] = None,
    chat_template_kwargs: Annotated[
        str | None, typer.Option(help="Variables of the chat template for every row, as JSON.")
    ] = None,
    shard_text_bytes: ShardOpt = DEFAULT_SHARD_TEXT_BYTES,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and count every row; write nothing.")
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Make a store of what other tools wrote, or of an export. Run it again to resume.

    Every row is checked before anything is written.
    """
    settings = dict[str, Any](
        teacher=teacher,
        vocab_size=vocab_size,
        aligned_to=aligned_to,
        unlisted=unlisted,
        renormalised=renormalised,
        logprobs_column=logprobs_column,
        messages_column=messages_column,
        supervise=supervise,
        chat_template_path=chat_template_path,
        chat_template_kwargs=chat_template_kwargs,
        shard_text_bytes=shard_text_bytes,
    )
    from logitstore.moving.parquet.exported import find_export

    exported = find_export(dump)
    if exported is not None:
        _refuse_idle(dump, settings)
        _reimport(exported, out, tokenizer, dry_run, as_json)
        return
    if tokenizer is None:
        raise InputError(
            f"{dump}: is no export of a store, so the teacher's tokenizer is needed. Name its "
            "folder with --tokenizer."
        )
    from logitstore.moving.dumps.importing import import_dump
    from logitstore.moving.dumps.settings import ImportSettings
    from logitstore.moving.dumps.summary import summary_text

    made = ImportSettings(tokenizer=tokenizer, **settings)
    store, found = import_dump(dump, out, made, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps(found | {"path": None if store is None else str(store.path)}))
    else:
        typer.echo(summary_text(found))
        if store is not None:
            _print_info(store, as_json=False)


def merge(
    stores: Annotated[
        list[Path], typer.Argument(help="Store folders, two or more.", show_default=False)
    ],
    out: OutOpt,
    as_json: JsonOpt = False,
) -> None:
    """Several stores as one: parts of one capture, or captures of several datasets."""
    from logitstore.moving.merge import merge as run

    _print_info(run(stores, out), as_json)


def subset(
    store: StoreArg,
    rows: Annotated[
        str,
        typer.Option(
            help="A file with one row number a line, or a range such as 0:1000.",
            show_default=False,
        ),
    ],
    out: OutOpt,
    shard_text_bytes: ShardOpt = DEFAULT_SHARD_TEXT_BYTES,
    as_json: JsonOpt = False,
) -> None:
    """Some rows of a store as a store, numbered anew in their order; records stay as they are."""
    from logitstore.moving.subset import subset as run

    _print_info(run(store, rows, out, shard_text_bytes=shard_text_bytes), as_json)


def _refuse_idle(dump: Path, settings: dict[str, Any]) -> None:
    """What an export says itself cannot be said again."""
    from logitstore.moving.dumps.settings import ImportSettings

    defaults = vars(ImportSettings(tokenizer=""))
    for name, value in settings.items():
        if value != defaults[name]:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{dump}: is an export of a store and says that itself, so {flag} would have no "
                "effect. Leave it out."
            )


def _reimport(
    exported: Any, out: Path, tokenizer: str | None, dry_run: bool, as_json: bool
) -> None:
    from logitstore.moving.parquet.reimport import check_export, reimport

    folder = None if tokenizer is None else Path(tokenizer)
    if not dry_run:
        _print_info(reimport(exported, out, folder), as_json)
        return
    found = check_export(exported, out, folder)
    rows, shards = found["rows"], found["shards"]
    text = f"an export of {rows:,} rows in {shards:,} shards: whole. Nothing was written."
    typer.echo(json.dumps(found) if as_json else text)


def _print_info(store: Any, as_json: bool) -> None:
    from logitstore.info import facts, info_text

    found = facts(store)
    typer.echo(json.dumps(found) if as_json else info_text(found))
