"""A store gives back what was put in, opens with other readers, and is the same bytes each time."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from logitstore import open_store
from logitstore.checking.verify import verify_store
from logitstore.errors import (
    CorruptStoreError,
    FormatError,
    IncompleteStoreError,
    MismatchError,
    NotAStoreError,
)
from logitstore.format.spec import Plan, StoreSpec
from logitstore.records import Segment, SequenceText
from logitstore.store import LogitStore
from logitstore.testing import stores
from logitstore.writing.encode import RawRecords, encode_records
from logitstore.writing.writer import StoreWriter
from tests.kit.made_stores import put

VARIANTS = {
    "plain": stores.spec(),
    "values only": stores.spec(ids=False),
    "ragged": stores.spec(max_tail=0.1, top_k=20),
    "small chunks": stores.spec(chunks=(3, 7), temperatures=(2.0, 0.5)),
    "every block": stores.spec(temperatures=(4.0,), logit_std=True, draws=5),
    "draws, first layout": stores.spec(draws=5, layout=1),
    "compact": stores.spec(codec="compact", chunks=(3, 7), temperatures=(2.0, 0.5)),
    "compact, every block": stores.spec(
        codec="compact", temperatures=(4.0,), logit_std=True, draws=5, max_tail=0.1
    ),
    "everything kept": stores.spec(vocab_size=30, top_k=30),
    "18-bit ids": stores.spec(vocab_size=150_000, top_k=3),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_was_written_is_read(tmp_path: Path, name: str) -> None:
    of = put(tmp_path / "s", VARIANTS[name])
    store = open_store(tmp_path / "s")
    assert len(store) == 12
    for i in range(12):
        pieces = stores.row_pieces(i)
        assert store.text(i).supervised_bytes == "".join(pieces).encode()
        assert store.row(i) == [i]
        if not pieces:
            assert len(store[i]) == 0
            continue
        raw = stores.raw_records(of, pieces, np.random.default_rng(1000 + i))
        assert_close(store, i, raw, of)


def assert_close(store: LogitStore, i: int, raw: object, of: StoreSpec) -> None:
    got = store[i]
    for name in ("token_ids", "byte_starts", "byte_lengths", "entry_count"):
        np.testing.assert_array_equal(getattr(got, name), getattr(raw, name), err_msg=name)
    np.testing.assert_allclose(got.token_logprob, raw.token_logprob, atol=1 / 1024)
    np.testing.assert_allclose(got.entropy, raw.entropy, atol=1 / 512)
    padded, kept = got.padded(), np.arange(of.top_k) < raw.entry_count[:, None]
    kept = kept[:, : padded.mask.shape[1]]
    assert (padded.mask == kept).all()
    if of.has_ids:
        assert padded.ids is not None
        assert (padded.ids[~kept] == 0xFFFF_FFFF).all()
        for mine, theirs, here in zip(padded.ids, raw.entry_ids, kept, strict=True):
            assert set(mine[here]) == set(theirs[: here.sum()])
    error = np.abs(np.exp(padded.logprobs) - np.exp(raw.entry_logprobs[:, : kept.shape[1]]))
    assert error[kept].max() <= store.fidelity.l1_max + 1e-6
    for name in ("lognorm", "logit_std", "lognorm_std"):
        if getattr(raw, name) is not None:
            np.testing.assert_array_equal(getattr(got, name), getattr(raw, name).astype("f4"))
    if of.draws:
        drawn = np.arange(of.draws) < raw.draw_count[:, None]
        np.testing.assert_array_equal(got.draw_count, raw.draw_count)
        np.testing.assert_array_equal(got.sample_ids, raw.sample_ids[drawn])
        np.testing.assert_array_equal(got.sample_counts, raw.sample_counts[drawn])


@pytest.mark.parametrize("name", VARIANTS)
def test_zarr_opens_every_array_and_agrees(tmp_path: Path, name: str) -> None:
    put(tmp_path / "s", VARIANTS[name])
    store = open_store(tmp_path / "s")
    first = 0
    for path in sorted((tmp_path / "s" / "shards").iterdir()):
        with warnings.catch_warnings():  # zarr remarks on rows.parquet, which is no array
            warnings.simplefilter("ignore")
            group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
            arrays = {k: v[:] for k, v in group.arrays()}
        count = group.attrs["logitstore"]["size"]["sequences"]
        mine = [store[i] for i in range(first, first + count)]
        first += count
        for field in ("token_ids", "byte_lengths", "entry_count"):
            joined = np.concatenate([getattr(r, field) for r in mine])
            np.testing.assert_array_equal(arrays[field], joined)
        if store.spec.has_ids:
            np.testing.assert_array_equal(
                arrays["entry_ids"], np.concatenate([r.entry_ids for r in mine])
            )
        assert arrays["entry_logprobs"].shape == (sum(len(r.entry_logprobs) for r in mine),)


def test_the_text_is_a_parquet_file_that_others_read(tmp_path: Path) -> None:
    import fsspec

    put(tmp_path / "s")
    shard = tmp_path / "s" / "shards" / "00000.zarr.zip"
    with fsspec.open(f"zip://rows.parquet::{shard}") as f:
        table = pq.read_table(f)
    assert table["row"].to_pylist() == [0, 1, 2]
    assert table["segments"][0][0]["text"].as_py() == "".join(stores.row_pieces(0))


def test_the_same_capture_is_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    stores.write(tmp_path / "a")
    stores.write(tmp_path / "b", shards=(2, 0, 1))
    assert stores.tree(tmp_path / "a") == stores.tree(tmp_path / "b")


def test_nothing_in_a_store_names_a_host_or_a_time(tmp_path: Path) -> None:
    stores.write(tmp_path / "s")
    journal = (tmp_path / "s.journal.jsonl").read_text().splitlines()
    host = json.loads(journal[0])["host"].encode()
    assert [json.loads(line)["event"] for line in journal] == ["shard"] * 3 + ["sealed"]
    assert not any(host in data for data in stores.tree(tmp_path / "s").values())


def test_an_unfinished_store_says_so_and_reads_what_is_there(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", shards=(2, 0), seal=False)
    with pytest.raises(IncompleteStoreError, match=r"holds 8 of 12 rows.*--allow-partial"):
        open_store(tmp_path / "s")
    store = open_store(tmp_path / "s", allow_partial=True)
    assert (len(store), store.sequence_rows.tolist()) == (8, [0, 1, 2, 7, 8, 9, 10, 11])
    assert store.row(7) == [3]
    with pytest.raises(IndexError, match="row 4 is not in"):
        store.row(4)


@pytest.mark.parametrize("asked", [slice(0, 2), "a"])
def test_several_sequences_are_not_asked_for_by_a_slice(tmp_path: Path, asked: object) -> None:
    stores.write(tmp_path / "s", shards=(0, 1, 2))
    with pytest.raises(TypeError, match=r"one sequence by its number, .*store\.read_many"):
        open_store(tmp_path / "s")[asked]  # type: ignore[index]


def test_a_store_travels_to_other_processes(tmp_path: Path) -> None:
    put(tmp_path / "s")
    store = open_store(tmp_path / "s")
    want = store[3].token_ids
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again[3].token_ids, want)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if np.array_equal(store[3].token_ids, want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_read_many_is_reading_one_by_one(tmp_path: Path) -> None:
    put(tmp_path / "s")
    store = open_store(tmp_path / "s")
    wanted = [11, 0, 5, 5, -1]
    for i, records in zip(wanted, store.read_many(wanted), strict=True):
        np.testing.assert_array_equal(records.entry_logprobs, store[i].entry_logprobs)


def test_reading_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    put(tmp_path / "s")
    code = (
        "import sys, logitstore; s = logitstore.open_store(sys.argv[1]); s[0]; s.text(0); "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_fidelity_of_the_store_is_that_of_its_records(tmp_path: Path) -> None:
    of = put(tmp_path / "s", stores.spec(max_tail=0.2, top_k=10))
    store = open_store(tmp_path / "s")
    whole = [store[i] for i in range(len(store))]
    tails = np.exp(np.concatenate([r.tail_logmass for r in whole]).astype(np.float64))
    counts = np.concatenate([r.entry_count for r in whole])
    assert abs(store.fidelity.tail_mean - tails.mean()) < 0.01
    assert abs(store.fidelity.entries_mean - counts.mean()) < 1e-9
    at_cap = ((counts >= of.top_k) & (tails > 0.2)).mean()
    assert abs(store.fidelity.at_cap_fraction - at_cap) < 0.02


def test_what_is_not_a_store_is_said_to_be_none(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(NotAStoreError, match=r"no store\.json .*logitstore capture"):
            open_store(path)
    (tmp_path / "store.json").write_text('{"format": "something else"}')
    with pytest.raises(NotAStoreError):
        open_store(tmp_path)


def test_a_newer_format_is_refused_by_its_number(tmp_path: Path) -> None:
    put(tmp_path / "s")
    spec = tmp_path / "s" / "store.json"
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"version": 3}))
    with pytest.raises(FormatError, match="format version 3, this reader knows versions 1 to 2"):
        open_store(tmp_path / "s")


def test_a_missing_shard_is_found_when_the_store_is_opened(tmp_path: Path) -> None:
    put(tmp_path / "s")
    (tmp_path / "s" / "shards" / "00001.zarr.zip").unlink()
    with pytest.raises(CorruptStoreError, match=r"00001.zarr.zip: the file is missing.*3 to 6"):
        open_store(tmp_path / "s")


def test_a_shard_of_another_store_is_not_read(tmp_path: Path) -> None:
    put(tmp_path / "a")
    put(tmp_path / "b", stores.spec(top_k=7))
    name = "shards/00001.zarr.zip"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(CorruptStoreError, match="rows 3 to 6"):
        open_store(tmp_path / "a")[3]


@pytest.mark.parametrize("cut", [0, 1, 30, 200])
def test_a_truncated_shard_raises_and_the_others_still_read(tmp_path: Path, cut: int) -> None:
    put(tmp_path / "s")
    path = tmp_path / "s" / "shards" / "00001.zarr.zip"
    path.write_bytes(path.read_bytes()[:-cut] if cut else b"")
    store = open_store(tmp_path / "s")
    with pytest.raises(CorruptStoreError, match=r"00001\.zarr\.zip: rows 3 to 6") as caught:
        store[3]
    assert caught.value.rows == (3, 6)
    assert len(store[0]) > 0


def test_other_settings_on_the_same_folder_are_refused_with_both_values(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", shards=(0,), seal=False)
    before = stores.tree(tmp_path / "s")
    with pytest.raises(MismatchError, match=r"capture\.top_k is 6 in the store, 7 now"):
        stores.write(tmp_path / "s", stores.spec(top_k=7))
    with pytest.raises(MismatchError, match=r"plan\.boundaries is \[0, 3, 7, 12\] in the store"):
        stores.write(tmp_path / "s", boundaries=(0, 12))
    assert stores.tree(tmp_path / "s") == before


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(MismatchError, match=r"holds something else \(thesis\.tex\)"):
        stores.write(tmp_path)
    assert stores.tree(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(MismatchError, match="is a file, not a folder"):
        stores.write(tmp_path / "thesis.tex")


def test_what_compresses_like_a_bomb_is_copied_and_still_read(tmp_path: Path) -> None:
    """Honest, if odd: one record 20,000 times, and megabytes of the same letter."""
    of, plan = stores.spec(top_k=64, ids=False), Plan("d" * 64, (0, 2))
    one = stores.raw_records(of, [], np.random.default_rng(0))
    n = 20_000
    same = {
        name: np.repeat(value, n, axis=0)
        for name, value in vars(one).items()
        if isinstance(value, np.ndarray)
    }
    text = "a" * n + " " * 3_000_000
    same |= {"byte_starts": np.arange(n), "byte_lengths": np.ones(n)}
    lines = [SequenceText(i, 0, "ok", (Segment(text, True),)) for i in range(2)]
    writer = StoreWriter(tmp_path / "s", of, plan, stores.TOKENIZER_FILES)
    encoded = encode_records(RawRecords(**{**vars(one), **same}), of)
    writer.write_shard(0, [(line, encoded) for line in lines])
    writer.seal()
    store = open_store(tmp_path / "s")
    assert store.text(1).supervised_bytes == text.encode()
    assert len(store[1].entry_logprobs) == 64 * n
    assert (store[1].entry_logprobs[:64] == store[0].entry_logprobs[-64:]).all()
    path = tmp_path / "s" / "shards" / "00000.zarr.zip"
    assert path.stat().st_size > 2 * 64 * n * 2, "entries were compressed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    assert group["entry_count"][:].tolist() == [64] * 2 * n
    assert verify_store(tmp_path / "s", deep=True).damaged == []
