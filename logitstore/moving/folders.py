"""Open a finished store, read its tokenizer, and publish a folder that was written beside it."""

import hashlib
import logging
import os
from os import PathLike
from pathlib import Path

from logitstore.console.counts import counted
from logitstore.errors import CorruptStoreError, IncompleteStoreError, InputError
from logitstore.format.spec import StoreSpec
from logitstore.storage import commit
from logitstore.storage.files import MAX_TOKENIZER_BYTES, read_file
from logitstore.storage.paths import StorePath
from logitstore.store import LogitStore, open_store

log = logging.getLogger(__name__)


def open_finished(path: str | PathLike[str] | StorePath) -> LogitStore:
    """Open a store that is finished: a copy of an unfinished one would soon be out of date.

    Raises:
        InputError: It is inside another store.
        IncompleteStoreError: It is not finished.
        NotAStoreError: There is no store at this path.
        CorruptStoreError: Files are missing or not what was committed.
    """
    store = open_store(path, allow_partial=True)
    if not store.is_complete:
        raise IncompleteStoreError(
            f"{path}: holds {store.rows_held:,} of {counted(store.plan.rows, 'row')}. Run the same "
            "command that writes it again, to finish it first."
        )
    say_what_stays(store)
    return store


def say_what_stays(store: LogitStore) -> None:
    """Warn that records at the boundaries of students are not copied with a store.

    Raises:
        InputError: The store itself is one of those, inside another.
    """
    if store.spec.boundaries_of is not None:
        raise InputError(
            f"{store.path}: holds records at the boundaries of one student, and belongs to the "
            f"store around it. Name that one, {store.path.parent.parent}."
        )
    for inside in store.boundaries.values():
        log.warning(
            "%s: stays behind. Its records at the boundaries of %s are not copied; `logitstore "
            "capture … --boundaries-of` adds such records to a store that it captured.",
            inside.path,
            inside.provenance.get("boundaries_of"),
        )


def say_hidden_stays(store: LogitStore) -> None:
    """Warn that an export has no hidden states: it would be as large as they are."""
    if store.spec.hidden is not None:
        log.warning(
            "%s: its hidden states stay behind, which an export does not hold. "
            "`store.states(i)` reads them.",
            store.path,
        )


def publish_folder(unnamed: Path, target: Path) -> None:
    """Rename a folder from its temporary name to its own, after flushing all of it to disk.

    Raises:
        FileExistsError: The name is taken.
        OSError: The file system fails.
    """
    for path in (*unnamed.rglob("*"), unnamed):
        if path.is_dir():
            commit.OS_FS.sync_folder(path)
        else:
            with path.open("rb") as f:
                os.fsync(f.fileno())
    if not commit.rename_if_free(unnamed, target):
        unnamed.rename(target)  # this, too, fails where the name is that of a folder with files
    commit.OS_FS.sync_folder(target.parent)


def tokenizer_files(store: LogitStore) -> dict[str, bytes]:
    """Read the tokenizer files of a store and check them against its digests.

    Raises:
        CorruptStoreError: A file is missing, or not the one that was committed.
    """
    return read_tokenizer(store.tokenizer_path, store.spec)


def read_tokenizer(folder: Path, spec: StoreSpec) -> dict[str, bytes]:
    """Read the tokenizer files that the spec names from `folder` and check their digests.

    Raises:
        CorruptStoreError: A file is missing, or differs from the spec's.
    """
    files = {}
    for name, digest in spec.tokenizer["files"].items():
        path = folder / name
        try:
            data = read_file(path, MAX_TOKENIZER_BYTES)
        except (OSError, ValueError) as e:
            raise CorruptStoreError(
                f"{path}: cannot be read ({e}). Restore the file from a copy.", path=path
            ) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptStoreError(
                f"{path}: is not the file that belongs here (SHA-256 {digest[:12]}…). Restore it "
                "from a copy.",
                path=path,
            )
        files[name] = data
    return files
