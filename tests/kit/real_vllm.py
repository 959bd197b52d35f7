"""The real vLLM, of an environment of its own (`bash tools/vllm_env.sh`): commands and a server."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit.paths import ROOT

VLLM = Path(os.environ.get("VLLM_ENV", ROOT / "build" / "vllm")) / "bin" / "python"
#: Loading takes minutes on a busy machine.
STARTS_WITHIN_S = 600


def environment() -> dict[str, str]:
    """What every process of vLLM is given."""
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(ROOT)}
    return os.environ | own


def capture_command(model: Path, data: str, out: Path, *more: str) -> list[str]:
    """A capture with vLLM, in its own environment."""
    words = [str(VLLM), "-m", "logitstore", "capture", str(model), data, "--out", str(out)]
    return [*words, "--engine", "vllm", "--engine-args", "enforce_eager=true", *more]


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


@contextmanager
def served(model: Path, max_logprobs: int, log: Path) -> Iterator[str]:
    """Serve a model in float32 on loopback; yields the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The build for CPUs has another name, which its `vllm serve` does not find itself by.
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    words += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    words += ["--dtype", "float32", "--max-model-len", "256", "--max-logprobs", str(max_logprobs)]
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
