"""The same rows by transformers, by vLLM in both ways, by its server and by `create`.

vLLM is the real one, of an environment of its own (`bash tools/vllm_env.sh`): what it captures it
captures there, as a command.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
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
from tests.kit.real_vllm import VLLM, Capture, capture_command, environment, served
from tests.kit.rows import rows_file, texts_file
from tests.kit.same_rows import SUMMED, agree

SMOLLM2 = ROOT / "build" / "real" / "smollm2"
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
    with served(model, K, tmp_path_factory.mktemp("log") / "vllm.log") as address:
        yield address


def command(model: Path, data: str, out: Path, *more: str) -> list[str]:
    """A capture with vLLM that asks for what `ASKED` does."""
    words = ["--top-k", str(K), "--shard-text-bytes", "200", "--max-length", "128"]
    # Prompts are read in parts, several of them in a step.
    words += ["--engine-args", "max_num_batched_tokens=48"]
    return capture_command(model, data, out, *words, *more)


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


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two conversations, of one turn and of two."""
    said = [
        ["Name a colour.", "Blue, like the sea on a clear day."],
        ["What is 2 + 2?", "It is 4.", "Why?", "Two and two more make four: 1, 2, 3, 4."],
    ]
    rows = [
        {
            "messages": [
                {"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(s)
            ]
        }
        for s in said
    ]
    return str(rows_file(tmp_path_factory.mktemp("talks") / "talks.jsonl", *rows))


@pytest.fixture(scope="module")
def instructed(talks: str, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """By transformers, of a real model in float32."""
    place = tmp_path_factory.mktemp("instructed") / "s"
    return run_capture(SMOLLM2, talks, place, CaptureSettings(**ASKED, dtype="float32"))


@pytest.mark.skipif(not SMOLLM2.exists(), reason="no build/real: python -m tools.real_parts")
@pytest.mark.parametrize(("way", "tail_mass"), [("public", SUMMED), ("worker", 0.0)])
def test_a_real_instruct_model_says_the_same(
    way: str, tail_mass: float, talks: str, instructed: LogitStore, tmp_path: Path
) -> None:
    """A vocabulary of 49,152, tied embeddings, grouped heads and a chat template of its own."""
    more = ["--dtype", "float32", "--engine-args", f"way={way}"]
    Capture(command(SMOLLM2, talks, tmp_path / "s", *more), tmp_path / "log").wait()
    agree(open_store(tmp_path / "s"), instructed, tail_mass=tail_mass)


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
