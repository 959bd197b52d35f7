"""A module `vllm` that has a tiny teacher, and is made as the real one is where it is used.

    fake = FakeVllm.put(monkeypatch, runner="v2", workers=2, chunk=16)
    … --engine vllm
    fake.started, fake.asked

It reads prompts in steps of `chunk` tokens, parts of several at once, and calls the method of its
model runner that computes log-probabilities of prompts after each step, as both runners of vLLM do.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM


class EngineDeadError(Exception):
    """Has the name of vLLM's."""


class SamplingParams:
    """Takes what vLLM's takes, of what is used here."""

    def __init__(
        self,
        *,
        max_tokens: int = 16,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        prompt_logprobs: int | None = None,
        flat_logprobs: bool = False,
        detokenize: bool = True,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        logit_bias: dict[int, float] | None = None,
        extra_args: dict[str, Any] | None = None,
        skip_reading_prefix_cache: bool | None = None,
    ) -> None:
        vars(self).update({k: v for k, v in locals().items() if k != "self"})


class EngineArgs:
    def __init__(
        self,
        model: str,
        dtype: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        skip_tokenizer_init: bool = False,
        generation_config: str = "auto",
        enable_prefix_caching: bool | None = None,
        max_model_len: int | None = None,
        max_logprobs: int = 20,
        worker_extension_cls: str = "",
        tensor_parallel_size: int = 1,
        quantization: str | None = None,
        gpu_memory_utilization: float = 0.92,
    ) -> None: ...


@dataclass
class Request:
    name: str
    ids: list[int]
    params: Any
    hidden: torch.Tensor
    computed: int = 0

    # What the first runner reads of a request.
    @property
    def sampling_params(self) -> Any:
        return self.params

    @property
    def num_computed_tokens(self) -> int:
        return self.computed


@dataclass
class FakeVllm:
    """What a fake vLLM is like, and what it was asked.

    Attributes:
        runner: `v1` or `v2`: which model runner it has; another is one that nobody knows.
        workers: Workers that share the output head.
        chunk: Tokens that a step reads.
        most: Entries that it gives at most, whatever `max_logprobs` is.
        dies_at: The calls of `generate` at which it dies, counted from 1.
        silently: Whether it then says nothing and waits for ever, as one that was killed.
        refuses: Which prompts it refuses.
        shifts: By how many places its hidden states are beside those that are meant.
        flat: Whether it knows `flat_logprobs`.
        spoils: Of which prompts its hidden states are no numbers, from the fourth on.
        started: The arguments of every `LLM`.
        asked: The prompts of every call of `generate`.
        stopped: How many were shut down.
    """

    runner: str = "v1"
    workers: int = 1
    chunk: int = 32
    most: int = 1000
    dies_at: Sequence[int] = ()
    silently: bool = False
    refuses: Callable[[Sequence[int]], bool] = lambda ids: False
    shifts: int = 0
    flat: bool = True
    spoils: Callable[[Sequence[int]], bool] = lambda ids: False
    started: list[dict[str, Any]] = field(default_factory=list)
    asked: list[list[list[int]]] = field(default_factory=list)
    params: list[list[Any]] = field(default_factory=list)
    stopped: int = 0
    calls: int = 0
    rank: int = 0

    @classmethod
    def put(cls, patch: pytest.MonkeyPatch, **more: Any) -> "FakeVllm":
        """Make `import vllm` find it until the test ends."""
        fake = cls(**more)
        module, distributed = ModuleType("vllm"), ModuleType("vllm.distributed")
        module.__spec__ = ModuleSpec("vllm", None)

        class LLM(_LLM):
            vllm = fake

        params: Any = SamplingParams
        if not fake.flat:

            class Old(SamplingParams):
                def __init__(self, **settings: Any) -> None:
                    super().__init__(**settings)

            params = Old
        known = {"LLM": LLM, "SamplingParams": params, "EngineArgs": EngineArgs}
        vars(module).update(known | {"__version__": "0.32.0"})
        distributed.get_tensor_model_parallel_rank = lambda: fake.rank  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "vllm", module)
        patch.setitem(sys.modules, "vllm.distributed", distributed)
        for name in (
            "LOGGING_STREAM",
            "LOGGING_LEVEL",
            "NO_USAGE_STATS",
            "WORKER_MULTIPROC_METHOD",
        ):
            patch.setenv(f"VLLM_{name}", "fake")  # so that it is taken back
        return fake


class _LLM:
    vllm: FakeVllm

    def __init__(self, **arguments: Any) -> None:
        self.vllm.started.append(arguments)
        self.model: Any = AutoModelForCausalLM.from_pretrained(arguments["model"]).eval()
        self.longest = arguments.get("max_model_len", 10_000)
        self.most = min(self.vllm.most, arguments.get("max_logprobs", 20))
        runners = {"v1": _RunnerV1, "v2": _RunnerV2}
        name = arguments.get("worker_extension_cls", "")
        extension: type = object
        if name:
            path, _, cls = name.rpartition(".")
            extension = getattr(sys.modules[path], cls)
        self.workers = []
        for rank in range(self.vllm.workers):
            worker: Any = type("Worker", (extension,), {})()
            make = runners.get(self.vllm.runner, lambda *_: SimpleNamespace())
            worker.model_runner = make(self.model, rank)
            self.workers.append(worker)
        self.resources = SimpleNamespace(engine_dead=False)
        core = SimpleNamespace(shutdown=self._shutdown, resources=self.resources)
        self.llm_engine = SimpleNamespace(engine_core=core)

    def _shutdown(self) -> None:
        self.vllm.stopped += 1

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        found = []
        for rank, worker in enumerate(self.workers):
            self.vllm.rank = rank
            found.append(getattr(worker, method)(*args))
        return found

    @torch.inference_mode()
    def generate(self, prompts: Any, params: Any, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        ids = [p["prompt_token_ids"] for p in prompts]
        self.vllm.asked.append(ids)
        self.vllm.params.append(params)
        self.vllm.calls += 1
        if self.vllm.calls in self.vllm.dies_at:
            self.resources.engine_dead = True
            if self.vllm.silently:
                threading.Event().wait()
            raise EngineDeadError("EngineCore encountered an issue")
        for each, param in zip(ids, params, strict=True):
            if len(each) >= self.longest:
                raise ValueError(f"The decoder prompt (length {len(each)}) is too long")
            if (param.prompt_logprobs or 0) > self.most:
                raise ValueError(f"Requested prompt logprobs of {param.prompt_logprobs}")
            if self.vllm.refuses(each):
                raise ValueError("Something about it.\nAnd more")
        requests = [self._request(n, *each) for n, each in enumerate(zip(ids, params, strict=True))]
        self._read(requests)
        return [self._output(r) for r in requests]

    def _request(self, n: int, ids: list[int], params: Any) -> Request:
        hidden = self.model.model(torch.tensor([ids])).last_hidden_state[0]
        if self.vllm.spoils(ids):
            hidden[3:] = torch.nan
        return Request(f"{n}-abc", ids, params, hidden.roll(self.vllm.shifts, 0))

    def _read(self, requests: Sequence[Request]) -> None:
        for worker in self.workers:
            worker.model_runner.add(requests)
        while waiting := [r for r in requests if r.computed < len(r.ids)]:
            step, left = [], self.vllm.chunk
            for r in waiting:
                if count := min(left, len(r.ids) - r.computed):
                    step.append((r, count))
                    left -= count
            step.reverse()  # the order of a batch is not that of its requests
            hidden = torch.cat([r.hidden[r.computed : r.computed + n] for r, n in step])
            for rank, worker in enumerate(self.workers):
                self.vllm.rank = rank
                worker.model_runner.step(hidden, step)
            for r, count in step:
                r.computed += count
        for worker in self.workers:
            worker.model_runner.remove(requests)

    def _output(self, r: Request) -> Any:
        written, ids, params = [], list(r.ids), r.params
        generator = None if params.seed is None else torch.Generator().manual_seed(params.seed)
        for _ in range(params.max_tokens):
            logits = self.model(torch.tensor([ids])).logits[0, -1]
            for i, bias in (params.logit_bias or {}).items():
                logits[i] += bias
            if params.temperature:
                p = (logits / params.temperature).softmax(0)
                token = int(torch.multinomial(p, 1, generator=generator))
            else:
                token = int(logits.argmax())
            ids.append(token)
            written.append(token)
            if token in params.stop_token_ids:
                break
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=written)], prompt_logprobs=self._logprobs(r)
        )

    def _logprobs(self, r: Request) -> Any:
        k = r.params.prompt_logprobs
        if k is None:
            return None
        # vLLM's own are made of the right states; ours are shifted with those of the step.
        logits = self.model.lm_head(r.hidden.roll(-self.vllm.shifts, 0)).float()
        rows = logits.log_softmax(-1)
        flat = SimpleNamespace(
            start_indices=[0], end_indices=[0], token_ids=[], logprobs=[], ranks=[]
        )
        plain: list[Any] = [None]
        for row, token in zip(rows[:-1], r.ids[1:], strict=True):
            top = np.argsort(-row.numpy(), kind="stable")[:k].tolist()
            rank = int((row > row[token]).sum()) + 1
            flat.start_indices.append(len(flat.token_ids))
            flat.token_ids += [token, *top]
            flat.logprobs += row[[token, *top]].tolist()
            flat.ranks += [rank, *range(1, k + 1)]
            flat.end_indices.append(len(flat.token_ids))
            ranked = zip([token, *top], [rank, *range(1, k + 1)], strict=True)
            plain.append({i: SimpleNamespace(logprob=float(row[i]), rank=n) for i, n in ranked})
        return flat if r.params.flat_logprobs else plain


class _Head:
    """The output head as vLLM's models have it: of several workers one gets the logits."""

    def __init__(self, model: Any, rank: int) -> None:
        self._model, self._rank = model, rank

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        return None if self._rank else self._model.lm_head(hidden).float()


class _RunnerV1:
    def __init__(self, model: Any, rank: int) -> None:
        self.model = _Head(model, rank)
        self.requests: dict[str, Request] = {}
        self.input_batch = SimpleNamespace(req_id_to_index={})
        self.query_start_loc = SimpleNamespace(np=np.zeros(0))

    def add(self, requests: Sequence[Request]) -> None:
        self.requests = {r.name: r for r in requests}

    def remove(self, requests: Sequence[Request]) -> None:
        self.requests = {}

    def step(self, hidden: torch.Tensor, step: Sequence[tuple[Request, int]]) -> None:
        self.input_batch.req_id_to_index = {r.name: i for i, (r, _) in enumerate(step)}
        self.query_start_loc.np = np.cumsum([0, *(n for _, n in step)])
        scheduled = {r.name: n for r, n in reversed(step)}
        assert self._get_prompt_logprobs_dict(hidden, scheduled) == {}

    def _get_prompt_logprobs_dict(
        self, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]
    ) -> dict[str, Any]:
        return {}


class _RunnerV2:
    def __init__(self, model: Any, rank: int) -> None:
        self.model = _Head(model, rank)
        self.prompt_logprobs_worker = _PromptLogprobsWorker()

    def add(self, requests: Sequence[Request]) -> None:
        for i, r in enumerate(requests):
            self.prompt_logprobs_worker.add_request(r.name, i, r.params)

    def remove(self, requests: Sequence[Request]) -> None:
        for r in requests:
            self.prompt_logprobs_worker.remove_request(r.name)

    def step(self, hidden: torch.Tensor, step: Sequence[tuple[Request, int]]) -> None:
        batch = SimpleNamespace(
            req_ids=[r.name for r, _ in step],
            num_computed_prefill_tokens_np=np.array([r.computed for r, _ in step]),
            num_scheduled_tokens=np.array([n for _, n in step]),
            query_start_loc_np=np.cumsum([0, *(n for _, n in step)]),
        )
        found = self.prompt_logprobs_worker.compute_prompt_logprobs(
            self.model.compute_logits, hidden, batch, None, None, None
        )
        assert found == {}


class _PromptLogprobsWorker:
    def add_request(self, req_id: str, req_idx: int, sampling_params: Any) -> None: ...

    def remove_request(self, req_id: str) -> None: ...

    def compute_prompt_logprobs(
        self,
        logits_fn: Any,
        hidden_states: torch.Tensor,
        input_batch: Any,
        all_token_ids: Any,
        num_computed_tokens: Any,
        prompt_lens: Any,
    ) -> dict[str, Any]:
        return {}
