"""Open a store as a read-only zarr group: one subgroup a shard, with the arrays as stored.

    group = open_store("my-store").zarr
    group["00000/token_ids"][:100]

zarr reads from shards that this package has opened, never from the bare files. So every header, the
group, the metadata of arrays and the chunk indexes are checked before zarr sees a byte. A chunk is
checked by its checksum and its declared size, so damage is the same error as everywhere in this
package, and a shard whose arrays would decode to far more than is stored is rejected. `ZipStore` on
a shard's file does none of that, and reads a missing chunk as zeros.

A shard of a bucket is fetched whole into the local cache when something in it is first asked for;
the list of shards, and their attributes, are known without. Text is not here: `store.text(i)`.

zarr calls from its own thread, and any number of times at once. So a view reads through its own
copy of the store, one a process, under a lock while shards open: a group may be pickled, forked,
and shared by threads.
"""

import asyncio
import copy
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, NoReturn, Protocol, TypeVar
from weakref import WeakSet

import zarr
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from logitstore.errors import InputError
from logitstore.format.canonical_json import canonical_json
from logitstore.format.rows_parquet import MEMBER as LINES_MEMBER
from logitstore.format.shard_group import GROUP_MEMBER, group_of
from logitstore.format.spec import Plan, StoreSpec, shard_name
from logitstore.reading.shard import Shard
from logitstore.storage.paths import StorePath

T = TypeVar("T")
_SHARD_SUFFIX = ".zarr.zip"


class Described(Protocol):
    """A shard, or its end, with what it says of itself."""

    @property
    def about(self) -> dict[str, Any]: ...


class ShardSource(Protocol):
    """A store that a view reads. Copying or pickling it gives one without open files."""

    @property
    def path(self) -> StorePath: ...
    @property
    def spec(self) -> StoreSpec: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def shards(self) -> Sequence[int]: ...
    def skim(self, index: int) -> Described: ...
    def read_shard(self, index: int, read: Callable[[Shard], T]) -> T: ...


def open_zarr(source: ShardSource, *, check_ratio: bool = True) -> zarr.Group:
    """Open a store as a zarr group; see this module.

    Args:
        source: The store.
        check_ratio: Reject shards whose arrays would decode to far more than is stored of them.
            Only a caller that reads a few chunks at a time can do without.
    """
    view = ZarrView(source, check_ratio=check_ratio)
    return zarr.open_group(view, mode="r", zarr_format=3, use_consolidated=False)


def group_name(index: int) -> str:
    """Name the subgroup of a shard."""
    return shard_name(index).removesuffix(_SHARD_SUFFIX)


class ZarrView(Store):
    """A zarr store whose keys are read from the shards of a store of this package."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, source: ShardSource, *, check_ratio: bool = True) -> None:
        super().__init__(read_only=True)
        self._source, self._is_checked = source, check_ratio
        self._numbers = {group_name(index): index for index in source.shards}
        self._reader: _Reader | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ZarrView)
            and str(self._source.path) == str(other._source.path)
            and self._numbers == other._numbers
        )

    __hash__ = None  # type: ignore[assignment]  # as other stores of zarr's: equal, not hashable

    def __repr__(self) -> str:
        return f"ZarrView({str(self._source.path)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    # -- reading ---------------------------------------------------------------------------------

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        data = await asyncio.to_thread(self._get, key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, at) for key, at in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._size, key) is not None

    async def getsize(self, key: str) -> int:
        size = await asyncio.to_thread(self._size, key)
        if size is None:
            raise FileNotFoundError(key)
        return size

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        name, slash, _ = prefix.partition("/")
        if not slash and GROUP_MEMBER.startswith(prefix):
            yield GROUP_MEMBER
        for group in self._numbers:
            if group == name if slash else group.startswith(prefix):
                for member in await asyncio.to_thread(self._members, group):
                    if f"{group}/{member}".startswith(prefix):
                        yield f"{group}/{member}"

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        path = prefix.strip("/")
        group, _, inside = path.partition("/")
        if not path:
            for name in (GROUP_MEMBER, *self._numbers):
                yield name
        elif group in self._numbers:
            members = await asyncio.to_thread(self._members, group)
            start = f"{inside}/" if inside else ""
            below = (m.removeprefix(start) for m in members if m.startswith(start))
            for name in dict.fromkeys(m.split("/")[0] for m in below):
                yield name

    def _get(self, key: str, byte_range: ByteRequest | None) -> bytes | memoryview | None:
        group, _, member = key.partition("/")
        data: bytes | memoryview
        if key == GROUP_MEMBER:
            data = _root(self._source)
        elif group not in self._numbers or member in ("", LINES_MEMBER):
            return None
        elif member == GROUP_MEMBER:
            about = self._read.skim(self._numbers[group])
            data = canonical_json(group_of(about))
        else:
            shard = self._shard(group)
            if member not in shard.archive.names:
                return None
            start, stop = _span(byte_range, len(shard.archive[member]))
            return shard.stored_bytes(member, start, stop)
        return data[slice(*_span(byte_range, len(data)))]

    def _size(self, key: str) -> int | None:
        group, _, member = key.partition("/")
        if member in ("", GROUP_MEMBER):
            data = self._get(key, None)
            return None if data is None else len(data)
        is_there = group in self._numbers and member in self._members(group)
        return len(self._shard(group).archive[member]) if is_there else None

    def _members(self, group: str) -> Sequence[str]:
        """List the keys of a shard's group, without its text, which is not an array."""
        return [m for m in self._shard(group).archive.names if m != LINES_MEMBER]

    def _shard(self, group: str) -> Shard:
        return self._read.shard(self._numbers[group], self._is_checked)

    @property
    def _read(self) -> "_Reader":
        if self._reader is None or self._reader.process != os.getpid():
            self._reader = _Reader(self._source)
        return self._reader

    # -- writing ---------------------------------------------------------------------------------

    def with_read_only(self, read_only: bool = False) -> "ZarrView":
        if not read_only:
            self._check_writable()
        return ZarrView(self._source, check_ratio=self._is_checked)

    def _check_writable(self) -> NoReturn:
        raise InputError(
            f"{self._source.path}: a store is never changed once it is written, so this zarr group "
            f"is for reading. Make a group of your own with `logitstore export "
            f"{self._source.path} --to zarr --out …`, or copy what you need."
        )

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()

    async def delete(self, key: str) -> None:
        self._check_writable()

    async def delete_dir(self, prefix: str) -> None:
        self._check_writable()

    async def clear(self) -> None:
        self._check_writable()


class _Reader:
    """A copy of the store that one process reads through, one thread at a time."""

    def __init__(self, source: ShardSource) -> None:
        self.process = os.getpid()
        self._source, self._lock = copy.copy(source), threading.Lock()
        self._checked = WeakSet[Shard]()

    def skim(self, index: int) -> dict[str, Any]:
        with self._lock:
            return self._source.skim(index).about

    def shard(self, index: int, check_ratio: bool) -> Shard:
        def checked(shard: Shard) -> Shard:
            if check_ratio and shard not in self._checked:
                shard.check_whole()
                self._checked.add(shard)
            return shard

        with self._lock:
            return self._source.read_shard(index, checked)


def _root(source: ShardSource) -> bytes:
    """Encode the metadata of the group of all shards."""
    about = {
        "content": vars(source.spec),
        "dataset_sha256": source.plan.dataset_sha256,
        "plan_sha256": source.plan.digest,
        "rows": source.plan.rows,
        "shards": len(source.shards),
        "note": "One subgroup a shard, arrays as they are stored: section 5 of FORMAT.md decodes "
        "them. Text is in the rows.parquet of each shard's file.",
    }
    return canonical_json(group_of(about))


def _span(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    """Find the first byte of a request, and the one after its last."""
    match byte_range:
        case None:
            return 0, size
        case RangeByteRequest(start, end):
            return start, min(end, size)
        case OffsetByteRequest(offset):
            return offset, size
        case SuffixByteRequest(suffix):
            return max(size - suffix, 0), size
        case _:
            raise TypeError(f"{byte_range!r} is not a range of bytes")
