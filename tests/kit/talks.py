"""Models of every family, and stores of conversations and tokens that they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitstore
from distill.data.dataset import StoreDataset
from distill.training.config import CachedTeacherConfig
from distill.training.trainer import CachedTeacherTrainer
from logitstore.store import LogitStore
from logitstore.testing import tiny
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.templates import FAMILIES, turns

TALKS = [
    turns("Hi!", "The teacher reads."),
    turns("Hi!", "Hello, 12 of 345.", "And?", "Nothing.", "Why?", "It is so, the old river."),
    turns("Hi!", "", "And?", "Well."),
    turns("Hi!", "Hello.", "And?", ""),
    turns("🙂?", "Größe 👩‍👩‍👧‍👦 e\u0301", "東京は", "今日も雨です。"),
]


def save_families(folder: Path) -> dict[str, Path]:
    """A tiny model of every family."""
    made = {}
    for seed, (name, make) in enumerate(FAMILIES.items()):
        tokenizer = make()
        made[name] = tiny.save(folder / name, tiny.llama(len(tokenizer), seed=seed), tokenizer)
    return made


def capture(teacher: Path, rows: Any, out: Path, **settings: Any) -> LogitStore:
    if isinstance(rows, list):
        rows = datasets.Dataset.from_list(rows)
    return logitstore.capture(teacher, rows, out, **({"top_k": 8} | settings))


def trainer_of(folder: Path, store: LogitStore, out: Path, **settings: Any) -> Any:
    settings = {"loss": "uld:1,mapped_kl:1", "max_steps": 2, "logging_steps": 1} | settings
    args = CachedTeacherConfig(
        output_dir=str(out),
        store="given",
        eval_store="given",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **settings,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return CachedTeacherTrainer(model, args, store, store, processing_class=tokenizer)


def dataset_of(folder: Path, store: LogitStore, **settings: Any) -> StoreDataset:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reader = ByteTokenizer(tokenizer)
    template = None
    if store.spec.rendering["kind"] == "conversation":
        template = ChatTemplate.of(tokenizer, reader)
    return StoreDataset(store, reader, ("uld", "mapped_kl"), template=template, **settings)
