"""TRL's ULDLoss on two live models, against ours from a store of one of them.

TRL merges groups of tokens as we do when it is told to (`bayesian`), sorts both full vocabularies,
and takes a mean over each row. With everything stored, ours must be the same number.
"""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.data.collator import Collator
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, Row
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import trainer_of

#: No token crosses from the prompt: TRL pairs one that does with what has read less.
ROWS: list[Row] = [
    (Segment("Say it:", supervised=False), Segment(f" {text}", supervised=True))
    for text in ("the answer is forty", "naïve café, 🙂 ok", "x", *tiny.corpus()[38:41])
]


@pytest.fixture
def uld_loss(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that is only asked here
        return pytest.importorskip("trl.experimental.gold.gold_trainer").ULDLoss


def settings(by_groups: bool) -> SimpleNamespace:
    return SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=not by_groups,
        uld_skip_teacher_eos=False,
        use_extended_uld=by_groups,
        uld_token_merge_strategy="bayesian",
    )


def side(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: Row
) -> tuple[torch.Tensor, ...]:
    """Logits, labels, ids and byte offsets of one row, as TRL wants them."""
    tokens = ByteTokenizer(tokenizer).encode(row)
    ids = torch.from_numpy(tokens.token_ids)[None]
    labels = ids.masked_fill(~torch.from_numpy(tokens.has_record)[None], -100)
    ends = tokens.byte_starts + tokens.byte_lengths
    offsets = torch.from_numpy(np.stack([tokens.byte_starts, ends], 1))[None]
    return model(ids).logits, labels, ids, offsets


@pytest.mark.parametrize("by_groups", [False, True])
def test_ours_from_a_store_is_trls_from_two_live_models(
    tmp_path: Path, by_groups: bool, uld_loss: Any
) -> None:
    theirs, ours = tiny.unigram(), tiny.byte_bpe()
    teacher, student = tiny.llama(len(theirs), seed=7), tiny.llama(len(ours))
    store = FakeStore.from_teacher(teacher, theirs, ROWS, tmp_path / "t", top_k=len(theirs))
    pairing = "bytes" if by_groups else "position"
    how = {"loss": "uld:1", "pairing": pairing, "uncovered": "none"}  # which they know no other way
    trainer = trainer_of(student, store, tmp_path, **how)
    oracle = uld_loss(settings(by_groups))
    for i, row in enumerate(ROWS):
        s_logits, s_labels, s_ids, s_offsets = side(student, ours, row)
        with torch.no_grad():
            t_logits, t_labels, t_ids, t_offsets = side(teacher, theirs, row)
        want = oracle(
            s_logits, t_logits, s_labels, t_labels, s_ids, t_ids, s_offsets, t_offsets
        ).squeeze()
        (want_grad,) = torch.autograd.grad(want, student.lm_head.weight)
        batch = Collator(0, ["uld"])([trainer.data[i]])
        _, terms = trainer.compute_loss(student, batch, return_outputs=True)
        got = terms["uld"].values_P.mean()
        (grad,) = torch.autograd.grad(got, student.lm_head.weight)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grad, want_grad, rtol=1e-2, atol=1e-5)
