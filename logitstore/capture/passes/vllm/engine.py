"""A running vLLM: started for one rank, asked about many rows, started again when it has died.

vLLM runs in processes of its own. When one of them dies (out of memory, a fault of a kernel), all
end, and the requests in them are lost. Then it is started once more and asked the same again; if it
dies of the same rows twice, that is an error. Nothing of a shard is written before all of it was
answered, so no row is lost or stored twice.

A death is looked for, besides: vLLM 0.32 notices that its core was killed, and then waits for ever
for what that was asked.
"""

import inspect
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Thread
from typing import Any, TypeVar

import torch

from logitstore.capture.passes.listed import Refused
from logitstore.capture.passes.vllm.library import library, other_hooks
from logitstore.capture.passes.vllm.options import Options
from logitstore.console.launcher import Ranks
from logitstore.errors import InputError, in_a_line

log = logging.getLogger(__name__)

T = TypeVar("T")
#: What launchers tell their own processes; a vLLM that read it would wait for the other ranks.
_OF_LAUNCHERS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
)
_DIED = ("EngineDeadError", "EngineGenerateError")
_LOOK_S, _GRACE_S = 0.5, 2.0


class Engine:
    """Runs one vLLM.

    Args:
        name: Of the teacher, for messages.
        arguments: Of `vllm.LLM`.
        options: Those that the user gave are among them.
        ranks: Which process of how many this is; of the devices of a machine each takes its own.

    Attributes:
        version: Of vLLM.
        beat: Called while it works: a shard of completions may take longer than the patience of
            those who wait for this process.

    Raises:
        InputError: It does not start, or does not know an argument.
        MissingLibraryError: It is not installed.
    """

    def __init__(
        self, name: str, arguments: Mapping[str, Any], options: Options, ranks: Ranks
    ) -> None:
        self._vllm = library()
        self.version = str(getattr(self._vllm, "__version__", "unknown"))
        self._name, self._arguments = name, {**arguments, **options.arguments}
        self._environment = _environment(ranks, options)
        self.beat: Callable[[], None] = lambda: None
        self._check_known(options)
        self._llm: Any = self._start()

    @property
    def place(self) -> str:
        """Name it, for messages."""
        return f"vLLM {self.version}"

    def params(self, **settings: Any) -> Any:
        """Make `SamplingParams`.

        Raises:
            InputError: This vLLM has no such setting.
        """
        try:
            return self._vllm.SamplingParams(**settings)
        except TypeError as e:
            raise other_hooks(self.version, in_a_line(e)) from e

    def has_setting(self, name: str) -> bool:
        """Tell whether `SamplingParams` has a setting."""
        return name in inspect.signature(self._vllm.SamplingParams).parameters

    def generate(
        self, prompts: Sequence[Sequence[int]], params: Sequence[Any]
    ) -> list[Any | Refused]:
        """Ask about prompts, all at once; in parts where it refuses some of them.

        Returns:
            Its `RequestOutput` for each prompt, or its refusal.
        """
        asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
        try:
            return list(self._call(self._llm.generate, asked, list(params), use_tqdm=False))
        except ValueError as e:  # VLLMValidationError is one; nothing of the call was answered
            if len(asked) == 1:
                return [Refused(in_a_line(e).removeprefix(f"{type(e).__name__}: "))]
        middle = len(asked) // 2
        first = self.generate(prompts[:middle], params[:middle])
        return first + self.generate(prompts[middle:], params[middle:])

    def rpc(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every worker; returns what each returned."""
        return list(self._call(self._llm.collective_rpc, method, args=args))

    def asked(self, ask: Callable[[], T], what: Callable[[], str]) -> T:
        """Run what asks the engine; once more, on an engine started anew, if it dies.

        Args:
            ask: Asks it.
            what: Names what it was asked about.

        Raises:
            InputError: It dies twice, or does not start again.
        """
        try:
            return ask()
        except Exception as e:
            if not _has_died(e):
                raise
            why = in_a_line(e).removeprefix("_")
        log.warning("%s has ended (%s). It is started again, and reads these rows again.",
                    self.place, why)  # fmt: skip
        self.stop()
        self._llm = self._start()
        try:
            return ask()
        except Exception as e:
            if not _has_died(e):
                raise
            why = in_a_line(e).removeprefix("_")
        raise InputError(
            f"{self.place}: has ended twice at the same rows, {what()} ({why}). What is committed "
            "stays. What it wrote before that says more; if memory is short, lower "
            "--tokens-per-batch, --max-length or --engine-args gpu_memory_utilization=0.8, and run "
            "the same command again.",
            kind="engine",
        )

    def stop(self) -> None:
        """End its processes."""
        llm, self._llm = self._llm, None
        core = getattr(getattr(llm, "llm_engine", None), "engine_core", None)
        shutdown = getattr(core, "shutdown", None)
        if shutdown is None:
            return
        try:
            shutdown()
        except Exception:  # it is dead already
            log.debug("vLLM did not shut down", exc_info=True)

    def _call(self, method: Callable[..., T], *args: Any, **more: Any) -> T:
        """Call a method of vLLM on a thread of its own, and watch whether vLLM still lives."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(method(*args, **more))
            except BaseException as e:
                answer.set_exception(e)

        Thread(target=run, daemon=True, name="vLLM").start()
        while not self._is_dead():
            if wait([answer], _LOOK_S).done:
                return answer.result()
            self.beat()
        if wait([answer], _GRACE_S).done:  # it has an answer, or an error that says more
            return answer.result()
        raise _EngineDead("its processes were killed")

    def _is_dead(self) -> bool:
        core = getattr(getattr(self._llm, "llm_engine", None), "engine_core", None)
        return bool(getattr(getattr(core, "resources", None), "engine_dead", False))

    def _start(self) -> Any:
        try:
            with _within(self._environment), _unblocked_here_alone(signal.SIGINT):
                return self._vllm.LLM(**self._arguments)
        except Exception as e:  # of any class: it imports models and starts processes
            raise InputError(
                f"{self._name}: vLLM {self.version} cannot load the teacher ({in_a_line(e)}). What "
                "it wrote before this says more. If memory is short, give it more devices with "
                "--engine-args tensor_parallel_size=2, or leave it less with "
                "--engine-args gpu_memory_utilization=0.8; a program that calls logitstore.capture "
                'must do so below `if __name__ == "__main__":`.',
                kind="engine",
            ) from e

    def _check_known(self, options: Options) -> None:
        """Reject arguments that vLLM does not have, with the nearest that it has."""
        known = set(inspect.signature(self._vllm.EngineArgs).parameters)
        unknown = [name for name in options.arguments if known and name not in known]
        if unknown:
            near = _nearest(unknown[0], known)
            raise InputError(
                f"--engine-args {unknown[0]}={options.arguments[unknown[0]]}: vLLM {self.version} "
                f"has no such argument{near}. Give way, or an argument of vllm.LLM.",
            )


class _EngineDead(Exception):
    """An engine that has ended without a word."""


def _has_died(error: Exception) -> bool:
    return isinstance(error, _EngineDead) or type(error).__name__ in _DIED


def _nearest(name: str, known: set[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name, known, n=1)
    return f"; is it {found[0]}?" if found else ""


def _environment(ranks: Ranks, options: Options) -> dict[str, str | None]:
    """Return what is set for vLLM's processes; None: unset.

    Raises:
        InputError: This machine has fewer devices than its ranks need.
    """
    found: dict[str, str | None] = dict.fromkeys(_OF_LAUNCHERS)
    if "max_model_len" not in options.arguments:
        # As long as the teacher reads, and the token that vLLM always writes behind it.
        found["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    devices = options.devices()
    count = torch.cuda.device_count()
    if ranks.size == 1 or not count:
        return found
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    own = names[ranks.local_rank * devices : (ranks.local_rank + 1) * devices]
    if len(own) < devices:
        raise InputError(
            f"{ranks}: needs {devices} of this machine's devices, after those of the "
            f"{ranks.local_rank} ranks before it, and there are {len(names)}. Start fewer "
            "processes a machine, or lower --engine-args tensor_parallel_size."
        )
    return found | {"CUDA_VISIBLE_DEVICES": ",".join(own)}


@contextmanager
def _within(environment: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in environment}
    _set(environment)
    try:
        yield
    finally:
        _set(before)


def _set(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _unblocked_here_alone(signal_number: int) -> Iterator[None]:
    """Start processes that a signal of the terminal does not reach: Ctrl-C is for this one.

    It ends the capture after the shard in hand, which vLLM has to finish. A mask is inherited.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal_number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
