"""Write a store's report page (`logitstore report`): whether to trust it, its text, its figures.

What decides comes first: five numbers. Then the text, since a wrong template or wrong rows are seen
at once there and nowhere else. Then figures, each with a sentence on what it means for the losses;
what is left is folded.
"""

import os
from collections.abc import Sequence
from html import escape
from typing import Any

from logitstore.console.html_document import (
    beside,
    check_place,
    clipped_text,
    definitions,
    document,
    write_document,
)
from logitstore.console.left_out import LeftOut, left_out_text
from logitstore.errors import InputError
from logitstore.info import facts, info_lines
from logitstore.inspection.page_data import browsed
from logitstore.inspection.page_figures import figures
from logitstore.inspection.scalars import Survey, survey
from logitstore.inspection.trust import Check, checks, numbers
from logitstore.store import LogitStore

#: The default number of sequences; long ones leave room for fewer.
SEQUENCES = 24


def write_page(
    store: LogitStore, out: str | os.PathLike[str], *, sequences: int = SEQUENCES
) -> dict[str, Any]:
    """Write the page, whole or not at all; one that is there is replaced.

    Args:
        store: The store.
        out: The file to write.
        sequences: How many sequences to include, evenly spread.

    Returns:
        ``report``, its path; ``bytes``, its size; ``sequences``, how many it includes.

    Raises:
        InputError: The page cannot be written there, or `sequences` is less than 1.
    """
    if sequences < 1:
        raise InputError(f"--sequences is {sequences}, expected 1 or more.")
    out = check_place(out)
    if str(store.path.resolve()) in map(str, out.resolve().parents):
        raise InputError(
            f"{out}: is inside the store, which holds its own files alone. Name a file outside "
            "the store with -o."
        )
    found = survey(store)
    data = browsed(store, sequences, found.sequence_surprise)
    size = write_document(out, page(store, data, found))
    return {"report": str(out), "bytes": size, "sequences": len(data["sequences"])}


def page(store: LogitStore, data: dict[str, Any], found: Survey) -> str:
    """Return the page as HTML.

    Args:
        store: The store.
        data: What `page_data.browsed` returns: the sequences to include.
        found: What all of its tokens say.
    """
    about = facts(store)
    name = clipped_text(os.path.basename(str(store.path)) or "store", 80)
    made = checks(about, found)
    body = f"""<main>
<h1>{escape(name)}</h1>
<p class="dim">{_subtitle(about)}</p>
{_numbers(about, found)}
{"".join(_failed(check) for check in made if check.passed is False)}
<h2>Read the text</h2>
{_browser(data)}
<h2>What it means for a student</h2>
<div class="figures">
{"".join(figures(store, about, found))}
</div>
<h2>Details</h2>
{_details(about, made)}
</main>"""
    style, script = (beside("logitstore.inspection", f"browse.{kind}") for kind in ("css", "js"))
    return document(f"{name} · logitstore", body, style=style, script=script, data=data)


def _subtitle(about: dict[str, Any]) -> str:
    teacher, dataset = about["teacher"]["name"], about["dataset"]["name"]
    said = f"What {teacher or 'a teacher'} expected at each token of {dataset or 'a dataset'}."
    return escape(clipped_text(said, 300))


def _numbers(about: dict[str, Any], found: Survey) -> str:
    items = (
        f"<li><b>{escape(each.value)}</b> <span>{escape(each.name)}</span>"
        f"<small>{escape(each.more)}</small></li>"
        for each in numbers(about, found)
    )
    return f'<ul class="numbers">{"".join(items)}</ul>'


def _failed(check: Check) -> str:
    return f'<p class="note"><b>Not so: {escape(check.name)}.</b> {escape(check.said)}.</p>'


def _details(about: dict[str, Any], made: Sequence[Check]) -> str:
    words = {True: "passed", False: "failed", None: "not known"}
    lines = {check.name: f"{words[check.passed]}: {check.said}" for check in made}
    left_out = left_out_text([LeftOut.from_facts(each) for each in about["left_out"]], "sequences")
    # What `logitstore info` prints, except the bytes by field, which are drawn as a figure.
    known = {label: value for label, value in info_lines(about).items() if label.strip()}
    deep = (
        '<p class="dim"><code>logitstore verify --deep</code> reads every byte, and looks whether '
        "the tokens are those of the text.</p>"
    )
    parts = [f"<details><summary>The checks</summary>{definitions(lines)}{deep}</details>"]
    if left_out:
        parts.append(
            f"<details><summary>What was not used</summary>{_preformatted(left_out)}</details>"
        )
    parts.append(
        "<details><summary>Everything that <code>logitstore info</code> says</summary>"
        f"{definitions(known)}</details>"
    )
    return "\n".join(parts)


def _preformatted(text: str) -> str:
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="what was not used">'
        f"<pre>{escape(clipped_text(text, 8000))}</pre></div>"
    )


def _browser(data: dict[str, Any]) -> str:
    if not data["sequences"]:
        return '<p class="none">No row with a token that is kept fits on this page.</p>'
    return """<noscript><p>The text is shown by a script, and scripts are off.</p></noscript>
<div id="browser" hidden>
<p class="legend">Surprise of a token, &minus;log p in nats:
<span class="token">below 1</span><span class="token s1">from 1</span>\
<span class="token s2">from 3</span>\
<span class="token s3">from 6</span></p>
<div class="controls">
<label for="search">Search <input id="search" type="search" autocomplete="off"></label>
<label for="order">Order <select id="order">\
<option value="surprise">most surprising first</option>\
<option value="row">as in the dataset</option></select></label>
<span id="count" class="dim" role="status"></span>
</div>
<div class="browser">
<div id="rows" class="card" role="listbox" aria-label="rows"></div>
<div id="reading"><div id="worst" class="dim"></div>\
<div id="text" class="card" tabindex="-1"></div></div>
<div id="detail" class="card"></div>
</div>
<p class="dim">Point at a token for what the teacher expected in its place; click or tap it to keep
it. <span class="keys"><kbd>Tab</kbd> goes from the rows to the text, <kbd>&larr;</kbd>
<kbd>&rarr;</kbd> move by a token, <kbd>&uarr;</kbd> <kbd>&darr;</kbd> by ten, or from row to
row.</span></p>
</div>"""
