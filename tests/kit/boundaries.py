"""Stores with records at a student's boundaries, and what their records must hold.

A record is compared with one plain forward pass a boundary: the teacher's tokens that end before
it, then its tokens of the bytes in between.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

import logitstore
from logitstore.capture.sequences.questions import Branch, Questions
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.records import SequenceText
from logitstore.store import LogitStore
from logitstore.text.tokenized_text import TokenizedText
from tests.kit.families import V

SETTINGS: dict[str, Any] = {"top_k": 8, "shard_text_bytes": 700}
CODE = 0.02  # nats: what a stored log-probability may be off by


def run(teacher: Path, place: Path, out: Path, **settings: Any) -> LogitStore:
    given = SETTINGS | {"boundaries_of": str(place / "unigram")} | settings
    data = given.pop("data", place / "rows.jsonl")
    return logitstore.capture(teacher, str(data), out, **given)


def inside(store: LogitStore) -> LogitStore:
    (found,) = store.boundaries.values()
    return found


def plain(model: Any, ids: list[int]) -> torch.Tensor:
    """The log-probabilities behind some tokens, by a forward pass of their own."""
    with torch.inference_mode():
        row = model(input_ids=torch.tensor([ids])).logits[0, -1]
    logprobs: torch.Tensor = row.float().log_softmax(-1)
    return logprobs


def sequence(length: int, seed: int) -> TeacherSequence:
    """A row of random tokens, with twice as many random branches."""
    random = np.random.default_rng(seed)
    zeros = np.zeros(length, np.int64)
    text = TokenizedText(
        random.integers(1, V, length),
        np.arange(length) > 0,
        **dict.fromkeys(("byte_starts", "byte_lengths", "text_starts", "text_ends"), zeros),
        **dict.fromkeys(("heads", "tails"), zeros),
        **dict.fromkeys(("is_eos", "has_added_space"), zeros.astype(bool)),
        is_verbatim=zeros == 0,
        status="ok",
    )
    branches = tuple(
        Branch(int(c), tuple(int(i) for i in random.integers(1, V, int(random.integers(1, 5)))))
        for c in np.sort(random.integers(0, length, 2 * length))
    )
    n = len(branches)
    targets = random.integers(1, V, n)
    no = np.zeros(n, np.int64)
    questions = Questions(None, n, no, no, targets, no - 1, branches)
    return TeacherSequence(SequenceText(seed, 0, "ok", ()), text, questions=questions)
