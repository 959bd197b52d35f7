"""`distill compare -o`: what was measured, the curves, how each was trained, and what each writes.

A run folder may be anybody's: all of its text is bounded, escaped, and shown without anything
invisible; the page's policy would stop it from running besides.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from distill.report.comparison import Comparison, key_of
from distill.report.facts import differing
from distill.report.figures import colour, curves, strips
from distill.report.history import STATE_FILE, read_curves, together
from distill.report.metrics import METRICS, Metric, is_cost, shown_name
from distill.report.writing import samples_html
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
_MOST_FIGURES, _POINTS, _ALL_POINTS = 10, 160, 24_000

#: Curves that mean the same for every contender come first.
_FIRST = ("eval_ce_loss", "eval_loss", "ce_loss", "loss")
_HINT = '<span class="readout">Point at a student, or tap it, for its seeds.</span>'
_LABELS = {
    "ce_loss": "cross-entropy",
    "kd_loss": "distillation, weighted",
    "loss": "whole loss, of each its own",
}


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
            f"-o {out}: {runs:,} runs of {len(contenders):,} contenders; a page has room for "
            f"{MOST_RUNS} of {MOST_CONTENDERS}. Name fewer, or leave -o out for a table."
        )
    size = write_document(out, page(found, places))
    return {"report": str(out), "bytes": size, "runs": runs}


def page(found: Comparison, places: Places) -> str:
    """Make the page, as HTML; arguments as in :func:`write_page`."""
    contenders = found["contenders"]
    drawn, numbers = _curves(contenders, places)
    style, script = (beside("distill.report", f"page.{kind}") for kind in ("css", "js"))
    frame = {"left": FRAME.left, "right": FRAME.right, "width": WIDTH}
    body = f"""<h1>Students side by side</h1>
<p class="dim">{_subtitle(found, len(places))}</p>
{"".join(f'<p class="note">{escape(note)}</p>' for note in found["notes"])}
<h2>What was measured</h2>
<p class="dim">A dot is a seed, the bar their mean; in brackets the difference to the baseline, seed
by seed.</p>
<div class="figures">
{"".join(_metrics(found))}
</div>
<details><summary>The same as a table</summary>
{_table(found)}
</details>
<h2>Curves</h2>
{drawn}
<h2>How they were trained</h2>
{_trained(contenders)}
<h2>What they write</h2>
{samples_html(contenders)}"""
    return document(
        "Students side by side · distill",
        body,
        style=style,
        script=script,
        data={"frame": frame, "curves": numbers},
    )


def _subtitle(found: Comparison, runs: int) -> str:
    names = ", ".join(
        f'<span class="name {colour(i)}">{escape(shown_name(contender["name"]))}</span>'
        for i, contender in enumerate(found["contenders"])
    )
    baseline = escape(shown_name(found["baseline"]))
    return f"{runs:,} runs of {len(found['contenders']):,}: {names}. The baseline is {baseline}."


def _present(found: Comparison) -> list[Metric]:
    names = [each["name"] for each in found["metrics"]]
    return [metric for metric in METRICS if metric.name in names]


def _metrics(found: Comparison) -> Iterable[str]:
    for metric in _present(found):
        drawn = strips(found["contenders"], metric)
        title = metric.label[0].upper() + metric.label[1:]
        yield figure(title, drawn, _HINT, kind="metric")


def _table(found: Comparison) -> str:
    """Make the table that `distill compare` prints, with the standard deviation beside."""
    head = ("", "runs", "mean", "std", "from", "to", "against", "wins")
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    groups = []
    for metric in _present(found):
        better = "lower is better" if metric.lower_is_better else "higher is better"
        title = f'<tr><th scope="rowgroup" colspan="8">{escape(metric.label)}, {better}</th></tr>'
        lines = [_line(i, c, metric) for i, c in enumerate(found["contenders"])]
        groups.append(f"<tbody>{title}{''.join(lines)}</tbody>")
    return (
        f'<div class="scroll"><table><thead><tr>{columns}</tr></thead>{"".join(groups)}</table>'
        "</div>"
    )


def _line(i: int, contender: Mapping[str, Any], metric: Metric) -> str:
    own = contender["metrics"][metric.name]
    has_wins = own["pairs"] is not None and not is_cost(metric)
    cells = [
        str(len(own["values"])),
        *(metric.shown(own[name]) for name in ("mean", "std", "min", "max")),
        "" if own["difference"] is None else metric.shown(own["difference"], "+"),
        f"{own['wins']} of {own['pairs']}" if has_wins else "",
    ]
    name = f'<td class="name {colour(i)}">{escape(shown_name(contender["name"]))}</td>'
    return f"<tr>{name}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _curves(
    contenders: Sequence[Mapping[str, Any]], places: Places
) -> tuple[str, list[dict[str, Any]]]:
    """Draw the curves; with the numbers that the page's script reads."""
    by_contender = [
        [read_curves(places[key_of(run)]) for run in contender["runs"]] for contender in contenders
    ]
    read = [own for curves_of in by_contender for own in curves_of]
    names = sorted({name for own in read for name in own}, key=_rank)[:_MOST_FIGURES]
    if not names:
        return f'<p class="none">None: no {STATE_FILE} with losses beside the results.</p>', []
    most = max(8, min(_POINTS, _ALL_POINTS // (len(names) * len(contenders))))
    drawn, numbers = [], []
    for at, name in enumerate(names):
        lines = [
            together([own[name] for own in curves_of if name in own], most)
            for curves_of in by_contender
        ]
        title = _curve_label(name)
        picture = curves(f"{title} by step", lines)
        caption = f'<span class="readout">by step</span>{_key(contenders, lines)}'
        drawn.append(figure(title, picture.picture, caption, kind="curves", at=at))
        numbers.append(picture.numbers)
    hint = (
        '<p class="dim">Of several seeds the mean, in a band from the least to the most. Point at '
        'a step or tap it<span class="keys">; <kbd>←</kbd> <kbd>→</kbd> go from step to step'
        "</span>.</p>"
    )
    return f'{hint}<div class="figures">{"".join(drawn)}</div>', numbers


def _key(contenders: Sequence[Mapping[str, Any]], lines: Sequence[Sequence[Any]]) -> str:
    """Make a key of the contenders with a line, with room for the number under the pointer."""
    items = (
        f'<dt class="name {colour(i)}">{escape(shown_name(contender["name"]))}</dt><dd></dd>'
        for i, (contender, line) in enumerate(zip(contenders, lines, strict=True))
        if line
    )
    return f'<dl class="values">{"".join(items)}</dl>'


def _rank(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _curve_label(name: str) -> str:
    """Name a curve for people: `eval_ce_loss` -> `Held-out: cross-entropy`."""
    held_out = name.startswith("eval_")
    own = name.removeprefix("eval_")
    label = _LABELS.get(own, own.removesuffix("_loss").replace("_", " "))
    return clipped_text(f"{'Held-out' if held_out else 'Training'}: {label}", 60)


def _trained(contenders: Sequence[Mapping[str, Any]]) -> str:
    alike, own = differing([contender["runs"] for contender in contenders])
    items = (
        f'<dt class="name {colour(i)}">{escape(shown_name(contender["name"]))}</dt>'
        f"<dd>{escape(clipped_text(said, 1000)) or 'nothing else'}</dd>"
        for i, (contender, said) in enumerate(zip(contenders, own, strict=True))
    )
    return f"<h3>What differs</h3><dl>{''.join(items)}</dl><h3>Alike</h3>{definitions(alike)}"
