"""Put a damaged store back on its feet: what is damaged moves aside, and only that is redone.

    my-store.quarantine/1/        beside the store, one folder a repair
      damage.json                 what was wrong with each file, written before anything moves
      DONE, index.parquet         always: the store is unfinished from here on
      shards/00001.zarr.zip       …and each damaged file, under the name it had

A damaged store is unsealed first, so a crash in between leaves an unfinished store, never a
finished one with holes; running `repair` again goes on from there. Nothing is deleted: a shard of
which one chunk is damaged may be worth a look. The same `logitstore capture …` then redoes the
missing shards and seals; where only seal or index was damaged, the store is sealed again at once.
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from logitstore.checking.verify import Damage, verify_store
from logitstore.format.spec import DONE_FILE, INDEX_FILE, TOKENIZER_FOLDER, StoreHeader
from logitstore.storage import commit
from logitstore.storage.commit import OS_FS, Fs
from logitstore.storage.paths import StorePath, store_path
from logitstore.store import LogitStore
from logitstore.writing.writer import StoreWriter


@dataclass(frozen=True)
class RepairReport:
    """What a repair found and did.

    Attributes:
        damaged: Everything that was wrong.
        quarantine: Where the damaged files are now; None if nothing was wrong.
        moved: Their names, relative to the store.
        missing_shards: How many shards a capture has to redo.
        is_complete: Whether the store is sealed, and whole.
    """

    damaged: list[Damage]
    quarantine: StorePath | None
    moved: list[str]
    missing_shards: int
    is_complete: bool

    def to_json(self) -> dict[str, Any]:
        """As `logitstore repair --json` prints it."""
        return asdict(self) | {"quarantine": self.quarantine and str(self.quarantine)}


def repair_store(path: str | os.PathLike[str] | StorePath, *, fs: Fs = OS_FS) -> RepairReport:
    """Check every byte of a store and move what is damaged into a folder beside it.

    No other process may be writing the store.

    Raises:
        NotAStoreError: There is no store here.
        FormatError: A newer format version.
        CorruptStoreError: `store.json` itself is damaged: without it nothing else has a meaning.
        StorageError: The file system refused; running it again goes on.
    """
    path = store_path(path)
    header = StoreHeader.read(path)
    report = verify_store(path, deep=True, allow_partial=True)
    quarantine, moved = None, []
    try:
        if report.damaged:
            quarantine = _new_quarantine(path, report.damaged, fs)
            moved = _move(path, quarantine, report.damaged, fs)
        writer = _writer(path, header, fs)
        if writer is not None and not writer.missing() and not writer.is_sealed:
            writer.seal()
    except OSError as e:
        raise commit.explain(e, path) from e
    held = LogitStore(path, allow_partial=True)
    missing = header.plan.shard_count - len(held.shards)
    return RepairReport(report.damaged, quarantine, moved, missing, held.is_complete)


def _new_quarantine(path: StorePath, damaged: list[Damage], fs: Fs) -> StorePath:
    """A fresh folder with `damage.json`, durable before anything moves."""
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
    """Unseal first; then one by one."""
    names = list(dict.fromkeys([DONE_FILE, INDEX_FILE, *(d.file for d in damaged)]))
    moved = []
    for name in names:
        source, target = path / name, quarantine / name
        if source.is_symlink() or source.exists():
            source.move_to(target, fs)
            moved.append(name)
    return moved


def _writer(path: StorePath, header: StoreHeader, fs: Fs) -> StoreWriter | None:
    """A writer of the store as it is; None if its tokenizer is gone, which only a capture has."""
    files = {}
    for name in header.spec.tokenizer["files"]:
        source = path / TOKENIZER_FOLDER / name
        if not source.is_file():
            return None
        files[name] = source.read_bytes()
    return StoreWriter(path, header.spec, header.plan, files, header.provenance, fs=fs)


def next_step(report: RepairReport, path: StorePath) -> str:
    """What is left to do, as a sentence."""
    if report.is_complete:
        return f"{path} is whole" + (" and sealed again." if report.damaged else ".")
    return (
        f"{path}: {report.missing_shards:,} shards are missing, or its tokenizer is. Run the same "
        f"`logitstore capture …` again to redo just that, or `logitstore repair {path} --capture`."
    )
