"""Chunks by blosc and by pcodec: nothing is lost, and a hostile one costs its reader an error."""

import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pcodec
import pytest
import zarr
from hypothesis import given, settings

from logitstore import open_store
from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError, MissingLibraryError
from logitstore.format.chunk_codecs import CODINGS
from logitstore.format.encoded import EncodedRecords
from logitstore.format.shard_arrays import array_specs
from logitstore.format.spec import Plan, StoreSpec
from logitstore.format.zarr_arrays import ArrayReader, ArraySpec, array_metadata, encode_array
from logitstore.records import Segment, SequenceText, TokenRecords
from logitstore.testing import stores
from logitstore.writing.encode import RawRecords, encode_records
from logitstore.writing.writer import StoreWriter
from tests.kit import hostile
from tests.kit.attacks_on_shards import index_of
from tests.kit.hostile import data_member, members_of, put_members

EVERY_BLOCK: dict[str, Any] = {"temperatures": (2.0,), "logit_std": True, "draws": 3}


def write(path: Path, codec: str, **settings: Any) -> StoreSpec:
    return stores.write(path, stores.spec(codec=codec, **EVERY_BLOCK | settings))


@given(
    st.sampled_from(["bitshuffle", "shuffle", "pcodec", "pcodec_slow"]),
    st.sampled_from(["<u2", "<u4", "<f4"]),
    st.integers(1, 200),
    st.integers(1, 90),
    st.sampled_from([(), (1,), (3,)]),
    st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_an_array_is_read_as_it_was_written(
    coding: str, dtype: str, length: int, chunk: int, columns: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    spec = ArraySpec("x", np.dtype(dtype), (length, *columns), chunk, coding)
    values = rng.integers(0, int(rng.choice([1, 9, 2**16])), spec.shape).astype(dtype)
    reader = ArrayReader(spec, memoryview(encode_array(spec, values)))
    start, stop = sorted(rng.integers(0, length + 1, 2).tolist())
    np.testing.assert_array_equal(reader[start:stop], values[start:stop])
    cuts = np.sort(rng.integers(0, length + 1, 6)).reshape(3, 2).tolist()
    wanted = np.concatenate([values[a:b] for a, b in cuts])
    np.testing.assert_array_equal(reader.gather([(a, b) for a, b in cuts]), wanted)


@given(st.lists(st.integers(-12, 11), max_size=20))
@settings(max_examples=15)
def test_reading_many_is_reading_each_in_any_order(both: dict[str, Path], order: list[int]) -> None:
    for path in both.values():
        store = open_store(path)
        for i, records in zip(order, store.read_many(order), strict=True):
            assert_equal(records, store[i])
            for name, values in store.entries(i)._asdict().items():
                np.testing.assert_array_equal(values, getattr(records, name))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("both")
    for codec in ("portable", "compact"):
        write(folder / codec, codec, chunks=(4, 9), max_tail=0.2)
    return {codec: folder / codec for codec in ("portable", "compact")}


def assert_equal(mine: TokenRecords, other: TokenRecords) -> None:
    for name in TokenRecords.__slots__:
        np.testing.assert_array_equal(getattr(mine, name), getattr(other, name), err_msg=name)


def test_both_codecs_say_the_same(both: dict[str, Path]) -> None:
    one, other = (open_store(path) for path in both.values())
    for mine, theirs in zip(one, other, strict=True):
        assert_equal(mine, theirs)
    assert one.fidelity == other.fidelity
    assert one.digest != other.digest  # the codec is part of what a store is


def test_a_compact_store_is_the_same_bytes_again(both: dict[str, Path], tmp_path: Path) -> None:
    write(tmp_path / "again", "compact", chunks=(4, 9), max_tail=0.2)
    again, first = stores.tree(tmp_path / "again"), stores.tree(both["compact"])
    assert again == first


def test_draws_of_both_layouts_are_the_same(tmp_path: Path) -> None:
    for layout in (1, 2):
        write(tmp_path / str(layout), "portable", layout=layout)
    one, two = (open_store(tmp_path / str(layout)) for layout in (1, 2))
    for mine, other in zip(one, two, strict=True):
        assert_equal(mine, other)


def test_without_the_library_opening_works_and_reading_names_the_extra(
    both: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pcodec", None)
    store = open_store(both["compact"])
    assert store.text(0).supervised_bytes
    with pytest.raises(MissingLibraryError, match=r"pip install 'logitstore\[compact\]'"):
        store[0]
    with pytest.raises(MissingLibraryError, match=r"use --codec portable"):
        write(tmp_path / "s", "compact")
    assert not (tmp_path / "s").exists()


# What an attacker can do.

VALUES = np.arange(1000, dtype="<u4") % 50


def coded(values: Any, delta: Any = None, mode: Any = None, pages: Any = None) -> bytes:
    config = pcodec.ChunkConfig(
        delta_spec=delta or pcodec.DeltaSpec.no_op(),
        mode_spec=mode or pcodec.ModeSpec.classic(),
        paging_spec=pages or pcodec.PagingSpec.equal_pages_up_to(2**20),
    )
    return bytes(pcodec.standalone.simple_compress(values, config))


GOOD = coded(VALUES)
FORGED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "coded in the one way"),
    "one byte less": (GOOD[:-1], "cannot be decoded"),
    "cut in the header": (GOOD[:10], "coded in the one way"),
    "too few numbers": (coded(VALUES[:999]), "coded in the one way"),
    "too many numbers": (coded(np.tile(VALUES, 1000)), "coded in the one way"),
    "another type": (coded(VALUES.astype("<f4")), "coded in the one way"),
    "deltas": (coded(np.cumsum(VALUES, dtype="<u4"), pcodec.DeltaSpec.try_consecutive(1)), "way"),
    "blosc's": (CODINGS["bitshuffle"].encode(VALUES, 1000), "coded in the one way"),
    "a first part that is longer": (
        GOOD.replace((999).to_bytes(3, "little"), b"\xff\xff\xff", 1),
        "declares more than 1000",
    ),
    "a first part alone": (
        coded(VALUES[:400]).replace((400 << 6 | 8).to_bytes(2, "little"), GOOD[6:8], 1),
        "decoded|other than|coded",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_pcodec_chunk_is_refused(name: str) -> None:
    payload, says = FORGED[name]
    with pytest.raises(ValueError, match=says):
        CODINGS["pcodec"].decode_into(payload, np.empty(1000, "<u4"))


def test_a_panic_in_the_library_is_damage_and_other_interrupts_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    def ends(with_: BaseException) -> None:
        def decompress(*_: object) -> None:
            raise with_

        monkeypatch.setattr(pcodec.standalone, "simple_decompress_into", decompress)

    out = np.empty(1000, "<u4")
    ends(PanicException("index out of bounds"))
    with pytest.raises(ValueError, match="cannot be decoded"):
        CODINGS["pcodec"].decode_into(GOOD, out)
    ends(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        CODINGS["pcodec"].decode_into(GOOD, out)


def test_mutated_chunks_behind_right_checksums_cost_an_error_and_little_memory(
    tmp_path: Path,
) -> None:
    """Each mutant is read by a process apart, which also says what memory it took."""
    write(tmp_path / "s", "compact", chunks=(8, 16))
    rng = np.random.default_rng(0)
    names = ["token_ids", "entry_ids", "entry_logprobs", "sample_gaps", "sample_counts"]
    paths = [tmp_path / "s"]
    for number in range(10):
        path = shutil.copytree(tmp_path / "s", tmp_path / f"mutant-{number}")
        mutate(path, names[number % 5], rng)
        paths.append(path)
    for found in hostile.outcomes(paths).values():
        for outcome in (found["read"], found["verify"]):
            assert outcome["error"] in (None, "CorruptStoreError", "ValueError"), outcome
            assert outcome["peak_bytes"] < 50_000_000


def mutate(store: Path, name: str, rng: np.random.Generator) -> None:
    members = members_of(store)
    member = members[f"{name}/c/0"]
    chunks = [
        bytearray(member[o : o + n - 4]) for o, n in index_of(member, chunk_count(store, name))
    ]
    for _ in range(int(rng.integers(1, 4))):
        chunk = chunks[int(rng.integers(len(chunks)))]
        at = int(rng.integers(6, len(chunk)))
        chunk[at] ^= 1 << int(rng.integers(8))
    put_members(store, members | {f"{name}/c/0": data_member([bytes(c) for c in chunks])})


def chunk_count(store: Path, name: str) -> int:
    opened = open_store(store)
    specs = array_specs(opened.spec, opened.shard(1).size)
    return next(s for s in specs if s.name == name).chunk_count


def test_flipped_bytes_of_a_compact_shard_are_all_found(tmp_path: Path) -> None:
    write(tmp_path / "s", "compact", chunks=(8, 16))
    shard = tmp_path / "s" / "shards" / "00001.zarr.zip"
    good, rng = shard.read_bytes(), np.random.default_rng(3)
    for _ in range(25):
        data = bytearray(good)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        shard.unlink()
        shard.write_bytes(data)
        assert [d.file for d in verify_store(tmp_path / "s").damaged] == [f"shards/{shard.name}"]


# Bombs: what compresses to nothing is written by blosc, uncompressed, and read; ours alone is.


def zeros(of: StoreSpec, tokens: int) -> tuple[SequenceText, EncodedRecords]:
    """A sequence whose every number is the same."""
    k = of.top_k
    raw = RawRecords(
        token_ids=np.zeros(tokens, np.int64),
        byte_starts=np.arange(tokens),
        byte_lengths=np.ones(tokens, np.int64),
        token_logprob=np.full(tokens, -np.log(k), np.float32),
        entry_logprobs=np.full((tokens, k), -np.log(k), np.float32),
        entry_ids=np.zeros((tokens, k), np.int64),
        entry_count=np.full(tokens, k),
        tail_logmass=np.full(tokens, -np.inf, np.float32),
        entropy=np.full(tokens, np.log(k), np.float32),
    )
    return SequenceText(0, 0, "ok", (Segment("a" * tokens, True),)), encode_records(raw, of)


def compact_zeros(path: Path) -> None:
    of = stores.spec(codec="compact", vocab_size=500, top_k=200)
    writer = StoreWriter(path, of, Plan("d" * 64, (0, 1)), stores.TOKENIZER_FILES)
    writer.write_shard(0, [zeros(of, 4000)])
    writer.seal()


def test_a_compact_shard_that_compresses_like_a_bomb_is_copied_and_read(tmp_path: Path) -> None:
    compact_zeros(tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert {c.coding for c in store.shard(0).chunks("entry_ids", 0)} == {"bitshuffle"}
    records = store[0]
    assert len(records.entry_logprobs) == 4000 * 200
    path = tmp_path / "s" / "shards" / "00000.zarr.zip"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
        np.testing.assert_array_equal(group["entry_ids"][:], records.entry_ids)


def test_a_pcodec_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, shard = tmp_path / "s", "shards/00000.zarr.zip"
    compact_zeros(path)
    members = members_of(path, shard)
    store = open_store(path)
    for spec in array_specs(store.spec, store.shard(0).size):
        if not spec.name.startswith("sequence_"):
            compact = replace(spec, coding="pcodec")
            values = np.zeros(spec.shape, spec.dtype)
            members[spec.metadata_member] = array_metadata(compact)
            members[spec.data_member] = encode_array(compact, values)
    put_members(path, members, shard)
    decoded: list[int] = []
    decode: Callable[..., None] = type(CODINGS["pcodec"]).decode_into
    monkeypatch.setattr(
        type(CODINGS["pcodec"]),
        "decode_into",
        lambda self, payload, out: (decoded.append(out.nbytes), decode(self, payload, out)),
    )
    with pytest.raises(CorruptStoreError, match="bytes declare that they become"):
        open_store(path)[0]
    assert decoded == []
