"""A store as Ray Data: a read task a shard, the columns of an export, inputs that fit them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

import logitstore
import logitstore.ray
from logitstore.errors import IncompleteStoreError, MissingLibraryError
from logitstore.moving.parquet.columns import schema_of
from logitstore.testing import tiny
from tests.kit.ray_cluster import cluster
from tests.kit.rows import rows_file, texts_file

pytest.importorskip("ray.data")

from logitstore.ray import dataset_source
from logitstore.ray.dataset_source import StoreSource


@pytest.fixture(scope="module")
def store(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> logitstore.LogitStore:
    """Rows of text, one of them empty, one so long that it is cut into windows."""
    folder = tmp_path_factory.mktemp("data")
    texts = [*tiny.corpus()[:12], "", " ".join(tiny.corpus()[:6])]
    file = texts_file(folder / "rows.jsonl", texts)
    return logitstore.capture(
        teacher, str(file), folder / "s", top_k=4, shard_text_bytes=200, max_length=48
    )


def blocks(store: logitstore.LogitStore, *, input_ids: bool = True) -> list[pa.Table]:
    """What the tasks of a store read, run here: Ray would send each to some node."""
    path, shards = str(store.path), tuple(store.shards)
    tasks = StoreSource(path, shards, False, input_ids).get_read_tasks(1)
    assert len(tasks) == len(shards)
    return [block for task in tasks for block in task()]


def test_rows_are_the_sequences_in_order_with_the_columns_of_an_export(
    store: logitstore.LogitStore,
) -> None:
    assert len(store.shards) > 2
    table = pa.concat_tables(blocks(store, input_ids=False))
    assert table.schema == schema_of(store.spec)
    assert len(table) == len(store)
    for i, row in enumerate(table.to_pylist()):
        records, text = store[i], store.text(i)
        assert (row["row"], row["part"], row["status"]) == (text.row, text.part, text.status)
        assert row["token_ids"] == records.token_ids.tolist()
        flat = [p for entries in row["entry_logprobs"] for p in entries]
        assert np.array_equal(np.array(flat, np.float32), records.entry_logprobs)


def test_inputs_are_the_sequences_that_the_teacher_read(
    store: logitstore.LogitStore, teacher: Path
) -> None:
    rows = pa.concat_tables(blocks(store)).to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    whole = 0
    for i, row in enumerate(rows):
        if row["input_ids"] is None:
            assert row["status"] != "ok"
            continue
        ids, at = np.array(row["input_ids"]), np.array(row["record_at"])
        assert ids[at].tolist() == store[i].token_ids.tolist()
        if row["status"] == "ok":
            text = "".join(s["text"] for s in row["segments"])
            assert ids[:-1].tolist() == tokenizer(text)["input_ids"][: len(ids) - 1]
            whole += 1
    assert whole >= 12


def test_prompts_are_in_the_inputs_and_have_no_records(teacher: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{text} ", "completion": "the end"} for text in tiny.corpus()[:4]]
    file = rows_file(tmp_path / "rows.jsonl", *rows)
    made = logitstore.capture(teacher, str(file), tmp_path / "s", top_k=4)
    for row in pa.concat_tables(blocks(made)).to_pylist():
        assert row["record_at"][0] > 3, "the prompt and BOS come first"
        assert row["record_at"][-1] == len(row["input_ids"]) - 1


def test_a_store_that_is_not_finished_is_read_where_that_is_asked_for(
    store: logitstore.LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(str(store.path), tmp_path / "s")
    (tmp_path / "s" / "DONE").unlink()
    (tmp_path / "s" / "shards" / "00001.zarr.zip").unlink()
    with pytest.raises(IncompleteStoreError, match="--allow-partial"):
        logitstore.ray.dataset(tmp_path / "s")
    made: list[Any] = []
    keep: Callable[..., Any] = lambda source, **_: made.append(source)  # noqa: E731
    monkeypatch.setattr(dataset_source, "read_datasource", keep)
    logitstore.ray.dataset(tmp_path / "s", allow_partial=True)
    rows = [row for task in made[0].get_read_tasks(1) for block in task() for row in block["row"]]
    assert 0 < len(rows) < len(store)


def test_without_ray_data_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray.data", None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'logitstore\[ray\]'"):
        logitstore.ray.dataset("nowhere")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray Data warns of its own settings
def test_ray_reads_it_on_a_cluster(store: logitstore.LogitStore) -> None:
    with cluster(cpus=2) as started:
        import ray

        ray.init(started.address, log_to_driver=False)
        data = logitstore.ray.dataset(str(store.path))
        rows = sorted(data.take_all(), key=lambda row: (row["row"], row["part"]))
        assert len(rows) == len(store)
        for i, row in enumerate(rows):
            assert list(row["token_ids"]) == store[i].token_ids.tolist()
        assert data.materialize().num_blocks() == len(store.shards)
