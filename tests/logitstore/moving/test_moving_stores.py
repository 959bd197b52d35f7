"""Laws of parts and unions: records and text never change, whatever store they come to lie in."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError, IncompleteStoreError, InputError, MismatchError
from logitstore.format.spec import Plan
from logitstore.moving.merge import merge
from logitstore.moving.subset import subset
from logitstore.records import TokenRecords
from logitstore.store import LogitStore, open_store
from logitstore.testing import stores
from logitstore.writing.writer import StoreWriter
from tests.kit.made_stores import put

EVERYTHING = stores.spec(temperatures=(2.0,), logit_std=True, draws=3, max_tail=0.1)


def assert_same_records(one: TokenRecords, other: TokenRecords) -> None:
    """To the bit."""
    for name in TokenRecords.__slots__:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and a.tobytes() == b.tobytes()), name


def assert_has_rows(new: LogitStore, of: LogitStore, rows: list[int], offset: int = 0) -> None:
    """Rows `offset`… of `new` are those rows of `of`."""
    for place, row in enumerate(rows):
        here, there = new.row(offset + place), of.row(row)
        assert len(here) == len(there) > 0
        for i, j in zip(here, there, strict=True):
            assert new.text(i) == of.text(j)._replace(row=offset + place)
            assert_same_records(new[i], of[j])


def assert_whole(path: Path) -> None:
    assert verify_store(path, deep=True).damaged == []


# ---- merge: parts of one capture ----


def test_the_union_of_split_captures_is_the_one_capture_byte_for_byte(tmp_path: Path) -> None:
    put(tmp_path / "one", EVERYTHING)
    stores.write(tmp_path / "a", EVERYTHING, shards=(0, 2), seal=False)
    stores.write(tmp_path / "b", EVERYTHING, shards=(1,), seal=False)
    union = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "u")
    assert union.is_complete
    assert stores.tree(tmp_path / "u") == stores.tree(tmp_path / "one")


def test_a_union_that_is_not_all_of_a_capture_stays_unfinished(tmp_path: Path) -> None:
    put(tmp_path / "one")
    stores.write(tmp_path / "a", shards=(0,), seal=False)
    stores.write(tmp_path / "b", shards=(2,), seal=False)
    union = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "u")
    assert (union.is_complete, union.shards) == (False, [0, 2])
    with pytest.raises(IncompleteStoreError):
        open_store(tmp_path / "u")
    stores.write(tmp_path / "u")  # the capture goes on in it
    assert stores.tree(tmp_path / "u") == stores.tree(tmp_path / "one")


def test_a_store_may_take_in_the_parts_of_another(tmp_path: Path) -> None:
    put(tmp_path / "one")
    stores.write(tmp_path / "a", shards=(0,), seal=False)
    stores.write(tmp_path / "b", shards=(1, 2), seal=False)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "a")
    assert stores.tree(tmp_path / "a") == stores.tree(tmp_path / "one")


def test_a_shard_in_both_is_one_shard_if_it_is_the_same_bytes(tmp_path: Path) -> None:
    put(tmp_path / "a")
    stores.write(tmp_path / "b", shards=(1,), seal=False)
    merge([tmp_path / "b", tmp_path / "a"], tmp_path / "u")
    assert stores.tree(tmp_path / "u") == stores.tree(tmp_path / "a")


def test_other_bytes_for_the_same_rows_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a")
    other = stores.spec()
    plan = Plan("d" * 64, (0, 3, 7, 12))
    writer = StoreWriter(tmp_path / "b", other, plan, stores.TOKENIZER_FILES)
    writer.write_shard(
        1, [(line, None) for r in range(3, 7) for line, _ in stores.row_sequences(other, r)]
    )
    with pytest.raises(MismatchError, match=r"both hold rows 3 to 6, and not the same bytes"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "u")
    assert not (tmp_path / "u").exists()


def test_a_damaged_shard_is_not_copied(tmp_path: Path) -> None:
    stores.write(tmp_path / "a", shards=(0, 2), seal=False)
    stores.write(tmp_path / "b", shards=(1,), seal=False)
    shard = tmp_path / "b" / "shards" / "00001.zarr.zip"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"00001"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "u")
    assert not (tmp_path / "u" / "shards" / "00001.zarr.zip").exists()


# ---- merge: captures of several datasets ----


def other_dataset(path: Path, of: Any = EVERYTHING) -> None:
    plan = Plan("e" * 64, (0, 2, 5))
    writer = StoreWriter(path, of, plan, stores.TOKENIZER_FILES, {"dataset": "other"})
    for index in writer.missing():
        rows = range(*plan.shard_rows(index))
        writer.write_shard(index, [s for row in rows for s in stores.row_sequences(of, row, 2)])
    writer.seal()


def test_rows_of_the_second_dataset_follow_those_of_the_first(tmp_path: Path) -> None:
    put(tmp_path / "a", EVERYTHING)
    other_dataset(tmp_path / "b")
    union = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "u")
    a, b = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    assert union.plan.boundaries.tolist() == [0, 3, 7, 12, 14, 17]
    assert_has_rows(union, a, list(range(12)))
    assert_has_rows(union, b, list(range(5)), offset=12)
    assert_whole(tmp_path / "u")
    kept = [f for s in (a, b) for f in s.shard_facts]
    for name in vars(a.fidelity):
        assert [f[name] for f in union.shard_facts] == [f[name] for f in kept]
    assert union.provenance["merged"][1]["dataset"] == "other"


def test_the_order_of_datasets_is_the_order_they_are_named_in(tmp_path: Path) -> None:
    put(tmp_path / "a", EVERYTHING)
    other_dataset(tmp_path / "b")
    union = merge([tmp_path / "b", tmp_path / "a"], tmp_path / "u")
    assert_has_rows(union, open_store(tmp_path / "a"), list(range(12)), offset=5)


def test_stores_that_cannot_be_one_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a", EVERYTHING)
    other_dataset(tmp_path / "b")
    put(tmp_path / "k", stores.spec(top_k=5))
    put(tmp_path / "cut", EVERYTHING, boundaries=(0, 12))
    stores.write(tmp_path / "part", EVERYTHING, boundaries=(0, 6, 12), shards=(0,), seal=False)
    shutil.copytree(tmp_path / "a", tmp_path / "twin")
    cases: dict[tuple[str, ...], tuple[type[Exception], str]] = {
        ("a",): (InputError, "merge needs two stores or more"),
        ("a", "b", "a"): (InputError, "a: is given twice"),
        ("a", "k"): (MismatchError, r"capture\.draws is 3 in the first, 0 in the second, and \d"),
        ("a", "cut"): (MismatchError, "both are of dataset dddddddddddd…, cut into other shards"),
        ("a", "twin", "b"): (MismatchError, "Merge the parts of each capture first"),
        ("b", "part"): (IncompleteStoreError, "part: holds 6 of 12 rows"),
    }
    for names, (error, says) in cases.items():
        with pytest.raises(error, match=says):
            merge([tmp_path / name for name in names], tmp_path / "u")
        assert not (tmp_path / "u").exists()


# ---- subset ----


@pytest.mark.parametrize("parts", [1, 2])
def test_the_records_of_a_subset_are_the_originals_to_the_bit(parts: int, tmp_path: Path) -> None:
    put(tmp_path / "s", EVERYTHING, parts=parts)
    chosen = tmp_path / "rows.txt"
    chosen.write_text("10\n\n2\n3 \n6\n4\n")
    new = subset(tmp_path / "s", chosen, tmp_path / "n", shard_text_bytes=40)
    of = open_store(tmp_path / "s")
    assert new.plan.rows == 5
    assert new.plan.shard_count > 1
    assert_has_rows(new, of, [2, 3, 4, 6, 10])
    assert_whole(tmp_path / "n")
    assert new.digest != of.digest
    assert new.provenance["subset_of"]["digest"] == of.digest


def test_a_range_of_rows(tmp_path: Path) -> None:
    put(tmp_path / "s")
    of = open_store(tmp_path / "s")
    assert_has_rows(subset(tmp_path / "s", "3:8", tmp_path / "n"), of, [3, 4, 5, 6, 7])
    assert_has_rows(subset(tmp_path / "s", "9:", tmp_path / "m"), of, [9, 10, 11])
    assert subset(tmp_path / "s", ":12", tmp_path / "all").plan.rows == 12


def test_the_fidelity_of_a_subset_is_what_its_shards_say(tmp_path: Path) -> None:
    put(tmp_path / "s", EVERYTHING)
    of = open_store(tmp_path / "s")
    new = subset(tmp_path / "s", "0:5", tmp_path / "n")
    records = [r for i in range(5) for r in [of[i]] if len(r)]
    tail = np.concatenate([np.exp(r.tail_logmass) for r in records])
    weights = [sum(len(of[i]) for i in range(0, 3)), sum(len(of[i]) for i in range(3, 5))]
    expected = np.average([f["kl_mean"] for f in of.shard_facts[:2]], weights=weights)
    assert new.fidelity.kl_mean == pytest.approx(expected, rel=1e-12)
    assert new.fidelity.l1_max == max(f["l1_max"] for f in of.shard_facts[:2])
    assert new.fidelity.tail_mean == pytest.approx(tail.mean(), abs=2e-3)
    everything = subset(tmp_path / "s", ":", tmp_path / "all")
    assert everything.fidelity.l1_mean == pytest.approx(of.fidelity.l1_mean, rel=1e-12)
    assert everything.fidelity.entries_mean == pytest.approx(of.fidelity.entries_mean, rel=1e-12)


def test_rows_without_records_make_a_store_all_the_same(tmp_path: Path) -> None:
    put(tmp_path / "s")
    (tmp_path / "rows").write_text("4\n9\n")
    new = subset(tmp_path / "s", tmp_path / "rows", tmp_path / "n")
    assert [len(r) for r in new] == [0, 0]
    assert_whole(tmp_path / "n")


def test_a_subset_that_was_stopped_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "s")
    subset(tmp_path / "s", "1:9", tmp_path / "whole", shard_text_bytes=30)
    whole = StoreWriter.write_shard

    def stops(self: StoreWriter, index: int, *more: Any) -> bool:
        if index == 2:
            raise KeyboardInterrupt
        return whole(self, index, *more)

    monkeypatch.setattr(StoreWriter, "write_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        subset(tmp_path / "s", "1:9", tmp_path / "n", shard_text_bytes=30)
    monkeypatch.undo()
    with pytest.raises(MismatchError, match="begun with other settings"):
        subset(tmp_path / "s", "1:8", tmp_path / "n", shard_text_bytes=30)
    subset(tmp_path / "s", "1:9", tmp_path / "n", shard_text_bytes=30)
    assert stores.tree(tmp_path / "n") == stores.tree(tmp_path / "whole")


def test_rows_that_cannot_be_chosen_are_one_clear_error_each(tmp_path: Path) -> None:
    put(tmp_path / "s")
    files = {"word": "1\ntwo\n", "twice": "1\n2\n1\n", "beyond": "3\n12\n", "nothing": "\n"}
    files |= {"negative": "-1\n", "huge": "9" * 40}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    cases = {
        "word": r"line 2 is 'two', expected a row number\. Give a file with one row number a line",
        "negative": "line 1 is '-1'",
        "huge": "line 1 is '9999",
        "twice": r"row 1 is there twice\. Name it once\.",
        "beyond": r"there is no row 12 in .*s; it holds 0 to 11\. Name rows of this store\.",
        "nothing": r"names no row of .*s\. Give",
        "bytes": "is not text",
        "nowhere": "neither a file nor a range",
        "5:5": "names no row",
        "12:20": "ends at 20, but",
    }
    for name, says in cases.items():
        rows = name if ":" in name else str(tmp_path / name)
        with pytest.raises(InputError, match=says):
            subset(tmp_path / "s", rows, tmp_path / "n")
        assert not (tmp_path / "n").exists()


def test_a_subset_of_a_damaged_store_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "s")
    shard = tmp_path / "s" / "shards" / "00001.zarr.zip"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"00001"):
        subset(tmp_path / "s", "2:9", tmp_path / "n")
    assert not (tmp_path / "n" / "DONE").exists()


def test_a_subset_of_what_does_not_know_its_entropy_does_not_know_it_either(
    tmp_path: Path,
) -> None:
    put(tmp_path / "s", stores.spec(missing=("entropy",)))
    new = subset(tmp_path / "s", "0:3", tmp_path / "n")
    assert new.spec.missing == ("entropy",)
    assert np.isnan(new[0].entropy).all()


def test_a_range_beyond_the_last_row_is_refused(tmp_path: Path) -> None:
    """It took the rows there were, without a word."""
    put(tmp_path / "s")
    with pytest.raises(InputError, match=r"ends at 13, but .*s has 12 rows.*--rows 9:$"):
        subset(tmp_path / "s", "9:13", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
