"""Methods of the table through the public command, from a captured store."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from logitstore.capture import capture
from logitstore.testing import tiny
from tests.kit.commands import Run
from tests.kit.rows import texts_file

pytestmark = pytest.mark.filterwarnings("ignore:.*(low coverage|wrong labels)")
FLAGS = (
    "--use_cpu --max_steps 2 --per_device_train_batch_size 8 --logging_steps 1 --report_to none "
    "--save_strategy no --disable_tqdm true --learning_rate 1e-3 --json"
)
METHODS = {
    "exact": "--loss mapped_kl --map exact",
    "mined": "--loss mapped_kl --map mined",
    "cdm": "--loss cdm",
    "cdm prefix": "--loss cdm --cdm_map prefix --cdm_threshold 0",
    "sure teacher": "--loss mapped_kl --token_weights dwa_teacher",
    "unsure student": "--loss uld --token_weights dwa_student",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a teacher of another tokenizer than the student's."""
    folder = tmp_path_factory.mktemp("here")
    tiny.save(folder / "teacher", tiny.llama(len(tiny.unigram()), seed=7), tiny.unigram())
    tiny.save(folder / "student", tiny.llama(len(tiny.byte_bpe()), seed=1), tiny.byte_bpe())
    texts_file(folder / "rows.jsonl", [text[:50] for text in tiny.corpus()[:8]])
    how: dict[str, Any] = {"top_k": 24, "device": "cpu", "self_test": False}
    capture(str(folder / "teacher"), str(folder / "rows.jsonl"), out=folder / "store", **how)
    return folder


def test_each_trains_by_the_command_and_shows_in_compare(
    here: Path, tmp_path: Path, run: Run
) -> None:
    pytest.importorskip("rapidfuzz")
    first: dict[str, float] = {}
    for name, flags in METHODS.items():
        out = tmp_path / name.replace(" ", "-")
        words = ["--model_name_or_path", str(here / "student"), "--store", str(here / "store")]
        status, _, stderr = run(
            "train", *words, "--output_dir", str(out), *shlex.split(f"{FLAGS} {flags}")
        )
        assert status == 0, stderr
        log = json.loads((out / "trainer_state.json").read_text())["log_history"]
        first[name] = log[0]["kd_loss"]
        assert log[1]["loss"] < log[0]["loss"]
    assert len({round(value, 6) for value in first.values()}) == len(METHODS)
    folders = [str(tmp_path / name.replace(" ", "-")) for name in METHODS]
    status, stdout, stderr = run("compare", *folders, "--json")
    assert status == 0, stderr
    assert {"cdm", "mapped_kl", "uld"} <= set(stdout.replace('"', " ").replace(":", " ").split())
