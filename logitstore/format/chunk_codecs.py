"""Encode and decode the inner chunks of arrays, in one of three codings.

`bitshuffle` and `shuffle` are blosc buffers (zstd behind a transposition of bits or bytes), which
any numcodecs reads; `pcodec` (https://github.com/pcodec/pcodec) codes numbers by bins and is the
smallest by 4 %. Its library is an extra: `pip install 'logitstore[compact]'`.

A decoder trusts the sizes in a buffer's header. So the header is read here first, and a chunk that
declares anything but one full chunk of its array is rejected before a byte of it is decoded.
"""

import importlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numcodecs import blosc

from logitstore.errors import MissingLibraryError
from logitstore.format.numpy_types import Array

_BLOSC_LEVEL = 5
_BLOSC_HEADER = struct.Struct("<2s2B3I")
# Blosc's header begins with: version 2, zstd version 1, flags, type size. Of the flags, 0x80 is
# zstd; 0x10 (streams not split) and 0x02 (copied, not compressed) may be set.
_BLOSC_VERSIONS, _BLOSC_ZSTD, _BLOSC_FREE_FLAGS = b"\2\1", 0x80, 0x12

_PCODEC_LEVEL = 8
_PCODEC_PAGE = 2**20  # no chunk of an array is longer
_PCODEC_TYPES = {"uint32": 1, "float32": 5, "uint16": 7}
# A file of pcodec's: magic number, version 3 of the outer format, no common type; the count of
# numbers; major and minor version of the inner format; then of its first part the type, the count
# less one (24 bits), and half a byte each for the mode (0, classic) and for deltas (0, none).
_PCODEC_MAGIC = b"pco!\3\0"
_PCODEC_MAJOR = 4


class Coding(Protocol):
    """How the chunks of an array become bytes."""

    def codecs(self, dtype: np.dtype[Any]) -> list[dict[str, Any]]:
        """Describe this coding as `zarr.json` has it, without the checksum that follows it."""

    def encode(self, chunk: Array, filled: int, *, copy: bool = False) -> bytes:
        """Encode a chunk; with `copy`, leave it uncompressed where the coding can.

        Args:
            chunk: The whole chunk, with its padding.
            filled: The number of its elements that are not padding, at least one.
            copy: Whether not to compress, so that the chunk cannot look like a bomb.
        """

    def check_header(self, payload: bytes, size: int, dtype: np.dtype[Any]) -> None:
        """Check that the payload declares one full chunk, before anything decodes it.

        Args:
            payload: A chunk as it is stored, without its checksum.
            size: Elements of a full chunk.
            dtype: Type of the elements.

        Raises:
            ValueError: It declares anything else; the message reads on from "chunk 7 …".
        """

    def decode_into(self, payload: bytes, out: Array) -> None:
        """Decode a payload into a contiguous array of a chunk's shape.

        Raises:
            ValueError: It is not such a chunk; the message reads on from "chunk 7 …".
            MissingLibraryError: The library that decodes it is not installed.
        """


@dataclass(frozen=True)
class Blosc:
    """zstd behind a shuffle of bits or of bytes.

    Attributes:
        shuffle: The shuffle's name in `zarr.json`.
        number: Its number in blosc's functions.
        flag: Its bit in the header of a buffer.
    """

    shuffle: str
    number: int
    flag: int

    def codecs(self, dtype: np.dtype[Any]) -> list[dict[str, Any]]:
        settings = {
            "cname": "zstd",
            "clevel": _BLOSC_LEVEL,
            "shuffle": self.shuffle,
            "typesize": dtype.itemsize,
            "blocksize": 0,
        }
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        return [little, {"name": "blosc", "configuration": settings}]

    def encode(self, chunk: Array, filled: int, *, copy: bool = False) -> bytes:
        with one_thread():
            return bytes(blosc.compress(chunk, b"zstd", 0 if copy else _BLOSC_LEVEL, self.number))

    def check_header(self, payload: bytes, size: int, dtype: np.dtype[Any]) -> None:
        if len(payload) < _BLOSC_HEADER.size:
            raise ValueError("is too short")
        head = _BLOSC_HEADER.unpack_from(payload)
        versions, flags, type_size, declared, block, stored = head
        if declared != size * dtype.itemsize or stored != len(payload) or block > declared:
            raise ValueError(f"declares {declared} bytes")
        declared_coding = (versions, flags & ~_BLOSC_FREE_FLAGS, type_size)
        if declared_coding != (_BLOSC_VERSIONS, _BLOSC_ZSTD | self.flag, dtype.itemsize):
            raise ValueError("is coded in a way that the format does not have")

    def decode_into(self, payload: bytes, out: Array) -> None:
        self.check_header(payload, out.size, out.dtype)
        before, blosc.use_threads = blosc.use_threads, False  # see `one_thread`
        try:
            blosc.decompress(payload, out)
        except RuntimeError as e:
            raise ValueError(f"cannot be decoded ({e})") from None
        finally:
            blosc.use_threads = before


@dataclass(frozen=True)
class Pcodec:
    """Numbers in classic mode, without deltas: ids and rank deltas have neither trend nor step.

    `level` is how hard the encoder tries. A decoder does not see it, and `zarr.json` does not say
    it.
    """

    level: int = _PCODEC_LEVEL

    def codecs(self, dtype: np.dtype[Any]) -> list[dict[str, Any]]:
        settings = {
            "level": _PCODEC_LEVEL,
            "mode_spec": "classic",
            "delta_spec": "none",
            "paging_spec": "equal_pages_up_to",
            "delta_encoding_order": None,
            "equal_pages_up_to": _PCODEC_PAGE,
        }
        return [{"name": "numcodecs.pcodec", "configuration": settings}]

    def encode(self, chunk: Array, filled: int, *, copy: bool = False) -> bytes:
        library = pcodec_library()
        config = library.ChunkConfig(
            compression_level=self.level,
            mode_spec=library.ModeSpec.classic(),
            delta_spec=library.DeltaSpec.no_op(),
            # Padding apart: zeros among the numbers would cost each of them a part of a bit.
            paging_spec=library.PagingSpec.exact_page_sizes(
                [n for n in (filled, chunk.size - filled) if n]
            ),
        )
        payload = bytes(library.standalone.simple_compress(chunk.ravel(), config))
        self.check_header(payload, chunk.size, chunk.dtype)
        return payload

    def check_header(self, payload: bytes, size: int, dtype: np.dtype[Any]) -> None:
        """Check that the payload declares `size` numbers of this type, in the one mode used."""
        log = size.bit_length() - 1
        count = (size << 6 | log).to_bytes(-(-(6 + log + 1) // 8), "little")
        start = _PCODEC_MAGIC + count + bytes([_PCODEC_MAJOR])
        at = len(start) + 1  # behind the minor version
        part = payload[at : at + 5]
        fits = payload[: len(start)] == start and len(part) == 5
        if not fits or part[0] != _PCODEC_TYPES[dtype.name] or part[4] != 0:
            raise ValueError(f"is not {size} numbers coded in the one way the format has")
        if int.from_bytes(part[1:4], "little") >= size:
            raise ValueError(f"declares more than {size} numbers")

    def decode_into(self, payload: bytes, out: Array) -> None:
        self.check_header(payload, out.size, out.dtype)
        library, flat = pcodec_library(), out.reshape(-1)
        try:
            progress = library.standalone.simple_decompress_into(payload, flat)
        except BaseException as e:
            # The library panics on some damaged bytes, and a panic is not an Exception.
            if isinstance(e, MemoryError) or not _is_from_pcodec(e):
                raise
            raise ValueError(f"cannot be decoded ({str(e)[:200]})") from None
        if progress.n_processed != len(flat) or not progress.finished:
            raise ValueError(f"holds other than {len(flat)} numbers")


def _is_from_pcodec(e: BaseException) -> bool:
    return isinstance(e, (RuntimeError, TypeError)) or type(e).__name__ == "PanicException"


def pcodec_library() -> Any:
    """Import the library of the compact codec.

    Raises:
        MissingLibraryError: It is not installed.
    """
    try:
        return importlib.import_module("pcodec")
    except ImportError:
        raise MissingLibraryError(
            "the compact codec needs the library pcodec, which is not installed. Install it with "
            "`pip install 'logitstore[compact]'`, or use --codec portable for a new store."
        ) from None


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep blosc on one thread, so that the same chunk always gives the same bytes.

    Its own threads write blocks in the order in which they finish. They also do not survive a fork,
    and cost more than they save on chunks of this size.
    """
    before, blosc.use_threads = blosc.use_threads, False
    try:
        yield
    finally:
        blosc.use_threads = before


CODINGS: dict[str, Coding] = {
    "bitshuffle": Blosc("bitshuffle", blosc.BITSHUFFLE, 0x04),
    "shuffle": Blosc("shuffle", blosc.SHUFFLE, 0x01),
    "pcodec": Pcodec(),
    "pcodec_slow": Pcodec(12),  # for arrays so short that five times the time is little
}
#: Types of elements that pcodec codes; arrays of other types are coded as in a portable store.
PCODEC_TYPES = frozenset(_PCODEC_TYPES)
#: The other coding of an array of a compact store, for one that pcodec would make look like a bomb.
INSTEAD_OF_PCODEC = {"pcodec": "bitshuffle", "pcodec_slow": "bitshuffle"}
