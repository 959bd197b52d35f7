"""`logitstore verify` and `repair`: find damaged files, and capture just those again."""

import json
from typing import Annotated

import typer

from logitstore.console.counts import counted
from logitstore.console.entry import stoppable
from logitstore.console.options import JsonOpt, PartialOpt, StoreArg
from logitstore.storage.paths import store_path, to_write


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (verify, repair):
        app.command()(command)


def verify(
    store: StoreArg,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also decode everything and check that it makes sense.")
    ] = False,
    by_zarr: Annotated[
        bool,
        typer.Option("--zarr", help="With --deep: also decode the arrays by zarr, and compare."),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Shards to check at a time.", metavar="N", show_default="one a processor"
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where the same check was interrupted: leave out shards that it found whole "
            "and that have not been written to since.",
        ),
    ] = False,
    as_json: JsonOpt = False,
    allow_partial: PartialOpt = False,
) -> None:
    """Check every byte of a store. Exit status: 0 whole, 1 damaged, 2 not a store."""
    from logitstore.checking.verify import verify_store
    from logitstore.reading.threads import cores

    report = verify_store(
        store_path(store),
        deep=deep,
        by_zarr=by_zarr,
        allow_partial=allow_partial,
        jobs=cores() if jobs is None else jobs,
        resume=resume,
    )
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        for d in report.damaged:
            rows = f" rows {d.rows[0]:,} to {d.rows[1]:,}" if d.rows else ""
            typer.echo(f"damaged: {d.file}{rows}: {d.reason}", err=True)
        damaged = len({d.file for d in report.damaged})
        state = f"{counted(damaged, 'file')} damaged" if damaged else "whole"
        before = report.checked_before
        state += f" ({before:,} of them were checked before)" if before else ""
        typer.echo(f"{counted(report.shards, 'shard')}, {counted(report.rows, 'row')}: {state}")
        for folder, inside in report.boundaries.items():
            state = f"{counted(len({d.file for d in inside.damaged}), 'file')} damaged"
            typer.echo(
                f"{folder}: {counted(inside.shards, 'shard')}: "
                f"{state if inside.damaged else 'whole'}"
            )
    raise typer.Exit(1 if report.damaged else 0)


def repair(
    store: StoreArg,
    capture_too: Annotated[
        bool,
        typer.Option(
            "--capture", help="Then capture again what is missing, with the recorded settings."
        ),
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Move damaged files to STORE.quarantine, so that a capture redoes just those.

    Exit status: 0 if the store is whole afterwards, else 1.
    """
    from logitstore.capture.again import capture_again
    from logitstore.checking.repair import next_step, repair_store

    path = to_write(store)
    report = repair_store(path)
    for name in report.moved:
        typer.echo(f"moved to {report.quarantine}: {name}", err=True)
    if capture_too and not report.is_complete:
        with stoppable():
            capture_again(path)
        report = repair_store(path)
    typer.echo(json.dumps(report.to_json()) if as_json else next_step(report, path))
    raise typer.Exit(0 if report.is_complete else 1)
