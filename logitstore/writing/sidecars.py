"""Write the hidden states of each shard: a file of their own, committed before the shard.

    hidden/00000-3f2a9c….zarr.zip     named by its shard and by its own digest
    shards/00000.zarr.zip             has the whole digest: whoever has the shard, has its states

The shard is what is committed. A file that no shard names is what a crash or a slower twin left:
it is in nobody's way, since another's has another name, and goes when the store is sealed.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from logitstore.errors import CorruptStoreError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.hidden_shard import build_sidecar
from logitstore.format.shard_group import HIDDEN
from logitstore.format.spec import HIDDEN_FOLDER, SHARDS_FOLDER, Plan, StoreSpec, shard_name
from logitstore.format.spec import sidecar_name as name_of
from logitstore.format.zip_archive import DIGEST_CHARS, pack
from logitstore.reading.shard import Shard
from logitstore.reading.shard_head import Skimmed
from logitstore.reading.threads import for_each
from logitstore.storage.commit import OS_FS, Fs
from logitstore.storage.files import Buffer
from logitstore.storage.paths import StorePath


class Sidecar(NamedTuple):
    """A file of hidden states that is there."""

    path: StorePath
    sha256: str
    size_bytes: int

    @property
    def pinned(self) -> dict[str, Any]:
        """What the shard says of it."""
        return {"sha256": self.sha256, "bytes": self.size_bytes}


def write_sidecar(
    store: StorePath,
    spec: StoreSpec,
    plan: Plan,
    index: int,
    records: Sequence[EncodedRecords | None],
    fs: Fs = OS_FS,
) -> Sidecar:
    """Build and commit the hidden states of a shard.

    Args:
        store: The store's place.
        spec: The store's, with hidden states.
        plan: The store's.
        index: The shard's number.
        records: The records of all its sequences, each with its hidden states.
        fs: Writes files.

    Raises:
        ValueError: Records have no hidden states, or others than the spec says.
    """
    made = packed_sidecar(spec, plan, index, records)
    digest = bytes(made[-1])[-DIGEST_CHARS:].decode("ascii")
    path = store / HIDDEN_FOLDER / name_of(index, digest)
    path.create(made, fs)
    return Sidecar(path, digest, bytes_of(made))


def packed_sidecar(
    spec: StoreSpec, plan: Plan, index: int, records: Sequence[EncodedRecords | None]
) -> list[Buffer]:
    """Build the bytes of a shard's hidden states, in pieces."""
    counts = [0 if each is None else len(each) for each in records]
    states = [None if each is None else each.hidden for each in records]
    return list(pack(build_sidecar(spec, plan, index, counts, states)))


def copy_sidecar(store: StorePath, shard: Shard, fs: Fs = OS_FS) -> None:
    """Commit the hidden states of another store's shard, byte for byte, before that shard.

    Raises:
        CorruptStoreError: Its bytes are not those that were committed there.
    """
    archive = shard.hidden.archive
    archive.check_digest()
    target = store / HIDDEN_FOLDER / shard.hidden_file[0].name
    target.create(archive.whole.pieces(), fs)


def remove_strangers(store: StorePath, spec: StoreSpec, plan: Plan) -> None:
    """Delete files of hidden states that no shard names; call it when all shards are there.

    Raises:
        CorruptStoreError: A shard names one that is not there.
    """
    folder = store / HIDDEN_FOLDER
    there, named = set(folder.names()), set()
    shards = range(plan.shard_count)
    for index, name in zip(
        shards,
        for_each(shards, lambda i: _named(store, spec, plan, i), at_once=store.is_remote),
        strict=True,
    ):
        named.add(name)
        if name not in there:
            first, stop = plan.shard_rows(index)
            raise CorruptStoreError(
                f"{folder / name}: the file is missing, with the hidden states of rows {first:,} "
                f"to {stop - 1:,}. Restore it from a copy, or run `logitstore repair {store}` to "
                "redo them.",
                path=folder / name,
                rows=(first, stop - 1),
                kind="missing-file",
            )
    for name in there - named:
        (folder / name).delete()


def _named(store: StorePath, spec: StoreSpec, plan: Plan, index: int) -> str:
    path = store / SHARDS_FOLDER / shard_name(index)
    return name_of(index, Skimmed(path, spec, plan, index).about[HIDDEN]["sha256"])


def bytes_of(pieces: Iterable[Buffer]) -> int:
    """Count the bytes of pieces."""
    return sum(len(memoryview(piece).cast("B")) for piece in pieces)
