"""List the shards that a store has."""

from logitstore.errors import NotAStoreError, StorageError
from logitstore.format.spec import SHARDS_FOLDER, Plan, shard_name
from logitstore.storage.paths import StorePath


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
