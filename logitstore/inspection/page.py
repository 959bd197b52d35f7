"""Write a store's report page (`logitstore report`): its facts, its distributions and its text."""

import os
from html import escape
from typing import Any

from logitstore.console.html_document import (
    beside,
    check_place,
    clipped_text,
    definitions,
    document,
    figure,
    write_document,
)
from logitstore.console.svg import axis_top, bars, curve, histogram
from logitstore.errors import InputError
from logitstore.info import facts, info_lines
from logitstore.inspection.page_data import browsed, curves
from logitstore.inspection.scalars import histograms
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
    data = browsed(store, sequences)
    size = write_document(out, page(store, data))
    return {"report": str(out), "bytes": size, "sequences": len(data["sequences"])}


def page(store: LogitStore, data: dict[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        store: The store.
        data: What `page_data.browsed` returns: the sequences to include.
    """
    about = facts(store)
    name = clipped_text(os.path.basename(str(store.path)) or "store", 80)
    # What `logitstore info` prints, except the bytes by field, which are drawn as a figure.
    lines = {label: value for label, value in info_lines(about).items() if label}
    body = f"""<h1>{escape(name)}</h1>
<p class="dim">The teacher's predictions for each token, kept for its students.</p>
{definitions(lines)}
<h2>Distributions</h2>
<div class="figures">
{"".join(_figures(store, about))}
</div>
<h2>Sequences</h2>
{_browser(data)}"""
    style, script = (beside("logitstore.inspection", f"browse.{kind}") for kind in ("css", "js"))
    return document(f"{name} · logitstore", body, style=style, script=script, data=data)


def _figures(store: LogitStore, about: dict[str, Any]) -> list[str]:
    spread = histograms(store)
    drawn = [
        figure(h["label"][0].upper() + h["label"][1:], histogram(h), _unknown(h["unknown"]))
        for h in (spread[name] for name in ("surprise", "entropy", "tail", "entries"))
    ]
    return [*drawn, *_curves(curves(store)), _sizes(about)]


def _unknown(count: int) -> str:
    return f"not known for {count:,} tokens" if count else ""


def _curves(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        none = '<p class="none">no entries are kept, or their tails are not known</p>'
        return [figure("Mass of the k most probable", none)]
    ks, of = found["k"], f"of {found['records']:,} tokens, evenly spread"
    points = ", ".join(f"k {k}: {m:.4f}" for k, m in zip(ks, found["mass"], strict=True))
    mass = curve(ks, {"first": found["mass"]}, 1.0, f"mass of the k most probable: {points}")
    both = {"first": found["bound_mean"], "second": found["bound_p99"]}
    pairs = zip(ks, both["first"], both["second"], strict=True)
    points = ", ".join(f"k {k}: {mean:.4f} and {p99:.4f}" for k, mean, p99 in pairs)
    top = axis_top(max(both["second"]))
    bound = curve(ks, both, top, f"ULD bound on average and for 99 of 100 tokens: {points}")
    caption = (
        '<span class="key">— on average</span> · <span class="key second">- - 99 of 100 tokens'
        f"</span>: how far a ULD from k entries can be from the exact one, {of}"
    )
    return [
        figure("Mass of the k most probable", mass, f"mean {of}; the rest is the tail"),
        figure("ULD bound by k", bound, caption),
    ]


def _sizes(about: dict[str, Any]) -> str:
    fields = sorted(about["bytes_per_token_by_field"].items(), key=lambda item: -item[1])
    rows = [(name.replace("_", " "), size, f"{size:.2f}") for name, size in fields if size >= 0.005]
    sizes = ", ".join(f"{name} {size}" for name, _, size in rows)
    total = f"{about['bytes_per_token']:.1f} in all, directories of the files included"
    return figure("Bytes a token", bars(rows, f"bytes a token: {sizes}"), total)


def _browser(data: dict[str, Any]) -> str:
    if not data["sequences"]:
        return '<p class="none">No sequence with records fits on this page.</p>'
    return """<noscript><p>Sequences are shown by a script, and scripts are off.</p></noscript>
<div id="browser" hidden>
<p class="legend">Surprise of a token, &minus;log p in nats:
<span class="token">below 1</span><span class="token s1">from 1</span>\
<span class="token s2">from 3</span>\
<span class="token s3">from 6</span></p>
<p class="dim">Point at a token for the teacher's prediction in its place; click or tap to keep it
selected. <span class="keys"><kbd>←</kbd> <kbd>→</kbd> move by one token, <kbd>↑</kbd> <kbd>↓</kbd>
by ten.</span></p>
<div class="controls"><button id="before" type="button" aria-label="sequence before">←</button>\
<select id="sequence" aria-label="sequence"></select>\
<button id="after" type="button" aria-label="next sequence">→</button></div>
<div class="browser"><div id="text" class="card" role="listbox" aria-label="tokens"></div>\
<div id="detail" class="card" aria-live="polite"></div></div>
</div>"""
