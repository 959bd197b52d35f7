"""Check the place of a store that is to be written, before any long work.

`check_place` looks at it. `try_place` also writes something small there, and removes it again: a
teacher that took an hour to load is no use where the disk is full or no shard can be committed.
"""

import os
from collections.abc import Sequence

from logitstore.errors import LogitStoreError, MismatchError, StorageError
from logitstore.format.plan import is_plan_file
from logitstore.format.spec import (
    BOUNDARIES_FOLDER,
    DONE_FILE,
    INDEX_FILE,
    LM_HEAD_FILE,
    SHARDS_FOLDER,
    SPEC_FILE,
    STUDENT_FOLDER,
    TOKENIZER_FOLDER,
    StoreHeader,
)
from logitstore.reading.listing import list_shards
from logitstore.storage import commit
from logitstore.storage.commit import TEMPORARY_PREFIX
from logitstore.storage.paths import StorePath, to_write
from logitstore.writing.journal import try_journal

_OURS = {
    TOKENIZER_FOLDER,
    STUDENT_FOLDER,
    SHARDS_FOLDER,
    BOUNDARIES_FOLDER,
    SPEC_FILE,
    INDEX_FILE,
    LM_HEAD_FILE,
    DONE_FILE,
}


def try_place(place: str | os.PathLike[str] | StorePath, *, dry_run: bool = False) -> StorePath:
    """Reject a place where no store can be begun or resumed; leaves nothing there.

    A finished store may lie where nothing can be written, for nothing will be.

    Args:
        place: A folder, or an address in a bucket.
        dry_run: Whether to look only.

    Returns:
        The place.

    Raises:
        MismatchError: It is a file or below one, or holds something else.
        StorageError: It cannot be read, or no shard can be committed there.
        InputError: A URL that can only be read.
    """
    path = to_write(place)
    if not _is_begun(path):
        check_place(path)
    elif _is_finished(path):
        return path
    if not dry_run:
        path.try_writing()
        try_journal(path)
    return path


def check_place(place: str | os.PathLike[str] | StorePath) -> None:
    """Reject a place that no store can begin in; creates nothing.

    Raises:
        MismatchError: It is a file or below one, or holds something else.
        StorageError: It cannot be read or written.
        InputError: A URL that can only be read.
    """
    path = to_write(place)
    try:
        path.check_access()
        found = path.names()
    except FileNotFoundError:
        found = []
    except OSError as e:
        raise commit.explain(e, path) from e
    _check_free(path, found)


def _check_free(path: StorePath, found: Sequence[str]) -> None:
    strange = [
        name
        for name in found
        if name not in _OURS and not name.startswith(TEMPORARY_PREFIX) and not is_plan_file(name)
    ]
    if strange or set(found) & {INDEX_FILE, DONE_FILE}:
        raise MismatchError(
            f"{path}: the folder holds something else ({', '.join(strange or found)}) and no "
            "store. Choose another --out, or empty the folder."
        )


def _is_begun(path: StorePath) -> bool:
    try:
        return (path / SPEC_FILE).exists()
    except StorageError:
        raise
    except OSError:  # a name that is too long, or a folder that cannot be entered: said below
        return False


def _is_finished(path: StorePath) -> bool:
    """Tell whether nothing is left to write; one that is damaged is for whoever opens it."""
    if not (path / DONE_FILE).exists():
        return False
    try:
        plan = StoreHeader.read(path).plan
        return len(list_shards(path, plan)) == plan.shard_count
    except StorageError:
        raise
    except LogitStoreError:
        return True
