"""A page for a browser with nothing beside it: its head and policy, and how its file is written.

The page asks no network: style, figures, script and data are in it. Its policy (a CSP) lets run
the one script and the one style sheet that have the digests it names, and nothing else, so text of
a dataset that looks like markup stays text even if an escape were forgotten.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from logitstore.console.terminal import printable
from logitstore.errors import InputError
from logitstore.storage import commit
from logitstore.storage.files import open_file
from logitstore.storage.paths import local_path

_BEGIN = "<!doctype html>"


def document(title: str, body: str, *, style: str, script: str, data: Any) -> str:
    """The page, as HTML.

    Args:
        title: Of anybody's making; escaped here.
        body: What stands in it, as HTML.
        style: CSS, behind that of every page.
        script: JavaScript. It reads `data` from the element of that id.
        data: What `json` can write; it may hold any text.
    """
    style = beside("logitstore.pages", "page.css") + style
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return f"""{_BEGIN}
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{as_script(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def beside(package: str, name: str) -> str:
    """The text of a file that is installed with a package."""
    return (files(package) / name).read_text(encoding="utf-8")


def check_place(place: str | os.PathLike[str]) -> Path:
    """Refuse a place that cannot take a page, before the page is made: that may take a while.

    Returns:
        The same, as a path.

    Raises:
        InputError: It is a folder, in none or in a bucket, or holds something else than a page.
    """
    out = local_path(place, "a page", "-o")
    if not out.parent.is_dir() or out.is_dir():
        what = "it is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise InputError(f"{out}: {what}. Name a file in a folder that is there with -o.")
    if out.exists() and not _is_page(out):
        raise InputError(
            f"{out}: there is a file that is no page for a browser, and it is kept. Name another "
            "with -o."
        )
    return out


def _is_page(path: Path) -> bool:
    try:
        with open_file(path) as file:
            return file.read(len(_BEGIN)) == _BEGIN.encode()
    except (OSError, ValueError):  # not to be read, or a pipe or device
        return False


def write_document(out: Path, text: str) -> int:
    """Write the page, whole or not at all; one that is there is replaced.

    Returns:
        Its bytes.

    Raises:
        InputError: It cannot be written there.
    """
    data = text.encode()
    try:
        commit.write_whole(out, data)
    except OSError as e:
        raise InputError(
            f"{out}: the report cannot be written ({e.strerror}). Name another file with -o."
        ) from None
    return len(data)


def figure(
    title: str, drawn: str, caption: str = "", *, kind: str = "", at: int | None = None
) -> str:
    """A figure.

    Args:
        title: Above it.
        drawn: HTML.
        caption: Below it, HTML too.
        kind: Its class, for style sheet and script.
        at: Its number among those of its kind, for the script.
    """
    marks = (f' class="{kind}"' if kind else "") + ("" if at is None else f' data-at="{at}"')
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{marks}><h3>{escape(title)}</h3>{drawn}{below}</figure>\n"


def definitions(lines: dict[str, str]) -> str:
    """Names and what they are, each of at most 2,000 characters."""
    items = (
        f"<dt>{escape(name)}</dt><dd>{escape(clipped_text(value, 2000))}</dd>"
        for name, value in lines.items()
    )
    return f"<dl>{''.join(items)}</dl>"


def clipped_text(text: str, characters: int) -> str:
    """Text without anything invisible, but for its line ends; `…` for what is over."""
    kept = text if len(text) <= characters else f"{text[:characters]}…"
    return "\n".join(printable(line) for line in kept.split("\n"))


def as_script(found: dict[str, Any] | Sequence[Any]) -> str:
    """JSON that may stand inside a `<script>` element, whatever text it holds."""
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":  # no tag, no comment, no end of line of a script
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
