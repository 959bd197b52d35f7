"""Law: a store that goes through Parquet comes back byte for byte; on the way anybody reads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitstore.errors import CorruptStoreError, InputError, MismatchError
from logitstore.format.logprob_codec import decode_entries, encode_entries
from logitstore.format.spec import StoreSpec
from logitstore.moving.parquet.export import export_parquet
from logitstore.moving.parquet.exported import find_export
from logitstore.moving.parquet.reimport import check_export, reimport
from logitstore.store import open_store
from logitstore.testing import stores
from tests.kit.made_stores import put
from tests.kit.paths import GOLDEN

SPECS: dict[str, tuple[StoreSpec, int]] = {
    "plain": (stores.spec(), 1),
    "values only": (stores.spec(ids=False), 1),
    "ragged, small chunks": (stores.spec(max_tail=0.1, chunks=(3, 7)), 1),
    "every block": (stores.spec(temperatures=(2.0, 0.5), logit_std=True, draws=5), 3),
    "flat": (stores.spec(vocab_size=5000, top_k=1), 1),
}


def back(export: Path, out: Path) -> Path:
    found = find_export(export)
    assert found is not None
    return reimport(found, out).path


@pytest.mark.parametrize("name", SPECS)
def test_export_and_import_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    of, parts = SPECS[name]
    put(tmp_path / "s", of, parts=parts)
    export_parquet(tmp_path / "s", tmp_path / "e")
    assert stores.tree(back(tmp_path / "e", tmp_path / "b")) == stores.tree(tmp_path / "s")


@pytest.mark.parametrize("golden", sorted(p.name for p in GOLDEN.iterdir() if p.is_dir()))
def test_stores_of_every_time_come_back(golden: str, tmp_path: Path) -> None:
    export_parquet(GOLDEN / golden, tmp_path / "e")
    assert stores.tree(back(tmp_path / "e", tmp_path / "b")) == stores.tree(GOLDEN / golden)


def test_what_a_store_does_not_know_is_null_and_stays_unknown(tmp_path: Path) -> None:
    put(tmp_path / "s", stores.spec(missing=("entropy", "token_logprob")))
    assert np.isnan(open_store(tmp_path / "s")[0].entropy).all()
    export_parquet(tmp_path / "s", tmp_path / "e")
    table = pq.read_table(tmp_path / "e" / "data")
    assert set(table["entropy"].combine_chunks().flatten().to_pylist()) == {None}
    own = table["token_logprob"].combine_chunks().flatten().to_pylist()
    assert 0 < own.count(None) < len(own)
    again = open_store(back(tmp_path / "e", tmp_path / "b"))
    assert stores.tree(tmp_path / "b") == stores.tree(tmp_path / "s")
    assert again.spec.missing == ("entropy", "token_logprob")
    assert [np.isnan(r.entropy).all() for r in again] == [True] * len(again)


def test_datasets_and_pyarrow_read_what_the_store_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    put(tmp_path / "s", stores.spec(temperatures=(2.0,), max_tail=0.1), parts=2)
    export_parquet(tmp_path / "s", tmp_path / "e")
    store = open_store(tmp_path / "s")
    read = datasets.load_dataset(str(tmp_path / "e"), cache_dir=str(tmp_path / "cache"))
    rows = read["train"]  # the tokenizer's files are not taken for data
    assert len(rows) == len(store)
    for i, row in enumerate(rows):
        records, text = store[i], store.text(i)
        assert [s["text"] for s in row["segments"]] == [s.text for s in text.segments]
        assert (row["row"], row["part"], row["status"]) == (text.row, text.part, text.status)
        padded = records.padded()
        for t in range(len(records)):
            mask = padded.mask[t]
            assert row["entry_ids"][t] == padded.ids[t][mask].tolist()
            assert row["entry_logprobs"][t] == padded.logprobs[t][mask].tolist()
            assert row["lognorm"][t] == records.lognorm[t].tolist()
        for name in ("token_ids", "byte_starts", "tail_logmass", "entropy", "token_logprob"):
            assert row[name] == getattr(records, name).tolist()


def test_decoded_values_alone_would_not_give_the_codes_back() -> None:
    """Why an export carries codes: decoding divides what rounding left over among the entries."""
    p = np.linspace(0.5, 0.99, 2000)
    logprobs, count = np.log(p).astype(np.float32)[:, None], np.ones(2000, np.int64)
    stored = encode_entries(logprobs, None, count, np.log1p(-p).astype(np.float32))
    decoded, tail = decode_entries(stored.deltas, count, stored.tail_codes)
    again = encode_entries(decoded[:, None], None, count, tail)
    assert (again.deltas != stored.deltas).any()


def test_the_pages_of_an_export_have_checksums_and_the_groups_are_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitstore.moving.parquet.export._GROUP_LINES", 5)
    put(tmp_path / "s", boundaries=(0, 12))
    export_parquet(tmp_path / "s", tmp_path / "e")
    (file,) = (tmp_path / "e" / "data").iterdir()
    found = pq.ParquetFile(file).metadata
    assert [found.row_group(g).num_rows for g in range(found.num_row_groups)] == [5, 5, 2]
    assert stores.tree(back(tmp_path / "e", tmp_path / "b")) == stores.tree(tmp_path / "s")
    column = found.row_group(1).column(found.num_columns - 1)
    data = bytearray(file.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        back(tmp_path / "e", tmp_path / "again")


def test_an_export_replaces_nothing_and_appears_whole(tmp_path: Path) -> None:
    put(tmp_path / "s")
    (tmp_path / "e").mkdir()
    with pytest.raises(MismatchError, match=r"e: is there already.* Choose another --out\."):
        export_parquet(tmp_path / "s", tmp_path / "e")
    damaged = tmp_path / "s" / "shards" / "00002.zarr.zip"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 3] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"00002\.zarr\.zip"):
        export_parquet(tmp_path / "s", tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "s", "s.journal.jsonl"]


def test_an_import_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.writing.writer import StoreWriter

    put(tmp_path / "s")
    export_parquet(tmp_path / "s", tmp_path / "e")
    whole = StoreWriter.write_shard

    def stops(self: StoreWriter, index: int, *more: Any) -> bool:
        if index == 1:
            raise KeyboardInterrupt
        return whole(self, index, *more)

    monkeypatch.setattr(StoreWriter, "write_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        back(tmp_path / "e", tmp_path / "b")
    monkeypatch.undo()
    assert len(list((tmp_path / "b" / "shards").iterdir())) == 1
    assert stores.tree(back(tmp_path / "e", tmp_path / "b")) == stores.tree(tmp_path / "s")


Change = Callable[[Path], None]


def column(name: str, change: Callable[[list[Any]], list[Any]]) -> Change:
    """A tool that changes a column of the first file, and keeps the rest."""

    def changes(export: Path) -> None:
        file = sorted((export / "data").iterdir())[0]
        table = pq.read_table(file)
        at = table.schema.get_field_index(name)
        values = change(table[name].to_pylist())
        made = table.set_column(
            at, table.schema.field(at), pa.array(values, table.schema.field(at).type)
        )
        pq.write_table(made, file)

    return changes


def metadata(**values: Any) -> Change:
    def changes(export: Path) -> None:
        file = sorted((export / "data").iterdir())[0]
        table = pq.read_table(file)
        about = json.loads(table.schema.metadata[b"logitstore"]) | values
        pq.write_table(table.replace_schema_metadata({"logitstore": json.dumps(about)}), file)

    return changes


def lacks_a_file(export: Path) -> None:
    sorted((export / "data").iterdir())[1].unlink()


def has_one_twice(export: Path) -> None:
    file = sorted((export / "data").iterdir())[1]
    shutil.copy(file, file.with_name("train-9.parquet"))


def lacks_a_column(export: Path) -> None:
    file = sorted((export / "data").iterdir())[0]
    pq.write_table(pq.read_table(file).drop_columns(["entry_codes"]), file)


def other_tokenizer(export: Path) -> None:
    (export / "tokenizer" / "special.txt").write_bytes(b"other")


def first(values: list[Any], place: tuple[int, ...], value: Any) -> list[Any]:
    inner = values
    for i in place[:-1]:
        inner = inner[i]
    inner[place[-1]] = value
    return values


CHANGES: dict[str, tuple[Change, str]] = {
    "a file is gone": (lacks_a_file, r"e: this export is not whole: it has 2 of 3 files"),
    "a file twice": (has_one_twice, "some of its files are there twice"),
    "another export's": (metadata(dataset_sha256="0"), "is of another export than"),
    "shards without end": (metadata(shards=10**12), "it has 3 of 1000000000000 files"),
    "rows that are none": (metadata(rows=[]), "this export is not whole"),
    "metadata nested deeply": (
        metadata(provenance=json.loads("[" * 900 + "]" * 900)),
        "it is nested too deeply",
    ),
    "a newer version": (metadata(version=9), "it is of version 9"),
    "other rows": (metadata(rows=[0, 4]), "its files' rows are not those of its plan"),
    "a spec that cannot be": (metadata(content={}), "this export is not whole"),
    "fidelity": (metadata(fidelity={"kl_mean": 0}), "its fidelity has other fields"),
    "a column is gone": (lacks_a_column, r"the columns entry_codes are missing\."),
    "another tokenizer": (other_tokenizer, r"special\.txt: is not the file that belongs here"),
    "a row moved": (column("row", lambda v: first(v, (0,), 2)), "needs every row"),
    "codes not sorted": (
        column("entry_codes", lambda v: first(v, (0, 0, 0), 60000)),
        "rows 0 to 2: entry_codes are not those of entries, most probable first",
    ),
    "a token too few": (
        column("token_ids", lambda v: [v[0][1:], *v[1:]]),
        r"parquet: row 0: entry_codes has \d items for \d tokens\. Export",
    ),
    "ids of other lists": (
        column("entry_ids", lambda v: first(v, (0, 0), [1])),
        "rows 0 to 2: entry_ids does not have as many items a token as the column beside it",
    ),
    "an id outside": (
        column("entry_ids", lambda v: first(v, (1, 0, 0), 500)),
        "row 1: entry_ids holds 500, the vocabulary has 500",
    ),
    "a span outside": (
        column("byte_starts", lambda v: first(v, (0, -1), 4000)),
        "row 0: byte spans reach outside the text",
    ),
    "a value missing": (
        column("token_logprob", lambda v: first(v, (0, 0), None)),
        "rows 0 to 2: a value is missing",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_export_that_was_changed_is_refused(name: str, tmp_path: Path) -> None:
    change, says = CHANGES[name]
    put(tmp_path / "s")
    export_parquet(tmp_path / "s", tmp_path / "e")
    change(tmp_path / "e")
    with pytest.raises((InputError, CorruptStoreError), match=says):
        back(tmp_path / "e", tmp_path / "b")
    assert not (tmp_path / "b" / "shards" / "00000.zarr.zip").exists()


def test_a_dry_run_reads_everything_and_writes_nothing(tmp_path: Path) -> None:
    put(tmp_path / "s")
    export_parquet(tmp_path / "s", tmp_path / "e")
    found = find_export(tmp_path / "e")
    assert found is not None
    assert check_export(found, tmp_path / "b") == {"rows": 12, "sequences": 12, "shards": 3}
    column("entry_ids", lambda v: first(v, (1, 0, 0), 500))(tmp_path / "e")
    with pytest.raises(InputError, match="row 1: entry_ids holds 500"):
        check_export(found, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_files_of_others_are_no_export(tmp_path: Path) -> None:
    assert find_export(tmp_path) is None
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    assert find_export(tmp_path) is None
    assert find_export(tmp_path / "a.parquet") is None
    assert find_export(tmp_path / "nowhere") is None
