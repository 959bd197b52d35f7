"""`distill compare -o`: what the runs show, the figures, the curves, and what each student writes.

A run folder may be anybody's: all of its text is bounded, escaped, and shown without anything
invisible; the page's policy would stop it from running besides.
"""

from collections.abc import Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from distill.report.comparison import Comparison, key_of
from distill.report.curve_section import section
from distill.report.facts import differing
from distill.report.figures import colour, strips
from distill.report.history import read_curves
from distill.report.leaderboard import present
from distill.report.leaderboard_html import leaderboard, seeds
from distill.report.metrics import is_cost, shown_name
from distill.report.writing import samples_html
from logitstore.console.counts import counted
from logitstore.console.html_document import (
    beside,
    check_place,
    clipped_text,
    definitions,
    document,
    figure,
    write_document,
)
from logitstore.console.svg import FRAME, WIDTH
from logitstore.errors import InputError

#: The folder (or results.json) of each run, by its `compare.key_of`.
Places = Mapping[tuple[str, str], Path]

#: More have no room on a page that is for looking at.
MOST_CONTENDERS, MOST_RUNS = 48, 512


def write_page(found: Comparison, places: Places, out: str | PathLike[str]) -> dict[str, Any]:
    """Write the page, whole or not at all; one that is there is replaced.

    Args:
        found: What `compare.compare` says of the runs.
        places: The folder (or results.json) of each run, by its `compare.key_of`.
        out: The file.

    Returns:
        ``report``, its path, ``bytes``, and ``runs``, how many are on it.

    Raises:
        InputError: It cannot be written there, or these are too many for a page.
    """
    out = check_place(out)
    contenders = found["contenders"]
    runs = sum(len(contender["runs"]) for contender in contenders)
    if len(contenders) > MOST_CONTENDERS or runs > MOST_RUNS:
        raise InputError(
            f"-o {out}: {counted(runs, 'run')} of {len(contenders):,} contenders; a page has room "
            f"for {MOST_RUNS} of {MOST_CONTENDERS}. Name fewer, or leave -o out for a table."
        )
    size = write_document(out, page(found, places))
    return {"report": str(out), "bytes": size, "runs": runs}


def page(found: Comparison, places: Places) -> str:
    """Make the page, as HTML; arguments as in :func:`write_page`."""
    contenders = found["contenders"]
    drawn = section(
        contenders,
        [[read_curves(places[key_of(run)]) for run in each["runs"]] for each in contenders],
    )
    style, script = (beside("distill.report", f"page.{kind}") for kind in ("css", "js"))
    frame = {"left": FRAME.left, "right": FRAME.right, "width": WIDTH}
    body = f"""<main>
<h1>Students side by side</h1>
<p class="finding">{escape(found["finding"])}</p>
<p class="dim">{_subtitle(found, len(places))}</p>
{"".join(f'<p class="note">{escape(note)}</p>' for note in found["notes"])}
<h2>Leaderboard</h2>
{leaderboard(found)}
{_seeds(found)}
<h2>Curves</h2>
{drawn.html}
<h2>What differs between them</h2>
{_trained(contenders)}
<h2>What they write</h2>
{samples_html(contenders)}
</main>"""
    return document(
        "Students side by side · distill",
        body,
        style=style,
        script=script,
        data={"frame": frame, "curves": drawn.numbers},
    )


def _subtitle(found: Comparison, runs: int) -> str:
    students = len(found["contenders"])
    of = counted(students, "student") if students > 1 else "one"
    said = f"{counted(runs, 'run')} of {of}"
    return f"{said}; the baseline is {escape(shown_name(found['baseline']))}."


def _seeds(found: Comparison) -> str:
    """Draw the seeds of each figure; nothing where each student has one, as the table says it."""
    if all(len(contender["runs"]) == 1 for contender in found["contenders"]):
        return ""
    drawn = []
    for metric in present(found):
        if is_cost(metric):
            continue
        picture, is_wider = strips(found["contenders"], metric)
        note = "All of them lie within 1 %: the axis is wider." if is_wider else ""
        drawn.append(figure(metric.label[0].upper() + metric.label[1:], picture, note))
    if not drawn:
        return seeds(found)
    return f"""<h2>Seed by seed</h2>
<p class="dim">A dot is a seed, the bar their mean; in brackets the difference to the baseline, of
the seeds that both have.</p>
<div class="figures">
{"".join(drawn)}
</div>
{seeds(found)}"""


def _trained(contenders: Sequence[Mapping[str, Any]]) -> str:
    alike, own = differing([contender["runs"] for contender in contenders])
    items = (
        f'<dt class="name {colour(i)}">{escape(shown_name(contender["name"]))}</dt>'
        f"<dd>{escape(clipped_text(said, 1000)) or 'nothing else'}</dd>"
        for i, (contender, said) in enumerate(zip(contenders, own, strict=True))
    )
    return (
        f"<dl>{''.join(items)}</dl><details><summary>What is alike</summary>{definitions(alike)}"
        "</details>"
    )
