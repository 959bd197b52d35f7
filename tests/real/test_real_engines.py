"""The same rows by transformers, by vLLM in both ways, by its server and by `create`.

vLLM is the real one, of an environment of its own (`bash tools/vllm_env.sh`): what it captures it
captures there, as a command.
"""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitstore.capture.job import run_capture
from logitstore.capture.settings import CaptureSettings
from logitstore.checking.verify import verify_store
from logitstore.errors import InputError
from logitstore.format.spec import DONE_FILE
from logitstore.store import LogitStore, open_store
from logitstore.testing import tiny
from tests.kit.created import created, logits_of
from tests.kit.dumps import Dumper
from tests.kit.paths import ROOT
from tests.kit.rows import texts_file
from tests.kit.same_rows import agree

VLLM = Path(os.environ.get("VLLM_ENV", ROOT / "build" / "vllm")) / "bin" / "python"
#: Loading takes minutes on a busy machine.
STARTS_WITHIN_S = 600
K = 16
#: Of a capture: three rows a shard, so that there is something left when it is killed.
ASKED: dict[str, Any] = {"top_k": K, "shard_text_bytes": 200, "max_length": 128}
ALL: dict[str, Any] = {"temperatures": [2.0], "logit_std": True, "draws": 4}
#: What sums in another order move, beyond a step of the codes: float32.
MOVED = 1e-4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM.exists(), reason="no build/vllm: bash tools/vllm_env.sh"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with heads as wide as vLLM's attention needs on a CPU."""
    shape = {"hidden_size": 128, "intermediate_size": 128, "initializer_range": 0.08}
    ends = {"bos_token_id": 1, "eos_token_id": 0}
    folder = tmp_path_factory.mktemp("real") / "teacher"
    return tiny.save(folder, tiny.llama(400, **shape, **ends), tiny.byte_bpe(400, bos=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(texts_file(tmp_path_factory.mktemp("rows") / "r.jsonl", tiny.corpus() * 4))


@pytest.fixture(scope="module")
def here(model: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """By transformers, with all that can be kept."""
    place = tmp_path_factory.mktemp("here") / "s"
    return run_capture(model, data, place, CaptureSettings(**ASKED, **ALL))


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The build for CPUs has another name, which its `vllm serve` does not find itself by.
    words = [
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--enforce-eager",
    ]
    words += ["--dtype", "float32", "--max-model-len", "256", "--max-logprobs", str(K)]
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    with log.open("w") as written:
        server = subprocess.Popen(
            [str(VLLM), *words], stdout=written, stderr=subprocess.STDOUT, env=environment()
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def _wait(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=5)
        except OSError:
            time.sleep(2)
        else:
            return
    raise AssertionError(f"not up within {STARTS_WITHIN_S} s: {log.read_text()[-3000:]}")


def environment() -> dict[str, str]:
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(ROOT)}
    return os.environ | own


def command(model: Path, data: str, out: Path, *more: str) -> list[str]:
    """A capture with vLLM, in its own environment."""
    words = [str(VLLM), "-m", "logitstore", "capture", str(model), data, "--out", str(out)]
    words += ["--top-k", str(K), "--shard-text-bytes", "200", "--max-length", "128"]
    words += ["--engine", "vllm", "--engine-args", "enforce_eager=true"]
    # Prompts are read in parts, several of them in a step.
    return [*words, "--engine-args", "max_num_batched_tokens=48", *more]


class Capture:
    """A capture that runs in processes of its own, all of which end with it."""

    def __init__(self, words: list[str], log: Path) -> None:
        self.log = log
        with log.open("w") as written:
            self.process = subprocess.Popen(
                words, stdout=written, stderr=subprocess.STDOUT, env=environment(),
                start_new_session=True,
            )  # fmt: skip

    def wait(self) -> str:
        """Wait for its end, which is a good one; returns what it said."""
        try:
            status = self.process.wait(3 * STARTS_WITHIN_S)
        finally:
            self.kill()
        said = self.log.read_text()
        assert status == 0, said[-3000:]
        return said

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()

    def until(self, is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + 2 * STARTS_WITHIN_S
        while not is_so():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < until, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def engine_core(self) -> int:
        """The process of vLLM that forms batches."""
        children = Path("/proc").glob("[0-9]*/stat")
        for path in children:
            try:
                _, name, rest = path.read_text().replace("(", ")").split(")")
                if int(rest.split()[2]) == self.process.pid and "EngineCor" in name:
                    return int(path.parent.name)
            except (OSError, ValueError):
                continue
        raise AssertionError("vLLM has no process EngineCore")


def shards(store: Path) -> int:
    return len(list((store / "shards").glob("*.zip")))


def test_vllms_workers_make_all_of_it_also_when_they_die_and_the_capture_is_killed(
    model: Path, data: str, here: LogitStore, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    more = ["--temperature", "2", "--logit-std", "--draws", "4"]
    words = command(model, data, out, *more)
    first = Capture(words, tmp_path / "first.log")
    try:
        first.until(lambda: shards(out) > 0)
        os.kill(first.engine_core(), signal.SIGKILL)
        first.until(lambda: "It is started again" in first.log.read_text())
        dead = shards(out)
        first.until(lambda: shards(out) > dead + 1)
    finally:
        first.kill()
    assert not (out / DONE_FILE).exists()
    Capture(words, tmp_path / "second.log").wait()
    store = open_store(out)
    agree(store, here)
    assert verify_store(out, deep=True).damaged == []
    assert store.spec.missing == ()
    assert store.provenance["self_test"]["largest"] < MOVED
    same = []
    for i in range(len(store)):
        a, b = store[i], here[i]
        for name in ("lognorm", "logit_std", "lognorm_std"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=MOVED)
        np.testing.assert_allclose(a.entropy, b.entropy, atol=1.01 / 256)
        same.append(np.array_equal(a.sample_ids, b.sample_ids))
    assert np.mean(same) > 0.9  # a draw at the edge of a column may move to the next


def test_vllms_public_way_agrees_and_two_processes_share_it(
    model: Path, data: str, here: LogitStore, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    words = command(model, data, out, "--claim")
    both = [Capture(words, tmp_path / f"{i}.log") for i in range(2)]
    try:
        for each in both:
            each.wait()
    finally:
        for each in both:
            each.kill()
    store = open_store(out)
    agree(store, here)
    assert verify_store(out, deep=True).damaged == []
    assert store.spec.missing == ("entropy",)


def test_vllm_writes_completions_and_reads_them_though_it_caches_prefixes(
    model: Path, tmp_path: Path
) -> None:
    """Rows with one prompt: the cache has it by the second, and all records must still be there."""
    prompts = [{"prompt": f"{text[:40]}"} for text in tiny.corpus()[:4] for _ in range(3)]
    data = tmp_path / "p.jsonl"
    data.write_text("".join(json.dumps(p) + "\n" for p in prompts))
    more = [
        "--generate",
        "--max-new-tokens",
        "12",
        "--max-lost",
        "1",
        "--engine-args",
        "way=worker",
    ]
    Capture(command(model, str(data), tmp_path / "s", *more), tmp_path / "log").wait()
    settings = CaptureSettings(**ASKED, generate=True, max_new_tokens=12, max_lost=1.0)
    agree(open_store(tmp_path / "s"), run_capture(model, str(data), tmp_path / "here", settings))


_SECOND_RUNNER = """
from dataclasses import fields
from types import SimpleNamespace
import numpy as np, torch
from vllm import SamplingParams
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker
from logitstore.capture.passes.vllm.hooks import hook
from logitstore.capture.passes.vllm.summaries import Asked

batch = {
    "req_ids": ["a", "b"], "idx_mapping_np": np.array([0, 1]),
    "num_computed_prefill_tokens_np": np.array([0, 8]),
    "num_scheduled_tokens": np.array([2, 5]), "query_start_loc_np": np.array([0, 2, 7]),
}
assert set(batch) <= {f.name for f in fields(InputBatch)}
worker, seen = PromptLogprobsWorker(4, torch.device("cpu")), []
assert hook(SimpleNamespace(prompt_logprobs_worker=worker), lambda *step: seen.append(step)) == ""
asked = Asked(3, 1, 0, np.array([9, 10]), np.array([5, 6]))
worker.add_request("a", 0, SamplingParams())
worker.add_request("b", 1, SamplingParams(extra_args=asked.packed()))
made = worker.compute_prompt_logprobs(len, torch.zeros(7, 3), SimpleNamespace(**batch), 0, 0, 0)
worker.remove_request("b")
[(_, _, [span])] = seen
print(made, span.asked.n, span.first, span.length, span.offset)
"""


def test_the_second_model_runner_is_hooked_where_it_computes_log_probabilities() -> None:
    """It needs a GPU, or a Triton for CPUs; its class can be asked without either."""
    words = [str(VLLM), "-c", _SECOND_RUNNER]
    ran = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines()[-1:] == ["{} 3 8 5 2"], ran.stderr[-3000:]


def test_a_server_says_what_the_teacher_says_here(
    model: Path, url: str, data: str, here: LogitStore, tmp_path: Path
) -> None:
    there = run_capture(
        model, data, tmp_path / "s", CaptureSettings(**ASKED, engine="server", server=url)
    )
    assert there.provenance["versions"]["vllm"] != "unknown"
    agree(there, here)


def test_logits_of_ones_own_are_what_the_teacher_says_here(
    model: Path, data: str, here: LogitStore, tmp_path: Path
) -> None:
    parts = (c.from_pretrained(model) for c in (AutoModelForCausalLM, AutoTokenizer))
    teacher = Dumper(model, *parts)
    texts, eos = tiny.corpus(), teacher.tokenizer.eos_token_id
    whole = [[*teacher.ids(text), eos] for text in texts]
    short = [n for n, ids in enumerate(whole) if len(ids) <= ASKED["max_length"]]
    rows = [(texts[n], {"logits": logits_of(teacher, whole[n])}) for n in short]
    store = created(tmp_path / "s", teacher, rows, top_k=K, add_eos=True)
    agree(store, [here[here.row(n)[0]] for n in short])


def test_more_entries_than_it_gives_are_refused_at_once(
    model: Path, url: str, tmp_path: Path
) -> None:
    data = texts_file(tmp_path / "r.jsonl", tiny.corpus()[:8])
    settings = CaptureSettings(top_k=K + 1, engine="server", server=url)
    with pytest.raises(InputError, match=r"the server refuses a request for 17 entries: .*17"):
        run_capture(model, str(data), tmp_path / "s", settings)
    assert not (tmp_path / "s").exists()
