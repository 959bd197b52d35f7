"""Short training runs on a store in memory, and the rows that most tests of them use."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from distill.training.config import CachedTeacherConfig
from distill.training.trainer import CachedTeacherTrainer
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, Row
from logitstore.text.tokenizer import ByteTokenizer

LOSSES = "uld:1.5,mapped_kl:2"


def ragged_rows() -> list[Row]:
    """Eight rows, from 1 to 70 tokens, some with a prompt."""
    texts = tiny.corpus()
    rows: list[Row] = [
        (Segment(text[: 5 + 9 * i], supervised=True),) for i, text in enumerate(texts[38:44])
    ]
    rows.append((Segment("A prompt: ", supervised=False), Segment("yes", supervised=True)))
    rows.append((Segment("Another? ", supervised=False), Segment("no, 🙂 no", supervised=True)))
    return rows


def rows_with_a_stranger() -> list[Row]:
    """Those rows, but that the student has tokens of several bytes in row 3."""
    rows = ragged_rows()
    rows[3] = (Segment(tiny.corpus()[0][:40], supervised=True),)
    return rows


def estranged(store: FakeStore) -> FakeStore:
    """Place all records of row 3 inside one token of the student, so that nothing is aligned."""
    own, row = store.records[3], rows_with_a_stranger()[3]
    starts = set(ByteTokenizer(tiny.byte_bpe()).encode(row).byte_starts.tolist())
    inside = next(byte for byte in range(max(starts)) if byte not in starts)
    store.records[3] = replace(
        own,
        token_ids=np.full_like(own.token_ids, 5),  # no end of text
        byte_starts=np.full_like(own.byte_starts, inside),
        byte_lengths=np.zeros_like(own.byte_lengths),
    )
    return store


def t5(seed: int = 0) -> PreTrainedModel:
    """An encoder-decoder of T5's kind for the byte BPE, its weights far from uniform."""
    config = T5Config(
        vocab_size=300,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        initializer_factor=0.5,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(config).eval()


def bloom() -> PreTrainedModel:
    """A decoder that counts positions by the mask, so that packed sequences would meet in it."""
    config = BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BloomForCausalLM(config)


def settings(out: Path, **more: Any) -> CachedTeacherConfig:
    return CachedTeacherConfig(
        **{
            "output_dir": str(out),
            "store": "fake-store",
            "loss": LOSSES,
            "per_device_train_batch_size": 8,
            "max_steps": 3,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "optim": "sgd",
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "max_grad_norm": 0.0,
            "use_cpu": True,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        | more
    )


def trainer_of(
    model: PreTrainedModel,
    store: Any,
    out: Path,
    cls: type[CachedTeacherTrainer] = CachedTeacherTrainer,
    **more: Any,
) -> CachedTeacherTrainer:
    callbacks = more.pop("callbacks", None)
    eval_store = more.pop("eval_store", None)
    if "named" in more:  # several stores, with their weights
        more["store"] = more.pop("named")
    return cls(
        model,
        settings(out, **more),
        store,
        eval_store,
        processing_class=tiny.byte_bpe(),
        callbacks=callbacks,
    )


def logged(trainer: CachedTeacherTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]
