"""Tiny models of each family that does something of its own after the output embedding."""

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

V = 97

SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
#: What each family does after its output embedding, with values that matter at this size.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SHAPE),
    "llama tied": ("Llama", SHAPE | {"tie_word_embeddings": True}),
    "gpt2": (
        "GPT2",
        {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5},
    ),
    "gemma2 soft cap": (
        "Gemma2",
        SHAPE | {"head_dim": 8, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    ),
    "cohere scale": ("Cohere", SHAPE | {"logit_scale": 0.25}),
    "granite divisor": ("Granite", SHAPE | {"logits_scaling": 3.0}),
    "opt": (
        "OPT",
        {
            "vocab_size": V,
            "hidden_size": 16,
            "word_embed_proj_dim": 8,
            "ffn_dim": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "init_std": 0.5,
        },
    ),
    "bart bias": (
        "Bart",
        {
            "vocab_size": V,
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "init_std": 0.5,
        },
    ),
}


def build(family: str) -> PreTrainedModel:
    name, settings = FAMILIES[family]
    config: PretrainedConfig = getattr(transformers, f"{name}Config")(**settings)
    head = "ForConditionalGeneration" if name == "Bart" else "ForCausalLM"
    head = "LMHeadModel" if name == "GPT2" else head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, name + head)(config).eval()
        if name == "Bart":
            bias: Tensor = model.final_logits_bias  # type: ignore[assignment]
            bias.normal_()
    return model
