"""The loss from a store is the loss from the live teacher, within what the store certifies."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from distill.data.collator import Collator
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, Row, dense_logprobs
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import ragged_rows, trainer_of


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny.llama(len(tiny.byte_bpe()))


def itself(tmp_path: Path, **how: Any) -> tuple[PreTrainedModel, FakeStore]:
    """A model, and a store of what it thinks itself."""
    tokenizer = tiny.byte_bpe()
    model = tiny.llama(len(tokenizer))
    return model, FakeStore.from_teacher(
        model, tokenizer, ragged_rows(), tmp_path / "tokenizer", **how
    )


@pytest.mark.parametrize("pairing", ["bytes", "position"])
@pytest.mark.parametrize("top_k", [1, 8, 300])
def test_a_student_that_is_its_own_teacher_has_no_loss(
    tmp_path: Path, top_k: int, pairing: str
) -> None:
    """The alignment test: off by one position, wrong mask, wrong vocabulary slice all show here."""
    model, store = itself(tmp_path, top_k=top_k)
    how = {
        "pairing": pairing,
        "uncovered": "scale",
    }  # of a label without a pair, the text is learnt
    trainer = trainer_of(model, store, tmp_path, eval_store=store, **how)
    metrics = trainer.evaluate()
    assert abs(metrics["eval_uld_loss"]) < 1e-5
    assert abs(metrics["eval_mapped_kl_loss"]) < 1e-5
    assert metrics["eval_covered_fraction"] == 1 or pairing == "position"


def test_a_student_that_is_its_own_teacher_stays_within_the_codecs_bound(tmp_path: Path) -> None:
    model, store = itself(tmp_path, rounded=True)
    metrics = trainer_of(model, store, tmp_path, eval_store=store, loss="uld:1").evaluate()
    assert 0 < metrics["eval_uld_loss"] < store.fidelity.l1_max


@pytest.mark.parametrize("pairing", ["bytes", "position"])
def test_records_shifted_by_one_are_seen(tmp_path: Path, pairing: str) -> None:
    model, store = itself(tmp_path, shifted=True)
    how = {"pairing": pairing, "uncovered": "scale"}
    metrics = trainer_of(model, store, tmp_path, eval_store=store, **how).evaluate()
    assert metrics["eval_uld_loss"] > 0.05  # unshifted: less than a thousandth of it
    assert metrics["eval_mapped_kl_loss"] > 0.05


def live_uld_by_bytes(
    student: PreTrainedModel, teacher: PreTrainedModel, rows: list[Row]
) -> tuple[list[float], list[float], int]:
    """ULD over groups from two live models, full vocabularies, in plain loops.

    Then the cross-entropy of each label that is in no group, and the number of all labels.
    """
    values, surprises, labels = [], [], 0
    sides = [(student, ByteTokenizer(tiny.byte_bpe())), (teacher, ByteTokenizer(tiny.unigram()))]
    for segments in rows:
        runs = []
        for model, reader in sides:
            tokens = reader.encode(segments)
            logprobs = dense_logprobs(model, tokens.token_ids)
            places = np.flatnonzero(tokens.has_record)
            width = np.where(tokens.is_eos, 1, tokens.byte_lengths)[places]
            start = tokens.byte_starts[places]
            runs.append((logprobs, tokens.token_ids, places, start, start + width))
        edges = [set(start) | set(end) for *_, start, end in runs]
        cuts, grouped = sorted(edges[0] & edges[1]), set()
        for left, right in pairwise(cuts):
            merged, members = [], []
            for logprobs, ids, places, start, end in runs:
                inside = [j for j in range(len(places)) if left <= start[j] and end[j] <= right]
                if sum(end[j] - start[j] for j in inside) != right - left:
                    break
                members.append(inside)
                scale = sum(float(logprobs[places[j] - 1, ids[places[j]]]) for j in inside[:-1])
                merged.append(
                    (logprobs[places[inside[-1]] - 1] + scale).exp().sort(descending=True)[0]
                )
            if len(merged) == 2:
                size = max(map(len, merged))
                p, q = (torch.nn.functional.pad(m, (0, size - len(m))) for m in merged)
                values.append(float((p - q).abs().sum()))
                grouped |= set(members[0])
        logprobs, ids, places, _, _ = runs[0]
        labels += len(places)
        alone = [places[j] for j in range(len(places)) if j not in grouped]
        surprises += [-float(logprobs[place - 1, ids[place]]) for place in alone]
    return values, surprises, labels


@pytest.mark.parametrize("uncovered", ["hard", "none", "scale"])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("top_k", [1, 4, 600])
def test_the_cached_loss_is_the_live_one_within_the_certified_gap(
    tmp_path: Path, model: PreTrainedModel, top_k: int, rounded: bool, uncovered: str
) -> None:
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    cached = FakeStore.from_teacher(
        teacher, tokenizer, ragged_rows(), tmp_path / "t", top_k=top_k, rounded=rounded
    )
    how = {"loss": "uld:2", "uncovered": uncovered}
    trainer = trainer_of(model, cached, tmp_path, eval_store=cached, **how)
    metrics = trainer.evaluate()
    live, surprises, labels = live_uld_by_bytes(model, teacher, ragged_rows())
    assert surprises
    total = sum(live) + (sum(surprises) if uncovered == "hard" else 0)
    mean = total / (len(live) if uncovered == "none" else labels)
    difference = abs(2 * mean - metrics["eval_kd_loss"])
    assert difference <= metrics["eval_kd_gap"] + 1e-5
    if top_k == 600 and not rounded:
        assert difference < 1e-5
        assert metrics["eval_kd_gap"] < 0.02  # only the half step of the groups' scales
    # And position by position, which is what the gap promises.
    batch = Collator(0, ["uld"])([trainer.data[i] for i in range(len(trainer.data))])
    with torch.no_grad():
        term = trainer.compute_loss(model, batch, return_outputs=True)[1]["uld"]
    assert metrics["eval_kd_gap"] == pytest.approx(2 * float(term.bound_P.mean()), rel=1e-5)
    assert len(term.values_P) == (len(live) if uncovered == "none" else labels)
    at_pairs = slice(None) if uncovered == "none" else batch["teacher"]["uld"]["index"].long()
    values_P, bound_P = term.values_P[at_pairs], term.bound_P[at_pairs]
    assert (torch.tensor(live) - values_P).abs().le(bound_P + 1e-5).all()


def test_the_cached_mapped_loss_is_the_live_one(tmp_path: Path) -> None:
    """Same tokenizer and all of the vocabulary: mapped KL is the KL of the two models."""
    tokenizer = tiny.byte_bpe()
    teacher, student = tiny.llama(len(tokenizer), seed=7), tiny.llama(len(tokenizer))
    cached = FakeStore.from_teacher(
        teacher, tokenizer, ragged_rows(), tmp_path / "t", top_k=len(tokenizer)
    )
    metrics = trainer_of(
        student, cached, tmp_path, eval_store=cached, loss="mapped_kl:1"
    ).evaluate()
    total, count = 0.0, 0
    for segments in ragged_rows():
        tokens = ByteTokenizer(tokenizer).encode(segments)
        rows = np.flatnonzero(tokens.has_record) - 1
        p, q = (
            dense_logprobs(student, tokens.token_ids)[rows],
            dense_logprobs(teacher, tokens.token_ids)[rows],
        )
        total, count = total + float((q.exp() * (q - p)).sum()), count + len(rows)
    assert metrics["eval_mapped_kl_loss"] == pytest.approx(total / count, rel=1e-3)


def test_cross_entropy_is_the_models_own(tmp_path: Path) -> None:
    model, store = itself(tmp_path)
    trainer = trainer_of(model, store, tmp_path, eval_store=store, loss="ce", ce_weight=0.5)
    batch = Collator(0)([trainer.data[i] for i in range(8)])
    with torch.no_grad():
        ids, labels = batch["input_ids"].long(), batch["labels"].long()
        own = model(ids, batch["attention_mask"], labels=labels).loss
    metrics = trainer.evaluate()
    assert metrics["eval_ce_loss"] == pytest.approx(float(own), rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(float(own) / 2, rel=1e-5)
    assert "eval_kd_loss" not in metrics
