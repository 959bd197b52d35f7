"""`logitstore info`, `show`, `diff` and `report`: look at stores."""

import json
from typing import Annotated

import typer

from logitstore.console.counts import counted
from logitstore.console.escaped import print_coloured
from logitstore.console.options import JsonOpt, PartialOpt, StoreArg, print_facts
from logitstore.errors import InputError


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (info, show, diff, report):
        app.command()(command)


def info(
    store: StoreArg,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Also histograms: surprise, entropy, tail and number of entries."
        ),
    ] = False,
    as_json: JsonOpt = False,
    allow_partial: PartialOpt = False,
) -> None:
    """Print what a store holds, how big it is, and how exact."""
    from logitstore.info import facts, info_text
    from logitstore.inspection.scalars import histogram_text, histograms
    from logitstore.store import open_store

    opened = open_store(store, allow_partial=allow_partial)
    summary = facts(opened)
    if not full:
        print_facts(summary, info_text, as_json)
        return
    spread = histograms(opened)
    if as_json:
        typer.echo(json.dumps(summary | {"histograms": spread}))
    else:
        typer.echo(f"{info_text(summary)}\n{histogram_text(spread)}")


def show(
    store: StoreArg,
    sequence: Annotated[int | None, typer.Argument(help="Number of the sequence.")] = None,
    around: Annotated[
        int | None,
        typer.Option(help="Show the ten most probable tokens at this record.", metavar="RECORD"),
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(
            help="List the N most surprising tokens and the N largest tails of the store, instead "
            "of a sequence.",
            metavar="N",
        ),
    ] = None,
    as_json: JsonOpt = False,
    allow_partial: PartialOpt = False,
) -> None:
    """Print one sequence: its text, and for each record the teacher's most probable tokens."""
    from logitstore.inspection import show as inspection
    from logitstore.store import open_store

    opened = open_store(store, allow_partial=allow_partial)
    shown, text = inspection.shown(opened, sequence, around, worst)
    print_coloured(json.dumps(shown) if as_json else text)


def diff(
    a: StoreArg,
    b: Annotated[str, typer.Argument(help="Another store.")],
    sequences: Annotated[
        int,
        typer.Option(help="Compare N sequences, evenly spread over the stores.", metavar="N"),
    ] = 1000,
    as_json: JsonOpt = False,
    allow_partial: PartialOpt = False,
) -> None:
    """Compare two stores over the same rows: how they were made, and how far apart they are."""
    from logitstore.inspection.diff import diff as compared
    from logitstore.inspection.diff import diff_text
    from logitstore.store import open_store

    if sequences < 1:
        raise InputError(f"--sequences is {sequences}, expected 1 or more.")
    one, other = (open_store(path, allow_partial=allow_partial) for path in (a, b))
    print_facts(compared(one, other, sequences=sequences), diff_text, as_json)


def report(
    store: StoreArg,
    out: Annotated[
        str, typer.Option("--out", "-o", help="The file to write.", metavar="FILE")
    ] = "report.html",
    sequences: Annotated[
        int,
        typer.Option(
            help="Put N rows on the page to read: half of them the most surprising ones, the rest "
            "evenly spread over the store.",
            metavar="N",
        ),
    ] = 24,
    as_json: JsonOpt = False,
    allow_partial: PartialOpt = False,
) -> None:
    """Write a store as one page for a browser: whether to trust it, its text, and figures."""
    from logitstore.inspection.page import write_page
    from logitstore.store import open_store

    opened = open_store(store, allow_partial=allow_partial)
    written = write_page(opened, out, sequences=sequences)
    text = f"{out}: {written['bytes']:,} bytes, {counted(written['sequences'], 'row')} to read"
    typer.echo(json.dumps(written) if as_json else text)
