"""Load real text that comes with every CPython: the language reference and library sources.

Three sets, split by document, so that no set holds a part of another's documents:

    teacher    what the teacher is trained on, and both tokenizers
    student    what is captured, and what the students are trained on
    heldout    what the students are measured on

The last two are half prose (`pydoc_data.topics`) and half sources. Documents are dealt out in the
order of a hash of their names: the same for the same CPython, without regard to size or subject.
"""

import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from pydoc_data import topics
from typing import NamedTuple

#: The most bytes of one document, so that a set of some 100 kB still has dozens of documents.
DOCUMENT_CHARS = 12_000
#: The most characters of one dataset row.
ROW_CHARS = 512
#: Folders that are left out: tables, tests, and packages that were installed.
LEFT_OUT = {"encodings", "pydoc_data", "lib2to3", "test", "tests", "idle_test"} | {
    "site-packages",
    "dist-packages",
}

Read = Callable[[], str]


class Corpus(NamedTuple):
    """The rows of the three sets; each row is a piece of at most `ROW_CHARS` characters."""

    teacher: list[str]
    student: list[str]
    heldout: list[str]


def load_corpus(*, teacher_bytes: int, student_bytes: int, heldout_bytes: int) -> Corpus:
    """Load the three sets, each with at least the given bytes, as long as documents last."""
    prose, sources = _by_hash(topics_of_language()), _by_hash(library_sources())
    heldout = [*_take(prose, heldout_bytes // 2), *_take(sources, heldout_bytes // 2)]
    student = [*_take(prose, student_bytes // 2), *_take(sources, student_bytes // 2)]
    teacher = [*prose]
    teacher += _take(sources, teacher_bytes - sum(_size(text) for text in teacher))
    return Corpus(
        *([row for text in texts for row in rows_of(text)] for texts in (teacher, student, heldout))
    )


def write_jsonl(path: Path, rows: Iterable[str]) -> None:
    """Write rows as a dataset: one `{"text": …}` on each line."""
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")


def topics_of_language() -> Iterator[tuple[str, Read]]:
    for name, text in topics.topics.items():
        yield f"topics/{name}", partial(str, text)


def library_sources() -> Iterator[tuple[str, Read]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for folder, folders, files in os.walk(library):
        folders[:] = set(folders) - LEFT_OUT
        for path in (Path(folder, file) for file in files if file.endswith(".py")):
            yield path.relative_to(library).as_posix(), partial(_read, path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""  # a few old modules are written in another encoding


def _by_hash(documents: Iterable[tuple[str, Read]]) -> Iterator[str]:
    """Yield texts in the order of the hashes of their names; read only those that are taken."""
    for _, read in sorted(documents, key=lambda each: hashlib.sha256(each[0].encode()).digest()):
        if (text := read()).strip():
            yield text[:DOCUMENT_CHARS]


def _take(documents: Iterator[str], wanted_bytes: int) -> list[str]:
    """Take the next documents until they hold `wanted_bytes`."""
    taken: list[str] = []
    held_bytes = 0
    while held_bytes < wanted_bytes and (text := next(documents, None)) is not None:
        taken.append(text)
        held_bytes += _size(text)
    return taken


def _size(text: str) -> int:
    return len(text.encode())


def rows_of(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most `ROW_CHARS` characters, at line ends if possible."""
    while text:
        end = text.rfind("\n", 0, ROW_CHARS) + 1 if len(text) > ROW_CHARS else len(text)
        piece, text = text[: end or ROW_CHARS], text[end or ROW_CHARS :]
        if piece.strip():
            yield piece
