"""A real `vllm serve` on loopback (`bash tools/vllm_env.sh`) says what the teacher says here."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from logitstore.capture.job import run_capture
from logitstore.capture.settings import CaptureSettings
from logitstore.errors import InputError
from logitstore.testing import tiny
from tests.kit.paths import ROOT
from tests.kit.rows import texts_file

VLLM = Path(os.environ.get("VLLM_ENV", ROOT / "build" / "vllm")) / "bin" / "vllm"
#: Loading takes minutes on a busy machine.
STARTS_WITHIN_S = 600
K = 16

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
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    words += ["--dtype", "float32", "--max-model-len", "256", "--max-logprobs", str(K)]
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)
    with log.open("w") as written:
        server = subprocess.Popen(
            [str(VLLM), *words], stdout=written, stderr=subprocess.STDOUT, env=environment
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


def test_the_records_are_those_of_transformers_within_rounding(
    model: Path, url: str, tmp_path: Path
) -> None:
    data = texts_file(tmp_path / "r.jsonl", tiny.corpus())
    asked = {"top_k": K, "shard_text_bytes": 1000, "max_length": 128}
    here = run_capture(model, str(data), tmp_path / "here", CaptureSettings(**asked))
    there = run_capture(
        model, str(data), tmp_path / "s", CaptureSettings(**asked, engine="server", server=url)
    )
    assert there.provenance["versions"]["vllm"] != "unknown"
    own, entries = [], []
    for i in range(len(here)):
        assert here.text(i) == there.text(i)
        a, b = here[i], there[i]
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        own.append(np.abs(a.token_logprob - b.token_logprob))
        entries.append(np.abs(a.padded().logprobs - b.padded().logprobs).ravel())
    # Steps of the codes, and what sums in another order move.
    assert np.concatenate(own).max() < 0.01
    assert np.concatenate(entries).max() < 0.05


def test_more_entries_than_it_gives_are_refused_at_once(
    model: Path, url: str, tmp_path: Path
) -> None:
    data = texts_file(tmp_path / "r.jsonl", tiny.corpus()[:8])
    settings = CaptureSettings(top_k=K + 1, engine="server", server=url)
    with pytest.raises(InputError, match=r"the server refuses a request for 17 entries: .*17"):
        run_capture(model, str(data), tmp_path / "s", settings)
    assert not (tmp_path / "s").exists()
