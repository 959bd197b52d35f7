"""A run that names no loss has the one that suits its tokenizers, and says which."""

import json
import shutil
from pathlib import Path

import pytest

import logitstore
from distill.losses.advice import UNPROVEN, caution
from distill.losses.evidence import harm, measured
from logitstore.errors import MismatchError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.commands import Run
from tests.kit.rows import texts_file
from tests.kit.students import ragged_rows, trainer_of


@pytest.fixture
def place(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of a teacher, a student with its tokenizer, and one with another."""
    monkeypatch.chdir(tmp_path)
    texts_file(tmp_path / "rows.jsonl", tiny.corpus()[36:44])
    logitstore.capture(teacher, "rows.jsonl", "store", top_k=8)
    shutil.copytree(teacher, tmp_path / "same")
    tiny.save(tmp_path / "other", tiny.llama(len(tiny.unigram()), seed=1), tiny.unigram())
    return tmp_path


@pytest.mark.parametrize(
    ("student", "loss", "both"),
    [("same", "tail_kl", "one tokenizer"), ("other", "mapped_kl", "different tokenizers")],
)
def test_a_run_without_a_loss_says_and_records_what_it_takes(
    place: Path, run: Run, student: str, loss: str, both: str
) -> None:
    typed = ["train", "--model_name_or_path", student, "--store", "store", "--use_cpu", "--json"]
    typed += ["--output_dir", "out", "--max_steps", "2", "--save_steps", "1"]
    status, out, err = run(*typed)
    assert status == 0, err
    line = f"--loss {loss}, the default where teacher and student have {both}"
    assert err.splitlines().count(line) == 1
    assert err.splitlines().count(f"--loss {loss}: {UNPROVEN}.") == (student == "other")
    assert json.loads(out)["loss"] == loss
    assert json.loads((place / "out/results.json").read_text())["loss"] == loss
    origin = json.loads((place / "out/checkpoint-1/distill.json").read_text())
    assert origin["settings"]["loss"] == loss
    assert f"CE + {loss}".replace("+", "&#43;") in (place / "out/README.md").read_text()
    # Going on, it is the same loss, named or not; another one is refused.
    goes_on = [*typed[:-4], "--max_steps", "3", "--resume_from_checkpoint", "true"]
    status, _, err = run(*goes_on, "--loss", loss)
    assert status == 0, err
    assert line not in err
    status, _, err = run(*goes_on, "--loss", "uld")
    assert status == 2
    assert f"trained with --loss {loss}, but this run has uld" in err


@pytest.mark.parametrize("weights", ["new", "trained"])
def test_what_no_map_is_known_to_do_is_said_of_a_student_that_has_learnt(
    place: Path, run: Run, weights: str
) -> None:
    named = "--student_config" if weights == "new" else "--model_name_or_path"
    typed = ["train", named, "other", "--store", "store", "--use_cpu", "--loss", "uld,mapped_kl"]
    status, _, err = run(*typed, "--output_dir", "out", "--max_steps", "1")
    assert status == 0, err
    said = "--loss uld,mapped_kl: in our runs uld was worse than cross-entropy alone, in held-out "
    said += f"bits per byte: {harm('uld', 'trained')}. {UNPROVEN}."
    assert (said in err.splitlines()) == (weights == "trained")
    assert (UNPROVEN in err) == (weights == "trained")
    if weights == "new":
        for gone in (place / "other").glob("model*"):
            gone.unlink()
    said = " ".join(run("coverage", "store", "other")[1].split())
    assert (f"not sure {UNPROVEN}." in said) == (weights == "trained")
    cited = measured("mapped_kl", {"map": "events"}, weights)
    assert f"(less is better): {cited}. docs/which-loss.md" in said


def test_what_was_surely_worse_in_our_runs_is_said_at_any_rate() -> None:
    assert harm("uld", "trained").startswith("+0.0")
    for rate in (2e-5, 1e-3, None):
        said = caution(["uld"], "trained", one_tokenizer=False, learning_rate=rate)
        assert said.endswith(f"per byte: {harm('uld', 'trained')}")
    assert caution(["uld"], "trained", one_tokenizer=True) == ""  # that was not measured
    assert caution(["uld"], "new", one_tokenizer=False) == ""  # likewise


def test_a_loss_without_a_map_or_harm_is_said_nothing_of() -> None:
    for losses in (["alm"], ["ce"], []):
        assert caution(losses, "trained", one_tokenizer=False, learning_rate=2e-5) == ""
        assert caution(losses, "trained", one_tokenizer=False) == ""
    assert caution(["alm", "mapped_kl"], "unknown", one_tokenizer=False) == UNPROVEN
    assert caution(["tail_kl"], "trained", one_tokenizer=True) == ""


@pytest.mark.parametrize(("rate", "is_said"), [(2e-5, True), (2e-4, True), (1e-3, False)])
def test_what_is_known_of_gentle_rates_is_said_at_those_alone(rate: float, is_said: bool) -> None:
    """The rates at which it was measured: docs/which-loss.md."""
    said = caution(["mapped_kl"], "trained", one_tokenizer=False, learning_rate=rate)
    assert said == (UNPROVEN if is_said else "")


def test_a_loss_that_is_given_is_left_alone(tmp_path: Path) -> None:
    tokenizer = tiny.byte_bpe()
    store = FakeStore.from_teacher(
        tiny.llama(len(tokenizer), seed=7), tokenizer, ragged_rows(), tmp_path / "t"
    )
    for loss, weights in (
        ("mapped_kl", {"mapped_kl": 1.0}),
        ("ce", {}),
        ("auto", {"tail_kl": 1.0}),
    ):
        trainer = trainer_of(tiny.llama(len(tokenizer)), store, tmp_path / "out", loss=loss)
        assert trainer.weights == trainer.args.loss_weights == weights


def test_a_default_that_the_store_cannot_serve_names_another(tmp_path: Path) -> None:
    tokenizer, draws = tiny.byte_bpe(), {"top_k": 0, "draws": 5}
    store = FakeStore.from_teacher(
        tiny.llama(len(tokenizer), seed=7), tokenizer, ragged_rows(), tmp_path / "t", **draws
    )
    with pytest.raises(MismatchError, match="Use --loss sampled_kl"):
        trainer_of(tiny.llama(len(tokenizer)), store, tmp_path / "out", loss="auto")
