"""Decode the arrays of a shard with zarr, and compare them with what this package decodes.

zarr's decoders are independent of this package's, so both are unlikely to be wrong in the same way.
zarr is given no byte that has not passed this package's checks.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import zarr

from logitstore.errors import LogitStoreError, in_a_line
from logitstore.format.spec import StoreHeader
from logitstore.reading.shard import Shard
from logitstore.reading.zarr_view import group_name, open_zarr

T = TypeVar("T")
_CHUNKS_AT_ONCE = 64


class _OneShard:
    """A store of the one shard that is already open, for `open_zarr` to view."""

    def __init__(self, shard: Shard, header: StoreHeader, index: int) -> None:
        self._shard, self.path = shard, shard.path.parent.parent
        self.spec, self.plan, self.shards = header.spec, header.plan, (index,)

    def skim(self, index: int) -> Shard:
        return self._shard

    def read_shard(self, index: int, read: Callable[[Shard], T]) -> T:
        return read(self._shard)


def disagreements(shard: Shard, header: StoreHeader, index: int) -> Iterator[str]:
    """Decode every array of a shard twice, a few chunks at a time so that memory is bounded.

    Returns:
        A sentence for each array that zarr does not decode, or decodes to other values.

    Raises:
        CorruptStoreError: Bytes are damaged.
    """
    with warnings.catch_warnings():  # zarr remarks that its specification has no pcodec
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr")
        group = open_zarr(_OneShard(shard, header, index), check_ratio=False)[group_name(index)]
        assert isinstance(group, zarr.Group)
        for name, array in group.arrays():
            try:
                is_same = _is_same(shard, name, array)
            except LogitStoreError:
                raise
            except Exception as e:  # whatever zarr and its codecs raise, it is about this array
                yield f"zarr {zarr.__version__} cannot decode {name} ({in_a_line(e)})"
            else:
                if not is_same:
                    yield f"zarr {zarr.__version__} decodes other values of {name}"


def _is_same(shard: Shard, name: str, array: "zarr.Array[Any]") -> bool:
    if 0 in array.shape:
        return True
    length, step = array.shape[0], _CHUNKS_AT_ONCE * array.chunks[0]
    for start in range(0, length, step):
        stop = min(start + step, length)
        by_zarr, by_us = np.asarray(array[start:stop]), shard.array(name, start, stop)
        if by_zarr.dtype != by_us.dtype or by_zarr.tobytes() != by_us.tobytes():
            return False
    return True
