"""Where vLLM's workers have the hidden states of a prompt: hooks in both of its model runners.

vLLM computes log-probabilities of prompts in one method of each runner, which it calls after every
step, on every worker of the last pipeline stage, with the hidden states of all tokens of the step.
That method is wrapped: ours looks first, then vLLM's own runs as if nothing were there. What is
used of the runners besides is what these methods use themselves.

    V1    `_get_prompt_logprobs_dict(hidden_states, num_scheduled_tokens)` of the runner
    V2    `compute_prompt_logprobs(logits_fn, hidden_states, input_batch, …)` of its
          `prompt_logprobs_worker`, whose `add_request` says what is asked of a request
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from logitstore.capture.passes.vllm.summaries import Asked, LogitsOf, Span

#: Takes a step: what computes logits, hidden states, and the prompts' parts among them.
Take = Callable[[LogitsOf, Tensor, Sequence[Span]], None]

_V1 = ("hidden_states", "num_scheduled_tokens")
_V2 = ("logits_fn", "hidden_states", "input_batch")
_V2_ADD = ("req_id", "req_idx", "sampling_params")


def hook(runner: Any, take: Take) -> str:
    """Wrap a model runner's method, so that `take` sees every step.

    Returns:
        Nothing; or why this runner cannot be hooked.
    """
    if hasattr(runner, "prompt_logprobs_worker"):
        worker = runner.prompt_logprobs_worker
        return "" if worker is None else _hook_v2(worker, take)  # None: not the last stage
    if hasattr(runner, "_get_prompt_logprobs_dict"):
        return _hook_v1(runner, take)
    return f"{type(runner).__name__} computes no log-probabilities of prompts"


def _hook_v1(runner: Any, take: Take) -> str:
    own = runner._get_prompt_logprobs_dict
    lacks = [n for n in ("requests", "input_batch", "query_start_loc") if not hasattr(runner, n)]
    if why := _differs(own, _V1) or ", ".join(lacks):
        return why

    def hooked(hidden_states: Tensor, num_scheduled_tokens: Mapping[str, int]) -> Any:
        spans = []
        for name, count in num_scheduled_tokens.items():
            request = runner.requests[name]
            asked = Asked.of(request.sampling_params)
            if asked is not None:
                row = runner.input_batch.req_id_to_index[name]
                offset = int(runner.query_start_loc.np[row])
                spans.append(Span(asked, int(request.num_computed_tokens), int(count), offset))
        take(runner.model.compute_logits, hidden_states, spans)
        return own(hidden_states, num_scheduled_tokens)

    runner._get_prompt_logprobs_dict = hooked
    return ""


def _hook_v2(worker: Any, take: Take) -> str:
    own, add, remove = (
        getattr(worker, name, None)
        for name in ("compute_prompt_logprobs", "add_request", "remove_request")
    )
    if why := _differs(own, _V2) or _differs(add, _V2_ADD) or _differs(remove, _V2_ADD[:1]):
        return why
    assert own is not None
    assert add is not None
    assert remove is not None
    asked: dict[str, Asked] = {}

    def add_request(req_id: str, req_idx: int, sampling_params: Any) -> None:
        if (found := Asked.of(sampling_params)) is not None:
            asked[req_id] = found
        add(req_id, req_idx, sampling_params)

    def remove_request(req_id: str) -> None:
        asked.pop(req_id, None)
        remove(req_id)

    def hooked(logits_fn: LogitsOf, hidden_states: Tensor, input_batch: Any, *more: Any) -> Any:
        spans = [
            Span(
                asked[name],
                int(input_batch.num_computed_prefill_tokens_np[i]),
                int(input_batch.num_scheduled_tokens[i]),
                int(input_batch.query_start_loc_np[i]),
            )
            for i, name in enumerate(input_batch.req_ids)
            if name in asked
        ]
        take(logits_fn, hidden_states, spans)
        return own(logits_fn, hidden_states, input_batch, *more)

    worker.add_request, worker.remove_request = add_request, remove_request
    worker.compute_prompt_logprobs = hooked
    return ""


def _differs(method: Any, expected: Sequence[str]) -> str:
    """Say how a method's first arguments differ from those known here; nothing if they do not."""
    if method is None:
        return f"there is no method with ({', '.join(expected)})"
    found = tuple(inspect.signature(method).parameters)
    if found[: len(expected)] == tuple(expected):
        return ""
    return f"{method.__name__} takes ({', '.join(found)}), not ({', '.join(expected)})"
