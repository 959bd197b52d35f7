"""Repair a damaged store: move damaged files aside, so that a capture redoes only those.

    my-store.quarantine/1/        beside the store, one folder for each repair
      damage.json                 what is wrong with each file, written before anything is moved
      DONE, index.parquet         always moved: from here on the store is unfinished
      shards/00001.zarr.zip       …and each damaged file, under its old name

A damaged store is unsealed first. So a crash during a repair leaves an unfinished store, never a
finished one with missing shards, and running `repair` again continues. Nothing is deleted: a shard
with one damaged chunk may still be useful. The same `logitstore capture …` then redoes the missing
shards and seals the store. If only the seal or the index was damaged, the repair seals it again.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from logitstore.checking.report import Damage
from logitstore.checking.verify import verify_store
from logitstore.console.counts import counted
from logitstore.format.plan import is_plan_file
from logitstore.format.spec import (
    BOUNDARIES_FOLDER,
    DONE_FILE,
    HIDDEN_FOLDER,
    INDEX_FILE,
    SHARDS_FOLDER,
    SPEC_FILE,
    STUDENT_FOLDER,
    TOKENIZER_FOLDER,
    StoreHeader,
    shard_name,
)
from logitstore.reading.listing import list_boundaries
from logitstore.storage import commit
from logitstore.storage.commit import OS_FS, Fs
from logitstore.storage.paths import StorePath, store_path
from logitstore.store import LogitStore
from logitstore.writing.journal import Journal
from logitstore.writing.writer import StoreWriter


@dataclass(frozen=True)
class RepairReport:
    """The damage that a repair found, and what it did about it.

    Attributes:
        damaged: All damage that was found.
        quarantine: The folder with the damaged files; None if nothing was damaged.
        moved: The names of the files in it, relative to the store.
        missing_shards: The number of shards that a capture has to redo.
        is_complete: Whether the store is now whole and sealed.
    """

    damaged: list[Damage]
    quarantine: StorePath | None
    moved: list[str]
    missing_shards: int
    is_complete: bool

    def to_json(self) -> dict[str, Any]:
        """Return the report as `logitstore repair --json` prints it."""
        return asdict(self) | {"quarantine": self.quarantine and str(self.quarantine)}


def repair_store(path: str | os.PathLike[str] | StorePath, *, fs: Fs = OS_FS) -> RepairReport:
    """Check every byte of a store and move damaged files into a folder beside it.

    No other process may be writing the store.

    Raises:
        NotAStoreError: There is no store here.
        FormatError: The store has a newer format version.
        CorruptStoreError: `store.json` itself is damaged: without it nothing else has a meaning.
        StorageError: The file system failed; running the repair again continues it.
    """
    path = store_path(path)
    header = StoreHeader.read(path)
    report = verify_store(path, deep=True, allow_partial=True)
    quarantine, moved = None, []
    try:
        if report.damaged:
            quarantine = _new_quarantine(path, report.damaged, fs)
            moved = _move(path, quarantine, report.damaged, fs)
        stores = [path, *list_boundaries(path)]
        for each in reversed(stores):  # the outer one last, as a capture seals them
            _seal_if_whole(each, fs)
    except OSError as e:
        raise commit.explain(e, path) from e
    held = [LogitStore(each, allow_partial=True) for each in stores]
    missing = sum(header.plan.shard_count - len(store.shards) for store in held)
    is_complete = all(store.is_complete for store in held) and not _has_lost_header(moved)
    return RepairReport(report.damaged, quarantine, moved, missing, is_complete)


def _has_lost_header(moved: list[str]) -> bool:
    """Tell whether an inner store is no store any more, until a capture begins it again."""
    return any(name.endswith(f"/{SPEC_FILE}") for name in moved)


def _seal_if_whole(path: StorePath, fs: Fs) -> None:
    writer = _writer(path, StoreHeader.read(path), fs)
    if writer is None or writer.missing() or writer.lacks_lm_head or writer.is_sealed:
        return
    writer.seal()


def _new_quarantine(path: StorePath, damaged: list[Damage], fs: Fs) -> StorePath:
    """Make a new folder with `damage.json`, durable before anything is moved."""
    above = path.with_name(f"{path.name}.quarantine")
    number = 1
    while (above / str(number)).exists():
        number += 1
    quarantine = above / str(number)
    quarantine.make_folder(fs)
    about = json.dumps([asdict(d) for d in damaged], indent=1, ensure_ascii=False)
    (quarantine / "damage.json").overwrite(about.encode() + b"\n", fs)
    return quarantine


def _move(path: StorePath, quarantine: StorePath, damaged: list[Damage], fs: Fs) -> list[str]:
    """Move the seal and the index first, then the damaged files; return their names."""
    files = [d.file for d in damaged]
    names = list(dict.fromkeys([*_seals(damaged), *filter(None, map(_shard_of, files)), *files]))
    moved = []
    for name in names:
        source, target = path / name, quarantine / name
        if source.is_symlink() or source.exists():
            source.move_to(target, fs)
            moved.append(name)
    return moved


def _shard_of(file: str) -> str | None:
    """Name the shard whose hidden states a file has: it is what says that they are there."""
    folder, _, name = file.partition("/")
    if folder != HIDDEN_FOLDER:
        return None
    return f"{SHARDS_FOLDER}/{shard_name(int(name.split('-')[0]))}"


def _seals(damaged: list[Damage]) -> list[str]:
    """Name seal and index of every store that has damage: of the outer one, of those inside it."""
    folders = dict.fromkeys(_folder_of(d.file) for d in damaged)
    names = [f"{folder}{name}" for folder in folders for name in (DONE_FILE, INDEX_FILE)]
    lost = [_folder_of(d.file) for d in damaged if is_plan_file(d.file.split("/")[-1])]
    return names + [f"{folder}{SPEC_FILE}" for folder in lost]  # of an inner store alone


def _folder_of(file: str) -> str:
    """Return the folder of the inner store that a file belongs to, with a slash; empty: the outer.

    Its `store.json` alone says what it is: without that, nothing can be redone.
    """
    parts = file.split("/")
    return f"{parts[0]}/{parts[1]}/" if parts[0] == BOUNDARIES_FOLDER else ""


def _writer(path: StorePath, header: StoreHeader, fs: Fs) -> StoreWriter | None:
    """Make a writer of the existing store; None if a tokenizer is missing."""
    student = header.spec.boundaries_of
    files = _files(path / TOKENIZER_FOLDER, header.spec.tokenizer["files"])
    more = _files(path / STUDENT_FOLDER, {} if student is None else student["files"])
    if files is None or more is None:
        return None
    folders = {} if student is None else {STUDENT_FOLDER: more}
    outer = path.parent.parent
    journal = None if student is None else Journal(outer).within(f"{BOUNDARIES_FOLDER}/{path.name}")
    return StoreWriter(
        path,
        header.spec,
        header.plan,
        files,
        header.provenance,
        folders=folders,
        journal=journal,
        fs=fs,
    )


def _files(folder: StorePath, names: Iterable[str]) -> dict[str, bytes] | None:
    """Read files of a folder; None if one is missing."""
    paths = {name: folder / name for name in names}
    if not all(path.is_file() for path in paths.values()):
        return None
    return {name: path.read_bytes() for name, path in paths.items()}


def next_step(report: RepairReport, path: StorePath) -> str:
    """Say in a sentence what is left to do."""
    if report.is_complete:
        return f"{path} is whole" + (" and sealed again." if report.damaged else ".")
    return (
        f"{path}: lacks {counted(report.missing_shards, 'shard')}, or its tokenizer or output "
        "embedding. Run the same `logitstore capture …` again to redo just that, or "
        f"`logitstore repair {path} --capture`."
    )
