"""A loss of one's own gets what ours get; what is wrong with it is said before the first step."""

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

import distill
from distill.losses import find, own
from distill.losses.declared import NEEDS
from distill.losses.loss import Loss, Option, Student
from distill.losses.requirements import _IS_MET
from distill.losses.weights import parse_losses
from distill.report.model_card import card
from distill.training.command_line import parse
from distill.training.config import CachedTeacherConfig
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import InputError, MismatchError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.own import likelihood, spread, total_variation
from tests.kit.students import logged, ragged_rows, settings, trainer_of

WIDTH = len(tiny.byte_bpe())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """Of a teacher of another tokenizer."""
    tokenizer = tiny.unigram()
    folder = tmp_path_factory.mktemp("teacher")
    return FakeStore.from_teacher(
        tiny.llama(len(tokenizer), seed=7), tokenizer, ragged_rows(), folder
    )


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """Of a teacher of the student's tokenizer."""
    folder = tmp_path_factory.mktemp("own")
    return FakeStore.from_teacher(tiny.llama(WIDTH, seed=7), tiny.byte_bpe(), ragged_rows(), folder)


@pytest.fixture
def student() -> PreTrainedModel:
    return tiny.llama(WIDTH).double()


def gradient(trainer: CachedTeacherTrainer) -> Tensor:
    """That of all eight rows, as training takes it."""
    batch = trainer.data_collator(trainer.data.__getitems__(range(8)))
    model: nn.Module = trainer.batch_loss.head._model
    model.train().zero_grad()
    trainer.compute_loss(model, batch).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# ---- it gets what ours get ----

WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "a mean over pairs": {"uncovered": "none"},
    "scaled": {"uncovered": "scale"},
    "balanced": {"balance": True},
    "packed": {"packing": True},
    "beside another": {"others": ",uld:0.5"},
}


@pytest.mark.parametrize("way", WAYS)
def test_ours_written_by_somebody_else_trains_and_evaluates_as_ours(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path, way: str
) -> None:
    how = {**WAYS[way]}
    others = how.pop("others", "")
    found = {}
    for name, loss in (("alm", "alm"), ("likelihood", str(likelihood))):
        how["loss"] = f"{loss}:0.7{others}"
        trainer = trainer_of(student, store, tmp_path, eval_store=store, **how)
        named = {k.replace(name, "it"): v for k, v in trainer.evaluate().items()}
        found[name] = (
            gradient(trainer),
            {k: v for k, v in named.items() if k.endswith(("loss", "fraction"))},
        )
    assert found["alm"][1] == found["likelihood"][1]
    assert "eval_it_loss" in found["alm"][1]
    torch.testing.assert_close(found["likelihood"][0], found["alm"][0], rtol=0, atol=0)
    assert found["alm"][0].abs().max() > 0


def test_it_is_what_its_function_says_of_the_student_itself(
    own_store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    """Value and gradient, from the model's own logits and the store's records, token by token."""
    trainer = trainer_of(student, own_store, tmp_path, loss=total_variation, ce_weight=0.0)
    got = gradient(trainer)
    values = []
    for i in range(8):
        example, records = trainer.data[i], own_store.records[int(trainer.data.sequences[i])]
        logits = student(torch.from_numpy(example.token_ids).long()[None]).logits[0]
        rows = example.is_label.nonzero()[0] - 1
        start = 0
        for row, count, tail in zip(
            rows.tolist(), records.entry_count.tolist(), records.tail_logmass, strict=True
        ):
            ids = records.entry_ids[start : start + count]
            q = torch.from_numpy(records.entry_logprobs[start : start + count]).double().exp()
            p = logits[row].softmax(-1)
            at = torch.from_numpy(ids.astype("int64"))
            rest = torch.ones(WIDTH, dtype=torch.bool)
            rest[at] = False
            of_rest = (p[rest].sum() - torch.tensor(float(tail)).double().exp()).abs()
            values.append(((p[at] - q).abs().sum() + of_rest) / 2)
            start += count
    student.zero_grad()
    want = torch.stack(values).mean()
    (2.0 * want).backward()  # its own weight
    slopes = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    torch.testing.assert_close(got, torch.cat(slopes), rtol=1e-5, atol=1e-9)
    evaluated = trainer_of(
        student, own_store, tmp_path, loss=total_variation, eval_store=own_store
    ).evaluate()
    assert evaluated["eval_total_variation_loss"] == pytest.approx(want.item(), rel=1e-5)


def test_logits_come_a_chunk_at_a_time_and_have_their_gradient(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    plain = Student.logits

    def noted(answered: Student) -> Tensor:
        found = plain(answered)
        assert answered.answer.logits_NV is not None
        seen.append(len(answered.answer.logits_NV))
        return found

    monkeypatch.setattr(Student, "logits", noted)
    how = {"loss": spread, "ce_weight": 0.0, "uncovered": "none"}
    trainer = trainer_of(student, store, tmp_path, eval_store=store, **how)
    whole = trainer.data_collator(trainer.data.__getitems__(range(8)))
    trainer.data_collator.chunk_tokens = 41
    seen.clear()
    got, value = gradient(trainer), trainer.evaluate()["eval_spread_loss"]
    assert max(seen) <= 41
    assert len(seen) > 4
    places = whole["rows"][whole["teacher"]["spread"]["index"].long()]
    logits = student(whole["input_ids"].long(), whole["attention_mask"]).logits.flatten(0, 1)
    logprobs = logits[places].log_softmax(-1)
    want = -(logprobs.exp() * logprobs).sum(-1).mean()
    student.zero_grad()
    want.backward()
    slopes = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    torch.testing.assert_close(got, torch.cat(slopes), rtol=1e-6, atol=1e-10)
    assert value == pytest.approx(want.item(), rel=1e-6)


def test_it_is_logged_named_and_its_needs_are_checked(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    trainer = trainer_of(student, store, tmp_path, loss=f"{total_variation},uld:1")
    assert trainer.weights == {"total_variation": 2.0, "uld": 1.0}
    trainer.train()
    for entry in logged(trainer):
        parts = 2 * entry["total_variation_loss"] + entry["uld_loss"]
        assert entry["kd_loss"] == pytest.approx(parts, rel=1e-6)
        assert entry["covered_fraction_total_variation"] > 0
    losses = [entry["loss"] for entry in logged(trainer)]
    assert losses[-1] < losses[0]
    origin = trainer._origin(trainer.args)["settings"]
    assert origin["loss"] == "tests.kit.own:total_variation,uld:1"
    blind = FakeStore(**vars(store) | {"spec": type(store.spec)(**vars(store.spec) | {"top_k": 0})})
    with pytest.raises(MismatchError, match="the entries that total_variation compares"):
        trainer_of(student, blind, tmp_path, loss=total_variation)


def test_records_of_the_next_token_are_worse_than_its_own(
    student: PreTrainedModel, tmp_path: Path
) -> None:
    teacher = tiny.llama(WIDTH, seed=7)
    found = []
    for shifted in (False, True):
        store = FakeStore.from_teacher(
            teacher, tiny.byte_bpe(), ragged_rows(), tmp_path / str(shifted), shifted=shifted
        )
        how = {"loss": total_variation, "no_self_test": True, "eval_store": store}
        found.append(trainer_of(teacher, store, tmp_path, **how).evaluate())
    right, wrong = (each["eval_total_variation_loss"] for each in found)
    assert right < 1e-4 < 10 * right + 0.1 < wrong


# ---- what is wrong with one ----


def declared(values: Callable[..., Any], **how: Any) -> Loss:
    values.__name__ = values.__qualname__ = "mine"
    return distill.loss(**{"needs": {"entries", "ids", "tail"}, **how})(values)


WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "a mean": (
        lambda t, s, o: s.rest().mean(),
        r"mine: expected one value for each pair, a tensor of shape \(\d+,\), found a .* \(\)\.",
    ),
    "a value for each id": (
        lambda t, s, o: s.at_ids(),
        r"found a tensor of shape \(\d+, \d+\)",
    ),
    "a number": (lambda t, s, o: 1.0, "found a float"),
    "not a number": (
        lambda t, s, o: (t["entry_logmass"].exp() * 0 * t["entry_logmass"]).sum(1) + s.rest(),
        r"mine: returns a loss of nan for \d+ of \d+ pairs of the store",
    ),
    "a slope that is none": (
        lambda t, s, o: (s.rest() - s.rest()).sqrt(),
        "mine: has a finite value and a gradient that is not",
    ),
    "no slope": (lambda t, s, o: t["rest_logmass"] * 0, "mine: has no gradient"),
    "an array that was not declared": (
        lambda t, s, o: t["logprob"] + s.rest(),
        r"mine: fails on \d+ pairs .*_own_loss.py line \d+: KeyError: 'logprob'\. .* index",
    ),
    "no pairs": (
        lambda t, s, o: s.rest() + 0 * s.rest().max(),
        "mine: fails on 0 pairs of the store",
    ),
    "logits that were not asked for": (
        lambda t, s, o: s.logits().logsumexp(-1),
        r"mine: .*_own_loss.py line \d+: student\.logits\(\) is not there, .* Add logits=True to",
    ),
    "columns that were not asked for": (
        lambda t, s, o: s.columns(t["index"]).sum(1),
        r"test_own_loss.py line \d+: student\.columns\(…\) is not there.* Add columns=N to",
    ),
    "weights that it has not": (
        lambda t, s, o: s.made("gate").sum(1),
        r"test_own_loss.py line \d+: student\.made\('gate'\) is not there.* Add a module=…",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_function_that_cannot_be_trained_with_is_named_before_the_first_step(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path, what: str
) -> None:
    values, message = WRONG[what]
    with pytest.raises(InputError, match=message) as raised:
        trainer_of(student, store, tmp_path / "out", loss=declared(values))
    assert raised.value.kind == "own-loss"
    assert not (tmp_path / "out").exists()


def test_one_that_fails_later_stops_the_run_before_the_weights(
    store: FakeStore, student: PreTrainedModel, tmp_path: Path
) -> None:
    added = [0.0]
    mine = declared(lambda t, s, o: s.rest() + added[0])

    class Breaking(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            added[0] = torch.nan

    trainer = trainer_of(student, store, tmp_path, loss=mine, callbacks=[Breaking()])
    with pytest.raises(
        InputError, match=r"step 2, rows? .*Cross-entropy is finite there, so look at .*mine first"
    ):
        trainer.train()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"needs": {"layers"}}, "mine: declares that it needs 'layers' of a store, expected of: "),
        ({"pairs": "words"}, "mine: declares pairs 'words', expected starts, strict, groups"),
    ],
)
def test_a_declaration_says_what_it_does_not_know(how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        declared(lambda t, s, o: None, **how)


def test_every_need_that_may_be_declared_is_checked() -> None:
    assert set(NEEDS) == {*_IS_MET, "byte spans"}


def test_a_name_that_is_taken_is_refused() -> None:
    def uld(teacher: Any, student: Any, options: Any) -> Any: ...

    with pytest.raises(InputError, match="found 'uld', which is taken"):
        own.use(distill.loss()(uld))


def test_a_flag_of_its_own_is_refused() -> None:
    """Flags are those that there are: the command line is read before a module is imported."""
    mine = declared(lambda t, s, o: s.rest(), options=(Option("sharpness", 1.0, "Of mine."),))
    with pytest.raises(InputError, match="mine: declares the flag --sharpness, and a loss of your"):
        own.use(mine)


def test_workers_that_begin_anew_find_it_by_its_address() -> None:
    """As functions are pickled; what lies in another function has no address."""
    assert pickle.loads(pickle.dumps(total_variation)) is total_variation
    assert find("total_variation") is total_variation
    mine = declared_inside()
    own.use(mine)
    with pytest.raises(InputError, match=r"mine: a process that begins anew could not find it"):
        pickle.dumps(mine)


def declared_inside() -> Loss:
    @distill.loss()
    def mine(teacher: Any, student: Any, options: Any) -> Any: ...

    return mine


# ---- whose code is run ----

MODULE = """
import pathlib
import distill

pathlib.Path(__file__).with_suffix(".ran").touch()

@distill.loss(needs={"token logprob"}, pairs="groups")
def mine(teacher, student, options):
    own = student.added_up(teacher["token_index"], teacher["token_pair"])
    return (teacher["logprob"] - own) ** 2

def bare(teacher, student, options):
    return student.label()
"""


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A folder with a module of a name of its own, which leaves a mark when it is run."""
    (tmp_path / "named_by_me.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("named_by_me", None)


FLAGS = ["--store", "s", "--output_dir", "o", "--model_name_or_path", "m", "--use_cpu"]


def test_the_command_line_runs_the_module_that_it_names(here: Path) -> None:
    args, _ = parse([*FLAGS, "--loss", "named_by_me:mine:0.5,uld"])
    assert args.loss_weights == {"mine": 0.5, "uld": 1.5}
    assert (here / "named_by_me.ran").exists()
    assert parse([*FLAGS, "--loss=named_by_me:mine"])[0].loss_weights == {"mine": 1.0}


def test_nothing_else_does(here: Path) -> None:
    """Neither a file of flags, nor a string in Python, nor the results of somebody's run."""
    sys.path.append(str(here))  # it could be imported from here
    (here / "run.yaml").write_text("loss: named_by_me:mine\n")
    with pytest.raises(InputError, match=r"--config run.yaml: loss names named_by_me:mine, a mod"):
        parse([*FLAGS, "--config", "run.yaml"])
    with pytest.raises(InputError, match="a name alone imports nothing"):
        settings(here / "o", loss="named_by_me:mine")
    assert "arXiv:2402.12030" in card({"name": "run", "loss": "named_by_me:mine,uld"})
    assert not (here / "named_by_me.ran").exists()
    assert "named_by_me" not in sys.modules
    args, _ = parse([*FLAGS, "--config", "run.yaml", "--loss", "named_by_me:mine"])
    assert args.loss_weights == {"mine": 1.0}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            "nowhere:mine",
            r"nowhere cannot be imported from .*No module named 'nowhere'\)\. Run the",
        ),
        ("named_by_me.py:mine", r"Write --loss named_by_me:mine\.$"),
        (
            "named_by_me:yours",
            r"named_by_me.py\) has no such name, .*it declares mine\. Write",
        ),
        ("named_by_me:bare", "has a function of that name, expected a function under @distill"),
        ("named_by_me:mine:none", "the weight 'none' is not a number above 0"),
    ],
)
def test_a_name_that_is_no_loss_is_refused(here: Path, named: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse([*FLAGS, "--loss", named])


def test_a_module_that_fails_is_quoted(here: Path) -> None:
    (here / "named_by_me.py").write_text("1 / 0\n")
    with pytest.raises(
        InputError,
        match=r"named_by_me.py line 1 fails when it is imported \(ZeroDivisionError: division by "
        r"zero\)\. Change it there\.$",
    ):
        parse([*FLAGS, "--loss", "named_by_me:mine"])


def test_a_function_is_as_good_as_its_name(tmp_path: Path) -> None:
    args: CachedTeacherConfig = settings(tmp_path, loss=total_variation)
    assert args.loss == "tests.kit.own:total_variation"
    assert parse_losses(f"{total_variation}:3") == {"total_variation": 3.0}


def plain(teacher: Any, student: Any, options: Any) -> Any:
    return student.label()


def test_a_function_that_nothing_declares_is_told_so(tmp_path: Path) -> None:
    said = r"loss is plain, which no @distill\.loss\(…\) declares\. Write @distill\.loss\(needs=…\)"
    with pytest.raises(InputError, match=said) as raised:
        CachedTeacherConfig(output_dir=str(tmp_path / "o"), store="s", loss=plain)
    assert raised.value.kind == "own-loss"
    with pytest.raises(InputError, match=r"^@distill\.loss stands above plain without brackets"):
        distill.loss(plain)
