"""Methods of the table through the public command, from a captured store."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from distill.losses import all_losses
from logitstore.capture import capture
from logitstore.testing import tiny
from tests.kit.commands import Run
from tests.kit.rows import texts_file

pytestmark = pytest.mark.filterwarnings("ignore:.*(low coverage|wrong labels)")
FLAGS = (
    "--use_cpu --max_steps 2 --per_device_train_batch_size 8 --logging_steps 1 --report_to none "
    "--save_strategy no --disable_tqdm true --learning_rate 1e-3 --json"
)
#: By the table of docs/methods.md; those of hidden states are in test_hidden_command.py, those of
#: several teachers in test_several_stores_command.py.
METHODS = {
    "gold": "--loss gold",
    "alm": "--loss alm",
    "multilevel_ot": "--loss multilevel_ot",
    "infifusion": "--loss infifusion",
    "exact": "--loss mapped_kl --map exact",
    "mined": "--loss mapped_kl --map mined",
    "cdm": "--loss cdm",
    "sure teacher": "--loss mapped_kl --token_weights dwa_teacher",
    "unsure student": "--loss uld --token_weights dwa_student",
}
#: Likewise, of a student that has the teacher's tokenizer.
OF_ONE_TOKENIZER = {"tail_kl": "--loss tail_kl", "sampled_kl": "--loss sampled_kl"}
#: Other ways to use the same losses.
WAYS = {
    "ce": "--loss ce",
    "default": "--loss auto",
    "between": "--loss mapped_kl --between on",
    "prefix": "--loss mapped_kl --map prefix",
    "strict": "--loss mapped_kl --map strict",
    "p_kl": "--loss mapped_kl --map p_kl",
    "uld": "--loss uld:1.5",
    "uld position": "--loss uld:1.5 --pairing position",
    "cdm prefix": "--loss cdm --cdm_map prefix --cdm_threshold 0",
}
ELSEWHERE = {"dskd", "cot2align", "clkd"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a teacher, a student of another tokenizer, and one of the same."""
    folder = tmp_path_factory.mktemp("here")
    tiny.save(folder / "teacher", tiny.llama(len(tiny.unigram()), seed=7), tiny.unigram())
    tiny.save(folder / "student", tiny.llama(len(tiny.byte_bpe()), seed=1), tiny.byte_bpe())
    tiny.save(folder / "kin", tiny.llama(len(tiny.unigram()), seed=1), tiny.unigram())
    texts_file(folder / "rows.jsonl", [text[:50] for text in tiny.corpus()[:8]])
    how: dict[str, Any] = {"top_k": 24, "logit_std": True, "draws": 8}
    how |= {"device": "cpu", "self_test": False}
    capture(str(folder / "teacher"), str(folder / "rows.jsonl"), out=folder / "store", **how)
    return folder


@pytest.mark.parametrize(
    "methods", [METHODS | OF_ONE_TOKENIZER, pytest.param(WAYS, marks=pytest.mark.slow)]
)
def test_each_trains_by_the_command_and_shows_in_compare(
    here: Path, tmp_path: Path, run: Run, methods: dict[str, str]
) -> None:
    pytest.importorskip("rapidfuzz")
    first: dict[str, float] = {}
    for name, flags in methods.items():
        out = tmp_path / name.replace(" ", "-")
        student = here / ("kin" if name in OF_ONE_TOKENIZER else "student")
        words = ["--model_name_or_path", str(student), "--store", str(here / "store")]
        status, _, stderr = run(
            "train", *words, "--output_dir", str(out), *shlex.split(f"{FLAGS} {flags}")
        )
        assert status == 0, stderr
        log = json.loads((out / "trainer_state.json").read_text())["log_history"]
        first[name] = log[0].get("kd_loss", 0.0)
        assert log[1]["loss"] < log[0]["loss"], name
    assert len({round(value, 6) for value in first.values()}) == len(methods)
    folders = [str(tmp_path / name.replace(" ", "-")) for name in methods]
    status, stdout, stderr = run("compare", *folders, "--json")
    assert status == 0, stderr
    shown = set(stdout.replace('"', " ").replace(":", " ").replace(",", " ").split())
    losses = {flags.split("--loss ")[1].split()[0].split(":")[0] for flags in methods.values()}
    assert losses - {"auto"} <= shown


def test_no_loss_is_left_out() -> None:
    named = {
        flags.split("--loss ")[1].split()[0].split(":")[0]
        for flags in [*METHODS.values(), *OF_ONE_TOKENIZER.values()]
    }
    assert named | ELSEWHERE == set(all_losses())
