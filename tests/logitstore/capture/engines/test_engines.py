"""The same rows by every engine: the same tokens and, up to rounding, the same probabilities."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from logitstore.capture.again import capture_again
from logitstore.capture.job import run_capture
from logitstore.capture.settings import CaptureSettings
from logitstore.checking.verify import verify_store
from logitstore.cli.app import app
from logitstore.errors import InputError
from logitstore.format.logprob_codec import TOKEN_STEP
from logitstore.format.spec import StoreHeader
from logitstore.info import facts, info_text
from logitstore.store import LogitStore
from tests.kit import dumps
from tests.kit.created import created, logits_of
from tests.kit.dumps import ENGLISH, NAME, TEXTS, Dumper
from tests.kit.fake_server import serve
from tests.kit.fake_vllm import FakeVllm
from tests.kit.same_rows import agree

ROWS = [*ENGLISH, *TEXTS]
K = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    return str(dumps.write_jsonl(path, [{"text": text} for text in ROWS]))


@pytest.fixture(scope="module")
def here(teacher: Dumper, data: str, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """By transformers, in this process."""
    return capture(teacher, data, tmp_path_factory.mktemp("here") / "s")


def capture(teacher: Dumper, data: str, place: Path, **more: Any) -> LogitStore:
    settings = CaptureSettings(top_k=K, max_length=48, **({"shard_text_bytes": 400} | more))
    return run_capture(teacher.folder, data, place, settings)


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_a_server_says_what_the_teacher_says_here(
    api: str, teacher: Dumper, data: str, here: LogitStore, tmp_path: Path
) -> None:
    with serve(teacher, api, model=str(teacher.folder)) as server:
        store = capture(teacher, data, tmp_path / "s", engine="server", server=server.url)
    agree(store, here)
    assert verify_store(store.path, deep=True).damaged == []
    assert store.spec.missing == ("entropy",)
    assert np.isnan(store[0].entropy).all()
    assert store.spec.teacher["engine"] == "server"
    assert store.spec.teacher["fingerprint"] == here.spec.teacher["fingerprint"]
    assert "missing   entropy: not said by the engine (server)" in info_text(facts(store))
    version = {"vllm": "0.32.0", "sglang": "0.5.9"}[api]
    assert store.provenance["versions"][api] == version
    assert store.provenance["self_test"]["sequences"] == 8
    assert all(len(body.get("prompt", body.get("input_ids"))) <= 48 for body in server.scored())


@pytest.mark.parametrize("way", ["public", "worker"])
def test_vllm_says_what_the_teacher_says_here(
    way: str, teacher: Dumper, data: str, here: LogitStore, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fake = FakeVllm.put(monkeypatch)
    store = capture(teacher, data, tmp_path / "s", engine="vllm", engine_args=[f"way={way}"])
    agree(store, here)
    assert verify_store(store.path, deep=True).damaged == []
    assert store.spec.missing == (("entropy",) if way == "public" else ())
    assert store.spec.teacher["engine"] == "vllm"
    assert store.spec.teacher["dtype"] == here.spec.teacher["dtype"]
    assert store.spec.teacher["fingerprint"] == here.spec.teacher["fingerprint"]
    assert store.provenance["versions"]["vllm"] == "0.32.0"
    assert store.provenance["engine_args"] == [f"way={way}"]
    assert store.provenance["self_test"]["sequences"] == 8
    assert (len(fake.started), fake.stopped) == (1, 1)


def lose_a_shard(store: LogitStore) -> tuple[Path, bytes]:
    shard = Path(str(store.path)) / "shards" / "00001.zarr.zip"
    data = shard.read_bytes()
    shard.write_bytes(data[:-9])
    return shard, data


def test_a_capture_by_vllm_is_repeated_for_a_repair(
    teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeVllm.put(monkeypatch)
    args = ["way=worker", "gpu-memory-utilization=0.5"]
    shard, whole = lose_a_shard(
        capture(teacher, data, tmp_path / "s", engine="vllm", engine_args=args)
    )
    result = CliRunner().invoke(app, ["repair", str(tmp_path / "s"), "--capture"])
    assert result.exit_code == 0, result.output
    assert shard.read_bytes() == whole
    assert [each["gpu_memory_utilization"] for each in fake.started] == [0.5, 0.5]
    assert all("worker_extension_cls" in each for each in fake.started)


def test_a_store_cannot_have_an_engine_started_that_loads_what_it_names(
    teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file says is not what the user says: a store may come from anybody."""
    fake = FakeVllm.put(monkeypatch)
    store = capture(teacher, data, tmp_path / "s", engine="vllm")
    lose_a_shard(store)
    header = StoreHeader.read(store.path)
    for args, says in (
        (
            ["way=public", "load-format=mine\x1b[2J"],
            r"with --engine-args load-format=mine\\x1b\[2J",
        ),
        (["kv_transfer_config={}"], r"with --engine-args kv_transfer_config=\{\}"),
    ):
        evil = header.provenance | {"engine_args": args}
        (tmp_path / "s" / "store.json").write_bytes(replace(header, provenance=evil).to_bytes())
        fake.started.clear()
        with pytest.raises(InputError, match=says + ", which a store cannot decide") as told:
            capture_again(tmp_path / "s")
        assert " --engine vllm --engine-args " in str(told.value)
        assert fake.started == []


def test_a_capture_from_a_server_names_the_command_for_a_repair(
    teacher: Dumper, data: str, tmp_path: Path
) -> None:
    with serve(teacher, "vllm", model=str(teacher.folder)) as server:
        more = {"engine": "server", "server": server.url, "max_tail": 0.01, "ids": False}
        shard, whole = lose_a_shard(capture(teacher, data, tmp_path / "s", **more))
        result = CliRunner().invoke(app, ["repair", str(tmp_path / "s"), "--capture"])
        (command,) = re.findall(r"run `(logitstore capture .*)`, which", str(result.exception))
        assert server.url not in command
        words = shlex.split(command.replace(" URL", f" {server.url}"))
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output
    assert shard.read_bytes() == whole
    assert verify_store(tmp_path / "s", deep=True).damaged == []


def test_own_logits_are_what_the_teacher_says_here(
    teacher: Dumper, data: str, here: LogitStore, tmp_path: Path
) -> None:
    eos, limit = teacher.tokenizer.eos_token_id, 48
    whole = [[*teacher.ids(text), eos] for text in ROWS]
    short = [n for n, ids in enumerate(whole) if len(ids) <= limit]
    rows = [(ROWS[n], {"logits": logits_of(teacher, whole[n])}) for n in short]
    store = created(tmp_path / "s", teacher, rows, top_k=K, add_eos=True)
    for i, n in enumerate(short):
        (there,) = here.row(n)
        a, b = store[i], here[there]
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.token_logprob, b.token_logprob, atol=1.01 * TOKEN_STEP)
        np.testing.assert_allclose(a.padded().logprobs, b.padded().logprobs, atol=0.05)


def test_the_first_engine_leaves_no_trace_in_a_store(here: LogitStore) -> None:
    """So stores have the bytes that they had before there was another."""
    assert "engine" not in here.spec.teacher
    assert not {"engine", "server", "engine_args"} & set(here.provenance["settings"])
    assert set(here.provenance["versions"]) == {"logitstore", "torch", "transformers"}
    assert here.provenance["teacher"] != NAME
