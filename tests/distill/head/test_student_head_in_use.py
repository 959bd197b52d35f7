"""The student's head in memory and precision, inside wrappers, and on models nobody knows."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from distill.head import scaled_rows
from distill.head.query import HeadQuery, Lookup, Partition
from distill.head.student_head import StudentHead
from logitstore.errors import InputError
from logitstore.testing import tiny
from tests.kit.asking import (
    B,
    Question,
    T,
    assert_close,
    definition,
    fields,
    gradients,
    question,
    some_loss,
)
from tests.kit.families import SHAPE, V, build


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of so few tokens would all be one block."""
    monkeypatch.setattr(scaled_rows, "BLOCK_LOGITS", 2 * V)


@contextmanager
def largest_tensor() -> Iterator[list[int]]:
    """The element count of the largest tensor that any operation makes, backward included."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = func(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(made):
                if isinstance(x, Tensor):
                    seen[0] = max(seen[0], x.numel())
            return made

    seen = [0]
    with Watch():
        yield seen


def test_no_tensor_of_all_tokens_times_vocabulary_is_ever_made() -> None:
    """Forward, backward and the first call's check; the dense path shows that it would be seen."""
    width, chunk = 2048, 4
    model, (inputs, rows, query) = tiny.llama(width), question(width=width)
    weight = width * 32
    assert B * T * width > weight > chunk * (width + 1)
    for dense, expected in ((False, weight), (True, B * T * width)):
        head = StudentHead(model, chunk_tokens=chunk, dense=dense)
        with largest_tensor() as seen:
            some_loss(head(model, inputs, rows, query)).backward()
        assert seen[0] == expected


def saved_bytes(model: nn.Module, head: StudentHead, asked: Question) -> int:
    """Of the tensors kept for the backward pass, each storage once, weights not counted."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter) and x._base is None:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        some_loss(head(model, *asked))
    return sum(kept.values())


def test_what_is_kept_for_the_backward_pass_has_no_vocabulary_in_it() -> None:
    """Twice the vocabulary costs the dense path twice, and the chunks nothing."""
    costs = {
        (width, dense): saved_bytes(
            model := tiny.llama(width),
            StudentHead(model, chunk_tokens=4, dense=dense),
            question(width=1024),
        )
        for width in (1024, 4096)
        for dense in (False, True)
    }
    assert costs[4096, False] == costs[1024, False]
    assert costs[4096, True] > 2 * costs[1024, True]
    assert costs[4096, True] > 5 * costs[4096, False]


def test_events_cost_no_memory_of_tokens_times_vocabulary_either() -> None:
    """Half of the vocabulary is one event, which is listed at every position."""
    saved = {}
    for width in (1024, 2048):
        model, (inputs, rows, query) = tiny.llama(width), question(width=1024)
        of_V = torch.arange(width).clamp(min=width // 2) - width // 2
        ids = torch.arange(6).expand(len(rows), 6)
        lookups = {"events": Lookup(ids, partition=Partition(of_V, width // 2))}
        asked = Question(inputs, rows, HeadQuery(query.labels_N, lookups=lookups))
        head = StudentHead(model, chunk_tokens=4)
        saved[width] = saved_bytes(model, head, asked)
        with largest_tensor() as seen:
            some_loss(head(model, *asked)).backward()
        assert seen[0] == width * 32  # the weights' gradient
    assert saved[1024] == saved[2048]


def test_half_precision_logits_are_summed_in_float32() -> None:
    """The logits are the model's own, rounded to bfloat16; nothing after them is."""
    model, (inputs, rows, query) = build("llama").bfloat16(), question()
    query = replace(query, scaled_top_k=3)  # the fourth is tied, and either may be taken
    want = definition(model(**inputs).logits.flatten(0, -2), rows, query)
    want_grads = gradients(model, want)
    got = StudentHead(model, chunk_tokens=4)(model, inputs, rows, query)
    assert got.label_logprob_N.dtype == torch.float32
    assert_close(fields(got), fields(want), rtol=1e-5, atol=1e-5)
    for name, grad in gradients(model, got).items():  # the sums over chunks are bfloat16
        assert (grad - want_grads[name]).norm() <= 0.02 * want_grads[name].norm()


def test_autocast_reaches_the_chunks_and_their_recomputation() -> None:
    model, (inputs, rows, query) = build("llama"), question()
    grads = []
    for head in (StudentHead(model, dense=True), StudentHead(model, chunk_tokens=4)):
        with torch.autocast("cpu", torch.bfloat16):
            answer = head(model, inputs, rows, query)
        assert answer.label_logprob_N.dtype == torch.float32
        grads.append(gradients(model, answer))
    assert grads[0].keys() == grads[1].keys()
    for name, want in grads[0].items():
        assert (grads[1][name] - want).norm() <= 0.03 * want.norm(), name


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_works_with_gradient_checkpointing_of_the_model() -> None:
    model, (inputs, rows, query) = build("llama").double().train(), question()
    head = StudentHead(model, chunk_tokens=4)
    want = gradients(model, head(model, inputs, rows, query))
    model.gradient_checkpointing_enable()
    assert_close(gradients(model, head(model, inputs, rows, query)), want, rtol=1e-9, atol=1e-10)


def test_without_gradient_nothing_is_kept() -> None:
    model, (inputs, rows, query) = build("llama"), question()
    with torch.no_grad():
        answer = StudentHead(model, chunk_tokens=4)(model, inputs, rows, query)
    assert not any(value.requires_grad for value in fields(answer).values())


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.parametrize("settings", [{}, {"find_unused_parameters": True}])
@pytest.mark.parametrize("chunk_tokens", [4, 100])
def test_works_inside_distributed_data_parallel(
    settings: dict[str, bool], chunk_tokens: int
) -> None:
    """With unused parameters looked for: only what is in the output counts as used."""
    model, (inputs, rows, query) = build("llama tied"), question()
    want = StudentHead(model, dense=True)(model, inputs, rows, query)
    want_grads = gradients(model, want)
    wrapped = nn.parallel.DistributedDataParallel(model, **settings)  # type: ignore[arg-type]
    head = StudentHead(model, chunk_tokens=chunk_tokens)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"find_unused_parameters=True was specified")
            got = head(wrapped, inputs, rows, query)
        assert_close(fields(got), fields(want), rtol=1e-5, atol=1e-5)
        assert_close(gradients(model, got), want_grads, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.parametrize("family", ["llama", "llama tied"])
def test_works_where_weights_are_there_only_when_hooks_ask_for_them(family: str) -> None:
    """FSDP, even if it frees the head's weights between forward and backward."""
    model, (inputs, rows, query) = build(family), question()
    want = StudentHead(model, dense=True)(model, inputs, rows, query)
    want_grads = gradients(model, want)
    head = StudentHead(model, chunk_tokens=4)
    fully_shard(model, reshard_after_forward=True)
    for _ in range(2):
        got = head(model, inputs, rows, query)
        grads = {name: grad.full_tensor() for name, grad in gradients(model, got).items()}
        assert_close(fields(got), fields(want), rtol=1e-5, atol=1e-5)
        assert_close(grads, want_grads, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_works_with_adapters_of_peft(settings: dict[str, Any]) -> None:
    """On layers below a frozen head, on the head itself, and with a head that is trained whole."""
    model, (inputs, rows, query) = build("llama"), question()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
        adapted = peft.get_peft_model(model, config).eval()
    want = StudentHead(adapted, dense=True)(adapted, inputs, rows, query)
    want_grads = gradients(adapted, want)
    head = StudentHead(adapted, chunk_tokens=4)
    got = head(adapted, inputs, rows, query)
    assert not head.dense
    assert_close(fields(got), fields(want), rtol=1e-5, atol=1e-5)
    grads = gradients(adapted, got)
    assert grads.keys() == want_grads.keys()
    assert_close(grads, want_grads, rtol=1e-3, atol=1e-4)


class Doubling(transformers.LlamaForCausalLM):
    """A model that does with its logits what nobody here has heard of."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


class ByHand(transformers.LlamaForCausalLM):
    """A model that never calls its output embedding."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = self.model(*args, **kwargs).last_hidden_state
        return CausalLMOutput(logits=hidden @ self.lm_head.weight.T)


@pytest.mark.parametrize("unknown", [Doubling, ByHand])
def test_an_unknown_head_falls_back_to_the_models_own_logits_and_says_so_once(
    unknown: type[transformers.LlamaForCausalLM],
) -> None:
    model = unknown(transformers.LlamaConfig(**SHAPE)).eval()
    inputs, rows, query = question()
    want = definition(model(**inputs).logits.flatten(0, -2), rows, query)
    want_grads = gradients(model, want)
    head = StudentHead(model, chunk_tokens=4)
    with pytest.warns(UserWarning, match=rf"{unknown.__name__} .*own logits are used.*dense=True"):
        first = head(model, inputs, rows, query)
    assert head.dense
    for got in (first, head(model, inputs, rows, query)):
        assert_close(fields(got), fields(want), rtol=1e-5, atol=1e-5)
        assert_close(gradients(model, got), want_grads, rtol=1e-3, atol=1e-4)


def test_a_missing_correction_is_noticed() -> None:
    """The claim behind the check: without the config's scale, no first call passes."""
    model, (inputs, rows, query) = build("cohere scale"), question()
    model.config.logit_scale = None  # the model keeps its own copy
    with pytest.warns(UserWarning, match=r"CohereForCausalLM .*own logits are used"):
        got = StudentHead(model, chunk_tokens=4)(model, inputs, rows, query)
    want = definition(model(**inputs).logits.flatten(0, -2), rows, query)
    assert_close(fields(got), fields(want), rtol=1e-5, atol=1e-5)


def test_a_model_without_an_output_embedding_is_taken_as_it_is() -> None:
    model, (inputs, rows, query) = build("llama"), question()
    want = StudentHead(model)(model, inputs, rows, query)
    model.get_output_embeddings = lambda: None
    with pytest.warns(UserWarning, match=r"LlamaForCausalLM has no output embedding"):
        head = StudentHead(model)
    got = head(model, inputs, rows, query)
    assert_close(fields(got), fields(want), rtol=1e-5, atol=1e-5)


class Composite(PretrainedConfig):
    """As of models that also see or hear: the text model's settings lie one level down."""

    sub_configs: ClassVar = {"text_config": transformers.CohereConfig}

    def __init__(self, text_config: PretrainedConfig | None = None, **kwargs: Any) -> None:
        self.text_config = text_config or transformers.CohereConfig()
        super().__init__(**kwargs)


def test_settings_of_the_text_model_inside_a_larger_one_are_found() -> None:
    model, (inputs, rows, query) = build("cohere scale"), question()
    model.config = Composite(model.config, attn_implementation="eager")
    want = StudentHead(model, dense=True)(model, inputs, rows, query)
    got = StudentHead(model, chunk_tokens=4)(model, inputs, rows, query)
    assert_close(fields(got), fields(want), rtol=1e-5, atol=1e-5)


def test_data_parallel_is_refused_with_a_way_out() -> None:
    model, (inputs, rows, query) = build("llama"), question()
    with pytest.raises(InputError, match=r"DataParallel.*torchrun.*CUDA_VISIBLE_DEVICES"):
        StudentHead(model)(nn.DataParallel(model), inputs, rows, query)
