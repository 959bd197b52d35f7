"""What this package writes of an array is what zarr writes of it, to the byte.

Of blosc's arrays that is so for every type, shape and shuffle that a shard has, with blosc on one
thread (zarr sets that when it is imported) and chunks of zeros written. The metadata is the same
JSON but for two things that say nothing: zarr adds an empty `storage_transformers`, and leaves the
byte order of single bytes away.

Of pcodec's arrays it is not so, and could not be: numcodecs' encoder (0.16) asks for a delta that
pcodec 1.0 has no longer, and knows no pages that end where the padding begins. There, zarr decodes
what we write.
"""

import json
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from logitstore.format.chunk_codecs import CODINGS
from logitstore.format.shard_arrays import array_specs
from logitstore.format.shard_group import ShardSize
from logitstore.format.zarr_arrays import ArraySpec, array_metadata, encode_array
from logitstore.testing import stores

Array = np.ndarray[Any, Any]
CHUNK = 512
#: Shorter than a chunk, whole chunks, and a last chunk that is partly padding.
LENGTHS = (1, 10, 2 * CHUNK, 3 * CHUNK - 7)
DTYPES = ("|u1", "<u2", "<u4", "<u8", "<f4")
FILLS = ("random", "zeros", "zeros, then one")
PORTABLE = [name for name in CODINGS if not name.startswith("pcodec")]


def values_of(dtype: str, shape: tuple[int, ...], fill: str) -> Array:
    rng = np.random.default_rng(sum(shape))
    if fill == "random":
        drawn = rng.normal(0, 30, shape)
        return drawn.astype(dtype) if dtype == "<f4" else np.abs(drawn).astype(dtype)
    found = np.zeros(shape, dtype)
    found[-1] = fill != "zeros"
    return found


def written_by_zarr(spec: ArraySpec, values: Array) -> dict[str, bytes]:
    """Every key that zarr writes for such an array."""
    store = MemoryStore()
    blosc = CODINGS[spec.coding].codecs(spec.dtype)[1]["configuration"]
    array = zarr.create_array(
        store,
        shape=spec.shape,
        chunks=spec.chunk_shape,
        shards=(spec.chunk_length * max(spec.chunk_count, 1), *spec.shape[1:]),
        dtype=spec.dtype,
        fill_value=0,
        serializer=BytesCodec(),
        compressors=[BloscCodec(**blosc), Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


def decoded_by_zarr(spec: ArraySpec, data: bytes) -> Array:
    """What zarr reads from our bytes."""
    members = {"zarr.json": array_metadata(spec), spec.data_member.removeprefix("x/"): data}
    store = MemoryStore({key: Buffer.from_bytes(value) for key, value in members.items()})
    return np.asarray(zarr.open_array(store, mode="r")[...])


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("columns", [(), (3,)], ids=["1-d", "2-d"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coding", PORTABLE)
def test_our_bytes_are_those_that_zarr_writes(
    coding: str, dtype: str, columns: tuple[int, ...], fill: str
) -> None:
    for length in LENGTHS:
        spec = ArraySpec("x", np.dtype(dtype), (length, *columns), CHUNK, coding)
        values = values_of(dtype, spec.shape, fill)
        theirs = written_by_zarr(spec, values)
        metadata = json.loads(theirs.pop("zarr.json"))
        assert metadata.pop("storage_transformers") == []
        ours = json.loads(array_metadata(spec))
        if spec.dtype.itemsize == 1:
            [little, *_] = ours["codecs"][0]["configuration"]["codecs"]
            assert little.pop("configuration") == {"endian": "little"}
        assert metadata == ours
        assert theirs == {spec.data_member.removeprefix("x/"): encode_array(spec, values)}


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<f4"])
@pytest.mark.parametrize("coding", ["pcodec", "pcodec_slow"])
def test_zarr_decodes_what_pcodec_wrote_for_us(coding: str, dtype: str, fill: str) -> None:
    for shape in (*((n,) for n in LENGTHS), (3 * CHUNK - 7, 3)):
        spec = ArraySpec("x", np.dtype(dtype), shape, CHUNK, coding)
        values = values_of(dtype, shape, fill)
        np.testing.assert_array_equal(decoded_by_zarr(spec, encode_array(spec, values)), values)


@pytest.mark.parametrize("coding", PORTABLE)
def test_zarr_decodes_chunks_that_are_copied(coding: str) -> None:
    """As a writer must leave them where a sequence would look like a bomb."""
    spec = ArraySpec("x", np.dtype("<u4"), (3 * CHUNK - 7,), CHUNK, coding)
    values = values_of("<u4", spec.shape, "zeros")
    data = encode_array(spec, values, copy=True)
    assert len(data) > values.nbytes
    np.testing.assert_array_equal(decoded_by_zarr(spec, data), values)


def test_no_array_of_a_shard_is_of_another_kind() -> None:
    """The types and codings above are all that there are."""
    found = {
        (spec.dtype.str, spec.coding, len(spec.shape))
        for codec in ("portable", "compact")
        for layout in (1, 2)
        for spec in array_specs(
            stores.spec(temperatures=(2.0,), logit_std=True, draws=3, codec=codec, layout=layout),
            ShardSize(3, 5, 7, 2),
        )
    }
    kinds = {(d, c, n) for d in DTYPES for c in PORTABLE for n in (1, 2)}
    kinds |= {(d, c, n) for d in ("<u2", "<u4", "<f4") for c in CODINGS for n in (1, 2)}
    assert found <= kinds
    assert {dtype for dtype, _, _ in found} == set(DTYPES)


def test_another_shuffle_would_be_seen() -> None:
    """The comparison is of bytes that the settings decide."""
    spec = ArraySpec("x", np.dtype("<u4"), (3 * CHUNK,), CHUNK)
    values = values_of("<u4", spec.shape, "random")
    theirs = written_by_zarr(spec, values)["c/0"]
    assert theirs == encode_array(spec, values)
    assert theirs != encode_array(ArraySpec("x", spec.dtype, spec.shape, CHUNK, "shuffle"), values)
