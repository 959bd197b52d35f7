"""DSKD in both spaces: the half that needs the teacher's output embedding, against definitions."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from distill.losses import teacher_head
from distill.losses.dskd import CrossModelAttention
from distill.losses.loss import Inside, Widths
from distill.losses.teacher_head import TeacherHead
from distill.training.own_weights import WEIGHTS_FILE, of
from distill.training.trainer import CachedTeacherTrainer
from logitstore.capture import capture
from logitstore.errors import MismatchError
from logitstore.format.lm_head import LmHead
from logitstore.store import LogitStore
from logitstore.testing import tiny
from tests.kit.dskd import (
    ROWS,
    TEMPERATURE,
    WIDTH,
    naive,
    naive_teacher_space,
    states,
    stored_states,
)
from tests.kit.rows import texts_file
from tests.kit.students import trainer_of

OPTIONS: dict[str, Any] = {"dskd_space": "auto", "dskd_temperature": TEMPERATURE}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dskd")
    tokenizer = tiny.unigram()
    tiny.save(folder / "teacher", tiny.llama(len(tokenizer), 7, hidden_size=WIDTH), tokenizer)
    texts_file(folder / "rows.jsonl", ROWS)
    return folder


def captured(here: Path, name: str, **how: Any) -> LogitStore:
    settings = {"top_k": 4, "device": "cpu", "self_test": False, "hidden": ["last,embedding"]}
    rows = str(here / "rows.jsonl")
    return capture(str(here / "teacher"), rows, out=here / name, **(settings | how))


@pytest.fixture(scope="module")
def stores(here: Path) -> dict[str, LogitStore]:
    return {
        dtype: captured(here, dtype, hidden_dtype=dtype, with_lm_head=True)
        for dtype in ("fp8", "bf16")
    }


@pytest.fixture(scope="module")
def without(here: Path) -> LogitStore:
    return captured(here, "without", hidden_dtype="bf16")


def run(student: Any, store: Any, out: Path, **how: Any) -> CachedTeacherTrainer:
    how = {"loss": "dskd", "uncovered": "none", "no_self_test": True, **how}
    return trainer_of(student, store, out, eval_store=store, **how)


@pytest.fixture(scope="module")
def taught(
    stores: dict[str, LogitStore], tmp_path_factory: pytest.TempPathFactory
) -> CachedTeacherTrainer:
    trainer = run(
        tiny.llama(len(tiny.byte_bpe())), stores["bf16"], tmp_path_factory.mktemp("taught"),
        max_steps=30, optim="adamw_torch", learning_rate=1e-4, loss_learning_rate=2e-2,
        ce_weight=0.0,
    )  # fmt: skip
    trainer.train()
    return trainer


def weights_of(trainer: CachedTeacherTrainer) -> dict[str, Tensor]:
    found = of(trainer.head.model)
    assert found is not None
    return {name: each.detach() for name, each in found["dskd"].named_parameters()}


def mean_of(
    trainer: CachedTeacherTrainer, of_teacher: list[dict[str, Tensor]], head_VD: Tensor
) -> float:
    """Both halves by definition: divided by the student's labels, as the paper's code does."""
    model: Any = trainer.head.model
    weights, total, labels = weights_of(trainer), 0.0, 0
    for text, t in zip(ROWS, of_teacher, strict=True):
        s = states(model, tiny.byte_bpe(), text)
        own, _ = naive(s, t, weights, model.lm_head.weight.detach().double())
        other = naive_teacher_space(s, t, weights, head_VD)
        total += float(torch.stack(own + other).sum())
        labels += len(own)
    return total / labels


def head_of(here: Path) -> tuple[Any, Tensor]:
    teacher: Any = AutoModelForCausalLM.from_pretrained(here / "teacher")
    return teacher, teacher.lm_head.weight.detach().double()


def test_the_loss_is_its_definition_of_what_the_store_has(
    taught: CachedTeacherTrainer, stores: dict[str, LogitStore], here: Path
) -> None:
    stored = [stored_states(stores["bf16"], i) for i in range(len(ROWS))]
    want = mean_of(taught, stored, head_of(here)[1])
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
    """And with the teacher's states shifted by one it is worse by far more."""
    teacher, head_VD = head_of(here)
    live = [states(teacher, tiny.unigram(), text) for text in ROWS]
    for t in live:  # what the head says of these states is what the teacher said
        torch.testing.assert_close(t["h"] @ head_VD.T, t["z"], rtol=1e-4, atol=1e-4)
    want = mean_of(taught, live, head_VD)
    model: Any = taught.head.model
    found = run(model, stores[dtype], tmp_path).evaluate()["eval_dskd_loss"]
    assert abs(found - want) <= within * want
    shifted = [t | {"h": t["h"].roll(1, 0)} for t in live]
    assert mean_of(taught, shifted, head_VD) - want > 5 * within * want


def a_head(dtype: str, rows: int, width: int, **steps: Any) -> LmHead:
    gen = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, width, generator=gen)
    if dtype == "bf16":
        return LmHead(weight.bfloat16().view(torch.int16).numpy().view(np.uint16), **steps)
    return LmHead(weight.to({"f16": torch.float16, "f32": torch.float32}[dtype]).numpy(), **steps)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("records", "rows", "width"), [(1, 2, 3), (5, 7, 1), (9, 31, 6)])
def test_values_and_gradients_are_the_definitions_whatever_the_chunk(
    dtype: str, records: int, rows: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bias = np.linspace(-1, 1, rows, dtype=np.float32)
    stored = a_head(dtype, rows, width, bias=bias, factor=0.5, divisor=0.25, cap=3.0)
    head, gen = TeacherHead(stored), torch.Generator().manual_seed(0)
    x, h = (torch.randn(records, width, generator=gen) for _ in range(2))
    within = {"f32": 1e-4, "f16": 1e-2, "bf16": 8e-2}[dtype]
    weight = torch.from_numpy(stored.weight()).double()

    def by_definition(row: Tensor, state: Tensor) -> Tensor:
        z, t = (
            3 * torch.tanh(((weight @ v) + torch.from_numpy(bias)) * 0.5 / 0.25 / 3)
            for v in (row, state)
        )
        q, p = ((each / TEMPERATURE).softmax(0) for each in (t, z))
        return (q * (q / p).log()).sum()

    rows_d = x.double().requires_grad_()
    want = torch.stack(
        [by_definition(row, state) for row, state in zip(rows_d, h.double(), strict=True)]
    )
    slope = torch.linspace(0.5, 2, records)
    (want * slope).sum().backward()
    for most in (1, 2, 100):
        monkeypatch.setattr(teacher_head, "CHUNK_RECORDS", most)
        seen: list[int] = []
        logits = TeacherHead.logits

        def watched(
            self: TeacherHead, each: Tensor, logits: Any = logits, seen: Any = seen
        ) -> Tensor:
            seen.append(len(each))
            found: Tensor = logits(self, each)
            return found

        monkeypatch.setattr(TeacherHead, "logits", watched)
        x.grad = None
        found = head.distance(x.requires_grad_(), h, TEMPERATURE)
        (found * slope).sum().backward()
        monkeypatch.setattr(TeacherHead, "logits", logits)
        assert max(seen) <= most
        torch.testing.assert_close(found.double(), want, rtol=within, atol=within)
        assert rows_d.grad is not None
        assert x.grad is not None
        torch.testing.assert_close(x.grad.double(), rows_d.grad, rtol=within, atol=within)
    with torch.no_grad():
        torch.testing.assert_close(head.distance(x, h, TEMPERATURE), found.detach())


def arrays_of(rows: Tensor, known: Tensor, ids: Tensor, read: Tensor, of: Tensor) -> dict[str, Any]:
    """What a loss is given of a teacher's states in bf16, and of the embeddings of its tokens."""
    return {
        "whole_codes": rows.bfloat16().view(torch.int16),
        "whole_sequence": of,
        "whole_ids": ids,
        "whole_read": read,
        "whole_embedding_ids": torch.arange(len(known)),
        "whole_embedding_codes": known.bfloat16().view(torch.int16),
    }


@pytest.mark.parametrize("lengths", [[(3, 2), (1, 4)], [(2, 0), (0, 3), (5, 1)]])
def test_gradients_of_weights_and_student_are_the_definitions(lengths: Any) -> None:
    """Of widths that all differ; and of sequences without labels, or without records."""
    teacher_width, student_width, own_width, vocabulary = 4, 3, 5, 11
    head = a_head("f32", vocabulary, teacher_width)
    torch.manual_seed(0)
    widths = Widths(teacher_width, teacher_width, student_width, own_width, lambda: head)
    module = CrossModelAttention(widths, OPTIONS)
    labels, records = (sum(each) for each in zip(*lengths, strict=True))
    of_label, of_record = (
        torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor([n[i] for n in lengths]))
        for i in (0, 1)
    )
    table, rows, known = (
        torch.randn(*shape) for shape in ((20, own_width), (records, teacher_width), (9, 4))
    )
    hidden = torch.randn(labels, student_width, requires_grad=True)
    read, label = (torch.randint(20, (labels,)) for _ in range(2))
    ids, before = (torch.randint(9, (records,)) for _ in range(2))
    inside = Inside(hidden, read, label, of_label, table.__getitem__, table.__getitem__)
    made = module(inside, arrays_of(rows, known, ids, before, of_record), OPTIONS)
    assert made["teacher_space"].shape == (labels,)
    made["teacher_space"].sum().backward()
    twin = copy.deepcopy(module).double()
    twin.zero_grad()
    exact = hidden.detach().double().requires_grad_()
    known, rows = known.bfloat16().double(), rows.bfloat16().double()
    weight, total = torch.from_numpy(head.weight()).double(), torch.zeros(()).double()
    for n in range(len(lengths)):
        a, b = of_label == n, of_record == n
        if a.any() and b.any():
            s = {"x": table[read[a]].double(), "e": table[label[a]].double(), "h": exact[a]}
            t = {"x": known[before[b]], "e": known[ids[b]], "h": rows[b]}
            each = naive_teacher_space(s, t, dict(twin.named_parameters()), weight)
            total = total + torch.stack(each).sum()
    total.backward()
    value = float(made["teacher_space"].detach().sum())
    assert value == pytest.approx(float(total.detach()), rel=1e-4)
    assert hidden.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)
    mine, theirs = (dict(each.named_parameters()) for each in (module, twin))
    for name in ("query.weight", "query.bias", "into_teacher.weight", "into_teacher.bias"):
        one, other = mine[name].grad, theirs[name].grad
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-5)


def test_a_batch_without_labels_or_records_has_a_gradient_of_zero() -> None:
    head = a_head("f32", 11, 4)
    module = CrossModelAttention(Widths(4, 4, 3, 5, lambda: head), OPTIONS)
    none = torch.zeros(0, dtype=torch.long)
    hidden = torch.zeros(0, 3, requires_grad=True)
    table = torch.zeros(1, 5)
    inside = Inside(hidden, none, none, none, table.__getitem__, table.__getitem__)
    arrays = {"whole_codes": torch.zeros(0, 0, dtype=torch.uint8), "whole_sequence": none}
    made = module(inside, arrays | {"whole_ids": none, "whole_read": none}, OPTIONS)
    torch.stack([each.sum() for each in made.values()]).sum().backward()
    for each in module.parameters():
        assert each.grad is not None
        assert float(each.grad.abs().sum()) == 0


def test_the_gradient_does_not_depend_on_how_the_students_head_is_cut(
    taught: CachedTeacherTrainer,
) -> None:
    found = []
    model: Any = taught.head.model
    for chunk_tokens in (None, 5):
        taught.data_collator.chunk_tokens = chunk_tokens
        batch = taught.data_collator([taught.data[i] for i in range(4)])
        model.zero_grad()
        loss, _ = taught.batch_loss(model, batch, taught.batch_loss.counts([batch]))
        loss.backward()
        found.append([each.grad.clone() for each in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_in_the_students_space_it_is_what_a_store_without_gives(
    stores: dict[str, LogitStore], without: LogitStore, tmp_path: Path
) -> None:
    """Whoever does not ask, or cannot, has the loss and the weights that there were before."""
    figures = []
    for store, space in ((without, "auto"), (without, "student"), (stores["bf16"], "student")):
        trainer = run(tiny.llama(len(tiny.byte_bpe())), store, tmp_path, dskd_space=space)
        names = [f"{layer}.{kind}" for layer in ("query", "value") for kind in ("bias", "weight")]
        assert sorted(weights_of(trainer)) == names
        figures.append(trainer.evaluate()["eval_dskd_loss"])
    assert figures[0] == figures[1] == figures[2]
    both = run(tiny.llama(len(tiny.byte_bpe())), stores["bf16"], tmp_path)
    assert both.evaluate()["eval_dskd_loss"] > figures[0]


def test_both_spaces_of_a_store_without_are_refused_by_name(
    without: LogitStore, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match="captured without --with-lm-head") as raised:
        run(tiny.llama(len(tiny.byte_bpe())), without, tmp_path, dskd_space="both")
    assert "--hidden last,embedding --with-lm-head, or use --dskd_space student" in str(
        raised.value
    )


def test_the_teachers_weights_are_neither_trained_nor_saved_nor_sent_around(
    taught: CachedTeacherTrainer, tmp_path: Path, here: Path
) -> None:
    found = of(taught.head.model)
    assert found is not None
    module: Any = found["dskd"]
    shape = (len(tiny.unigram()), WIDTH)
    assert not list(module.buffers())
    assert not any(each.shape == shape for each in module.parameters())
    kept = module._head._weight_VD.clone()
    torch.testing.assert_close(kept.double(), head_of(here)[1], rtol=0, atol=0)
    taught.save_model(str(tmp_path / "s"))
    assert sorted(load_file(tmp_path / "s" / WEIGHTS_FILE)) == [
        f"dskd.{layer}.{kind}"
        for layer in ("into_teacher", "query", "value")
        for kind in ("bias", "weight")
    ]
    assert copy.deepcopy(module)._head is module._head


def test_a_student_learns_what_the_teacher_says_in_its_own_space(
    taught: CachedTeacherTrainer, stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    fresh = run(tiny.llama(len(tiny.byte_bpe())), stores["bf16"], tmp_path)
    assert taught.evaluate()["eval_dskd_loss"] < 0.6 * fresh.evaluate()["eval_dskd_loss"]
