"""Hidden states through the public commands: captured, trained from, said and saved."""

import io
import json
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer
from transformers import AutoModelForCausalLM

from distill.training.own_weights import WEIGHTS_FILE
from logitstore.cli.app import app as logitstore
from logitstore.testing import tiny
from tests.kit.commands import Run
from tests.kit.rows import texts_file

FLAGS = (
    "--use_cpu --max_steps 2 --per_device_train_batch_size 8 --logging_steps 1 --report_to none "
    "--save_strategy no --disable_tqdm true --learning_rate 1e-3 --no_self_test true --json"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*(low coverage|wrong labels)")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    teacher = tiny.llama(len(tiny.unigram()), seed=7, hidden_size=24)
    tiny.save(folder / "teacher", teacher, tiny.unigram())
    tiny.save(folder / "student", tiny.llama(len(tiny.byte_bpe()), seed=1), tiny.byte_bpe())
    texts_file(folder / "rows.jsonl", [text[:40] for text in tiny.corpus()[:6]])
    return folder


def captured(here: Path, flags: str) -> Path:
    out = here / "".join(filter(str.isalnum, flags))
    if not out.exists():
        words = ["capture", str(here / "teacher"), str(here / "rows.jsonl"), "--out", str(out)]
        command = typer.main.get_command(logitstore)
        with redirect_stdout(io.StringIO()):
            command([*words, *shlex.split(flags)], standalone_mode=False)
    return out


def train(run: Run, here: Path, out: Path, flags: str, *stores: Path) -> tuple[int, str, str]:
    named = [word for store in stores for word in ("--store", str(store))]
    student = ("--model_name_or_path", str(here / "student"))
    return run(
        "train", *student, *named, "--output_dir", str(out), *shlex.split(FLAGS + " " + flags)
    )


HIDDEN = "--top-k 4 --device cpu --no-self-test --hidden last,embedding"


@pytest.mark.parametrize(
    ("loss", "flags"),
    [
        ("dskd", HIDDEN),
        ("dskd", f"{HIDDEN} --with-lm-head"),
        ("cot2align", HIDDEN),
        ("clkd", "--top-k 60 --logit-std --device cpu --no-self-test"),
    ],
)
def test_a_captured_store_trains_a_student(
    here: Path, tmp_path: Path, run: Run, loss: str, flags: str
) -> None:
    store = captured(here, flags)
    status, stdout, stderr = train(run, here, tmp_path / "out", f"--loss {loss}", store)
    assert status == 0, stderr
    found: dict[str, Any] = json.loads(stdout)
    assert (found["loss"], found["sequences"]) == (loss, 6)
    first = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"][0]
    assert first[f"{loss}_loss"] > 0
    assert (tmp_path / "out" / WEIGHTS_FILE).exists() == (loss != "clkd")
    assert ("weights of its own beside" in stderr) == (loss != "clkd")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_of_two_stores_one_without_hidden_states_is_named_before_anything_is_written(
    here: Path, tmp_path: Path, run: Run
) -> None:
    plain = captured(here, "--top-k 4 --device cpu --no-self-test")
    hidden = captured(here, HIDDEN)
    status, _, stderr = train(run, here, tmp_path / "out", "--loss dskd", hidden, plain)
    assert status == 2
    assert f"{plain}: captured without --hidden" in stderr
    assert "again with --hidden last,embedding" in stderr
    assert not (tmp_path / "out").exists()


def test_two_answers_to_a_prompt_are_learnt_from_two_stores(
    here: Path, tmp_path: Path, run: Run
) -> None:
    stores = []
    for name in ("plain", "reasons"):
        rows = [{"prompt": f"{n}: ", "completion": f"{name} {n}"} for n in range(6)]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["capture", str(here / "teacher"), str(file), "--out", str(tmp_path / name)]
        with redirect_stdout(io.StringIO()):
            command = typer.main.get_command(logitstore)
            command([*words, *shlex.split(HIDDEN)], standalone_mode=False)
        stores.append(tmp_path / name)
    flags = f"--loss cot2align --cot_store {stores[1]}"
    status, stdout, stderr = train(run, here, tmp_path / "out", flags, stores[0])
    assert status == 0, stderr
    assert json.loads(stdout)["cot_store"]["with_second_text"] == 6


def test_two_teachers_have_weights_each(here: Path, tmp_path: Path, run: Run) -> None:
    stores = captured(here, HIDDEN), captured(here, f"{HIDDEN} --hidden-dtype bf16")
    status, _, stderr = train(run, here, tmp_path / "out", "--loss dskd", *stores)
    assert status == 0, stderr
    weights = (tmp_path / "out" / WEIGHTS_FILE).read_bytes()
    assert b"dskd@0.query.weight" in weights
    assert b"dskd@1.query.weight" in weights
