"""CoT2Align: against its definition, against live models, of one text and of two."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from distill.losses.cot2align import Projected, plan, transport
from distill.losses.loss import Inside, Widths
from distill.training.own_weights import WEIGHTS_FILE, of, parameters_of
from distill.training.trainer import CachedTeacherTrainer
from logitstore.capture import capture
from logitstore.errors import InputError, MismatchError
from logitstore.records import Segment
from logitstore.store import LogitStore
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import settings, trainer_of

#: Of the teacher; the student has 32.
WIDTH = 24
CORPUS = tiny.corpus()
PLAIN = [(f"{i + 3} and {i}: ", CORPUS[i][:18]) for i in range(5)]
#: Of other answers: in another order, and one of a prompt that is not there.
REASONS = [(PLAIN[i][0], CORPUS[i + 10][:34]) for i in (3, 1, 0)] + [("who?", CORPUS[20][:20])]
#: The reason of each plain row that has one.
REASON_OF = {0: 2, 1: 1, 3: 0}
OPTIONS = {"cot2align_alpha": 0.1}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cot2align")
    for name, seed in (("teacher", 7), ("other", 8)):
        tokenizer = tiny.unigram()
        model = tiny.llama(len(tokenizer), seed, hidden_size=WIDTH)
        tiny.save(folder / name, model, tokenizer)
    for name, rows in (("plain", PLAIN), ("reasons", REASONS)):
        lines = [json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def captured(here: Path, rows: str, dtype: str, teacher: str = "teacher") -> LogitStore:
    how: dict[str, Any] = {"hidden": ["last,embedding"], "hidden_dtype": dtype, "top_k": 4}
    out = here / f"{rows}-{dtype}-{teacher}"
    rows = str(here / f"{rows}.jsonl")
    return capture(str(here / teacher), rows, out=out, device="cpu", self_test=False, **how)


@pytest.fixture(scope="module")
def stores(here: Path) -> dict[str, LogitStore]:
    return {
        f"{rows}-{dtype}": captured(here, rows, dtype)
        for rows in ("plain", "reasons")
        for dtype in ("fp8", "bf16")
    }


@pytest.fixture
def student() -> PreTrainedModel:
    return tiny.llama(len(tiny.byte_bpe()))


def run(student: Any, store: Any, out: Path, **how: Any) -> CachedTeacherTrainer:
    how = {"loss": "cot2align", "no_self_test": True, "max_lost": 1.0, **how}
    return trainer_of(student, store, out, eval_store=store, **how)


def two(student: Any, stores: dict[str, LogitStore], out: Path, **how: Any) -> CachedTeacherTrainer:
    path = str(stores["reasons-bf16"].path)
    return run(student, stores["plain-bf16"], out, cot_store=path, **how)


# ---- the definition ----


def rows_of(model: PreTrainedModel, tokenizer: Any, row: tuple[str, str]) -> dict[str, Tensor]:
    """At each supervised token, in float64: the state that predicts it, and what it read last."""
    segments = (Segment(row[0], supervised=False), Segment(row[1], supervised=True))
    tokens = ByteTokenizer(tokenizer).encode(segments)
    ids = torch.from_numpy(tokens.token_ids)[None]
    at = torch.from_numpy(tokens.has_record.nonzero()[0])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    return {"embedding": states[0][0, at - 1].double(), "last": states[-1][0, at - 1].double()}


def stored_rows(store: LogitStore, i: int) -> dict[str, Tensor]:
    found = store.states(i)
    return {
        "embedding": torch.from_numpy(found.embedded(found.ids_of_records)).double(),
        "last": torch.from_numpy(found.of_records).double(),
    }


def naive_transport(x: Tensor, y: Tensor, alpha: float = 0.1) -> Tensor:
    """A hundred rounds, whatever they have come to, on the plan itself: columns, then rows."""
    n, m = len(x), len(y)
    score = torch.stack([torch.stack([a @ b for b in y]) for a in x]) / x.shape[1] ** 0.5
    cost = 1 - score.exp() / score.exp().sum(1, keepdim=True)
    moved = torch.exp(-alpha * cost) / n
    for _ in range(100):
        moved = moved / moved.sum(0) / m
        moved = moved / moved.sum(1, keepdim=True) / n
    return (moved * cost).sum()


def naive_between(
    s: dict[str, Tensor], t: dict[str, Tensor], weights: dict[str, Tensor], alpha: float = 0.1
) -> Tensor:
    w = weights["last.weight"].double()
    each = [naive_transport(s[layer], t[layer] @ w.T, alpha) for layer in ("embedding", "last")]
    return torch.stack(each).sum() / 4


def weights_of(trainer: CachedTeacherTrainer) -> dict[str, Tensor]:
    found = of(trainer.head.model)
    assert found is not None
    return {name: each.detach() for name, each in found["cot2align"].named_parameters()}


def students_rows(trainer: CachedTeacherTrainer, rows: Any) -> list[dict[str, Tensor]]:
    model: Any = trainer.head.model
    return [rows_of(model, tiny.byte_bpe(), row) for row in rows]


def mean_of(
    trainer: CachedTeacherTrainer, of_teacher: list[dict[str, Tensor]], alpha: float = 0.1
) -> float:
    """Of one text: each label has the value of its text."""
    total, labels = 0.0, 0
    for s, t in zip(students_rows(trainer, PLAIN), of_teacher, strict=True):
        value = float(naive_between(s, t, weights_of(trainer), alpha))
        total, labels = total + value * len(s["last"]), labels + len(s["last"])
    return total / labels


def test_the_loss_of_one_text_is_its_definition_of_what_the_store_has(
    student: PreTrainedModel, stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    store = stores["plain-bf16"]
    trainer = run(student, store, tmp_path)
    want = mean_of(trainer, [stored_rows(store, i) for i in range(len(PLAIN))])
    assert trainer.evaluate()["eval_cot2align_loss"] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "alpha", "within"),
    [("bf16", 0.1, 1e-5), ("fp8", 0.1, 1e-4), ("bf16", 20.0, 5e-5), ("fp8", 20.0, 2e-4)],
)
def test_the_loss_of_a_store_is_the_live_one_within_what_rounding_can_change(
    student: PreTrainedModel,
    stores: dict[str, LogitStore],
    here: Path,
    tmp_path: Path,
    dtype: str,
    alpha: float,
    within: float,
) -> None:
    """With the teacher's rows of another text it is another; their order is nothing to it."""
    teacher: Any = AutoModelForCausalLM.from_pretrained(here / "teacher")
    trainer = run(student, stores[f"plain-{dtype}"], tmp_path, cot2align_alpha=alpha)
    live = [rows_of(teacher, tiny.unigram(), row) for row in PLAIN]
    want = mean_of(trainer, live, alpha)
    assert abs(trainer.evaluate()["eval_cot2align_loss"] - want) <= within
    shifted = [*live[1:], live[0]]
    assert abs(mean_of(trainer, shifted, alpha) - want) > 2 * within
    rolled = [{layer: rows.roll(1, 0) for layer, rows in t.items()} for t in live]
    assert mean_of(trainer, rolled, alpha) == pytest.approx(want, rel=1e-6)


def test_of_two_texts_it_is_the_papers_sum_of_three(
    student: PreTrainedModel, stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    """Plain with plain, the student's plain with the teacher's reasons, reasons with reasons."""
    trainer = two(student, stores, tmp_path)
    batch = trainer.data_collator([trainer.data[i] for i in range(len(PLAIN))])
    found = trainer.batch_loss.terms(student, batch)["cot2align"].values_P
    plain, reasons = (students_rows(trainer, rows) for rows in (PLAIN, REASONS))
    taught = [stored_rows(stores["plain-bf16"], i) for i in range(len(PLAIN))]
    reasoned = [stored_rows(stores["reasons-bf16"], i) for i in range(len(REASONS))]
    weights, want, rows = weights_of(trainer), list[Tensor](), list[int]()
    for i in range(len(PLAIN)):
        own, j = naive_between(plain[i], taught[i], weights), REASON_OF.get(i)
        if j is not None:
            own = own + naive_between(plain[i], reasoned[j], weights)
        want.append(own.expand(len(plain[i]["last"])))
        rows.append(i)
        if j is not None:
            both = naive_between(reasons[j], reasoned[j], weights)
            want.append(both.expand(len(reasons[j]["last"])))
            rows.append(i)
    assert batch["row"].tolist() == rows
    torch.testing.assert_close(found.double(), torch.cat(want), rtol=1e-5, atol=1e-6)
    assert len(trainer.batch_loss.terms(student, batch)["ce"].values_P) == len(torch.cat(want))


@pytest.mark.parametrize("alpha", [0.1, 5.0, 30.0])
@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 1), (4, 1, 3), (1, 6, 2), (5, 7, 4)])
def test_values_and_gradients_are_the_definitions_on_odd_shapes(
    n: int, m: int, width: int, alpha: float
) -> None:
    gen = torch.Generator().manual_seed(0)
    x, y = (torch.randn(size, width, generator=gen).requires_grad_() for size in (n, m))
    exact = [each.detach().double().requires_grad_() for each in (x, y)]
    found, want = transport(x, y, alpha), naive_transport(*exact, alpha)
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-5)
    found.backward()
    want.backward()
    for one, other in zip((x, y), exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-4)


def test_a_plan_has_the_margins_and_a_flat_one_knows_nothing_of_the_student() -> None:
    gen = torch.Generator().manual_seed(1)
    cost = 1 - torch.randn(6, 4, generator=gen).softmax(1)
    for alpha, within in ((0.1, 1e-6), (20.0, 1e-2)):
        found = plan(cost, alpha)
        torch.testing.assert_close(found.sum(0), torch.full((4,), 1 / 4), rtol=0, atol=within)
        torch.testing.assert_close(found.sum(1), torch.full((6,), 1 / 6), rtol=0, atol=1e-6)
    x, y = torch.randn(6, 3, generator=gen), torch.randn(4, 3, generator=gen)
    assert float(transport(x, y, 1e-4)) == pytest.approx(1 - 1 / 4, abs=1e-5)
    flat, sharp = (transport(x.requires_grad_(), y, alpha) for alpha in (0.1, 20.0))
    (of_flat,), (of_sharp,) = (torch.autograd.grad(each, x) for each in (flat, sharp))
    assert float(of_flat.norm()) < 0.1 * float(of_sharp.norm())


# ---- its weights ----


def an_inside(labels: Tensor, width: int, own: int) -> tuple[Inside, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(2)
    table = torch.randn(9, own, generator=gen).requires_grad_()
    hidden = torch.randn(len(labels), width, generator=gen).requires_grad_()
    read = torch.randint(9, (len(labels),), generator=gen)
    return Inside(hidden, read, read, labels, table.__getitem__, table.__getitem__), table, hidden


def arrays_of(of_record: Tensor, width: int, embedding: int) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(3)
    rows, known = torch.randn(len(of_record), width, generator=gen), torch.randn(5, embedding)
    return {
        "whole_codes": rows.bfloat16().view(torch.int16),
        "whole_sequence": of_record,
        "whole_read": torch.randint(5, (len(of_record),), generator=gen),
        "whole_embedding_ids": torch.arange(5),
        "whole_embedding_codes": known.bfloat16().view(torch.int16),
    }


@pytest.mark.parametrize(
    ("widths", "projections"),
    [(Widths(4, 4, 3, 3), 1), (Widths(4, 6, 3, 3), 2), (Widths(4, 4, 3, 5), 2)],
)
def test_layers_of_one_width_share_a_projection(widths: Widths, projections: int) -> None:
    module = Projected(widths, OPTIONS)
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    inside, table, hidden = an_inside(labels, widths.student, widths.student_embedding)
    assert widths.teacher_embedding is not None
    arrays = arrays_of(torch.tensor([0, 0, 2, 2, 2, 3]), widths.teacher, widths.teacher_embedding)
    found = module(inside, arrays, OPTIONS)["transport"]
    assert found.shape == (6,)
    assert float(found[3].detach()) == 0  # no record: nothing to be moved to
    assert len({float(each) for each in found.detach()[[0, 1, 2]]}) == 1
    found.sum().backward()
    assert len(list(module.parameters())) == projections
    for each in (*module.parameters(), table, hidden):
        assert each.grad is not None
        assert float(each.grad.abs().max()) > 0


def test_a_batch_without_labels_or_records_has_a_gradient_of_zero() -> None:
    module, none = Projected(Widths(4, 4, 3, 3), OPTIONS), torch.zeros(0, dtype=torch.long)
    inside, table, _ = an_inside(none, 3, 3)
    arrays = {"whole_codes": torch.zeros(0, 0, dtype=torch.uint8), "whole_sequence": none}
    module(inside, arrays | {"whole_read": none}, OPTIONS)["transport"].sum().backward()
    for each in (*module.parameters(), table):
        assert each.grad is not None
        assert float(each.grad.abs().sum()) == 0


def test_it_trains_the_students_embedding_and_its_own_weights_which_are_saved_beside(
    student: PreTrainedModel, stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    trainer = two(student, stores, tmp_path, ce_weight=0.0)
    batch = trainer.data_collator([trainer.data[i] for i in range(3)])
    loss, _ = trainer.batch_loss(student, batch, trainer.batch_loss.counts([batch]))
    loss.backward()
    embedding: Any = student.get_input_embeddings()
    for each in (*parameters_of(student), embedding.weight):
        assert float(each.grad.abs().max()) > 0
    trainer.save_model(str(tmp_path / "s"))
    assert sorted(load_file(tmp_path / "s" / WEIGHTS_FILE)) == [
        "cot2align.last.weight",
    ]


def test_neither_cuts_nor_packing_nor_batch_mates_change_anything(
    student: PreTrainedModel, stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    plain = two(student, stores, tmp_path)
    examples = [plain.data[i] for i in range(4)]

    def of_batch(trainer: CachedTeacherTrainer) -> tuple[Tensor, list[Tensor]]:
        batch = trainer.data_collator(examples)
        student.zero_grad()
        loss, terms = trainer.batch_loss(student, batch, trainer.batch_loss.counts([batch]))
        loss.backward()
        grads = [p.grad.clone() for p in student.parameters() if p.grad is not None]
        return terms["cot2align"].values_P.detach(), grads

    want, grads = of_batch(plain)
    packed = copy.copy(plain)
    packed.data_collator = copy.copy(plain.data_collator)
    packed.data_collator.layout = two(student, stores, tmp_path, packing=True).data_collator.layout
    for trainer, chunk_tokens in ((plain, 5), (packed, None)):
        trainer.data_collator.chunk_tokens = chunk_tokens
        found, others = of_batch(trainer)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
        for one, other in zip(others, grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    alone = [plain.batch_loss.terms(student, plain.data_collator([each])) for each in examples]
    each = torch.cat([terms["cot2align"].values_P for terms in alone])
    torch.testing.assert_close(each, want, rtol=1e-4, atol=1e-5)


def test_a_student_learns_from_a_plan_that_chooses(
    stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    how: dict[str, Any] = {
        "cot2align_alpha": 20.0, "ce_weight": 0.0, "max_steps": 12, "optim": "adamw_torch",
        "learning_rate": 1e-2, "loss_learning_rate": 1e-2,
    }  # fmt: skip
    trainer = run(tiny.llama(len(tiny.byte_bpe())), stores["plain-bf16"], tmp_path, **how)
    before = trainer.evaluate()["eval_cot2align_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_cot2align_loss"] < 0.9 * before


# ---- what it needs ----


def test_a_second_text_of_another_teacher_or_of_no_row_is_refused(
    student: PreTrainedModel, stores: dict[str, LogitStore], here: Path, tmp_path: Path
) -> None:
    other = captured(here, "reasons", "bf16", "other")
    with pytest.raises(MismatchError, match="its teacher is another"):
        run(student, stores["plain-bf16"], tmp_path, cot_store=str(other.path))
    lines = [json.dumps({"prompt": f"{n}?", "completion": "no."}) + "\n" for n in range(3)]
    (here / "none.jsonl").write_text("".join(lines))
    none = captured(here, "none", "bf16")
    with pytest.raises(MismatchError, match="none of its prompts is one of") as raised:
        run(student, stores["plain-bf16"], tmp_path, cot_store=str(none.path))
    assert raised.value.kind == "no-common-row"


def test_a_store_of_second_texts_needs_the_loss_and_one_store(
    student: PreTrainedModel, stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    path = str(stores["reasons-bf16"].path)
    with pytest.raises(InputError, match="would have no effect beside --loss dskd"):
        run(student, stores["plain-bf16"], tmp_path, loss="dskd", cot_store=path)
    several = [str(stores[name].path) for name in ("plain-bf16", "plain-fp8")]
    with pytest.raises(InputError, match="--store names several"):
        settings(tmp_path, store=several, loss="cot2align", cot_store=path)


def test_a_store_without_embeddings_is_refused_with_the_capture_that_gives_them(
    student: PreTrainedModel, here: Path, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"top_k": 4, "device": "cpu", "self_test": False, "hidden": ["last"]}
    store = capture(str(here / "teacher"), str(here / "plain.jsonl"), out=tmp_path / "s", **how)
    with pytest.raises(MismatchError, match="again with --hidden last,embedding"):
        run(student, store, tmp_path / "out")


def test_a_run_is_not_resumed_with_other_second_texts(
    stores: dict[str, LogitStore], tmp_path: Path
) -> None:
    how: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    two(tiny.llama(len(tiny.byte_bpe())), stores, tmp_path, **how).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    for second in ({}, {"cot_store": str(stores["reasons-fp8"].path)}):
        again = run(
            tiny.llama(len(tiny.byte_bpe())), stores["plain-bf16"], tmp_path, **how, **second
        )
        with pytest.raises(MismatchError, match="cot_store"):
            again.train(resume_from_checkpoint=checkpoint)
    how["max_steps"] = 2
    again = two(tiny.llama(len(tiny.byte_bpe())), stores, tmp_path, **how)
    again.train(resume_from_checkpoint=checkpoint)
    assert again.state.global_step == 2
