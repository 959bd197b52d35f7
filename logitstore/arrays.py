"""Arrays as members of a shard: zarr v3, one sharded outer chunk each, every byte checked.

An array `name` is two members: `name/zarr.json` and, unless it has no elements, `name/c/0` (a 2-d
array: `name/c/0/0`), which holds the inner chunks back to back and then their index (offset and
length as two u64 a chunk, and a crc32c). An inner chunk is full-sized (zero-padded at the end), is
compressed by blosc (zstd behind bitshuffle) and ends with its own crc32c. `zarr` opens all of it.

The metadata of an array is a function of name, shape, dtype, chunk length and codec alone, so a
reader rebuilds the one JSON text it may be and compares bytes: there is nothing to interpret.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

AnyArray = npt.NDArray[Any]

_BLOSC_LEVEL = 5
_ENTRIES_PER_INDEX_ITEM = 2
_INDEX_DTYPE = np.dtype("<u8")
_CRC_BYTES = 4
_BLOSC_HEADER_BYTES = 16
# Blosc's header begins with: version 2, zstd version 1, flags, type size. Of the flags, 0x80 is
# zstd and 0x04 bitshuffle; 0x10 (streams not split) and 0x02 (copied, not compressed) may be set.
_BLOSC_VERSIONS = b"\2\1"
_BLOSC_FLAGS, _BLOSC_FREE_FLAGS = 0x84, 0x12


@dataclass(frozen=True)
class ArraySpec:
    """What an array must be.

    Attributes:
        name: Member prefix.
        dtype: Little-endian numpy dtype.
        shape: (length,) or (length, columns).
        chunk_length: Rows of an inner chunk.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunk_length: int

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return (self.chunk_length, *self.shape[1:])

    @property
    def chunk_count(self) -> int:
        return -(-self.shape[0] // self.chunk_length) if 0 not in self.shape else 0

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded inner chunk."""
        return int(np.prod(self.chunk_shape)) * self.dtype.itemsize

    @property
    def data_member(self) -> str:
        return f"{self.name}/c" + "/0" * len(self.shape)

    @property
    def metadata_member(self) -> str:
        return f"{self.name}/zarr.json"


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, one newline at the end: the same value is always the same bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"


def array_metadata(spec: ArraySpec) -> bytes:
    """The only `zarr.json` that an array of this spec may have."""
    chunks = max(spec.chunk_count, 1)
    inner = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {
            "name": "blosc",
            "configuration": {
                "cname": "zstd",
                "clevel": _BLOSC_LEVEL,
                "shuffle": "bitshuffle",
                "typesize": spec.dtype.itemsize,
                "blocksize": 0,
            },
        },
        {"name": "crc32c"},
    ]
    sharding = {
        "chunk_shape": list(spec.chunk_shape),
        "codecs": inner,
        "index_codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ],
        "index_location": "end",
    }
    outer = [spec.chunk_length * chunks, *spec.shape[1:]]
    return canonical_json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(spec.shape),
            "data_type": spec.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if spec.dtype.kind == "f" else 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
        }
    )


def encode_array(spec: ArraySpec, values: AnyArray, *, level: int = _BLOSC_LEVEL) -> bytes:
    """The bytes of the data member: every chunk (also one of zeros), then the index.

    Level 0 copies instead of compressing; decoders see no difference.
    """
    pieces, places, offset = [], [], 0
    for i in range(spec.chunk_count):
        chunk = np.zeros(spec.chunk_shape, spec.dtype)
        part = values[i * spec.chunk_length : (i + 1) * spec.chunk_length]
        chunk[: len(part)] = part
        with _one_thread():
            payload = blosc.compress(chunk, b"zstd", level, blosc.BITSHUFFLE, 0)
        piece = payload + _crc32c(payload)
        places.append((offset, len(piece)))
        pieces.append(piece)
        offset += len(piece)
    index = np.array(places, _INDEX_DTYPE).tobytes()
    return b"".join(pieces) + index + _crc32c(index)


class ArrayReader:
    """Slices of one array, decoding only the chunks they touch."""

    def __init__(self, spec: ArraySpec, data: memoryview) -> None:
        """Check the index: chunks back to back, none missing, nothing else in the member.

        Raises:
            ValueError: It is anything else.
        """
        self.spec, self._data = spec, data
        size = spec.chunk_count * _ENTRIES_PER_INDEX_ITEM * _INDEX_DTYPE.itemsize
        start = len(data) - size - _CRC_BYTES
        if start < 0:
            raise ValueError(f"{spec.name}: the member is shorter than its index")
        raw = data[start : start + size]
        if _crc32c(raw) != data[start + size :]:
            raise ValueError(f"{spec.name}: the chunk index does not match its checksum")
        index = np.frombuffer(raw, _INDEX_DTYPE).reshape(-1, _ENTRIES_PER_INDEX_ITEM)
        if (index > start).any():
            raise ValueError(f"{spec.name}: a chunk reaches outside the member")
        stops = index.sum(1)
        if not np.array_equal(index[:, 0], np.r_[0, stops][:-1]) or stops[-1] != start:
            raise ValueError(f"{spec.name}: chunks overlap, are missing, or leave gaps")
        self._index = index

    def __getitem__(self, rows: slice) -> AnyArray:
        """Rows of the array, copied out of the chunks that hold them."""
        start, stop = rows.start, rows.stop
        length = self.spec.chunk_length
        out = np.empty((stop - start, *self.spec.shape[1:]), self.spec.dtype)
        for i in range(start // length, -(-stop // length)):
            first = i * length
            low, high = max(start, first), min(stop, first + length)
            if low < high:
                out[low - start : high - start] = self.chunk(i)[low - first : high - first]
        return out

    def cost(self, start: int, stop: int) -> tuple[int, int]:
        """Bytes of rows when decoded, and stored bytes of the chunks that hold them."""
        if start >= stop:
            return 0, 0
        length = self.spec.chunk_length
        stored = int(self._index[start // length : -(-stop // length), 1].sum())
        return (stop - start) * self.spec.chunk_bytes // length, stored

    def chunk(self, i: int) -> AnyArray:
        """One inner chunk, decoded and checked.

        Raises:
            ValueError: Its checksum or its declared size is wrong.
        """
        offset, size = (int(v) for v in self._index[i])
        payload = self._data[offset : offset + size - _CRC_BYTES]
        if _crc32c(payload) != self._data[offset + size - _CRC_BYTES : offset + size]:
            raise ValueError(f"{self.spec.name}: chunk {i} does not match its checksum")
        self._check_blosc_header(payload, i)
        out = np.empty(self.spec.chunk_shape, self.spec.dtype)
        try:
            with _one_thread():
                blosc.decompress(payload, out)
        except RuntimeError as e:
            raise ValueError(f"{self.spec.name}: chunk {i} cannot be decoded ({e})") from None
        return out

    def _check_blosc_header(self, payload: memoryview, i: int) -> None:
        """The decoder trusts its header: hold that to what the array says, before."""
        if len(payload) < _BLOSC_HEADER_BYTES:
            raise ValueError(f"{self.spec.name}: chunk {i} is too short")
        declared, block, stored = (int(v) for v in np.frombuffer(payload[4:16], "<u4"))
        if (declared, stored) != (self.spec.chunk_bytes, len(payload)) or block > declared:
            raise ValueError(f"{self.spec.name}: chunk {i} declares {declared} bytes")
        flags, typesize = payload[2] & ~_BLOSC_FREE_FLAGS, payload[3]
        known = (_BLOSC_VERSIONS, _BLOSC_FLAGS, self.spec.dtype.itemsize)
        if (bytes(payload[:2]), flags, typesize) != known:
            raise ValueError(f"{self.spec.name}: chunk {i} is coded in a way the format has not")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Blosc's own threads write blocks in the order they finish: other bytes on every run.

    They also do not survive a fork, and cost more than they save on chunks of this size.
    """
    before, blosc.use_threads = blosc.use_threads, False
    try:
        yield
    finally:
        blosc.use_threads = before


def _crc32c(data: bytes | memoryview) -> bytes:
    # The library takes bytes only, no view; the copy costs a tenth of the checksum.
    return int(google_crc32c.value(bytes(data))).to_bytes(_CRC_BYTES, "little")
