"""A server is asked many things at once, patiently and discreetly; what it cannot do is said."""

import json
import logging
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from logitstore.capture.job import run_capture, run_preview
from logitstore.capture.passes.server import client
from logitstore.capture.settings import CaptureSettings
from logitstore.errors import InputError, LogitStoreError, MismatchError
from logitstore.store import LogitStore
from logitstore.testing import stores
from tests.kit.dumps import ENGLISH, Dumper
from tests.kit.fake_server import Server, serve

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in client.KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(client, "_TIMES", 3)
    monkeypatch.setattr(client._Told, "next_said_s", 0.0)


def ask(
    server: Server | str, data: str, place: Path, teacher: Path | None = None, **more: Any
) -> LogitStore:
    """Capture with a server; the self-test is tried by others."""
    asked: dict[str, Any] = {"top_k": 4, "self_test": False, "shard_text_bytes": 100}
    url = server if isinstance(server, str) else server.url
    folder = teacher if teacher is not None else server.teacher.folder  # type: ignore[union-attr]
    settings = CaptureSettings(engine="server", server=url, **(asked | more))
    return run_capture(folder, data, place, settings)


def test_many_requests_are_there_at_once_and_no_more(
    teacher: Dumper, data: str, tmp_path: Path
) -> None:
    with serve(teacher, model="teacher", delay_s=0.1) as server:
        one_shard: dict[str, Any] = {"shard_text_bytes": 10_000}
        ask(server, data, tmp_path / "s", engine_args=["concurrency=3"], **one_shard)
    assert 2 <= server.at_once <= 3  # a busy machine may not send the third in time


def test_no_more_requests_a_second_than_are_allowed(
    teacher: Dumper, data: str, tmp_path: Path
) -> None:
    with serve(teacher, model="teacher") as server:
        ask(server, data, tmp_path / "s", engine_args=["requests_per_s=50"])
    times = sorted(at for at, path, _, _ in server.asked if path == "/v1/completions")
    assert len(times) > len(ENGLISH)
    assert np.mean([b - a for a, b in pairwise(times)]) > 0.9 / 50


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_later_is_asked_again(
    status: int, teacher: Dumper, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serve(teacher, model="teacher", fails=3, fail_status=status) as server:
        assert len(ask(server, data, tmp_path / "s")) == len(ENGLISH)
    said = [text for text in caplog.messages if "asked again" in text]
    assert said == [f"the server answers HTTP {status}; it is asked again, up to 3 times."]


def test_a_server_that_goes_away_costs_nothing_that_is_committed(
    teacher: Dumper, data: str, tmp_path: Path
) -> None:
    with serve(teacher, model="teacher") as server:
        whole = ask(server, data, tmp_path / "whole")
        answers = server.answer

        def fails_later(path: str, headers: Any, body: Any) -> Any:
            if len(server.scored()) > 5 + len(whole):
                return 503, {"error": "no more"}
            return answers(path, headers, body)

        server.answer = fails_later  # type: ignore[method-assign]
        with pytest.raises(InputError, match=r"HTTP 503 \(no more\), also after 3 more") as caught:
            ask(server, data, tmp_path / "s")
        assert caught.value.kind == "engine"
        there = stores.tree(tmp_path / "s" / "shards")
        assert 0 < len(there) < whole.plan.shard_count
        server.answer = answers  # type: ignore[method-assign]
        ask(server, data, tmp_path / "s")
    assert stores.tree(tmp_path / "s") == stores.tree(tmp_path / "whole")


def test_a_row_that_the_server_refuses_is_counted_by_name(
    teacher: Dumper, data: str, tmp_path: Path
) -> None:
    refused = teacher.ids(ENGLISH[2])
    with serve(teacher, model="teacher", refuses=lambda ids: ids[:9] == refused[:9]) as server:
        store = ask(server, data, tmp_path / "s", shard_text_bytes=10_000, max_lost=1.0)
    assert store.statuses == {"ok": len(ENGLISH) - 1, "refused": 1}
    assert len(store[2]) == 0
    journal = (tmp_path / "s.journal.jsonl").read_text().splitlines()
    (event,) = [e for e in map(json.loads, journal) if e["event"] == "refused"]
    assert (event["row"], event["why"]) == (2, "This model's maximum context length is 8 tokens")


@pytest.mark.parametrize("name", client.KEYS)
def test_a_key_is_taken_from_the_environment_and_told_to_nobody_else(
    name: str, teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv(name, KEY)
    with serve(teacher, model="teacher", key=KEY) as server:
        ask(f"{server.url}/v1/", data, tmp_path / "s", teacher.folder)
        monkeypatch.setenv(name, f"{KEY}-of-another")
        with pytest.raises(InputError) as caught:
            ask(server, data, tmp_path / "t")
    said = str(caught.value) + caplog.text
    assert "does not let us in (HTTP 401). Set its key in LOGITSTORE_SERVER_KEY." in said
    assert KEY not in said
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert KEY.encode() not in written
    assert str(server.url).encode() not in written


def test_a_password_in_an_address_is_told_to_nobody_else(
    teacher: Dumper, data: str, tmp_path: Path
) -> None:
    with serve(teacher, model="teacher") as server:
        url = server.url.replace("://", "://anna:pass-word@")
        ask(url, data, tmp_path / "s", teacher.folder)
        assert server.asked[0][2]["Authorization"].startswith("Basic ")
    with pytest.raises(InputError, match="cannot be reached") as caught:
        ask(url, data, tmp_path / "t", teacher.folder)
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    for secret in ("anna", "pass-word"):
        assert secret not in str(caught.value)
        assert secret.encode() not in written


def test_a_teacher_whose_weights_are_elsewhere_needs_none_here(
    teacher: Dumper, data: str, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    for path in teacher.folder.iterdir():
        if path.suffix != ".safetensors":
            os.link(path, folder / path.name)
    with serve(teacher, model="org/teacher") as server:
        store = ask(server, data, tmp_path / "s", folder)
    assert store.spec.teacher["fingerprint"] == "named:teacher"
    assert store.spec.teacher["dtype"] == "unknown"


def test_fewer_entries_are_kept_where_they_leave_little(
    teacher: Dumper, data: str, tmp_path: Path
) -> None:
    with serve(teacher, model="teacher") as server:
        whole = ask(server, data, tmp_path / "whole", top_k=16)
        store = ask(server, data, tmp_path / "s", top_k=16, max_tail=0.3)
    for i in range(len(store)):
        best = np.exp(whole[i].padded().logprobs)
        left = 1 - np.cumsum(best, 1)
        fewest = np.where((left <= 0.3).any(1), (left <= 0.3).argmax(1) + 1, 16)
        assert np.mean(fewest == store[i].entry_count) > 0.95  # but for what rounding decides
        assert (np.exp(store[i].tail_logmass)[store[i].entry_count < 16] <= 0.302).all()


def test_an_estimate_asks_the_server_and_writes_nothing(
    teacher: Dumper, data: str, tmp_path: Path
) -> None:
    with serve(teacher, model="teacher") as server:
        settings = CaptureSettings(engine="server", server=server.url, top_k=16, max_tail=0.3)
        found = run_preview(teacher.folder, data, None, settings).facts()
    assert found["to_come"]["teacher"]["positions"] > 0
    assert list(tmp_path.iterdir()) == []


class Wrong(NamedTuple):
    """A server that is wrong.

    Attributes:
        name: What is wrong.
        like: What it is like.
        says: Part of the message.
        kind: Of the error.
        more: Settings.
    """

    name: str
    like: Mapping[str, Any]
    says: str
    kind: str = "engine"
    more: Mapping[str, Any] = MappingProxyType({})


def without(*names: str) -> dict[str, Any]:
    """An answer that lacks something."""

    def breaks(answer: Any) -> Any:
        if "choices" in answer:
            for name in names:
                answer["choices"][0].pop(name, None)
        return answer

    return {"breaks": breaks}


def cut(answer: Any) -> Any:
    if "choices" in answer:
        answer["choices"][0]["prompt_logprobs"].pop()
    return answer


def other_tokens(answer: Any) -> Any:
    if "choices" in answer:
        answer["choices"][0]["prompt_token_ids"] = [5, 6]
    return answer


def other_tokenizer(answer: Any) -> Any:
    return {"tokens": [1, 2, 3]} if "tokens" in answer else answer


def impossible(answer: Any) -> Any:
    for each in answer.get("choices", ()):
        for said in each["prompt_logprobs"][1:]:
            for entry in said.values():
                entry["logprob"] = -0.1
    return answer


WRONG = (
    Wrong("another model", {"model": "org/another"}, "the server has org/another, and the teacher "
          "is {folder}. Start a server of the teacher; or if it only has another name there, give "
          "that with --engine-args model=NAME.", "mismatch"),
    Wrong("another tokenizer", {"breaks": other_tokenizer}, "the server cuts a text into 3 tokens, "
          "{folder} into", "mismatch"),
    Wrong("fewer entries than asked for", {"most": 3}, "the server refuses a request for 4 "
          "entries: Requested prompt logprobs of 4, which is greater than max allowed: 3. Start "
          "it with --max-logprobs 4, or use a smaller --top-k."),
    Wrong("fewer entries, silently", {"short": 2}, "it gives 2 entries of a token, and --top-k is "
          "4. Start the server with --max-logprobs 4, or capture with --top-k 2 into another"),
    Wrong("no probabilities", without("prompt_logprobs"), "answers without prompt_logprobs"),
    Wrong("a prompt that is cut", {"breaks": cut}, "3 lists for 4 tokens: the server has cut"),
    Wrong("a prompt that is another", {"breaks": other_tokens}, "has read other tokens than it"),
    Wrong("probabilities of more than one", {"breaks": impossible}, "its probabilities add up to",
          "input"),
    Wrong("no server of a model", {"api": "neither"}, "is no server of a model: it has neither "
          "/v1/models nor /get_model_info. Give the address of vLLM's or SGLang's."),
    Wrong("only errors", {"fails": 99}, "answers HTTP 503 (later), also after 3 more tries"),
    Wrong("too slow", {"delay_s": 3}, "cannot be reached (it took too long)", "engine",
          {"engine_args": ["timeout_s=1"]}),
)  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_server_that_is_wrong_is_found_out_before_anything_is_written(
    wrong: Wrong, teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong.name == "too slow":
        monkeypatch.setattr(client, "_TIMES", 0)
    with (
        serve(teacher, **({"model": "teacher"} | dict(wrong.like))) as server,
        pytest.raises(LogitStoreError) as caught,
    ):
        ask(server, data, tmp_path / "s", **wrong.more)
    assert wrong.says.format(folder=teacher.folder) in str(caught.value)
    assert (caught.value.kind, type(caught.value)) == (
        wrong.kind,
        MismatchError if wrong.kind == "mismatch" else InputError,
    )
    assert not (tmp_path / "s").exists()


def test_a_server_that_is_down_is_named(teacher: Dumper, data: str, tmp_path: Path) -> None:
    with serve(teacher) as server:
        url = server.url
    with pytest.raises(InputError) as caught:
        ask(url, data, tmp_path / "s", teacher.folder)
    assert str(caught.value).startswith(
        f"{url}: the server cannot be reached (Connection refused). What is committed stays: start"
    )
    assert not (tmp_path / "s").exists()


def test_a_server_that_does_not_tokenise_is_warned_of(
    teacher: Dumper, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(teacher, model="teacher", tokenises=False) as server:
        ask(server, data, tmp_path / "s")
    assert "so its tokenizer cannot be compared" in caplog.text


ONLINE = {"engine": "server", "server": "http://x"}
HERE = "which needs the teacher in this process, and --engine is server. Leave it out, or use "
SETTINGS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"engine": "jax"}, "--engine is jax, expected transformers, vllm or server."),
    (
        {"engine": "server"},
        (
            "--engine server needs the address of one. Give it with --server, such as "
            "http://localhost:8000."
        ),
    ),
    (
        {"server": "http://x"},
        (
            "--server is http://x, but --engine is transformers, which has none. Leave it out, or "
            "add --engine server."
        ),
    ),
    (ONLINE | {"draws": 5}, f"--draws is 5, {HERE}--engine transformers."),
    (ONLINE | {"temperatures": [2.0]}, f"--temperature is [2.0], {HERE}--engine transformers."),
    (
        ONLINE | {"engine_args": ["speed=9"]},
        (
            "--engine-args speed=9: expected KEY=VALUE, with KEY one of concurrency, "
            "requests_per_s, timeout_s, model, api."
        ),
    ),
    (
        ONLINE | {"engine_args": ["concurrency=0"]},
        "--engine-args concurrency=0: expected 1 to 1024.",
    ),
)


@pytest.mark.parametrize(("more", "says"), SETTINGS)
def test_settings_that_cannot_be(more: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        CaptureSettings(**more).check()
    assert str(caught.value) == says


def test_an_address_that_is_none(teacher: Dumper, data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--server x\.y:80: is no address of a server\."):
        ask("x.y:80", data, tmp_path / "s", teacher.folder)
