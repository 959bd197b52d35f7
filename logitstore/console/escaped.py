"""Escape what a terminal would obey, at the one place where all output leaves the program.

Names, messages and text of a store, a dataset, a template or a file of settings belong to
strangers, and reach the terminal by many ways: an error, a log, a progress bar, a traceback. So
while a command runs, `sys.stdout` and `sys.stderr` are `Escaped`: of control characters they pass
the end of a line and the tab, and what a progress bar does with the cursor; of colours those of
this package's own text, which is given to `print_coloured`. All else is spelt: `\\x1b`, `\\u202e`.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

#: Control characters (C0, C1) but line end and tab, marks that turn text around or break lines, and
#: halves of surrogate pairs, which cannot be written at all.
_OBEYED = (
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_CONTROL = re.compile(_OBEYED)
_CONTROL_OR_COLOUR = re.compile(rf"(\x1b\[[0-9;]*m)|{_OBEYED}")
_CURSOR = re.compile(r"(?:\n|\x1b\[A)*")  # how a progress bar goes to its line


class Escaped:
    """A text stream that escapes what it is given, on its way to another."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        if name in ("buffer", "detach"):  # what is written there would go past this
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"expected text, found {type(text).__name__}")
        if _CONTROL.search(text) is not None and _CURSOR.fullmatch(text) is None:
            # A bar begins with the start of its line; nothing is overwritten that another wrote.
            kept = len(text) - len(text.lstrip("\r"))
            text = text[:kept] + _CONTROL.sub(_spelt, text[kept:].replace("\r\n", "\n"))
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def write_coloured(self, text: str) -> None:
        """Write text whose colours are ours: what strangers wrote in it must be escaped already."""
        self._stream.write(_CONTROL_OR_COLOUR.sub(lambda m: m[1] or _spelt(m), text))


def print_coloured(text: str) -> None:
    """Print text with colours of this package's own to stdout."""
    if isinstance(sys.stdout, Escaped):
        sys.stdout.write_coloured(f"{text}\n")
    else:
        print(text)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape what is written to stdout and stderr in this block.

    After a failure that nobody foresaw they stay so: its traceback has text of strangers, too.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, Escaped) else Escaped(stream) for stream in before
    )
    try:
        yield
    except SystemExit:
        sys.stdout, sys.stderr = before
        raise
    sys.stdout, sys.stderr = before


def _spelt(found: "re.Match[str]") -> str:
    return found[0].encode("unicode_escape").decode()
