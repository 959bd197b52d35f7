"""An export has the tokens that a trainer takes, and any reader of Parquet finds them."""

import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from logitstore.errors import InputError, MissingLibraryError
from logitstore.moving.parquet.export import export_parquet
from logitstore.moving.parquet.exported import find_export
from logitstore.moving.parquet.reimport import reimport
from logitstore.store import LogitStore, open_store
from logitstore.testing import stores, tiny
from tests.kit import templates
from tests.kit.made_stores import put
from tests.kit.talks import TALKS, capture


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """Conversations, some in windows, in several shards."""
    folder = tmp_path_factory.mktemp("talks")
    tokenizer = templates.llama3()
    teacher = tiny.save(folder / "teacher", tiny.llama(len(tokenizer)), tokenizer)
    rows = [{"messages": talk} for talk in TALKS]
    how = {"max_length": 48, "shard_text_bytes": 200, "max_tail": 0.3}
    return capture(teacher, rows, folder / "store", **how)


@pytest.fixture(scope="module")
def export(store: LogitStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as small:  # several row groups in a file
        small.setattr("logitstore.moving.parquet.export._GROUP_LINES", 2)
        return export_parquet(store.path, tmp_path_factory.mktemp("out") / "e", input_ids=True)


def test_datasets_reads_tokens_masks_and_records_at_their_tokens(
    store: LogitStore, export: Path, tmp_path: Path
) -> None:
    files = str(export / "data" / "*.parquet")
    rows = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path)
    )
    assert len(rows) == len(store) > len(TALKS)
    assert len(store.shards) > 1
    for i, row in enumerate(rows):
        example = store.example(i)
        for name in ("input_ids", "attention_mask", "labels", "loss_mask"):
            assert row[name] == getattr(example, name).tolist()
        at = [p for p, is_label in enumerate(row["loss_mask"]) if is_label]
        assert [row["input_ids"][p] for p in at] == row["token_ids"]
        assert len(at) == len(row["entry_ids"]) == len(row["entropy"])
        assert row["tokens_agree"] is True


def test_it_is_still_taken_back_byte_for_byte(
    store: LogitStore, export: Path, tmp_path: Path
) -> None:
    found = find_export(export)
    assert found is not None
    assert stores.tree(reimport(found, tmp_path / "b").path) == stores.tree(Path(str(store.path)))


def test_what_trainers_take_is_of_the_types_that_they_take(export: Path) -> None:
    types = {f.name: str(f.type) for f in pq.read_schema(next((export / "data").iterdir()))}
    assert types["input_ids"] == types["labels"] == "list<element: int32>"
    assert types["attention_mask"] == "list<element: int8>"


def test_a_tokenizer_that_cannot_be_loaded_stops_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "s")
    with pytest.raises(InputError, match=r"AutoTokenizer cannot load it.* --no-input-ids"):
        export_parquet(tmp_path / "s", tmp_path / "e", input_ids=True)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingLibraryError, match="needs transformers, which is not installed"):
        export_parquet(tmp_path / "s", tmp_path / "e", input_ids=True)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("e")] == []
    export_parquet(tmp_path / "s", tmp_path / "e")
    assert len(open_store(tmp_path / "s")) == 12
