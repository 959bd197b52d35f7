"""Tiny mixtures of experts, of every kind whose routers are known."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from logitstore.testing import tiny

#: Experts of each layer.
N = 4
SIZES = {
    "vocab_size": len(tiny.byte_bpe()),
    "hidden_size": 16,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "initializer_range": 0.5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
CONFIGS = {
    "mixtral": (MixtralConfig, {"num_local_experts": N}),
    "qwen2_moe": (Qwen2MoeConfig, {"num_experts": N}),
    "qwen2_moe, made to sum to one": (Qwen2MoeConfig, {"num_experts": N, "norm_topk_prob": True}),
    "qwen3_moe": (Qwen3MoeConfig, {"num_experts": N, "norm_topk_prob": True}),
    "olmoe": (OlmoeConfig, {"num_experts": N}),
}


def mixture(kind: str, **more: Any) -> PreTrainedModel:
    """A tiny mixture of experts whose gates are far from uniform."""
    made, own = CONFIGS[kind]
    config = made(**{**SIZES, **own, **more})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(config).eval()
