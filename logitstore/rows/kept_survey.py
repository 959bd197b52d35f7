"""Keep what reading all rows of a large dataset tells, so that a resumed capture need not read it.

Of four terabytes that is an hour at every start of every process. It is kept in the user's cache
and found again by all that it depends on: which rows of which files these are, how they are read,
and size, times and number of each file. Whoever writes to a file changes one of those, but for a
second write within the same tick of the clock, which is why nothing is read for this before a tick
has passed since the files were first looked at, and nothing is kept unless they look the same
afterwards. (Git has the same case, and calls such files racily clean.)

Nothing is kept of a dataset that is in memory, even in part, or that is read in a second or two.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import logitstore
from logitstore.reading.shard_cache import ShardCache
from logitstore.rows.source import Source
from logitstore.rows.source_files import signs_of
from logitstore.rows.survey import Rows as Surveyed
from logitstore.rows.survey import Survey, Surveying, survey
from logitstore.storage.commit import temporary
from logitstore.storage.files import TICK_NS, FileSign
from logitstore.storage.kept_arrays import exclusive, keep, mapped

if TYPE_CHECKING:
    from datasets import Dataset

#: Of what a survey looks at: raised when it looks at more.
_SURVEY = 1
#: Bytes of files from which on it pays: a second or two.
WORTH_KEEPING_BYTES = 1 << 30
#: Files that are older are not written to now, however wrong a server's clock goes.
_OLD_NS = 24 * 3600 * 10**9

Signs = Mapping[Path, FileSign | None]


class Rows(Surveyed, Protocol):
    """Rows that know where they come from."""

    source: Source

    @property
    def files(self) -> Sequence[Path]:
        """The files that the rows are mapped from."""


def kept_survey(rows: Rows) -> Survey:
    """Read all rows once, or find what an earlier process has found of the same files.

    Raises:
        InputError: A row that cannot be read; names it.
    """
    signs = signs_of(rows.files)
    content = _identity(rows) if _size(signs) >= WORTH_KEEPING_BYTES else None
    if content is None:
        return survey(rows)
    folder = ShardCache.chosen().folder / "surveys"
    kept = folder / _name(content, signs)
    with suppress(OSError, ValueError):
        return _load(kept)
    try:
        lock = exclusive(folder.parent / "locks" / f"survey-{kept.name[:2]}")
        with lock:
            with suppress(OSError, ValueError):  # another process has read it meanwhile
                return _load(kept)
            return _read(rows, signs, kept)
    except OSError:  # a cache that cannot be written
        return survey(rows)


def _read(rows: Rows, signs: Signs, kept: Path) -> Survey:
    """Read all rows, and keep what is found if their files did not change meanwhile."""
    if any(sign and max(sign[1:3]) > time.time_ns() - _OLD_NS for sign in signs.values()):
        time.sleep(TICK_NS / 1e9)
    surveying = Surveying(rows)
    sizes = keep(_sizes_of(kept), surveying.sizes(), len(rows))
    found = Survey(surveying.digest, sizes, surveying.obeys)
    if signs_of(rows.files) == signs:
        with suppress(OSError):
            _save(kept, found)
    return found


def _save(kept: Path, found: Survey) -> None:
    data = json.dumps({"digest": found.digest, "obeys": found.obeys, "rows": len(found.text_bytes)})
    unnamed = temporary(kept)
    unnamed.write_text(f"{_sha256(data)}\n{data}", "utf-8")
    unnamed.replace(kept)


def _load(kept: Path) -> Survey:
    """Load what was kept.

    Raises:
        OSError: Nothing was.
        ValueError: It is damaged.
    """
    digest, _, data = kept.read_text("utf-8").partition("\n")
    if _sha256(data) != digest:
        raise ValueError(f"{kept}: is not what was written")
    found = json.loads(data)
    return Survey(found["digest"], mapped(_sizes_of(kept), found["rows"]), tuple(found["obeys"]))


def _sizes_of(kept: Path) -> Path:
    return kept.with_suffix(".i64")


def _name(content: Any, signs: Signs) -> str:
    files = [[str(path), sign] for path, sign in signs.items()]
    return _sha256(json.dumps([_SURVEY, content, files]))


def _size(signs: Signs) -> int:
    """Add up the files; none of it counts where one is gone."""
    sizes = [0 if sign is None else sign.size_bytes for sign in signs.values()]
    return sum(sizes) if all(sizes) else 0


def _identity(rows: Rows) -> list[Any] | None:
    """Say which rows of which files these are, and how they are read; None: some are in memory."""
    import datasets
    import pyarrow as pa

    source = rows.source
    tables = [_tables(source.dataset.data), _tables(getattr(source.dataset, "_indices", None))]
    if None in tables:
        return None
    columns = [
        [name, source.shape(name), source.is_exact(name), name in source.files, _type(source, name)]
        for name in rows.columns
    ]
    return [
        [logitstore.__version__, datasets.__version__, pa.__version__],
        [rows.kind, len(rows), rows.private, list(rows.message_columns), columns],
        tables,
    ]


def _type(source: Source, name: str) -> str:
    dataset: Dataset = source.dataset
    return str(dataset.features[name])


def _tables(table: Any) -> list[str] | None:
    """Name the files that a table is mapped from and what is taken of each; None: not mapped."""
    from datasets.table import ConcatenationTable, MemoryMappedTable

    if table is None:
        return []
    blocks = table.blocks if isinstance(table, ConcatenationTable) else [[table]]
    flat = list(_flat(blocks))
    if not all(isinstance(block, MemoryMappedTable) for block in flat):
        return None
    return [f"{block.path} {block.replays!r}" for block in flat] + [
        str([len(some) for some in blocks])
    ]


def _flat(blocks: Sequence[Sequence[Any]]) -> Iterator[Any]:
    for some in blocks:
        yield from some


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
