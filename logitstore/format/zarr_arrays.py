"""Encode and read arrays as members of a shard: zarr v3, one sharded outer chunk each.

An array `name` is two members: `name/zarr.json` and, unless it has no elements, `name/c/0` (a 2-d
array: `name/c/0/0`), which holds the inner chunks back to back and then their index (offset and
length as two u64 a chunk, and a crc32c). An inner chunk is full-sized (zero-padded at the end), is
coded as `chunk_codecs.py` does and ends with its own crc32c, so every byte is checked. `zarr` opens
all of it.

The metadata of an array is a function of name, shape, dtype, chunk length and coding alone, so a
reader rebuilds the one JSON text it may be and compares bytes: there is nothing to interpret.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from logitstore.format.canonical_json import canonical_json
from logitstore.format.chunk_codecs import CODINGS, INSTEAD_OF_PCODEC, pcodec_library
from logitstore.format.kept_chunks import KEPT
from logitstore.format.limits import Cost
from logitstore.format.numpy_types import Array
from logitstore.storage.file_bytes import Bytes

_ENTRIES_PER_INDEX_ITEM = 2
_INDEX_DTYPE = np.dtype("<u8")
_CRC_BYTES = 4


@dataclass(frozen=True)
class ArraySpec:
    """The shape, type and coding that an array must have.

    Attributes:
        name: The first part of its members' names.
        dtype: Little-endian numpy dtype.
        shape: (length,) or (length, columns).
        chunk_length: Rows of an inner chunk.
        coding: How inner chunks are coded, one of `chunk_codecs.CODINGS`.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunk_length: int
    coding: str = "bitshuffle"

    @cached_property
    def chunk_shape(self) -> tuple[int, ...]:
        return (self.chunk_length, *self.shape[1:])

    @property
    def chunk_count(self) -> int:
        return -(-self.shape[0] // self.chunk_length) if 0 not in self.shape else 0

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def data_member(self) -> str:
        return f"{self.name}/c" + "/0" * len(self.shape)

    @property
    def metadata_member(self) -> str:
        return f"{self.name}/zarr.json"


def array_metadata(spec: ArraySpec) -> bytes:
    """Encode the only `zarr.json` that an array of this spec may have."""
    chunks = max(spec.chunk_count, 1)
    sharding = {
        "chunk_shape": list(spec.chunk_shape),
        "codecs": [*CODINGS[spec.coding].codecs(spec.dtype), {"name": "crc32c"}],
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


def encode_array(spec: ArraySpec, values: Array, *, copy: bool = False) -> bytes:
    """Encode the data member: every chunk (also one of zeros), then the index.

    With `copy`, blosc's chunks are left uncompressed; decoders see no difference.
    """
    pieces, places, offset = [], [], 0
    for i in range(spec.chunk_count):
        part = np.ascontiguousarray(
            values[i * spec.chunk_length : (i + 1) * spec.chunk_length], spec.dtype
        )
        filled = part.size
        if len(part) < spec.chunk_length:
            chunk = np.zeros(spec.chunk_shape, spec.dtype)
            chunk[: len(part)] = part
            part = chunk
        payload = CODINGS[spec.coding].encode(part, filled, copy=copy)
        piece = payload + _crc32c(payload)
        places.append((offset, len(piece)))
        pieces.append(piece)
        offset += len(piece)
    index = np.array(places, _INDEX_DTYPE).tobytes()
    return b"".join(pieces) + index + _crc32c(index)


class StoredChunk(NamedTuple):
    """An inner chunk as it is stored, its checksum checked and removed."""

    coding: str
    payload: bytes
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class ArrayReader:
    """A reader of slices of one array, which decodes only the chunks that they touch."""

    def __init__(self, spec: ArraySpec, data: Bytes) -> None:
        """Check the index: chunks back to back, none missing, nothing else in the member.

        Raises:
            ValueError: It is anything else.
        """
        self.spec, self._data = spec, data
        size = spec.chunk_count * _ENTRIES_PER_INDEX_ITEM * _INDEX_DTYPE.itemsize
        start = len(data) - size - _CRC_BYTES
        if start < 0:
            raise ValueError(f"{spec.name}: the member is shorter than its index")
        behind = bytes(data[start:])
        raw = behind[:size]
        if _crc32c(raw) != behind[size:]:
            raise ValueError(f"{spec.name}: the chunk index does not match its checksum")
        index = np.frombuffer(raw, _INDEX_DTYPE).reshape(-1, _ENTRIES_PER_INDEX_ITEM)
        if (index > start).any():
            raise ValueError(f"{spec.name}: a chunk reaches outside the member")
        stops = index.sum(1)
        if index[0, 0] != 0 or (index[1:, 0] != stops[:-1]).any() or stops[-1] != start:
            raise ValueError(f"{spec.name}: chunks overlap, are missing, or leave gaps")
        self._index = index
        self._coding = CODINGS[spec.coding]
        self._last: tuple[int, bytes, Array] | None = None

    def __getitem__(self, rows: slice) -> Array:
        """Read rows of the array, copied out of the chunks that hold them."""
        return self.gather([(rows.start, rows.stop)])

    def gather(self, ranges: Sequence[tuple[int, int]]) -> Array:
        """Read the rows of several ranges, one after the other.

        Ascending ranges decode no chunk twice: the last chunk that was used in part is kept, also
        for the next call.

        Raises:
            ValueError: A chunk is damaged, or is not one full chunk of this array.
        """
        total = sum(stop - start for start, stop in ranges)
        out = np.empty((total, *self.spec.shape[1:]), self.spec.dtype)
        at = 0
        for start, stop in ranges:
            self._read_into(out[at : at + stop - start], start, stop)
            at += stop - start
        return out

    def _read_into(self, out: Array, start: int, stop: int) -> None:
        length = self.spec.chunk_length
        for i in range(start // length, -(-stop // length)):
            first = i * length
            low, high = max(start, first), min(stop, first + length)
            target = out[low - start : high - start]
            if high - low == length:
                self._decode(i, self._payload(i), target)
            elif low < high:
                target[:] = self._kept(i)[low - first : high - first]

    def _kept(self, i: int) -> Array:
        last = self._last
        if last is None or last[0] != i:
            payload = self._payload(i)
            if last is not None and last[1] == payload:  # as chunks of equal counts have
                last = (i, payload, last[2])
            else:
                out = np.empty(self.spec.chunk_shape, self.spec.dtype)
                self._decode(i, payload, out)
                last = (i, payload, out)
            self._last = last
            KEPT.note(self, last[2].nbytes + len(last[1]))
        return last[2]

    def drop(self) -> None:
        """Drop the chunk that is kept for the next read."""
        self._last = None

    def chunks(self, start: int, stop: int) -> Iterator[StoredChunk]:
        """List the stored chunks that hold some rows.

        Raises:
            ValueError: One is damaged.
        """
        length, spec = self.spec.chunk_length, self.spec
        for i in range(start // length, -(-stop // length)):
            yield StoredChunk(spec.coding, self._payload(i), spec.chunk_shape, spec.dtype)

    def cost(self, start: int, stop: int) -> Cost:
        """Count what reading some rows costs."""
        if start >= stop:
            return Cost()
        length = self.spec.chunk_length
        chunks = slice(start // length, -(-stop // length))
        whole = (chunks.stop - chunks.start) * length * self.spec.row_bytes
        stored = int(self._index[chunks, 1].sum())
        return Cost((stop - start) * self.spec.row_bytes, whole, stored)

    def check_stored(self, start: int, stop: int) -> None:
        """Check the chunks that these bytes of the member reach into, without decoding them.

        For another reader, which is then handed the bytes: it trusts the sizes in their headers.

        Raises:
            ValueError: One does not match its checksum, or is not one full chunk of this array.
            MissingLibraryError: The library that decodes them is not installed.
        """
        first = int(np.searchsorted(self._index.sum(1), start, side="right"))
        after = int(np.searchsorted(self._index[:, 0], stop, side="left"))
        size = math.prod(self.spec.chunk_shape)
        if first < after and self.spec.coding in INSTEAD_OF_PCODEC:
            pcodec_library()
        for i in range(first, after):
            payload = self._payload(i)
            try:
                self._coding.check_header(payload, size, self.spec.dtype)
            except ValueError as e:
                raise ValueError(f"{self.spec.name}: chunk {i} {e}") from None

    def _payload(self, i: int) -> bytes:
        """Read a chunk as it is stored, and check its checksum."""
        offset, size = self._index[i].tolist()
        stored = bytes(self._data[offset : offset + size])
        payload = stored[:-_CRC_BYTES]
        if _crc32c(payload) != stored[-_CRC_BYTES:]:
            raise ValueError(f"{self.spec.name}: chunk {i} does not match its checksum")
        return payload

    def _decode(self, i: int, payload: bytes, out: Array) -> None:
        """Decode a chunk; a ValueError names the array and the chunk."""
        try:
            self._coding.decode_into(payload, out)
        except ValueError as e:
            raise ValueError(f"{self.spec.name}: chunk {i} {e}") from None


def _crc32c(data: bytes) -> bytes:
    # The library takes bytes only, no view.
    return int(google_crc32c.value(data)).to_bytes(_CRC_BYTES, "little")
