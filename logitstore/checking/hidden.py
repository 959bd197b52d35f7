"""Find bytes of a shard's arrays that no reader looks at, so that nothing else can lie there."""

from collections.abc import Iterator

import numpy as np

from logitstore.format.chunk_codecs import CODINGS, INSTEAD_OF_PCODEC
from logitstore.format.numpy_types import Array
from logitstore.format.zarr_arrays import StoredChunk
from logitstore.reading.shard import Shard


def hidden(shard: Shard) -> Iterator[str]:
    """Yield what lies behind the end of a chunk, or behind the last element of an array.

    Raises:
        CorruptStoreError: Bytes of the shard are damaged.
    """
    for spec in shard.array_specs:
        chunk, number = None, 0
        for number, chunk in enumerate(shard.all_chunks(spec.name)):
            if chunk.coding in INSTEAD_OF_PCODEC and _ends_early(chunk):
                yield f"{spec.name}: bytes lie behind the end of chunk {number}"
        used = spec.shape[0] - number * spec.chunk_length
        if chunk is not None and _decoded(chunk, chunk.payload)[used:].any():
            yield f"{spec.name}: values other than zero lie behind the last element"


def _ends_early(chunk: StoredChunk) -> bool:
    """Tell whether a chunk of pcodec's needs less than its bytes: decoders do not say how many."""
    try:
        _decoded(chunk, chunk.payload[:-1])
    except ValueError:
        return False
    return True


def _decoded(chunk: StoredChunk, payload: bytes) -> Array:
    out = np.empty(chunk.shape, chunk.dtype)
    CODINGS[chunk.coding].decode_into(payload, out)
    return out
