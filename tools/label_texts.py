"""Texts of four kinds to judge labels on, in halves: one to learn maps from, one to judge them.

    prose     news, a document a line: gensim's wheel carries the Lee background corpus
    code      modules of Python's standard library
    markdown  the long descriptions of the packages that are installed here
    scripts   Django's translations into fourteen languages, eleven scripts

The fetched ones lie in build/real/texts and are never committed; the other two are on every machine
that runs this. Of any two neighbouring documents one is in each half.
"""

import ast
import itertools
import re
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from tools.real_parts import FOLDER, download

PROSE, SCRIPTS = "gensim==4.4.0", "django==5.2.8"
_PROSE_FILE = "gensim/test/test_data/lee_background.cor"
_LANGUAGES = (
    "ar", "bg", "el", "fa", "he", "hi", "ja", "ka", "ko", "ru", "ta", "th", "uk", "zh_Hans",
)  # fmt: skip
_LONGEST = 10_000  # characters of one document: many documents tell more than a long one

#: Bytes of each half of a kind, at most. What a store teaches is much more than what is judged.
LEARNT_BYTES, JUDGED_BYTES = 600_000, 150_000


class Halves(NamedTuple):
    """Documents of one kind."""

    learnt: list[str]
    judged: list[str]


def texts(kind: str, *, learnt: int = LEARNT_BYTES, judged: int = JUDGED_BYTES) -> Halves:
    """Return the documents of a kind, in two halves of at most so many bytes.

    Raises:
        Unreachable: A part has not been fetched, and no package index has it.
    """
    documents = _documents(kind)
    return Halves(_up_to(documents[::2], learnt), _up_to(documents[1::2], judged))


def fetch(folder: Path = FOLDER) -> Path:
    """Return the folder of the fetched texts, after fetching those that are not there."""
    made = folder / "texts"
    made.mkdir(parents=True, exist_ok=True)
    for package, name, read in ((PROSE, "prose", _of_gensim), (SCRIPTS, "scripts", _of_django)):
        place = made / f"{name}.txt"
        if not place.exists():
            with (
                tempfile.TemporaryDirectory() as temporary,
                zipfile.ZipFile(download(package, Path(temporary))) as wheel,
            ):
                joined = "\f".join(read(wheel))
            unfinished = place.with_suffix(".new")
            unfinished.write_text(joined)
            unfinished.replace(place)
    return made


@cache
def _documents(kind: str) -> list[str]:
    return [text for text in KINDS[kind]() if text.strip()]


def _up_to(documents: list[str], size: int) -> list[str]:
    """Take every n-th document, so that they come from all parts, and no more than `size` bytes."""
    step = max(1, sum(len(d.encode()) for d in documents) // max(1, size))
    total, taken = 0, []
    for text in documents[::step]:
        total += len(text.encode())
        if total > size:
            break
        taken.append(text)
    return taken


def _prose() -> Iterator[str]:
    yield from (fetch() / "prose.txt").read_text().split("\f")


def _scripts() -> Iterator[str]:
    yield from (fetch() / "scripts.txt").read_text().split("\f")


def _code() -> Iterator[str]:
    """Read the standard library's own modules; test modules of other libraries are not here."""
    folder = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names):
        found = [folder / f"{name}.py", *sorted((folder / name).glob("*.py"))]
        for place in found:
            if place.is_file():
                yield _cut(place.read_text(encoding="utf-8", errors="ignore"))


def _markdown() -> Iterator[str]:
    """Read the descriptions of installed packages, by name, each package once."""
    found: dict[str, Any] = {
        str(d.metadata["Name"]).lower(): d.metadata for d in metadata.distributions()
    }
    for _, about in sorted(found.items()):
        if "markdown" in str(about.get("Description-Content-Type")):
            # Newer installers keep it behind the head, older ones in a field.
            yield _cut(str(about.get_payload() or about.get("Description") or ""))


def _cut(text: str) -> str:
    """Cut a long document at the end of a line."""
    return text if len(text) <= _LONGEST else text[: text.rfind("\n", 0, _LONGEST) + 1]


def _of_gensim(wheel: zipfile.ZipFile) -> Iterator[str]:
    yield from wheel.read(_PROSE_FILE).decode().splitlines()


def _of_django(wheel: zipfile.ZipFile) -> Iterator[str]:
    """Read translations, ten messages a document, all languages in turn."""
    by_language = []
    for language in _LANGUAGES:
        names = [n for n in wheel.namelist() if f"/locale/{language}/" in n and n.endswith(".po")]
        messages = [m for name in names for m in _translated(wheel.read(name).decode())]
        by_language.append([messages[i : i + 10] for i in range(0, len(messages), 10)])
    # Two of each language follow each other: one for each half.
    pairs = [list(zip(each[::2], each[1::2], strict=False)) for each in by_language]
    for row in itertools.zip_longest(*pairs, fillvalue=()):
        for pair in row:
            yield from ("\n".join(document) for document in pair)


def _translated(catalogue: str) -> list[str]:
    strings = re.findall(r'^msgstr(?:\[\d\])? ((?:".*"\n)+)', catalogue, re.MULTILINE)
    texts = ["".join(map(ast.literal_eval, each.splitlines())) for each in strings[1:]]
    return [text for text in texts if text]


KINDS: dict[str, Callable[[], Iterator[str]]] = {
    "prose": _prose,
    "code": _code,
    "markdown": _markdown,
    "scripts": _scripts,
}
