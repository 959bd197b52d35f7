"""vLLM is asked in two ways; what it cannot do, and what becomes of it, is said."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitstore.capture.job import run_capture, run_preview
from logitstore.capture.passes.vllm import engine, public_pass
from logitstore.capture.passes.vllm.engine import Engine
from logitstore.capture.passes.vllm.options import Options
from logitstore.capture.passes.vllm.summaries import Asked, Span, Summaries, unpacked
from logitstore.capture.settings import CaptureSettings
from logitstore.capture.teacher.head import CHUNK_ROWS
from logitstore.capture.teacher.summary import HeadSettings
from logitstore.console.launcher import Ranks
from logitstore.errors import InputError, MissingLibraryError
from logitstore.format.logprob_codec import TOKEN_STEP
from logitstore.store import LogitStore
from logitstore.testing import stores
from tests.kit import dumps
from tests.kit.dumps import ENGLISH, Dumper
from tests.kit.fake_vllm import FakeVllm

ALL: dict[str, Any] = {"temperatures": [2.0], "logit_std": True, "draws": 4, "top_k": 4}


@pytest.fixture(scope="module")
def here(teacher: Dumper, data: str, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """All that can be kept, by transformers."""
    settings = CaptureSettings(**ALL, self_test=False)
    return run_capture(teacher.folder, data, tmp_path_factory.mktemp("here") / "s", settings)


def ask(teacher: Dumper, data: str, place: Path, *args: str, **more: Any) -> LogitStore:
    """Capture with vLLM; the self-test is tried by others."""
    asked: dict[str, Any] = {"top_k": 4, "self_test": False, "shard_text_bytes": 100}
    settings = CaptureSettings(engine="vllm", engine_args=args, **(asked | more))
    return run_capture(teacher.folder, data, place, settings)


@pytest.mark.parametrize(
    ("runner", "workers", "chunk"), [("v1", 1, 7), ("v2", 2, 50), ("v1", 2, 999)]
)
def test_workers_make_all_that_a_store_can_keep(
    runner: str, workers: int, chunk: int, teacher: Dumper, data: str, here: LogitStore,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever parts of prompts are read in a step, and however many workers share the head."""
    fake = FakeVllm.put(monkeypatch, runner=runner, workers=workers, chunk=chunk)
    store = ask(teacher, data, tmp_path / "s", shard_text_bytes=400, **ALL)
    assert len(store) == len(here) == len(ENGLISH)
    same_draws = []
    for i in range(len(store)):
        a, b = store[i], here[i]
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.token_logprob, b.token_logprob, atol=1.01 * TOKEN_STEP)
        for name in ("lognorm", "logit_std", "lognorm_std"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-4)
        np.testing.assert_allclose(a.entropy, b.entropy, atol=1.01 / 256)
        same_draws.append(np.array_equal(a.sample_ids, b.sample_ids))
    assert np.mean(same_draws) > 0.7  # a draw at the edge of a column may move to the next
    assert store.spec.missing == ()
    assert [a["worker_extension_cls"] for a in fake.started] == [
        "logitstore.capture.passes.vllm.extension.WorkerExtension"
    ]


def test_a_prompt_is_asked_about_where_it_has_records_and_in_any_order() -> None:
    """Row t - 1 of the hidden states says token t: of chunks, in batches of several prompts."""
    hidden = torch.randn(9, 5, generator=torch.manual_seed(0))
    head = torch.randn(5, 40, generator=torch.manual_seed(1))
    long = Asked(1, 7, 0, np.array([2, 3, 6]), np.array([4, 5, 6]))
    short = Asked(0, 8, 0, np.array([1]), np.array([9]))
    made = Summaries(HeadSettings(40))
    made.add(lambda rows: rows @ head, hidden[:5], [Span(long, 0, 3, 2), Span(short, 0, 2, 0)])
    made.add(lambda rows: rows @ head, hidden[5:], [Span(long, 3, 4, 0)])
    data = made.packed()
    assert data is not None
    at, result = unpacked(data)
    found = dict(zip(zip(at["n"], at["place"], strict=True), result.token_logprob, strict=True))
    logp = (hidden @ head).log_softmax(1)
    expected = {
        (1, 2): logp[3, 4],
        (1, 3): logp[4, 5],
        (0, 1): logp[0, 9],
        (1, 6): logp[7, 6],
    }
    assert set(found) == set(expected)
    for place, value in expected.items():
        torch.testing.assert_close(found[place], value)
    assert made.packed() is None


def test_every_worker_of_a_sharded_head_computes_the_same_rows() -> None:
    """Else those that gather would wait for ever."""
    count = 2 * CHUNK_ROWS + 3
    asked = Asked(0, 0, 0, np.arange(1, count + 1), np.zeros(count, np.int64))
    calls: dict[bool, list[int]] = {True: [], False: []}
    for is_first, sizes in calls.items():

        def logits_of(rows: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(len(rows))
            return torch.zeros(len(rows), 8)

        made = Summaries(HeadSettings(2), is_first)
        made.add(logits_of, torch.zeros(count, 3), [Span(asked, 0, count, 0)])
        assert (made.packed() is not None) == is_first
    assert calls[True] == calls[False] == [CHUNK_ROWS, CHUNK_ROWS, 3]


def test_an_older_vllm_without_flat_lists_says_the_same(
    teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeVllm.put(monkeypatch, flat=True)
    one = ask(teacher, data, tmp_path / "flat")
    FakeVllm.put(monkeypatch, flat=False)
    other = ask(teacher, data, tmp_path / "plain")
    assert stores.tree(one.path) == stores.tree(other.path)


def test_vllm_is_asked_in_parts_whose_lists_are_not_too_large(
    teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeVllm.put(monkeypatch)
    one = ask(teacher, data, tmp_path / "one", shard_text_bytes=10_000)
    calls = [[len(ids) for ids in asked] for asked in fake.asked[1:]]  # after the probe
    assert [len(lengths) for lengths in calls] == [len(ENGLISH)]
    most = 2 * max(calls[0])
    fake.asked.clear()
    monkeypatch.setattr(public_pass, "_MOST_ENTRIES", most * 5)  # four entries, and the token's own
    parts = ask(teacher, data, tmp_path / "parts", shard_text_bytes=10_000)
    again = [[len(ids) for ids in asked] for asked in fake.asked[1:]]
    assert [length for lengths in again for length in lengths] == calls[0]
    assert 1 < len(again) < len(ENGLISH)
    assert all(sum(lengths) <= most for lengths in again)
    assert stores.tree(one.path) == stores.tree(parts.path)


@pytest.mark.parametrize("silently", [False, True])
def test_an_engine_that_dies_is_started_again_and_reads_its_rows_again(
    silently: bool, teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    FakeVllm.put(monkeypatch)
    whole = ask(teacher, data, tmp_path / "whole", **ALL)
    monkeypatch.setattr(engine, "_LOOK_S", 0.02)
    monkeypatch.setattr(engine, "_GRACE_S", 0.02)
    fake = FakeVllm.put(monkeypatch, dies_at=(3,), silently=silently)
    ask(teacher, data, tmp_path / "s", **ALL)
    assert stores.tree(tmp_path / "s") == stores.tree(tmp_path / "whole")
    assert fake.asked[2] == fake.asked[3]
    assert (len(fake.started), fake.stopped) == (2, 2)
    why = "EngineDead: its processes were killed" if silently else "EngineDeadError: EngineCore"
    assert f"vLLM 0.32.0 has ended ({why}" in caplog.text
    if silently:
        return

    fake = FakeVllm.put(monkeypatch, dies_at=(4, 5))
    with pytest.raises(InputError, match=r"ended twice at the same rows, rows \d") as caught:
        ask(teacher, data, tmp_path / "t", **ALL)
    assert caught.value.kind == "engine"
    assert 0 < len(stores.tree(tmp_path / "t" / "shards")) < whole.plan.shard_count
    fake.dies_at = ()
    ask(teacher, data, tmp_path / "t", **ALL)
    assert stores.tree(tmp_path / "t") == stores.tree(tmp_path / "whole")


@pytest.mark.parametrize("way", ["public", "worker"])
def test_a_row_that_vllm_refuses_is_counted_by_name(
    way: str, teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = teacher.ids(ENGLISH[2])
    FakeVllm.put(monkeypatch, refuses=lambda ids: ids[:9] == refused[:9])
    store = ask(teacher, data, tmp_path / "s", f"way={way}", shard_text_bytes=10_000, max_lost=1.0)
    assert store.statuses == {"ok": len(ENGLISH) - 1, "refused": 1}
    assert len(store[2]) == 0
    assert len(store[3]) > 0
    journal = (tmp_path / "s.journal.jsonl").read_text().splitlines()
    (event,) = [e for e in map(json.loads, journal) if e["event"] == "refused"]
    assert (event["row"], event["why"]) == (2, "Something about it")


def test_rows_of_the_longest_length_are_not_refused(
    teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM always writes a token behind a prompt, and has to have room for it."""
    fake = FakeVllm.put(monkeypatch)
    store = ask(teacher, data, tmp_path / "s", max_length=10)
    assert set(store.statuses) <= {"ok", "split"}
    assert max(len(ids) for batch in fake.asked for ids in batch) == 10
    assert fake.started[0]["max_model_len"] == 11


@pytest.mark.parametrize("way", ["public", "worker"])
def test_logits_that_are_not_finite_stop_a_capture_or_are_counted(
    way: str, teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = teacher.ids(ENGLISH[2])[:6]
    FakeVllm.put(monkeypatch, spoils=lambda ids: ids[:6] == spoilt)
    more: dict[str, Any] = {"max_lost": 1.0}
    with pytest.raises(InputError, match=r"row 2: the teacher's logits are not finite"):
        ask(teacher, data, tmp_path / "s", f"way={way}", **more)
    store = ask(teacher, data, tmp_path / "t", f"way={way}", **more, on_nan="skip")
    assert store.statuses == {"ok": len(ENGLISH) - 1, "not_finite": 1}


def test_completions_depend_on_the_row_alone(
    teacher: Dumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [{"prompt": text[:12]} for text in ENGLISH] + [{"prompt": ENGLISH[0][:12]}]
    data = str(dumps.write_jsonl(tmp_path / "p.jsonl", prompts))
    fake = FakeVllm.put(monkeypatch)
    drawn: dict[str, Any] = {
        "generate": True, "max_new_tokens": 8, "generate_temperature": 1.0, "generate_top_k": 9,
        "top_p": 0.9, "max_lost": 1.0,
    }  # fmt: skip
    one = ask(teacher, data, tmp_path / "one", shard_text_bytes=10_000, **drawn)
    other = ask(teacher, data, tmp_path / "other", shard_text_bytes=50, **drawn)
    texts = [[s.text(i).segments[-1].text for i in range(len(s))] for s in (one, other)]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][-1]  # the same prompt in another row
    (asked,) = [p for p in fake.params if p[0].seed is not None and len(p) == len(prompts)]
    assert {(p.top_k, p.top_p, p.temperature, p.ignore_eos) for p in asked} == {(9, 0.9, 1.0, True)}
    assert all(p.stop_token_ids == [teacher.tokenizer.eos_token_id] for p in asked)
    third = ask(teacher, data, tmp_path / "third", seed=1, shard_text_bytes=10_000, **drawn)
    assert third.text(0).segments[-1].text != texts[0][0]


def test_greedy_completions_are_those_of_transformers(
    teacher: Dumper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(dumps.write_jsonl(tmp_path / "p.jsonl", [{"prompt": t[:12]} for t in ENGLISH]))
    FakeVllm.put(monkeypatch)
    written: dict[str, Any] = {"generate": True, "max_new_tokens": 8, "max_lost": 1.0}
    settings = CaptureSettings(**written, self_test=False)
    one = run_capture(teacher.folder, data, tmp_path / "one", settings)
    other = ask(teacher, data, tmp_path / "other", **written)
    assert [one.text(i) for i in range(len(one))] == [other.text(i) for i in range(len(other))]


def test_an_estimate_asks_vllm_and_ends_it(
    teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeVllm.put(monkeypatch)
    settings = CaptureSettings(engine="vllm", engine_args=["way=worker"], tokens_per_batch="auto")
    found = run_preview(teacher.folder, data, None, settings).facts()
    assert found["to_come"]["teacher"]["positions"] > 0
    assert (len(fake.started), fake.stopped) == (1, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_is_not_seen_by_vllm_and_ctrl_c_is_for_this_process(
    teacher: Dumper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vLLM that saw RANK would wait for other ranks; one that ends at Ctrl-C, end its shard."""
    fake = FakeVllm.put(monkeypatch)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen: list[Any] = []

    class Started(list[Any]):
        def append(self, arguments: Any) -> None:
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            longer = os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN")
            seen.append(("RANK" in os.environ, longer, signal.SIGINT in blocked))

    fake.started = Started()
    arguments = {"model": str(teacher.folder)}
    Engine("t", arguments, Options(), Ranks(1, 2, 1))
    Engine("t", arguments, Options.of(["max_model_len=9"]), Ranks(1, 2, 1))
    assert seen == [(False, "1", True), (False, None, True)]
    assert os.environ["RANK"] == "1"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_those_who_wait_are_told_that_it_works(
    teacher: Dumper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of completions is one question, and may take longer than anybody's patience."""
    FakeVllm.put(monkeypatch)
    monkeypatch.setattr(engine, "_LOOK_S", 1e-4)
    asked = Engine("t", {"model": str(teacher.folder)}, Options(), Ranks())
    beats: list[int] = []
    asked.beat = lambda: beats.append(1)
    asked.generate([[1, 2, 3]], [asked.params(max_tokens=20, temperature=0.0)])
    assert beats


def test_each_rank_of_a_machine_has_devices_of_its_own(
    teacher: Dumper, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeVllm.put(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    seen: list[Any] = []

    class Started(list[Any]):
        def append(self, arguments: Any) -> None:
            seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))

    fake.started = Started()
    arguments = {"model": str(teacher.folder)}
    options = Options.of(["tensor_parallel_size=2"])
    Engine("t", arguments, options, Ranks(0, 1, 0))
    Engine("t", arguments, options, Ranks(3, 4, 1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5")
    Engine("t", arguments, options, Ranks(0, 2, 0))
    assert seen == [None, "2,3", "7,5"]
    with pytest.raises(InputError, match=r"rank 1 of 2: needs 2 of this machine's devices.*are 2"):
        Engine("t", arguments, options, Ranks(1, 2, 1))


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "an unknown runner": ({"runner": "v3"}, "way=worker", r"SimpleNamespace computes no log-prob"),
    "shifted states": ({"shifts": 1}, "way=worker", r"its workers differ by \d.*way=public"),
    "few entries": ({"most": 3}, "way=public", r"refuses a request for 4 entries: Requested prom"),
    "an argument": ({}, "tensor_parallel_sise=2", r"no such argument; is it tensor_parallel_size"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_vllm_that_cannot_be_used_is_said_before_anything_is_written(
    case: str, teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    like, arg, says = WRONG[case]
    FakeVllm.put(monkeypatch, **like)
    with pytest.raises(InputError, match=says):
        ask(teacher, data, tmp_path / "s", arg)
    assert list(tmp_path.iterdir()) == []


def test_a_vllm_that_is_not_there_is_said_at_once(
    teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingLibraryError, match=r"--engine vllm needs vLLM.*logitstore\[vllm\]"):
        ask(teacher, data, tmp_path / "s")
    fake = FakeVllm.put(monkeypatch)
    import vllm

    monkeypatch.delattr(vllm, "LLM")
    with pytest.raises(InputError, match=r"cannot be imported \(AttributeError") as caught:
        ask(teacher, data, tmp_path / "s")
    assert caught.value.kind == "engine"
    assert fake.started == []
    assert list(tmp_path.iterdir()) == []


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no pair": ({"engine_args": ["eager"]}, r"--engine-args eager: expected KEY=VALUE: way=public"),
    "a way": ({"engine_args": ["way=mine"]}, r"way=mine: expected public or worker"),
    "twice": ({"engine_args": ["a=1", "a=2"]}, r"a is given twice"),
    "the model": ({"engine_args": ["model=x"]}, r"model=x: not to be given here: TEACHER names"),
    "a token": ({"engine_args": ["hf-token=x"]}, r"set HF_TOKEN in the environment"),
    "no number": ({"engine_args": ["tensor_parallel_size=all"]}, r"=all: expected a number, 1"),
    "public draws": ({"engine_args": ["way=public"], "draws": 2}, r"--draws is 2, and vLLM's publ"),
    "public, none": ({"engine_args": ["way=public"], "top_k": 0, "draws": 2}, r"--draws is 2"),
    "a device": ({"device": "cuda:1"}, r"--device is cuda:1.*or set CUDA_VISIBLE_DEVICES"),
    "quantised": ({"quantization": "bitsandbytes-8bit"}, r"or give --engine-args quantization=fp8"),
    "boundaries": ({"boundaries_of": "x"}, r"--boundaries-of is x.*or use --engine transformers"),
    "a server": ({"server": "http://x"}, r"--server is http://x, but --engine is vllm, which has"),
    "hot": ({"generate": True, "generate_temperature": 3.0}, r"is 3\.0, and vLLM samples at 0\.01"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_vllm_does_not_have_are_refused(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeVllm.put(monkeypatch)
    more, says = REFUSED[case]
    with pytest.raises(InputError, match=says):
        CaptureSettings(engine="vllm", **more).check()


def test_what_changes_the_teacher_is_in_the_spec(
    teacher: Dumper, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeVllm.put(monkeypatch)
    store = ask(teacher, data, tmp_path / "s", "quantization=fp8", "gpu_memory_utilization=0.5")
    assert store.spec.teacher["quantization"] == {"quantization": "fp8"}
    assert store.provenance["engine_args"] == ["quantization=fp8", "gpu_memory_utilization=0.5"]
