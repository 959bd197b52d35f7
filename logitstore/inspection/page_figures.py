"""Draw the figures of a store's page, each with a sentence on what it means for the losses."""

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from logitstore.console.counts import counted
from logitstore.console.html_document import figure
from logitstore.console.svg import axis_top, bars, curve, histogram
from logitstore.format.fields import IN_WORDS
from logitstore.inspection import meaning
from logitstore.inspection.page_data import curves
from logitstore.inspection.scalars import Survey
from logitstore.store import LogitStore

_BOTH = (
    '<span class="key">— on average</span> · <span class="key second">- - 99 of 100 tokens</span>'
)


def figures(store: LogitStore, about: dict[str, Any], found: Survey) -> Iterator[str]:
    """Draw all figures of which something is known.

    Args:
        store: The store.
        about: What `info.facts` says of it.
        found: What all of its tokens say.
    """
    said = {
        "surprise": (
            "How surprised the teacher was, \N{MINUS SIGN}log p in nats",
            meaning.surprise(found),
        ),
        "entropy": ("How unsure the teacher was, entropy in nats", meaning.entropy(found)),
        "tail": ("How much of the probability was not kept", meaning.tail(found, about)),
        "entries": ("How many tokens were kept at each place", meaning.entries(found, about)),
    }
    for name, (title, sentence) in said.items():
        drawn = found.histograms[name]
        is_alike = name == "entries" and len(list(filter(None, drawn["counts"]))) == 1
        if sum(drawn["counts"]) and not is_alike:  # a single bar is no figure
            unknown = drawn["unknown"]
            sentence += f" Not known for {counted(unknown, 'token')}." if unknown else ""
            yield figure(title, histogram(drawn), _marked(sentence))
    yield from _curves(curves(store), about)
    if about["records"]:
        yield _sizes(about)
    missing = [
        title for name, (title, _) in said.items() if not sum(found.histograms[name]["counts"])
    ]
    if missing:
        yield figure("What is not known", f"<p>{escape('; '.join(missing))}.</p>")


def _curves(found: dict[str, Any] | None, about: dict[str, Any]) -> Iterator[str]:
    if found is None:
        return
    ks, of = found["k"], f"Of {counted(found['records'], 'token')}, evenly spread."
    points = ", ".join(f"k {k}: {m:.4f}" for k, m in zip(ks, found["mass"], strict=True))
    drawn = curve(
        ks, {"first": found["mass"]}, 1.0, f"probability of the k most probable: {points}"
    )
    yield figure("What a smaller top k would keep", drawn, _marked(f"{meaning.mass(found)} {of}"))
    both = {"first": found["bound_mean"], "second": found["bound_p99"]}
    pairs = zip(ks, both["first"], both["second"], strict=True)
    points = ", ".join(f"k {k}: {mean:.4f} and {p99:.4f}" for k, mean, p99 in pairs)
    top = axis_top(max(both["second"]))
    drawn = curve(ks, both, top, f"ULD bound on average and for 99 of 100 tokens: {points}")
    caption = f"{_BOTH}<br>{_marked(meaning.bound(found, about))}"
    yield figure("How far off a ULD can be, by top k", drawn, caption)


def _sizes(about: dict[str, Any]) -> str:
    fields = sorted(about["bytes_per_token_by_field"].items(), key=lambda item: -item[1])
    rows = [
        (IN_WORDS.get(name, name.replace("_", " ")), size, f"{size:.2f}")
        for name, size in fields
        if size >= 0.005
    ]
    said = ", ".join(f"{name} {size}" for name, _, size in rows)
    drawn = bars(rows, f"bytes a token: {said}")
    return figure("Where the bytes of a token go", drawn, _marked(meaning.sizes(rows, about)))


def _marked(sentence: str) -> str:
    """Escape a sentence, and keep the flags in it whole at the end of a line."""
    return re.sub(r"--[a-z][a-z-]*", r"<code>\g<0></code>", escape(sentence))
