"""Which shards of a plan a store has."""

from logitstore.errors import NotAStoreError, StorageError
from logitstore.format.spec import SHARDS_FOLDER, Plan, shard_name
from logitstore.storage.paths import StorePath


def list_shards(store: StorePath, plan: Plan) -> list[int]:
    """Numbers of the shards that are there, by one listing.

    Raises:
        NotAStoreError: There is no folder of shards.
        StorageError: It cannot be listed.
    """
    try:
        there = set((store / SHARDS_FOLDER).names())
    except (FileNotFoundError, NotADirectoryError):
        raise NotAStoreError(
            f"{store}: has a store.json but no {SHARDS_FOLDER}/ folder. Copy the whole "
            "store, or run the same `logitstore capture …` again."
        ) from None
    except StorageError:
        raise
    except OSError as e:
        raise StorageError(
            f"{store / SHARDS_FOLDER}: cannot be read ({e.strerror}). Mend that first."
        ) from e
    return [i for i in range(plan.shard_count) if shard_name(i) in there]
