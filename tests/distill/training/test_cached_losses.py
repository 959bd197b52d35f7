"""Every other loss through the whole student side: what a store says against two live models."""

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill.alignment.align import align
from distill.data.collator import Collator
from distill.data.dataset import StoreDataset
from distill.data.targets import student_spans
from distill.losses.multilevel_ot import COLUMNS, multilevel_ot
from logitstore.errors import InputError, MismatchError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, dense_logprobs
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import logged, ragged_rows, trainer_of

EVERYTHING: dict[str, Any] = {"temperatures": (2.0, 0.5), "logit_std": True, "draws": 20}
WIDTH = len(tiny.byte_bpe())


def store_of(teacher: PreTrainedModel, folder: Path, **how: Any) -> FakeStore:
    """Of a teacher with the student's tokenizer, holding all that a store may hold."""
    return FakeStore.from_teacher(
        teacher, tiny.byte_bpe(), ragged_rows(), folder / "t", **{**EVERYTHING, **how}
    )


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    """It is only read."""
    return tiny.llama(WIDTH, seed=7)


@pytest.fixture(scope="module")
def kept(
    teacher: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., FakeStore]:
    """Make a store of that teacher once for all tests that ask for the same."""

    @cache
    def made(**how: Any) -> FakeStore:
        return store_of(teacher, tmp_path_factory.mktemp("kept"), **how)

    return made


@pytest.fixture
def student() -> PreTrainedModel:
    return tiny.llama(WIDTH)


def both(student: PreTrainedModel, teacher: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Of each row, float64 log-probabilities at the supervised tokens, (student's, teacher's)."""
    pairs = []
    for segments in ragged_rows():
        tokens = ByteTokenizer(tiny.byte_bpe()).encode(segments)
        at = np.flatnonzero(tokens.has_record) - 1
        ids = tokens.token_ids
        pairs.append((dense_logprobs(student, ids)[at], dense_logprobs(teacher, ids)[at]))
    return pairs


@pytest.fixture(scope="module")
def live(teacher: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Of a `student` that has not learnt."""
    return both(tiny.llama(WIDTH), teacher)


def kl(q: Tensor, p: Tensor) -> Tensor:
    return (q.exp() * (q - p)).sum(-1)


def mixed(q: Tensor, p: Tensor, share: float) -> Tensor:
    return (share * q.exp() + (1 - share) * p.exp()).log()


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": kl,
    "reverse": lambda q, p: kl(p, q),
    "jsd": lambda q, p: (kl(q, mixed(q, p, 0.5)) + kl(p, mixed(q, p, 0.5))) / 2,
    "skew": lambda q, p: kl(q, mixed(q, p, 0.1)),
}


@pytest.mark.parametrize(
    ("kind", "temperature", "rounded"),
    [
        (kind, temperature, (k + t) % 2 == 0)  # every two values together, once or more
        for k, kind in enumerate(DIVERGENCES)
        for t, temperature in enumerate((1.0, 2.0, 0.5))
    ],
)
def test_tail_kl_of_a_store_is_the_live_divergence(
    student: PreTrainedModel,
    live: list[tuple[Tensor, Tensor]],
    kept: Callable[..., FakeStore],
    tmp_path: Path,
    kind: str,
    temperature: float,
    rounded: bool,
) -> None:
    """All of the vocabulary stored: what is left is the codec's rounding (1/64 nats here)."""
    store = kept(top_k=WIDTH, rounded=rounded)
    flags = {"loss": "tail_kl:1", "tail_kl_kind": kind, "temperature": temperature}
    metrics = trainer_of(student, store, tmp_path, eval_store=store, **flags).evaluate()
    want = torch.cat(
        [
            DIVERGENCES[kind]((q / temperature).log_softmax(-1), (p / temperature).log_softmax(-1))
            for p, q in live
        ]
    )
    tolerance = 1 / 64 / temperature if rounded else 1e-4
    assert metrics["eval_tail_kl_loss"] == pytest.approx(float(want.mean()), rel=tolerance)
    assert metrics["eval_covered_fraction"] == 1


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("top_k", [1, 8])
def test_tail_kl_of_a_short_head_is_a_part_of_the_live_one(
    student: PreTrainedModel,
    live: list[tuple[Tensor, Tensor]],
    kept: Callable[..., FakeStore],
    tmp_path: Path,
    top_k: int,
    temperature: float,
) -> None:
    """Merging tokens into the tail lowers a divergence, and by no more than all of it."""
    store = kept(top_k=top_k)
    flags = {"loss": "tail_kl:1", "temperature": temperature, "uncovered": "none"}
    found = trainer_of(student, store, tmp_path, eval_store=store, **flags).evaluate()
    per_row = []
    for p, q in live:
        p, q = (p / temperature).log_softmax(-1), (q / temperature).log_softmax(-1)
        order = q.argsort(-1, descending=True)
        p, q = p.gather(1, order), q.gather(1, order)
        buckets = [
            torch.cat([x[:, :top_k], x[:, top_k:].logsumexp(-1, keepdim=True)], 1) for x in (p, q)
        ]
        per_row.append(kl(buckets[1], buckets[0]))
    want = float(torch.cat(per_row).mean())
    assert found["eval_tail_kl_loss"] == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("loss", ["tail_kl", "mapped_kl", "alm", "sampled_kl"])
@pytest.mark.parametrize("top_k", [1, 8, WIDTH])
def test_a_student_that_is_its_own_teacher(
    student: PreTrainedModel, tmp_path: Path, top_k: int, loss: str
) -> None:
    """Zero, but for sampled_kl: there the mean over draws of the gradient is, not the value."""
    store = store_of(student, tmp_path, top_k=top_k)
    flags: dict[str, Any] = {"uncovered": "none"}  # what is left open of a label is the text's
    flags |= {"alm_temperature": math.inf} if loss == "alm" else {}
    trainer = trainer_of(student, store, tmp_path, eval_store=store, loss=f"{loss}:1", **flags)
    found = trainer.evaluate()[f"eval_{loss}_loss"]
    if loss == "sampled_kl" and top_k < WIDTH:
        assert found > 0.01
    else:
        assert abs(found) < 1e-5
    shifted = store_of(student, tmp_path, top_k=top_k, shifted=True)
    off_by_one = trainer_of(
        student, shifted, tmp_path, eval_store=shifted, loss=f"{loss}:1", **flags
    )
    assert off_by_one.evaluate()[f"eval_{loss}_loss"] > found + 1e-3


def test_sampled_kl_of_a_store_is_the_live_one_on_average(
    student: PreTrainedModel, teacher: PreTrainedModel, tmp_path: Path
) -> None:
    """With the entropy that the draws do not show taken off: q is known on average, H(q) is not."""
    store = store_of(teacher, tmp_path, top_k=4, draws=255)
    trainer = trainer_of(student, store, tmp_path, eval_store=store, loss="sampled_kl:1")
    shown = 0.0
    for records in store.records:
        tail = np.exp(records.tail_logmass.astype(np.float64))
        entries = records.padded().logprobs
        shown += -(np.exp(entries) * entries).sum()
        assert records.draw_count is not None
        assert records.sample_counts is not None
        owner = np.repeat(np.arange(len(records)), records.draw_count)
        worth = tail[owner] * records.sample_counts / 255
        shown += -(worth * np.log(worth)).sum()
    count = sum(map(len, store.records))
    value = trainer.evaluate()["eval_sampled_kl_loss"]
    cross_entropy = float(
        torch.cat([-(q.exp() * p).sum(-1) for p, q in both(student, teacher)]).mean()
    )
    assert value + shown / count == pytest.approx(cross_entropy, rel=5e-3)


@pytest.mark.parametrize("uncovered", ["hard", "none"])
def test_alm_of_a_store_is_the_live_one(
    student: PreTrainedModel, tmp_path: Path, uncovered: str
) -> None:
    """Across tokenizers, group by group, in plain loops."""
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    store = FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), tmp_path / "t", has_ids=False)
    how = {"loss": "alm:1", "uncovered": uncovered}
    found = trainer_of(student, store, tmp_path, eval_store=store, **how).evaluate()
    values, surprises, labels = [], [], 0
    for segments in ragged_rows():
        spans, own = [], []
        for model, reader in ((teacher, tokenizer), (student, tiny.byte_bpe())):
            tokens = ByteTokenizer(reader).encode(segments)
            at = np.flatnonzero(tokens.has_record)
            spans.append(student_spans(tokens))
            own.append(
                dense_logprobs(model, tokens.token_ids)[at - 1, tokens.token_ids[at]].numpy()
            )
        alone = np.ones(len(own[1]), bool)
        for a0, a1, b0, b1 in align(*spans).groups.tolist():
            a, b = own[0][a0:a1].sum() / 100, own[1][b0:b1].sum() / 100
            values.append(-(math.exp(a) * b + (1 - math.exp(a)) * math.log(1 - math.exp(b))))
            alone[b0:b1] = False
        surprises += (-own[1][alone]).tolist()
        labels += len(alone)
    assert surprises
    want = np.mean(values) if uncovered == "none" else sum(values + surprises) / labels
    assert found["eval_alm_loss"] == pytest.approx(float(want), rel=1e-4)


@pytest.mark.parametrize("uncovered", ["hard", "none"])
def test_multilevel_ot_of_a_store_is_the_live_one(
    student: PreTrainedModel, tmp_path: Path, uncovered: str
) -> None:
    """Two tokenizers; each side's columns from all of its tokens, pairs without the last EOS.

    As a mean over labels, a sequence counts as often as it has pairs.
    """
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    store = FakeStore.from_teacher(
        teacher,
        tokenizer,
        ragged_rows(),
        tmp_path / "t",
        top_k=len(tokenizer),
        logit_std=True,
    )
    how = {"loss": "multilevel_ot", "uncovered": uncovered}
    trainer = trainer_of(student, store, tmp_path, eval_store=store, **how)
    found = trainer.evaluate()["eval_multilevel_ot_loss"]
    values, lengths, surprises = [], [], []
    for segments in ragged_rows():
        sides = []
        for model, reader in ((student, tiny.byte_bpe()), (teacher, tokenizer)):
            tokens = ByteTokenizer(reader).encode(segments)
            at = np.flatnonzero(tokens.has_record)
            with torch.no_grad():
                logits = model(torch.from_numpy(tokens.token_ids)[None]).logits[0, at - 1].double()
            scaled = (logits / (logits.std(-1, keepdim=True) + 1e-4)).log_softmax(-1)
            columns = scaled.exp().sum(0).argsort(descending=True)[:COLUMNS]
            sides.append(scaled[:, columns])
            own = logits.log_softmax(-1)[torch.arange(len(at)), tokens.token_ids[at]]
            if reader is not tokenizer:
                surprises.append(-own)
        # The k-th with the k-th: without a prompt, the student has no record of its first token
        # (no BOS), and the teacher (BOS) has. The student's EOS is skipped.
        prompted = any(not segment.supervised for segment in segments)
        q = sides[1] if prompted else sides[1][1:]
        length = min(len(sides[0]) - 1, len(q))
        surprises[-1] = surprises[-1][max(length, 0) :]
        if length > 0:
            values.append(multilevel_ot(sides[0][:length], q[:length], [length]))
            lengths.append(length)
    of_sequences, left = torch.cat(values), torch.cat(surprises)
    assert len(left) > 0
    count = sum(lengths) + len(left)
    as_labels = ((of_sequences * torch.tensor(lengths)).sum() + left.sum()) / count
    want = of_sequences.mean() if uncovered == "none" else as_labels
    assert found == pytest.approx(float(want), rel=1e-4)


FLAGS: dict[str, dict[str, Any]] = {
    "tail_kl": {},
    "tail_kl jsd": {"tail_kl_kind": "jsd"},
    "tail_kl reverse": {"tail_kl_kind": "reverse"},
    "tail_kl skew": {"tail_kl_kind": "skew"},
    "mapped_kl": {},
    "sampled_kl": {},
    "uld": {},
    "alm": {"alm_temperature": math.inf},
}


@pytest.mark.parametrize("case", FLAGS)
def test_each_loss_overfits_a_student_to_its_teacher(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    kept: Callable[..., FakeStore],
    tmp_path: Path,
    case: str,
) -> None:
    """Without cross-entropy: what is learnt is the teacher."""
    name = case.split()[0]
    store = kept(top_k=16, draws=100)
    trainer = trainer_of(
        student,
        store,
        tmp_path,
        eval_store=store,
        loss=f"{name}:1",
        ce_weight=0.0,
        uncovered="none",  # nor with the text where the entries say nothing of it
        max_steps=30,
        optim="adamw_torch",
        learning_rate=2e-2,
        **FLAGS[case],
    )
    before = trainer.evaluate()[f"eval_{name}_loss"]
    live_before = float(torch.cat([kl(q, p) for p, q in both(student, teacher)]).mean())
    trainer.train()
    after = trainer.evaluate()[f"eval_{name}_loss"]
    live_after = float(torch.cat([kl(q, p) for p, q in both(student, teacher)]).mean())
    assert after < 0.6 * before
    if name not in ("uld", "alm"):  # which see neither which token nor all tokens
        assert live_after < 0.6 * live_before


def test_several_losses_at_once_are_the_sum_of_each_alone(
    student: PreTrainedModel, teacher: PreTrainedModel, tmp_path: Path
) -> None:
    """Each with its own ids, temperature and count."""
    store = store_of(teacher, tmp_path)
    weights = {
        "tail_kl": 2.0,
        "alm": 0.5,
        "sampled_kl": 3.0,
        "multilevel_ot": 0.15,
        "uld": 1.5,
        "mapped_kl": 1.0,
    }
    text = ",".join(f"{name}:{weight}" for name, weight in weights.items())
    together = trainer_of(
        student, store, tmp_path, eval_store=store, loss=text, temperature=2.0
    ).evaluate()
    total = together["eval_ce_loss"]
    for name, weight in weights.items():
        flags = {"temperature": 2.0} if name == "tail_kl" else {}
        alone = trainer_of(student, store, tmp_path, eval_store=store, loss=f"{name}:1", **flags)
        value = alone.evaluate()[f"eval_{name}_loss"]
        assert together[f"eval_{name}_loss"] == pytest.approx(value, rel=1e-5)
        total += weight * value
    assert together["eval_loss"] == pytest.approx(total, rel=1e-5)


ALL = "tail_kl:1,alm:1,sampled_kl:1,multilevel_ot:1"


def test_no_loss_depends_on_how_a_batch_was_cut(
    student: PreTrainedModel, teacher: PreTrainedModel, tmp_path: Path
) -> None:
    """One step of 8 rows against 4 parts of 2, each with padding and batch mates of its own."""
    store = store_of(teacher, tmp_path)
    weights = []
    for size, parts in ((8, 1), (2, 4)):
        model = tiny.llama(WIDTH)
        trainer_of(
            model,
            store,
            tmp_path,
            loss=ALL,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
        ).train()
        weights.append(model.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6)


def test_a_batch_without_a_usable_row_has_no_term_and_no_nan(
    student: PreTrainedModel, teacher: PreTrainedModel, tmp_path: Path
) -> None:
    store = store_of(teacher, tmp_path)
    trainer = trainer_of(student, store, tmp_path, loss=ALL)
    for i in (0, 1):  # from the first on, there would be nothing to train
        store.texts[i] = store.texts[i]._replace(status="spans_unknown")
    batch = Collator(0, list(trainer.weights))([trainer.data[0], trainer.data[1]])
    loss, terms = trainer.compute_loss(student, batch, return_outputs=True)
    assert loss == 0
    assert {name: len(t.values_P) for name, t in terms.items()} == dict.fromkeys(terms, 0)
    loss.backward()


# ---- balance ----


def test_balance_gives_both_parts_the_same_weight_in_every_step(
    student: PreTrainedModel, teacher: PreTrainedModel, tmp_path: Path
) -> None:
    """L = CE + stopgrad(CE / KD) KD, so twice CE; the gradient is of both."""
    store = store_of(teacher, tmp_path)
    trainer = trainer_of(student, store, tmp_path, loss="tail_kl:7", balance=True)
    batch = Collator(0, ["tail_kl"])([trainer.data[i] for i in range(4)])
    loss, terms = trainer.compute_loss(student, batch, return_outputs=True)
    ce, kd = terms["ce"].values_P.mean(), 7 * terms["tail_kl"].values_P.mean()
    assert loss.item() == pytest.approx(2 * ce.item(), rel=1e-5)
    grads = [
        torch.autograd.grad(x, student.lm_head.weight, retain_graph=True)[0] for x in (loss, ce, kd)
    ]
    want = grads[1] + (ce / kd).detach() * grads[2]
    torch.testing.assert_close(grads[0], want, rtol=1e-4, atol=1e-6)
    trainer.train()
    for entry in logged(trainer):
        assert entry["loss"] == pytest.approx(2 * entry["ce_loss"], rel=1e-3)


def test_balance_with_nothing_to_scale_adds_it_as_it_is(
    student: PreTrainedModel, tmp_path: Path
) -> None:
    """A divergence of 0, or a mapped one just below: CE over it would be no size at all."""
    store = store_of(student, tmp_path)
    trainer = trainer_of(student, store, tmp_path, loss="tail_kl", balance=True)
    assert trainer.batch_loss.balance(torch.tensor(2.0), torch.tensor(0.0)) == 1
    assert trainer.batch_loss.balance(torch.tensor(2.0), torch.tensor(-1e-9)) == 1
    assert trainer.batch_loss.balance(torch.tensor(2.0), torch.tensor(4.0)) == 0.5


# ---- what is refused ----


@pytest.mark.parametrize(
    ("how", "flags", "message"),
    [
        (
            {"has_ids": False, "draws": 0},
            {"loss": "tail_kl"},
            r"captured with --no-ids.*--loss uld",
        ),
        ({"has_ids": False, "draws": 0}, {"loss": "multilevel_ot"}, r"captured with --no-ids"),
        ({}, {"loss": "tail_kl", "temperature": 3.0}, r"holds temperature 1, 2, 0\.5, .*is 3"),
        (
            {"logit_std": False},
            {"loss": "multilevel_ot"},
            r"without --logit-std.*again with --logit-std",
        ),
        ({"draws": 0}, {"loss": "uld,sampled_kl"}, r"without --draws.*again with --draws 50"),
    ],
)
def test_a_store_without_what_a_loss_needs_is_refused(
    student: PreTrainedModel,
    tmp_path: Path,
    how: dict[str, Any],
    flags: dict[str, Any],
    message: str,
) -> None:
    store = store_of(student, tmp_path, **how)
    with pytest.raises(MismatchError, match=message):
        trainer_of(student, store, tmp_path / "out", **flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("loss", ["tail_kl", "sampled_kl"])
def test_two_tokenizers_are_refused_where_tokens_are_compared_by_id(
    student: PreTrainedModel, tmp_path: Path, loss: str
) -> None:
    """Both are named, with their fingerprints."""
    tokenizer = tiny.unigram()
    store = FakeStore.from_teacher(
        tiny.llama(len(tokenizer)), tokenizer, ragged_rows(), tmp_path / "t", **EVERYTHING
    )
    theirs = store.spec.tokenizer_fingerprint.removeprefix("sha256:")[:8]
    ours = ByteTokenizer(tiny.byte_bpe()).fingerprint.removeprefix("sha256:")[:8]
    message = rf"{theirs}… \(tiny-teacher\).*student uses {ours}… .*{loss} compares.*mapped_kl"
    with pytest.raises(MismatchError, match=message):
        trainer_of(student, store, tmp_path / "out", loss=loss)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"loss": "tail_kl", "temperature": 0.0}, "--temperature is 0.0"),
        ({"loss": "alm", "alm_temperature": math.nan}, "--alm_temperature is nan"),
        ({"loss": "uld", "temperature": 2.0}, "--temperature 2.0 would have no effect"),
        ({"loss": "uld", "tail_kl_kind": "jsd"}, "--tail_kl_kind jsd would have no effect"),
        ({"loss": "uld", "alm_temperature": 5.0}, "--alm_temperature 5.0 would have no effect"),
        ({"loss": "ce", "balance": True}, "--balance: --loss ce has nothing to balance"),
        (
            {"balance": True, "gradient_accumulation_steps": 2},
            "--balance with --gradient_accumulation_steps 2: .*per_device_train_batch_size",
        ),
    ],
)
def test_a_flag_that_would_do_nothing_or_cannot_be_is_refused(
    student: PreTrainedModel, tmp_path: Path, flags: dict[str, Any], message: str
) -> None:
    store = store_of(student, tmp_path)
    with pytest.raises(InputError, match=message):
        trainer_of(student, store, tmp_path / "out", **flags)


def test_a_value_that_is_not_a_number_names_its_row_and_its_step(
    student: PreTrainedModel, teacher: PreTrainedModel, tmp_path: Path
) -> None:
    """NaN in the logits of one row of the batch, by way of a token that only this row has."""
    store = store_of(teacher, tmp_path)
    per_row = [set(ByteTokenizer(tiny.byte_bpe()).encode(r).token_ids) for r in ragged_rows()]
    row, token = next(
        (i, own)
        for i in reversed(range(len(per_row)))
        for own in sorted(per_row[i] - set().union(*per_row[:i], *per_row[i + 1 :]))
        if own != store.spec.eos_ids[0]
    )
    with torch.no_grad():
        student.model.embed_tokens.weight[int(token)] = torch.nan
    trainer = trainer_of(student, store, tmp_path, loss="tail_kl")
    before = {name: x.clone() for name, x in student.state_dict().items()}
    with pytest.raises(InputError, match=re.escape(f"step 1, row {row} of the dataset")):
        trainer.train()
    for name, weight in student.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)


def test_the_teachers_ends_go_to_the_token_that_ends_the_students_turns(tmp_path: Path) -> None:
    """A template may write another one than EOS; of one tokenizer, see `test_family`."""
    tokenizer, nothing = tiny.unigram(), np.zeros(0, np.int64)
    store = FakeStore.from_teacher(
        tiny.llama(len(tokenizer)), tokenizer, ragged_rows()[:1], tmp_path / "other"
    )
    reader = ByteTokenizer(tiny.byte_bpe())
    data = StoreDataset(store, reader, ["mapped_kl"], map="canonical")
    mapping = data.mappings["mapped_kl"]
    assert mapping is not None
    ends, before = list(store.spec.eos_ids), mapping.ids.copy()
    moved = data.pairer.ending(mapping, np.array([5, 7])).ids
    assert (moved[ends] == 7).all()
    assert (np.delete(moved, ends) == np.delete(before, ends)).all()
    assert (mapping.ids == before).all()
    assert data.pairer.ending(mapping, nothing) is mapping
    assert data.pairer.ending(mapping, np.array([reader.eos_token_id])) is mapping
