"""Build a self-contained HTML page with a strict security policy, and write it to a file.

The page uses no network: style, figures, script and data are inside it. Its content security policy
(CSP) allows only the one script and the one style sheet whose digests it names. So dataset text
that looks like markup stays text even if an escape were forgotten.
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
from logitstore.storage.trial import explain_trial, try_beside

_BEGIN = "<!doctype html>"


def document(title: str, body: str, *, style: str, script: str, data: Any) -> str:
    """Return the page as HTML.

    Args:
        title: The title; any text, which is escaped here.
        body: The content of the page, as HTML.
        style: CSS that follows the style of every page.
        script: JavaScript, which reads `data` from the element with that id.
        data: Values that `json` can write; they may hold any text.
    """
    style = beside("logitstore.console", "page.css") + style
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
    """Read a text file that is installed with a package."""
    return (files(package) / name).read_text(encoding="utf-8")


def check_place(place: str | os.PathLike[str]) -> Path:
    """Raise InputError unless a page can be written here; called before the page is made.

    Returns:
        The place as a path.

    Raises:
        InputError: It is a folder, is in a bucket or in a folder that does not exist, or is a file
            that is not a page.
        StorageError: The file system fails.
    """
    out = local_path(place, "a page", "-o")
    if out.is_symlink() and not out.exists():
        raise InputError(
            f"{out}: is a link to {os.readlink(out)}, where nothing is. Make that file, or name "
            "another with -o."
        )
    if not out.parent.is_dir() or out.is_dir():
        fault = "it is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise InputError(f"{out}: {fault}. Name a file in a folder that exists with -o.")
    if out.exists() and not _is_page(out):
        raise InputError(
            f"{out}: this file exists and is not a page for a browser, so it is kept. Name another "
            "with -o."
        )
    try:
        try_beside(out, commits=False)
    except OSError as e:
        raise explain_trial(e, out, "-o") from e
    return out


def _is_page(path: Path) -> bool:
    try:
        with open_file(path) as file:
            return file.read(len(_BEGIN)) == _BEGIN.encode()
    except (OSError, ValueError):  # unreadable, or a pipe or device
        return False


def write_document(out: Path, text: str) -> int:
    """Write the page, whole or not at all; one that is there is replaced.

    Returns:
        The size of the page in bytes.

    Raises:
        InputError: The page cannot be written there.
    """
    data = text.encode(errors="backslashreplace")  # halves of surrogate pairs, of JSON files
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
    """Return a figure as HTML.

    Args:
        title: The text above the figure.
        drawn: The drawing, as HTML.
        caption: The text below it, as HTML.
        kind: The class of the figure, for style sheet and script.
        at: The figure's number among those of its kind, for the script.
    """
    marks = (f' class="{kind}"' if kind else "") + ("" if at is None else f' data-at="{at}"')
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{marks}><h3>{escape(title)}</h3>{drawn}{below}</figure>\n"


def definitions(lines: dict[str, str]) -> str:
    """Return a list of names and values as HTML, each value of at most 2,000 characters."""
    items = (
        f"<dt>{escape(name)}</dt><dd>{escape(clipped_text(value, 2000))}</dd>"
        for name, value in lines.items()
    )
    return f"<dl>{''.join(items)}</dl>"


def clipped_text(text: str, characters: int) -> str:
    """Clip text and escape invisible characters except line ends; `…` marks what was cut."""
    kept = text if len(text) <= characters else f"{text[:characters]}…"
    return "\n".join(printable(line) for line in kept.split("\n"))


def as_script(data: dict[str, Any] | Sequence[Any]) -> str:
    """Return JSON that is safe inside a `<script>` element, whatever text it holds."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":  # no tag, no comment, no end of line of a script
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
