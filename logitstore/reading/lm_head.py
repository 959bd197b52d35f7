"""Read the teacher's output embedding of a store (`format/lm_head.py` lays it out)."""

from typing import BinaryIO

from logitstore.errors import CorruptStoreError
from logitstore.format.lm_head import LmHead, read_lm_head
from logitstore.format.spec import LM_HEAD_FILE, StoreSpec
from logitstore.format.zip_archive import Archive
from logitstore.reading.shard_cache import ShardCache
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath


def lm_head_of(store: StorePath, spec: StoreSpec) -> LmHead:
    """Read the output embedding that lies in a store, every byte checked.

    Raises:
        CorruptStoreError: It is missing, damaged, or another store's.
        StorageError: The object store fails.
    """
    archive = open_lm_head(store)
    try:
        return read_lm_head(archive, spec)
    except ValueError as e:
        raise damaged(store, str(e)) from None
    except CorruptStoreError as e:
        raise damaged(store, str(e).removeprefix(f"{archive.path}: "), e.kind) from None


def open_lm_head(store: StorePath) -> Archive:
    """Open the file, or fetch the object, without a look at what it holds.

    Raises:
        CorruptStoreError: It is missing, or no archive.
        StorageError: The object store fails.
    """
    path = store / LM_HEAD_FILE
    try:
        return Archive(path, _fetched(path))
    except FileNotFoundError:
        raise damaged(store, "the file is missing", "missing-file") from None
    except CorruptStoreError as e:
        raise damaged(store, str(e).removeprefix(f"{path}: "), e.kind) from None


def _fetched(path: StorePath) -> BinaryIO | None:
    """Fetch an object into a file; None: it is a file already."""
    return ShardCache.chosen().download(path)[0] if isinstance(path, RemotePath) else None


def damaged(store: StorePath, why: str, kind: str | None = None) -> CorruptStoreError:
    """Make the error of an output embedding that cannot be used."""
    path = store / LM_HEAD_FILE
    return CorruptStoreError(
        f"{path}: {why.rstrip('.')}. Restore it from a copy, or run `logitstore repair {store}` "
        "and then the same capture, which writes it again.",
        path=path,
        kind=kind,
    )
