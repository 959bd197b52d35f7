"""Make students of a teacher: some of its layers, its vocabulary or another one.

    pruned    every third layer, with the teacher's embedding (of the tokens that are kept)
    foreign   the same layers, with an embedding of another vocabulary: the vector of a token is the
              mean of the teacher's vectors of the pieces that the teacher cuts its text into

Neither can do much until it is healed; but it begins where nobody's random weights do. Embedding
and output embedding are one, as the teacher's are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from logitstore.text.tokenizer import ByteTokenizer


def student_of(
    teacher: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    embedding: Tensor,
    stride: int,
) -> LlamaForCausalLM:
    """Make a student of every `stride`-th layer of a teacher.

    Args:
        teacher: A Llama with tied embeddings.
        tokenizer: The student's.
        embedding: (V, D) the student's embedding.
        stride: 1 for all layers.
    """
    state, layers = teacher.state_dict(), range(0, teacher.config.num_hidden_layers, stride)
    kept = {"model.norm.weight": state["model.norm.weight"]}
    for new, old in enumerate(layers):
        prefix = f"model.layers.{old}."
        for name, weights in state.items():
            if name.startswith(prefix):
                kept[f"model.layers.{new}.{name.removeprefix(prefix)}"] = weights
    student = LlamaForCausalLM(config_of(teacher.config, tokenizer, len(embedding), len(layers)))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        kept[name] = embedding
    student.load_state_dict(kept)
    student.tie_weights()  # type: ignore[no-untyped-call]
    return student


def config_of(
    teacher: Any, tokenizer: PreTrainedTokenizerBase, size: int, layers: int
) -> LlamaConfig:
    """Make the configuration of a student with as wide layers as its teacher."""
    own = {
        "vocab_size": size,
        "num_hidden_layers": layers,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**teacher.to_dict(), **own})


def embedding_for(
    teacher: LlamaForCausalLM, whole: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> Tensor:
    """Return (V, D) an embedding of the student's vocabulary in the teacher's space.

    A token that the teacher has under the same name, in a tokenizer cut down from the teacher's,
    keeps its vector exactly.

    Args:
        teacher: Whose embedding it is.
        whole: The teacher's tokenizer.
        student: The student's tokenizer.
    """
    weights = teacher.get_input_embeddings().weight.detach().float()
    pieces = pieces_of(whole, student)
    mean = weights.mean(0)
    return torch.stack([weights[ids].mean(0) if len(ids) else mean for ids in pieces])


def pieces_of(whole: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> list[list[int]]:
    """List the teacher's pieces of each of the student's tokens; none for one without text."""
    theirs, ours = ByteTokenizer(whole), ByteTokenizer(student)
    of_bytes = {text: i for i, text in enumerate(theirs.token_bytes) if text}
    end = theirs.eos_token_id
    found: list[list[int]] = []
    for i, text in enumerate(ours.token_bytes):
        if text is None or not text:
            is_end = i == ours.eos_token_id and end is not None
            found.append([int(end)] if is_end and end is not None else [])
        else:
            found.append(_cut(text, whole, of_bytes))
    return found


def _cut(text: bytes, whole: PreTrainedTokenizerBase, of_bytes: dict[bytes, int]) -> list[int]:
    """Cut the bytes of a token as the teacher would; bytes that are no text one by one."""
    if text in of_bytes:
        return [of_bytes[text]]
    try:
        return list(whole(text.decode(), add_special_tokens=False)["input_ids"])
    except UnicodeDecodeError:
        return [of_bytes[bytes([b])] for b in text if bytes([b]) in of_bytes]


def same_tokens(whole: PreTrainedTokenizerBase, trimmed: PreTrainedTokenizerBase) -> Sequence[int]:
    """List the whole tokenizer's ids of a trimmed one's tokens, in the order of the new ids."""
    old, new = whole.get_vocab(), trimmed.get_vocab()
    ids = np.full(max(new.values()) + 1, -1, np.int64)
    for token, i in new.items():
        ids[i] = old[token]
    assert (ids >= 0).all(), "the trimmed tokenizer has an id without a token"
    return [int(i) for i in ids]
