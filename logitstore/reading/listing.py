"""List the shards that a store has, and the students at whose boundaries it has records, too."""

import re

from logitstore.errors import NotAStoreError, StorageError
from logitstore.format.spec import BOUNDARIES_FOLDER, SHARDS_FOLDER, SPEC_FILE, Plan, shard_name
from logitstore.storage.paths import StorePath

_STUDENT = re.compile(r"[0-9a-f]{16}")


def list_shards(store: StorePath, plan: Plan) -> list[int]:
    """List the numbers of the shards that exist, by one listing of their folder.

    Raises:
        NotAStoreError: There is no folder of shards.
        StorageError: The folder cannot be listed.
    """
    try:
        names = set((store / SHARDS_FOLDER).names())
    except (FileNotFoundError, NotADirectoryError):
        raise NotAStoreError(
            f"{store}: has a store.json but no {SHARDS_FOLDER}/ folder. Copy the whole "
            "store, or run the same `logitstore capture …` again."
        ) from None
    except StorageError:
        raise
    except OSError as e:
        raise StorageError(
            f"{store / SHARDS_FOLDER}: cannot be read ({e.strerror}). Fix that first."
        ) from e
    return [i for i in range(plan.shard_count) if shard_name(i) in names]


def list_boundaries(store: StorePath) -> list[StorePath]:
    """List the stores inside a store that hold the records at a student's boundaries.

    Raises:
        StorageError: The folder cannot be listed.
    """
    folder = store / BOUNDARIES_FOLDER
    try:
        names = folder.names()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except StorageError:
        raise
    except OSError as e:
        raise StorageError(f"{folder}: cannot be read ({e.strerror}). Fix that first.") from e
    inside = [folder / name for name in names if _STUDENT.fullmatch(name)]
    return [path for path in inside if (path / SPEC_FILE).exists()]
