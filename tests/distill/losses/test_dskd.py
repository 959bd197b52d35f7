"""DSKD: against its definition, against two live models, and what its own weights do."""

import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from distill.losses.dskd import at_one_scale, cross_attention, dskd
from distill.training.batches import batches
from distill.training.own_weights import WEIGHTS_FILE, attach, of, parameters_of
from distill.training.trainer import CachedTeacherTrainer
from logitstore.capture import capture
from logitstore.errors import InputError, MismatchError
from logitstore.store import LogitStore
from logitstore.testing import tiny
from tests.kit.dskd import ROWS, TEMPERATURE, WIDTH, naive, states, stored_states
from tests.kit.loss_laws import Law, sure
from tests.kit.rows import texts_file
from tests.kit.students import logged, t5, trainer_of
from tests.kit.two_ranks import ONE, prepared, run_both


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dskd")
    tokenizer = tiny.unigram()
    tiny.save(folder / "teacher", tiny.llama(len(tokenizer), 7, hidden_size=WIDTH), tokenizer)
    texts_file(folder / "rows.jsonl", ROWS)
    return folder


def captured(here: Path, out: Path, **how: Any) -> LogitStore:
    settings = {"top_k": 4, "device": "cpu", "self_test": False, **how}
    return capture(str(here / "teacher"), str(here / "rows.jsonl"), out=out, **settings)


@pytest.fixture(scope="module")
def stores(here: Path) -> dict[str, LogitStore]:
    return {
        dtype: captured(here, here / dtype, hidden=["last,embedding"], hidden_dtype=dtype)
        for dtype in ("fp8", "bf16")
    }


@pytest.fixture
def student() -> PreTrainedModel:
    return tiny.llama(len(tiny.byte_bpe()))


def run(student: PreTrainedModel, store: Any, out: Path, **how: Any) -> CachedTeacherTrainer:
    how = {"loss": "dskd", "uncovered": "none", "no_self_test": True, **how}
    return trainer_of(student, store, out, eval_store=store, **how)


# ---- the definition ----


def weights_of(trainer: CachedTeacherTrainer) -> dict[str, Tensor]:
    found = of(trainer.head.model)
    assert found is not None
    return dict(found["dskd"].named_parameters())


def mean_of(
    trainer: CachedTeacherTrainer, of_teacher: list[dict[str, Tensor]]
) -> tuple[float, list[bool]]:
    model: Any = trainer.head.model
    losses, right = [], []
    for text, t in zip(ROWS, of_teacher, strict=True):
        s = states(model, tiny.byte_bpe(), text)
        found = naive(s, t, weights_of(trainer), model.lm_head.weight.detach().double())
        losses += found[0]
        right += found[1]
    return float(torch.stack(losses).mean()), right


@pytest.fixture(scope="module")
def taught(
    stores: dict[str, LogitStore], tmp_path_factory: pytest.TempPathFactory
) -> CachedTeacherTrainer:
    """A run long enough for the projected teacher to say some of the labels."""
    trainer = run(
        tiny.llama(len(tiny.byte_bpe())), stores["bf16"], tmp_path_factory.mktemp("taught"),
        max_steps=40, optim="adamw_torch", learning_rate=1e-4, loss_learning_rate=2e-2,
        ce_weight=0.0,
    )  # fmt: skip
    trainer.train()
    return trainer


def test_the_loss_is_its_definition_of_what_the_store_has(
    taught: CachedTeacherTrainer, stores: dict[str, LogitStore]
) -> None:
    want, right = mean_of(taught, [stored_states(stores["bf16"], i) for i in range(len(ROWS))])
    assert 0.1 < np.mean(right) < 1  # both branches are taken
    assert taught.evaluate()["eval_dskd_loss"] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(("dtype", "within"), [("bf16", 0.004), ("fp8", 0.03)])
def test_the_loss_of_a_store_is_the_live_one_within_what_rounding_can_change(
    taught: CachedTeacherTrainer,
    stores: dict[str, LogitStore],
    here: Path,
    tmp_path: Path,
    dtype: str,
    within: float,
) -> None:
    """And with the teacher's states shifted by one it is another by far more."""
    model: Any = taught.head.model
    teacher = AutoModelForCausalLM.from_pretrained(here / "teacher")
    live = [states(teacher, tiny.unigram(), text) for text in ROWS]
    want, _ = mean_of(taught, live)
    trainer = run(model, stores[dtype], tmp_path)
    found = trainer.evaluate()["eval_dskd_loss"]
    assert abs(found - want) <= within * want
    shifted = [t | {name: t[name].roll(1, 0) for name in ("h", "e")} for t in live]
    assert abs(mean_of(taught, shifted)[0] - want) > 5 * within * want


def test_values_and_gradients_are_the_definitions_on_odd_shapes() -> None:
    gen = torch.Generator().manual_seed(0)
    for labels, width in ((1, 2), (3, 7), (6, 33)):
        z, t = (3 * torch.randn(labels, width, generator=gen).double() for _ in range(2))
        y = torch.randint(width, (labels,), generator=gen)
        y[0] = t[0].argmax()
        z.requires_grad_()
        t.requires_grad_()
        for has_hard in (True, False):
            found = dskd(z, t, y, TEMPERATURE, has_hard=has_hard)
            for i in range(labels):
                q, p = ((x[i] / TEMPERATURE).softmax(0) for x in (t.detach(), z))
                other = -z[i].log_softmax(0)[y[i]] * has_hard
                says = int(t[i].argmax()) == int(y[i])
                want = (q * (q / p).log()).sum() if says else other
                want = want - t[i].log_softmax(0)[y[i]]
                torch.testing.assert_close(found[i], want, rtol=1e-10, atol=1e-10)
                if width > 2 or says or has_hard:
                    ours = torch.autograd.grad(found[i], (z, t), retain_graph=True)
                    theirs = torch.autograd.grad(want, (z, t), retain_graph=True)
                    for a, b in zip(ours, theirs, strict=True):
                        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_attention_is_the_definition_and_a_student_like_its_teacher_loses_nothing() -> None:
    gen = torch.Generator().manual_seed(1)
    query, key = (torch.randn(n, 6, generator=gen).double() for n in (3, 5))
    value = torch.randn(5, 4, generator=gen).double()
    for i, found in enumerate(cross_attention(query, key, value)):
        scores = torch.tensor([float(query[i] @ k) / 6**0.5 for k in key]).double().exp()
        torch.testing.assert_close(found, (scores / scores.sum()) @ value)
    assert float(at_one_scale(value).std()) == pytest.approx(1)
    logits = torch.full((1, 9), -1e4)
    logits[0, 3] = 1e4  # sure, and finite
    assert float(dskd(logits, logits, torch.tensor([3]), 2.0)) == 0


class Case(NamedTuple):
    """Logits of the student and of the projected teacher, and labels."""

    student_NV: Tensor
    projected_NV: Tensor
    label_N: Tensor


def by_definition(case: Case, student_NV: Tensor) -> Tensor:
    """Position by position, with the hard label where the projected teacher says another token."""
    found = []
    for z, t, y in zip(student_NV, case.projected_NV.double(), case.label_N.tolist(), strict=True):
        q, p = ((x / TEMPERATURE).softmax(0) for x in (t, z))
        other = -z.log_softmax(0)[y]
        said = (q * (q.log() - (z / TEMPERATURE).log_softmax(0))).sum()
        found.append((said if int(t.argmax()) == y else other) - t.log_softmax(0)[y] + 0 * p.sum())
    return torch.stack(found)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Vocabularies of 1 to 40, flat to peaked; some labels are what the projected teacher says."""
    n, width = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    z, t = (
        draw(st.sampled_from([0.1, 1.0, 10.0])) * torch.randn(n, width, generator=gen)
        for _ in range(2)
    )
    y = torch.where(torch.rand(n, generator=gen) < 0.5, t.argmax(-1), 0)
    return Case(z, t, y)


def same(case: Case, data: st.DataObject) -> list[Case]:
    """Offsets of both sides' logits, and of more of the vocabulary that both exclude."""
    return [
        case._replace(student_NV=case.student_NV + 7.0, projected_NV=case.projected_NV - 3.0),
        case._replace(projected_NV=case.projected_NV + data.draw(st.integers(0, 9))),
    ]


def arguments() -> tuple[Any, ...]:
    gen = torch.Generator().manual_seed(0)
    return (*torch.randn(2, 3, 50, generator=gen), [4, 0, 9], TEMPERATURE)


def with_labels(z: Tensor, t: Tensor, labels: list[int], temperature: float) -> Tensor:
    return dskd(z, t, torch.tensor(labels[: len(z)], dtype=torch.long), temperature)


LAWS = [
    Law(
        "dskd",
        with_labels,
        arguments(),
        cases(),
        lambda case, z: dskd(z, case.projected_NV.to(z.dtype), case.label_N, TEMPERATURE),
        by_definition,
        float32=(1e-4, 1e-4),
        same=same,
        same_within=(1e-4, 1e-4),
        saturated=(Case(sure(3), torch.randn(1, 32), torch.tensor([3])),),
    )
]


# ---- the weights of its own ----


def test_the_teachers_side_trains_the_weights_alone_and_the_students_the_student(
    student: PreTrainedModel, stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    trainer = run(student, stores["bf16"], tmp_path, ce_weight=0.0, dskd_wrong="none")
    batch = trainer.data_collator([trainer.data[i] for i in range(3)])
    loss, _ = trainer.batch_loss(student, batch, trainer.batch_loss.counts([batch]))
    loss.backward()
    own, head = parameters_of(student), student.get_output_embeddings()
    assert all(float(each.grad.abs().max()) > 0 for each in own if each.grad is not None)
    assert len([each for each in own if each.grad is not None]) == len(own) == 4
    assert head.weight.grad is not None
    for each in student.parameters():  # nothing is right yet, so nothing is compared with it
        if all(each is not one for one in own):
            assert each.grad is None or float(each.grad.abs().max()) == 0


def test_the_gradient_does_not_depend_on_how_the_head_is_cut(
    taught: CachedTeacherTrainer,
) -> None:
    found = []
    model: Any = taught.head.model
    for chunk_tokens in (None, 5):
        taught.data_collator.chunk_tokens = chunk_tokens
        batch = taught.data_collator([taught.data[i] for i in range(4)])
        assert (batch["pieces"] is None) == (chunk_tokens is None)
        model.zero_grad()
        loss, _ = taught.batch_loss(model, batch, taught.batch_loss.counts([batch]))
        loss.backward()
        found.append([each.grad.clone() for each in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_batch_mates_change_nothing(taught: CachedTeacherTrainer) -> None:
    def sums(rows: list[int]) -> Tensor:
        batch = taught.data_collator([taught.data[i] for i in rows])
        return taught.batch_loss.terms(taught.head.model, batch)["dskd"].values_P

    together = sums([0, 1, 2])
    alone = torch.cat([sums([i]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_packed_rows_change_nothing(
    taught: CachedTeacherTrainer, stores: Any, tmp_path: Path
) -> None:
    model: Any = taught.head.model
    packed = run(model, stores["bf16"], tmp_path, packing=True)
    batch = packed.data_collator([packed.data[i] for i in range(5)])
    assert len(batch["input_ids"]) < 5
    found = packed.batch_loss.terms(model, batch)["dskd"].values_P
    plain = taught.data_collator([taught.data[i] for i in range(5)])
    want = taught.batch_loss.terms(model, plain)["dskd"].values_P
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_an_encoder_decoder_reads_what_stands_before_each_label_in_its_decoder(
    stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    trainer = run(t5(), stores["bf16"], tmp_path, max_steps=1)
    trainer.train()
    batch = trainer.data_collator([trainer.data[i] for i in range(2)])
    seen: list[Any] = []
    weights = of(trainer.head.model)
    assert weights is not None
    weights["dskd"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    trainer.batch_loss.terms(trainer.head.model, batch)
    read, label = seen[0].read_N, seen[0].label_N
    first = torch.unique_consecutive(seen[0].sequence_N, return_counts=True)[1].cumsum(0)[:-1]
    inner = torch.ones(len(read), dtype=torch.bool)
    inner[0] = False
    inner[first] = False
    assert torch.equal(read[inner], label.roll(1)[inner])


def test_the_weights_are_saved_beside_the_student_and_never_inside(
    taught: CachedTeacherTrainer, tmp_path: Path
) -> None:
    taught.save_model(str(tmp_path / "s"))
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "s", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert of(again) is None
    saved = load_file(tmp_path / "s" / WEIGHTS_FILE)
    for name, each in weights_of(taught).items():
        torch.testing.assert_close(saved[f"dskd.{name}"], each.detach())
    model: Any = taught.head.model
    assert not any("loss_weights" in name for name in model.state_dict())
    for mine, theirs in zip(model.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_resumed_run_goes_on_with_them(stores: dict[str, LogitStore], tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "optim": "adamw_torch", "lr_scheduler_type": "cosine", "save_strategy": "steps",
        "save_steps": 2, "max_steps": 4, "per_device_train_batch_size": 2,
    }  # fmt: skip
    whole = run(tiny.llama(len(tiny.byte_bpe())), stores["fp8"], tmp_path / "a", **how)
    whole.train()
    again = run(tiny.llama(len(tiny.byte_bpe()), 5), stores["fp8"], tmp_path / "a", **how)
    checkpoint = tmp_path / "a" / "checkpoint-2"
    again.train(resume_from_checkpoint=str(checkpoint))
    assert [e["loss"] for e in logged(again)] == [e["loss"] for e in logged(whole)]
    ours, theirs = (parameters_of(each.head.model) for each in (again, whole))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    (checkpoint / WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match="does not hold the weights of dskd"):
        run(tiny.llama(len(tiny.byte_bpe())), stores["fp8"], tmp_path / "a", **how).train(
            resume_from_checkpoint=str(checkpoint)
        )


def test_they_have_a_learning_rate_of_their_own(
    student: PreTrainedModel, stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    trainer = run(student, stores["fp8"], tmp_path, loss_learning_rate=0.5, learning_rate=0.1)
    optimizer = trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in parameters_of(student)}
    assert len(rates) == len(list(student.parameters()))
    assert all(rate == (0.5 if p in own else 0.1) for p, rate in rates.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "more"),
    [("dskd", {}), ("dskd", {"with_lm_head": True}), ("cot2align", {})],
    ids=["one space", "both spaces", "cot2align"],
)
def test_two_processes_train_them_as_one_does(
    here: Path, tmp_path: Path, loss: str, more: dict[str, Any]
) -> None:
    """Each has half of the rows of a step, and the gradients of both are added up."""
    rows = str(texts_file(tmp_path / "rows.jsonl", [text[:30] for text in tiny.corpus()[:8]]))
    kept: dict[str, Any] = {"hidden": ["last,embedding"], "device": "cpu", "self_test": False}
    store = capture(str(here / "teacher"), rows, out=tmp_path / "s", top_k=4, **kept, **more)
    how: dict[str, Any] = {"loss": loss, "no_self_test": True, "loss_learning_rate": 1e-2}
    if loss == "cot2align":  # whose gradient at the paper's sharpness is near float32's rounding
        how["cot2align_alpha"] = 20.0
    one = prepared(store, tmp_path / "one", eval_store=store, **ONE, **how)
    one.train()
    one.save_model()
    (tmp_path / "how.json").write_text(json.dumps(how))
    (tmp_path / "store").write_bytes(pickle.dumps(store))
    run_both(tmp_path)
    found = json.loads((tmp_path / "two-0.json").read_text())["logged"]
    for ours, theirs in zip(logged(one), found, strict=True):
        for name in ("loss", f"{loss}_loss", "grad_norm"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4)
    saved = [load_file(tmp_path / name / WEIGHTS_FILE) for name in ("one", "two", "resumed")]
    for name in saved[0]:
        for other in saved[1:]:
            torch.testing.assert_close(other[name], saved[0][name], rtol=1e-3, atol=1e-5)


def test_a_loop_of_ones_own_trains_them_with_the_student(
    student: PreTrainedModel, stores: dict[str, LogitStore]
) -> None:
    how: dict[str, Any] = {"loss": "dskd", "batch_size": 3, "self_test": False}
    with pytest.raises(InputError, match="loss=dskd: has weights of its own"):
        batches(stores["fp8"], tiny.byte_bpe(), **how)
    data = batches(stores["fp8"], tiny.byte_bpe(), model=student, **how)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    before = [each.detach().clone() for each in parameters_of(student)]
    for batch in data:
        data.loss(student.train(), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    for old, new in zip(before, parameters_of(student), strict=True):
        assert not torch.equal(old, new)


def test_what_else_is_drawn_is_the_same_with_them(
    student: PreTrainedModel, taught: CachedTeacherTrainer
) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert attach(student, taught.data, seed=4) is not None
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(InputError, match="has the weights of dskd from a run before"):
        attach(student, taught.data.with_losses(["uld"]))


def test_a_student_learns_from_it_alone(
    taught: CachedTeacherTrainer, stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    fresh = run(tiny.llama(len(tiny.byte_bpe())), stores["bf16"], tmp_path)
    assert taught.evaluate()["eval_dskd_loss"] < 0.5 * fresh.evaluate()["eval_dskd_loss"]


# ---- what it needs ----


def test_a_store_without_hidden_states_is_refused_with_the_capture_that_gives_them(
    student: PreTrainedModel, here: Path, tmp_path: Path
) -> None:
    for how in ({}, {"hidden": ["last"]}):
        store = captured(here, tmp_path / f"s{len(how)}", **how)
        with pytest.raises(MismatchError, match="again with --hidden last,embedding"):
            run(student, store, tmp_path / "out")
        assert of(student) is None


def test_a_filter_of_tokens_has_nothing_to_ask(
    student: PreTrainedModel, stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--token_filter entropy>1: dskd compares each label"):
        run(student, stores["fp8"], tmp_path, token_filter="entropy>1")


def test_shards_of_a_student_would_have_pieces_of_them(
    student: PreTrainedModel, stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--fsdp: --loss dskd has weights of its own"):
        run(student, stores["fp8"], tmp_path, fsdp="full_shard")


def test_its_results_name_the_loss(taught: CachedTeacherTrainer) -> None:
    assert json.dumps(taught.weights) == '{"dskd": 1.0}'
