"""`distill` as it is typed: a store in, a student folder and one JSON object out."""

import importlib
import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitstore
from distill import cli
from logitstore.capture import capture
from logitstore.testing import tiny
from tests.kit.commands import Run
from tests.kit.forks import forget_modules, forked
from tests.kit.paths import ROOT
from tests.kit.students import t5

FLAGS = (
    "--max_steps 3 --per_device_train_batch_size 4 --logging_steps 1 --use_cpu --save_strategy no"
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, a student, data, two stores of it, and one of its rows reversed."""
    folder = tmp_path_factory.mktemp("here")
    teacher, student = tiny.unigram(), tiny.byte_bpe()
    tiny.save(folder / "teacher", tiny.llama(len(teacher), seed=7), teacher)
    tiny.save(folder / "student", tiny.llama(len(student)), student)
    rows = [json.dumps({"text": text}) for text in [*tiny.corpus()[:12], "", *tiny.corpus()[36:]]]
    (folder / "data.jsonl").write_text("\n".join(rows))
    (folder / "reversed.jsonl").write_text("\n".join(reversed(rows)))
    for name, data, ids in (
        ("store", "data", True),
        ("blind", "data", False),
        ("reversed", "reversed", True),
    ):
        rows_file = str(folder / f"{data}.jsonl")
        capture(str(folder / "teacher"), rows_file, out=folder / name, top_k=8, ids=ids)
    return folder


def train(run: Run, here: Path, out: Path, *more: str) -> tuple[int, str, str]:
    given = ["--model_name_or_path", str(here / "student")]
    if "--store" not in more:
        given += ["--store", str(here / "store")]
    return run("train", *given, "--output_dir", str(out), *FLAGS.split(), *more)


def test_training_leaves_an_ordinary_folder_and_prints_its_run(
    here: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    status, stdout, stderr = train(
        run, here, out, "--loss", "uld:1.5,mapped_kl", "--seed", "3", "--run_name", "both",
        "--eval_store", str(here / "reversed"), "--json",
    )  # fmt: skip
    assert status == 0
    found = json.loads(stdout)  # nothing else is on stdout
    assert found == json.loads((out / "results.json").read_text())
    assert "ce_loss" in stderr
    expected = {
        "name": "both", "seed": 3, "steps": 3, "loss": "uld:1.5,mapped_kl", "sequences": 24,
        "sequences_without_records": 1, "sequences_skipped": 0,
        "store_digest": logitstore.open_store(here / "store").digest,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert all(
        found[key] > 0 for key in ("time_s", "train_s", "peak_rss_bytes", "tokens_per_second")
    )
    metrics = found["metrics"]
    total = (
        metrics["eval_ce_loss"] + 1.5 * metrics["eval_uld_loss"] + metrics["eval_mapped_kl_loss"]
    )
    assert metrics["eval_loss"] == pytest.approx(total)
    assert {"ce_loss", "kd_loss", "kd_gap", "covered_fraction"} <= set(metrics)
    card = (out / "README.md").read_text()
    usable = found["usable"]
    assert (usable["sequences"], usable["used"], usable["by_student"]) == (25, 24, [])
    assert [(x["reason"], x["count"]) for x in usable["by_capture"]] == [("empty", 1)]
    assert "| sequences not used | 1 empty |" in card
    assert set(found["self_test"]) == {"records", "student"}
    assert found["store_digest"] in card
    assert "2402.12030" in card
    assert str(here) not in card  # a path says where, and who, you are
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    student = AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out)("a")["input_ids"]
    assert student.config.vocab_size == 300


def test_a_run_says_what_it_does_and_what_came_of_it(here: Path, tmp_path: Path, run: Run) -> None:
    given = ("--model_name_or_path", str(here / "student"), "--store", str(here / "store"))
    out = tmp_path / "a student"
    status, stdout, stderr = run(
        "train", *given, "--output_dir", str(out), *FLAGS.split(), "--loss", "uld:2,alm",
        "--eval_store", str(here / "reversed"), "--eval_strategy", "steps", "--eval_steps", "2",
    )  # fmt: skip
    assert status == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    first = [line.split(maxsplit=1) for line in stderr.splitlines()]
    said = {words[0]: words[1] for words in reversed(first) if len(words) == 2}
    assert (
        said["student"] == f"{here / 'student'}: {model.num_parameters():,} weights, trained before"
    )
    assert said["store"].startswith(f"{here / 'store'}: 24 sequences of ")
    assert said["store"].endswith(", 8 entries a token")
    assert re.fullmatch(
        r"1 x cross-entropy \+ 2 x uld \+ 1 x alm; covered: (8|9|10)\d?\.\d% of the labels",
        said["loss"],
    )
    assert said["steps"] == "3 of 4 sequences (4 a device), 0.5 epochs, learning rate 2e-05"
    table = [line for line in stderr.splitlines() if re.match(r" +(step|\d+)  ", line)]
    assert [line.split()[0] for line in table] == ["step", "1", "2", "3"]
    assert table[0].split()[:5] == ["step", "epoch", "loss", "ce_loss", "kd_loss"]
    assert len(set(map(len, table))) == 1
    assert max(map(len, table)) <= 80
    assert "{'loss'" not in stderr
    held_out = [line for line in stderr.splitlines() if line.startswith("held out, at step")]
    assert re.match(r"held out, at step 2: loss \d+\.\d{4}, ce_loss", held_out[0])
    found = json.loads((out / "results.json").read_text())
    ends = dict(line.split(maxsplit=1) for line in stdout.splitlines())
    assert ends["trained"].startswith("3 steps in ")
    assert f"uld {found['metrics']['uld_loss']:.4f}" in stdout
    assert f"held out     loss {found['metrics']['eval_loss']:.4f}" in stdout
    assert f"distill evaluate '{out}' HELDOUT_DATA" in stdout
    assert max(map(len, stdout.splitlines())) < 80 + len(str(tmp_path))


def test_evaluation_completes_the_students_run(here: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    _, stdout, _ = train(run, here, out, "--json")
    trained = json.loads(stdout)
    data = str(here / "data.jsonl")
    status, stdout, _ = run("evaluate", str(out), data, "--metrics", "bits_per_byte", "--json")
    assert status == 0
    found = json.loads(stdout)
    assert found["bits_per_byte"] > 0
    assert {key: found[key] for key in trained} == trained
    assert json.loads((out / "results.json").read_text()) == found
    assert f"| bits/byte | {found['bits_per_byte']:.3f} |" in (out / "README.md").read_text()
    status, stdout, _ = run("evaluate", str(out), data, "--samples", "2")
    assert f"bits per byte  {found['bits_per_byte']:.4f}" in stdout
    kept = json.loads((out / "results.json").read_text())["samples"]
    assert (kept["data"], len(kept["texts"])) == (data, 2)
    assert f"reference  {kept['texts'][1]['reference']}" in stdout


def test_a_student_is_measured_against_its_teacher_and_by_what_it_writes(
    here: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    shutil.copytree(here / "student", out)
    (out / "results.json").write_text('{"name": "mine", "seed": 4}')
    rows = [
        {"prompt": "The teacher", "completion": " reads", "references": ["x", "y"]},
        {"prompt": "A", "completion": "b", "references": []},
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    every = ("--store", str(here / "store"), "--metrics", ",".join(cli.METRICS))
    status, stdout, _ = run(
        "evaluate", str(out), str(pairs), *every, "--max-new-tokens", "4", "--json"
    )
    assert status == 0
    found = json.loads(stdout)
    assert found == json.loads((out / "results.json").read_text())
    assert (found["name"], found["seed"], found["answered"]["prompts"]) == ("mine", 4, 2)
    assert found["answered"]["references"] == 4
    assert found["judged"]["store_digest"] == logitstore.open_store(here / "store").digest
    for key in ("agreement", "uld", "calibration_error", "token_f1", "exact_match", "rougeLsum"):
        assert 0 <= found[key] <= 2
    status, stdout, _ = run("evaluate", str(out), "--store", every[1], "--metrics", "uld")
    assert status == 0
    assert f"uld            {found['uld']:.4f}, of the live teacher within" in stdout
    assert json.loads((out / "results.json").read_text())["bits_per_byte"] == found["bits_per_byte"]
    status, stdout, _ = run("compare", str(out))
    assert status == 0
    assert "nothing to compare it with" in " ".join(stdout.split())
    assert "calibration error" in stdout


def test_evaluating_a_folder_of_others_writes_nothing_into_it(here: Path, run: Run) -> None:
    before = sorted(path.name for path in (here / "teacher").iterdir())
    status, stdout, _ = run("evaluate", str(here / "teacher"), str(here / "data.jsonl"), "--json")
    assert status == 0
    assert json.loads(stdout)["name"] == "teacher"
    assert sorted(path.name for path in (here / "teacher").iterdir()) == before


def test_a_student_learns_from_the_store(here: Path, tmp_path: Path, run: Run) -> None:
    losses = []
    for steps in ("1", "20"):
        _, stdout, _ = train(
            run, here, tmp_path / steps, "--max_steps", steps, "--loss", "mapped_kl",
            "--learning_rate", "1e-2", "--eval_store", str(here / "reversed"), "--json",
        )  # fmt: skip
        losses.append(json.loads(stdout)["metrics"]["eval_mapped_kl_loss"])
    assert losses[1] < 0.9 * losses[0]


def test_an_encoder_decoder_is_a_student_like_any_other(
    here: Path, tmp_path: Path, run: Run
) -> None:
    tiny.save(tmp_path / "t5", t5(), tiny.byte_bpe())
    student = ("--model_name_or_path", str(tmp_path / "t5"))
    status, stdout, _ = train(
        run, here, tmp_path / "out", *student, "--loss", "uld,mapped_kl", "--json"
    )
    assert (status, json.loads(stdout)["steps"]) == (0, 3)
    rows = [{"prompt": "The teacher", "completion": " reads"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, stdout, _ = run(
        "evaluate", str(tmp_path / "out"), str(tmp_path / "pairs.jsonl"),
        "--store", str(here / "store"), "--metrics", ",".join(cli.METRICS), "--json",
    )  # fmt: skip
    assert status == 0
    assert json.loads(stdout)["evaluation"]["bytes"] == 6


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_adapters_are_trained_alone_and_bring_their_base_when_they_are_loaded(
    here: Path, tmp_path: Path, run: Run
) -> None:
    before = (here / "student" / "model.safetensors").read_bytes()
    given = ("--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj")
    status, stdout, _ = train(
        run, here, tmp_path / "out", *given, "--learning_rate", "1e-1", "--json"
    )
    found = json.loads(stdout)
    assert status == 0
    assert found["lora"]["lora_r"] == 4
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert (here / "student" / "model.safetensors").read_bytes() == before
    bits = []
    for model in (tmp_path / "out", here / "student"):
        _, stdout, _ = run("evaluate", str(model), str(here / "data.jsonl"), "--json")
        bits.append(json.loads(stdout)["bits_per_byte"])
    assert bits[0] != bits[1]


def test_a_new_student_is_its_config_and_its_seed(here: Path, tmp_path: Path, run: Run) -> None:
    config = str(here / "student" / "config.json")
    new = ("--student_config", config, "--tokenizer_name_or_path", str(here / "student"))
    plain = (
        "--store",
        str(here / "store"),
        "--max_steps",
        "1",
        "--learning_rate",
        "1e-6",
        "--use_cpu",
    )
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / name
        status, stdout, _ = run(
            "train", *new, *plain, "--seed", seed, "--output_dir", str(out), "--json"
        )
        assert status == 0
        assert json.loads(stdout)["student_config"] == config
        weights.append(AutoModelForCausalLM.from_pretrained(out).lm_head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--student_config", "c"), "Leave one of them out"),
        (("--lora_r", "4"), "--lora_r 4 would have no effect: without --use_peft"),
        (("--use_peft", "--lora_r", "0"), "expected a rank of at least 1"),
        (("--use_peft", "--lora_target_modules", "nothing"), "--lora_target_modules nothing: "),
    ],
)
def test_a_student_that_cannot_be_made_is_one_message(
    here: Path,
    tmp_path: Path,
    run: Run,
    more: tuple[str, ...],
    says: str,
) -> None:
    status, stdout, stderr = train(run, here, tmp_path / "out", *more)
    assert (status, stdout) == (2, "")
    assert says in stderr
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_from_its_last_checkpoint(here: Path, tmp_path: Path, run: Run) -> None:
    saving = ("--save_strategy", "steps", "--save_steps", "2")
    assert train(run, here, tmp_path / "out", *saving)[0] == 0
    status, _, stderr = train(run, here, tmp_path / "out", *saving)
    assert status == 2
    assert "holds checkpoints of an earlier run" in stderr
    status, stdout, _ = train(
        run, here, tmp_path / "out", *saving, "--resume_from_checkpoint", "true",
        "--max_steps", "5", "--json",
    )  # fmt: skip
    assert status == 0
    assert json.loads(stdout)["steps"] == 5


def test_a_yaml_file_is_a_run(here: Path, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("loss: ce\nmax_steps: 1\nseed: 5\n")
    _, stdout, _ = train(run, here, tmp_path / "out", "--config", str(path), "--json")
    found = json.loads(stdout)
    assert (found["loss"], found["seed"], found["steps"]) == ("ce", 5, 3)  # the flag wins


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--store", "nowhere"), "nowhere"),
        (("--store", "{here}/teacher"), "teacher"),
        (("--store", "{here}/blind", "--loss", "mapped_kl"), "captured with --no-ids"),
        (("--model_name_or_path", "{here}/data.jsonl"), "cannot load it"),
        (("--model_name_or_path", "{here}/nobody"), "cannot load it"),
        (("--label_smoothing_factor", "0.1"), "--label_smoothing_factor 0.1 would have no effect"),
        (("--output_dir", "{here}/data.jsonl"), "is a file"),
        (("--output_dir", "{here}/teacher"), "expected a new or empty folder, found"),
        (("--eval_strategy", "steps"), "Add --eval_store"),
        (("--resume_from_checkpoint", "{here}/teacher"), "not a checkpoint of `distill train`"),
        (("--lerning_rate", "1"), "Did you mean learning_rate?"),
    ],
)
def test_a_bad_request_is_one_message_status_2_and_no_folder(
    here: Path,
    tmp_path: Path,
    run: Run,
    more: tuple[str, ...],
    says: str,
) -> None:
    before = sorted(path for path in here.rglob("*"))
    filled = [part.format(here=here) for part in more]
    status, stdout, stderr = train(run, here, tmp_path / "out", *filled)
    assert (status, stdout) == (2, "")
    assert stderr.splitlines()[-1].startswith("error: ")
    assert says in stderr
    assert not (tmp_path / "out").exists()
    assert sorted(path for path in here.rglob("*")) == before


def test_an_unfinished_store_is_refused_unless_asked_for(
    here: Path, tmp_path: Path, run: Run
) -> None:
    partial = tmp_path / "partial"
    shutil.copytree(here / "store", partial)
    (partial / "DONE").unlink()
    status, _, stderr = train(run, here, tmp_path / "out", "--store", str(partial))
    assert status == 2
    assert "the capture has not finished" in stderr
    status, *_ = train(run, here, tmp_path / "out", "--store", str(partial), "--allow_partial")
    assert status == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--metrics", "accuracy"), "--metrics accuracy: not known. Known: bits_per_byte"),
        (("--dtype", "int3"), "--dtype int3: expected one of float32"),
        (("--max-length", "1"), "expected at least 2 tokens"),
        (("--tokens-per-batch", "0"), "expected at least 1"),
        (("--text_column", "words"), "words"),
        (("--metrics", "agreement"), "no store is given. Add --store"),
        (("--store", "{here}/store"), "none of --metrics bits_per_byte reads it"),
        (("--metrics", "uld", "--store", "{here}/store"), "reads a dataset. Leave it out"),
        (("--metrics", "token_f1"), "has a prompt and a completion"),
        (("--metrics", "token_f1", "--max-new-tokens", "0"), "--max-new-tokens 0: expected at"),
        (("--references-column", "answers"), "none of --metrics bits_per_byte reads it"),
        (("--samples", "33"), "--samples 33: expected 0 to 32"),
    ],
)
def test_a_bad_evaluation_is_one_message_and_status_2(
    here: Path, run: Run, more: tuple[str, ...], says: str
) -> None:
    given = ("evaluate", str(here / "student"), str(here / "data.jsonl"))
    status, stdout, stderr = run(*given, *(part.format(here=here) for part in more))
    assert (status, stdout) == (2, "")
    assert says in stderr


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from distill.cli import main; sys.argv = ['distill', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "import distill\nassert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "evaluate" in done.stdout


class Chatty(MetaPathFinder):
    """Prints a line when a module is about to be imported, as transformers does of wandb."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name in ("distill.training.config", "distill.training.run"):
            print(f"[INFO] Running {name}")


def test_stdout_is_for_the_answer_whatever_libraries_print(here: Path) -> None:
    """As transformers does where its Trainer is imported beside an offline wandb."""
    flags = {"model_name_or_path": "student", "store": "nowhere", "output_dir": "never-made"}
    command = [part for name, value in flags.items() for part in (f"--{name}", str(here / value))]

    def run() -> tuple[object, str, str]:
        forget_modules("distill")
        sys.meta_path.insert(0, Chatty())
        sys.argv = ["distill", "train", *command]
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                importlib.import_module("distill.cli").main()
            except SystemExit as ended:
                return ended.code, out.getvalue(), err.getvalue()
        return 0, out.getvalue(), err.getvalue()

    code, out, err = forked(run)
    assert (code, out) == (2, "")
    for module in ("config", "run"):
        assert f"[INFO] Running distill.training.{module}" in err
    assert "nowhere: no store.json" in err


def test_every_flag_is_in_the_help(run: Run) -> None:
    status, stdout, _ = run("train", "--help")
    assert status == 0
    assert all(flag in stdout for flag in ("--store", "--model_name_or_path", "--config", "--seed"))
