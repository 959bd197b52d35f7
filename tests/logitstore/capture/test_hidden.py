"""Hidden states: what the teacher's output head read, beside the records, in files of their own."""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitstore.capture import capture, preview
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError, InputError, MismatchError
from logitstore.info import facts, info_text
from logitstore.moving.merge import merge
from logitstore.moving.parquet.export import export_parquet
from logitstore.moving.parquet.exported import find_export
from logitstore.moving.parquet.reimport import reimport
from logitstore.moving.subset import subset
from logitstore.store import LogitStore, open_store
from logitstore.testing import tiny
from tests.kit.reader_from_spec import RefusedError, read_archive, read_store
from tests.kit.reader_from_spec.hidden import read_hidden
from tests.kit.reader_from_spec.refusing import ordinary
from tests.kit.rows import texts_file

DTYPES = ("fp8", "bf16")
ROWS = [text[:50] for text in tiny.corpus()[:7]]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hidden")
    tokenizer = tiny.byte_bpe(bos=True)
    tiny.save(folder / "teacher", tiny.llama(len(tokenizer)), tokenizer)
    texts_file(folder / "rows.jsonl", ROWS)
    return folder


def captured(here: Path, name: str, **settings: Any) -> LogitStore:
    how = {"top_k": 4, "device": "cpu", "shard_text_bytes": 100, "self_test": False, **settings}
    out = name if "://" in name else here / name
    return capture(str(here / "teacher"), str(here / "rows.jsonl"), out=out, **how)


@pytest.fixture(scope="module")
def stores(here: Path) -> dict[str, LogitStore]:
    return {
        dtype: captured(here, dtype, hidden=["last", "embedding"], hidden_dtype=dtype)
        for dtype in DTYPES
    }


@pytest.fixture(scope="module")
def around(here: Path) -> LogitStore:
    return captured(here, "around", hidden=["last,embedding"], hidden_context=True)


@pytest.fixture(scope="module")
def plain(here: Path) -> LogitStore:
    return captured(here, "plain")


@pytest.fixture(scope="module")
def live(here: Path) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(here / "teacher")
    return AutoModelForCausalLM.from_pretrained(here / "teacher"), tokenizer


@torch.no_grad()
def states_of(live: tuple[Any, Any], text: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tokens of a text, the state of each (L, D), and its embedding, from the live model."""
    model, tokenizer = live
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    out = model(input_ids=ids, output_hidden_states=True)
    return ids[0], out.hidden_states[-1][0], model.get_input_embeddings()(ids)[0]


def bound(exact: np.ndarray, dtype: str) -> np.ndarray:
    """Half a step of each code, as the format's page has it, and float32's own rounding."""
    if dtype == "bf16":
        return np.abs(exact) / 256 * 1.001 + 1e-6
    scale = np.abs(exact).max(1, keepdims=True) / 448
    return np.maximum(np.abs(exact) / 16, scale / 1024) * 1.001 + 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_record_has_the_state_that_predicted_its_token(
    stores: dict[str, LogitStore], live: tuple[Any, Any], dtype: str
) -> None:
    store = stores[dtype]
    for i in range(len(store)):
        records, states = store[i], store.states(i)
        ids, exact, embedded = states_of(live, store.text(i).segments[0].text)
        assert records.hidden is not None
        np.testing.assert_array_equal(records.token_ids, ids[1:])
        np.testing.assert_array_equal(states.ids_of_records, ids[:-1])
        want = exact[:-1].numpy()
        assert (np.abs(records.hidden - want) <= bound(want, dtype)).all()
        table = embedded.numpy()
        assert (np.abs(states.embedded(ids.numpy()) - table) <= bound(table, dtype)).all()
        shifted = np.abs(records.hidden[1:] - want[:-1])
        assert (shifted > bound(want[:-1], dtype)).mean() > 0.5


def test_the_output_head_makes_the_records_log_probabilities_of_these_states(
    stores: dict[str, LogitStore], live: tuple[Any, Any]
) -> None:
    store, (model, _) = stores["bf16"], live
    for i in range(len(store)):
        records = store[i]
        with torch.no_grad():
            logits = model.lm_head(torch.from_numpy(records.hidden))
        said = logits.log_softmax(1).gather(
            1, torch.from_numpy(records.token_ids.astype(int))[:, None]
        )
        np.testing.assert_allclose(said[:, 0], records.token_logprob, atol=0.03)


def test_with_context_every_token_has_a_state_and_records_have_the_same_as_without(
    around: LogitStore, stores: dict[str, LogitStore], live: tuple[Any, Any]
) -> None:
    for i in range(len(around)):
        ids, exact, _ = states_of(live, around.text(i).segments[0].text)
        states = around.states(i)
        np.testing.assert_array_equal(states.ids, ids)
        assert (np.abs(states.last - exact.numpy()) <= bound(exact.numpy(), "fp8")).all()
        np.testing.assert_array_equal(around[i].hidden, stores["fp8"][i].hidden)


def test_prompts_are_context(here: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "the old river ", "completion": "reads nothing"}\n')
    how = {"device": "cpu", "self_test": False, "hidden": ["last"], "top_k": 4}
    inside = capture(str(here / "teacher"), str(rows), out=tmp_path / "a", **how)
    whole = capture(
        str(here / "teacher"), str(rows), out=tmp_path / "b", hidden_context=True, **how
    )
    states = whole.states(0)
    assert len(states.ids) > len(whole[0]) == len(inside.states(0).ids)
    np.testing.assert_array_equal(whole[0].hidden, inside[0].hidden)
    assert states.places is not None
    np.testing.assert_array_equal(states.ids[states.places[1:]], whole[0].token_ids[:-1])


def files(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def test_records_are_those_of_a_store_without_and_only_the_sidecar_is_more(
    here: Path, stores: dict[str, LogitStore], plain: LogitStore
) -> None:
    for i in range(len(plain)):
        np.testing.assert_array_equal(plain[i].entry_logprobs, stores["fp8"][i].entry_logprobs)
        assert plain[i].hidden is None
    assert "hidden" not in plain.spec.capture
    assert not (here / "plain" / "hidden").exists()
    assert not any(name.startswith("hidden") for name in plain.provenance["settings"])
    with pytest.raises(MismatchError, match="captured without --hidden"):
        plain.states(0)


def test_a_reader_that_does_not_ask_never_opens_the_sidecar(here: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(here / "fp8", copy)
    shutil.rmtree(copy / "hidden")
    store = open_store(copy)
    assert sum(len(records) for records in store.read_many(range(len(store)))) > 100
    assert len(store.text(0).segments) == 1
    with pytest.raises(CorruptStoreError, match="missing"):
        _ = store[0].hidden


def test_a_state_takes_a_byte_a_number_and_four_more(here: Path) -> None:
    """Of a width at which four bytes a token, and the directory, do not decide."""
    folder = here / "wide"
    tokenizer = tiny.byte_bpe(bos=True)
    tiny.save(folder / "teacher", tiny.llama(len(tokenizer), hidden_size=512), tokenizer)
    texts_file(folder / "rows.jsonl", ROWS * 4)
    sizes = {}
    for dtype in DTYPES:
        store = captured(folder, dtype, hidden=["last"], hidden_dtype=dtype, shard_text_bytes=None)
        records = sum(len(store[i]) for i in range(len(store)))
        assert verify_store(folder / dtype, deep=True).damaged == []
        sizes[dtype] = sum(map(len, files(folder / dtype / "hidden").values())) / records
    assert 0.6 * 516 < sizes["fp8"] <= 1.05 * 516
    assert 1.2 * 512 < sizes["bf16"] <= 2.05 * 512


@pytest.fixture
def stopped(here: Path, tmp_path: Path) -> Path:
    """A store that lacks two shards: of one the states are there, and another twin's as well."""
    copy = tmp_path / "copy"
    shutil.copytree(here / "fp8", copy)
    for name in ("DONE", "index.parquet", "shards/00001.zarr.zip", "shards/00002.zarr.zip"):
        (copy / name).unlink()
    next((copy / "hidden").glob("00002-*")).unlink()
    (copy / "hidden" / "00002-0123456789abcdef.zarr.zip").write_bytes(b"of a slower twin")
    return copy


def test_a_resumed_capture_ends_with_the_same_bytes(here: Path, stores: Any, stopped: Path) -> None:
    del stores
    again = capture(
        str(here / "teacher"),
        str(here / "rows.jsonl"),
        out=stopped,
        hidden=["last", "embedding"],
        hidden_dtype="fp8",
        top_k=4,
        device="cpu",
        shard_text_bytes=100,
        self_test=False,
    )
    assert again.is_complete
    assert files(stopped) == files(here / "fp8")


def test_a_store_is_not_sealed_without_the_states_that_a_shard_names(
    here: Path, stopped: Path
) -> None:
    next((stopped / "hidden").glob("00000-*")).unlink()
    with pytest.raises(CorruptStoreError, match="hidden states of rows 0 to"):
        captured(here, str(stopped), hidden=["last", "embedding"], hidden_dtype="fp8")


def test_every_flipped_byte_is_found_and_the_shard_redone(
    here: Path, stores: Any, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(here / "fp8", copy)
    assert verify_store(copy, deep=True).damaged == []
    path = next((copy / "hidden").glob("00001-*"))
    whole = path.read_bytes()
    for place in range(0, len(whole), 997):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        (damage,) = verify_store(copy, deep=place % 2 == 0).damaged
        assert damage.file == f"hidden/{path.name}"
    report = repair_store(copy)
    assert set(report.moved) == {
        "DONE",
        "index.parquet",
        f"hidden/{path.name}",
        "shards/00001.zarr.zip",
    }
    assert report.missing_shards == 1
    captured(here, str(copy), hidden=["last", "embedding"], hidden_dtype="fp8")
    assert files(copy) == files(here / "fp8")
    del stores


def test_the_states_of_another_shard_or_store_are_refused(
    here: Path, stores: Any, tmp_path: Path
) -> None:
    del stores
    copy = tmp_path / "copy"
    shutil.copytree(here / "fp8", copy)
    first, second = (next((copy / "hidden").glob(f"0000{i}-*")) for i in range(2))
    first.write_bytes(second.read_bytes())
    with pytest.raises(CorruptStoreError, match="not the file that the shard names"):
        open_store(copy).states(0)
    first.unlink()
    with pytest.raises(CorruptStoreError) as raised:
        open_store(copy).states(0)
    assert raised.value.kind == "missing-file"
    (damage,) = verify_store(copy).damaged
    assert (damage.file, damage.kind) == (f"hidden/{first.name}", "missing-file")


def test_in_a_bucket_they_are_fetched_when_asked_for_and_anew_if_the_copy_is_damaged(
    here: Path, stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del stores
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    url = f"memory://{uuid.uuid4().hex}/s"
    store = captured(here, url, hidden=["last", "embedding"], hidden_dtype="fp8")
    local = open_store(here / "fp8")
    assert verify_store(url, deep=True).damaged == []
    _ = store[0].token_ids
    digests = [path.name[6:22] for path in (here / "fp8" / "hidden").iterdir()]
    copies = tmp_path / "cache" / "shards"
    assert not [digest for digest in digests if list(copies.glob(f"{digest}*"))]
    same_states(store, local, range(len(local)))
    for (path,) in (list(copies.glob(f"{digest}*")) for digest in digests):
        path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    same_states(open_store(url), local, range(len(local)))


def same_states(one: LogitStore, other: LogitStore, numbers: range) -> None:
    for new, old in enumerate(numbers):
        a, b = one.states(new), other.states(old)
        for name in ("ids", "last", "places", "embedding_ids", "embedding"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("name", ["bf16", "around"])
def test_a_subset_and_a_merge_have_the_same_states(
    here: Path, stores: Any, around: LogitStore, tmp_path: Path, name: str
) -> None:
    del stores, around
    whole = open_store(here / name)
    some = subset(here / name, "2:5", tmp_path / "some")
    assert verify_store(tmp_path / "some", deep=True).damaged == []
    same_states(some, whole, range(2, 5))
    rest = subset(here / name, "5:7", tmp_path / "rest")
    both = merge([tmp_path / "some", tmp_path / "rest"], tmp_path / "both")
    assert verify_store(tmp_path / "both", deep=True).damaged == []
    same_states(both, whole, range(2, 7))
    del rest


def test_parts_of_one_capture_merge_to_the_same_bytes(
    here: Path, stores: Any, stopped: Path, tmp_path: Path
) -> None:
    del stores
    other = tmp_path / "other"
    shutil.copytree(here / "fp8", other)
    for name in ("DONE", "index.parquet", "shards/00000.zarr.zip"):
        (other / name).unlink()
    merge([stopped, other], tmp_path / "both")
    assert files(tmp_path / "both") == files(here / "fp8")


def test_an_export_says_that_hidden_states_stay_behind_and_comes_back_without(
    here: Path, stores: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    del stores
    export_parquet(here / "fp8", tmp_path / "out")
    assert "its hidden states stay behind" in caplog.text
    found = find_export(tmp_path / "out")
    assert found is not None
    again = reimport(found, tmp_path / "again")
    assert again.spec.hidden is None
    np.testing.assert_array_equal(again[0].token_ids, open_store(here / "fp8")[0].token_ids)


def test_info_and_the_estimate_say_what_hidden_states_take(
    here: Path, stores: dict[str, LogitStore], plain: LogitStore
) -> None:
    about = facts(stores["fp8"])
    beside = sum(map(len, files(here / "fp8" / "hidden").values()))
    assert about["hidden_bytes"] == beside
    (line,) = [line for line in info_text(about).splitlines() if line.startswith("hidden")]
    assert line.startswith("hidden    embedding, last · 32 numbers in fp8")
    assert "the embedding is the teacher's weights" in line
    assert "hidden_bytes" not in facts(plain)
    hidden = preview(
        str(here / "teacher"), str(here / "rows.jsonl"), top_k=4, device="cpu", hidden=["last"]
    )
    without = preview(str(here / "teacher"), str(here / "rows.jsonl"), top_k=4, device="cpu")
    assert hidden.size is not None
    assert without.size is not None
    more = hidden.size.record_bytes - without.size.record_bytes
    assert more == pytest.approx(hidden.size.hidden_bytes, rel=0.05)
    assert hidden.costs_text().startswith("hidden states: about ")
    assert "hidden" not in without.costs_text()


def from_spec(store: Path) -> Iterator[dict[str, Any]]:
    """What the reader that was written from FORMAT.md makes of each sequence's states."""
    content, plan, _ = read_store(store)
    for number in range(len(plan["boundaries"]) - 1):
        members, _ = read_archive(ordinary(store / "shards" / f"{number:05d}.zarr.zip"))
        group = json.loads(members["zarr.json"])
        yield from read_hidden(store, content, plan, number, group)


@pytest.mark.parametrize("name", ["fp8", "bf16", "around"])
def test_a_reader_written_from_the_page_agrees(
    here: Path, stores: Any, around: LogitStore, name: str
) -> None:
    del stores, around
    store = open_store(here / name)
    for i, found in enumerate(from_spec(here / name)):
        states = store.states(i)
        np.testing.assert_array_equal(found["last"], states.last)
        np.testing.assert_array_equal(found["ids"], states.ids)
        np.testing.assert_array_equal(found["last"][found["places"]], store[i].hidden)
        for token in store[i].token_ids.tolist():
            row = states.embedded(np.array([token], np.uint32))[0]
            np.testing.assert_array_equal(found["embedding"][token], row)


def test_the_reader_from_the_page_refuses_every_flipped_byte_too(
    here: Path, stores: Any, tmp_path: Path
) -> None:
    del stores
    shutil.copytree(here / "fp8", tmp_path / "s")
    path = next((tmp_path / "s" / "hidden").glob("00000-*"))
    whole = path.read_bytes()
    for place in range(3, len(whole), 1999):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(RefusedError):
            list(from_spec(tmp_path / "s"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": ["first"]}, "--hidden is first, expected last or last,embedding"),
        ({"hidden": ["embedding"]}, "--hidden is embedding, expected last"),
        ({"hidden": ["last,last"]}, "--hidden is last,last, expected"),
        ({"hidden_dtype": "fp8"}, "--hidden-dtype is given, but no hidden states are kept"),
        ({"hidden_context": True}, "--hidden-context is given, but no hidden states are kept"),
        ({"hidden": ["last"], "hidden_dtype": "fp4"}, "expected fp8 or bf16"),
        ({"hidden": ["last"], "boundaries_of": "s"}, "--hidden with --boundaries-of"),
        (
            {"hidden": ["last"], "engine": "server", "server": "http://localhost:1"},
            "--hidden is last, which needs the teacher in this process",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        capture("nowhere", "nothing", out=tmp_path / "store", **settings)
