"""Write a tiny Llama as a GGUF file, as llama.cpp's converter does."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize


def write(path: Path, model: Any, tokenizer: Any = None, *, quantised: bool = False) -> Path:
    """Write a model, and a byte-level BPE tokenizer if one is given.

    Args:
        path: The file.
        model: A `LlamaForCausalLM`.
        tokenizer: A fast tokenizer; None: the file has none.
        quantised: Whether matrices are in blocks of 8 bits (Q8_0); else all is in float32.
    """
    config, to = model.config, gguf.GGUFWriter(str(path), "llama")
    to.add_block_count(config.num_hidden_layers)
    to.add_context_length(config.max_position_embeddings)
    to.add_embedding_length(config.hidden_size)
    to.add_feed_forward_length(config.intermediate_size)
    to.add_head_count(config.num_attention_heads)
    to.add_head_count_kv(config.num_key_value_heads)
    to.add_layer_norm_rms_eps(config.rms_norm_eps)
    to.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    to.add_rope_freq_base(config.rope_parameters["rope_theta"])
    to.add_vocab_size(config.vocab_size)
    if tokenizer is not None:
        _add_tokenizer(to, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        for part, count in heads.items():
            values = _permuted(values, count) if f"{part}.weight" in name else values
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        values = np.ascontiguousarray(values)
        if quantised and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            to.add_tensor(called, quantize(values, kind), raw_dtype=kind)
        else:
            to.add_tensor(called, values)
    to.write_header_to_file()
    to.write_kv_data_to_file()
    to.write_tensors_to_file()
    to.close()
    return path


def _permuted(values: Any, heads: int) -> Any:
    """Order the rows of a projection as llama.cpp rotates them: halves interleaved."""
    rows = values.shape[0]
    halves = values.reshape(heads, 2, rows // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(values.shape)


def _add_tokenizer(to: Any, tokenizer: Any) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    special = {t["content"] for t in content["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    to.add_tokenizer_model("gpt2")
    to.add_token_list(tokens)
    to.add_token_types([3 if token in special else 1 for token in tokens])
    to.add_token_merges(merges)
    to.add_add_bos_token(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)
    to.add_bos_token_id(tokenizer.bos_token_id)
    to.add_eos_token_id(tokenizer.eos_token_id)
