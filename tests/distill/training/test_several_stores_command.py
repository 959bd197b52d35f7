"""Several stores through the public commands: what is captured, trained, said and written down."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.data.dataset import StoreDataset
from distill.training.several_stores import Student, data_of_run, open_stores
from logitstore.capture import capture
from logitstore.store import LogitStore, open_store
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.commands import Run
from tests.kit.mixtures import mixture
from tests.kit.rows import texts_file
from tests.kit.students import settings

TEXTS = [text[:50] for text in tiny.corpus()[:8]]
FLAGS = (
    "--use_cpu --max_steps 2 --per_device_train_batch_size 8 --logging_steps 1 --report_to none "
    "--save_strategy no --disable_tqdm true --learning_rate 1e-3 --json"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*(low coverage|wrong labels)")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of a mixture of experts, and a teacher of another tokenizer on other rows."""
    folder = tmp_path_factory.mktemp("here")
    tiny.save(folder / "mixture", mixture("mixtral"), tiny.byte_bpe())
    tiny.save(folder / "far", tiny.llama(len(tiny.unigram()), seed=7), tiny.unigram())
    tiny.save(folder / "student", tiny.llama(len(tiny.byte_bpe()), seed=1), tiny.byte_bpe())
    texts_file(folder / "rows.jsonl", TEXTS[:6])
    texts_file(folder / "others.jsonl", TEXTS[:1:-1])
    how: dict[str, Any] = {"top_k": 16, "logit_std": True, "device": "cpu", "self_test": False}
    for seed in (1, 2):
        capture(
            str(folder / "mixture"), str(folder / "rows.jsonl"), out=folder / f"view-{seed}",
            experts="N-1", expert_sample=0.5, seed=seed, **how,
        )  # fmt: skip
    others = str(folder / "others.jsonl")
    capture(str(folder / "far"), others, out=folder / "far-store", **how)
    return folder


def train(run: Run, here: Path, out: Path, flags: str, *stores: str) -> dict[str, Any]:
    named = [word for store in stores for word in ("--store", str(here / store))]
    student = ("--model_name_or_path", str(here / "student"))
    status, stdout, stderr = run(
        "train", *student, *named, "--output_dir", str(out), *shlex.split(FLAGS + " " + flags)
    )
    assert status == 0, stderr
    found: dict[str, Any] = json.loads(stdout)
    found["first"] = json.loads((out / "trainer_state.json").read_text())["log_history"][0]
    return found


def test_knowledge_augmentation_is_the_mean_over_views(
    here: Path, tmp_path: Path, run: Run
) -> None:
    """Reverse KL to each of them; in the first step what training from each alone begins with."""
    flags = "--loss tail_kl --tail_kl_kind reverse"
    both = train(run, here, tmp_path / "both", flags, "view-1", "view-2")
    alone = [train(run, here, tmp_path / name, flags, name) for name in ("view-1", "view-2")]
    losses = [each["first"]["tail_kl_loss"] for each in alone]
    assert abs(losses[0] - losses[1]) > 1e-4
    assert both["first"]["tail_kl_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert both["sequences"] == 6


def test_infifusion_is_trained_from_teachers_of_two_tokenizers(
    here: Path, tmp_path: Path, run: Run
) -> None:
    found = train(run, here, tmp_path / "out", "--loss infifusion:2", "view-1", "far-store:2")
    assert found["first"]["infifusion_loss"] > 0
    assert found["sequences"] == 8
    assert found["teachers"] == "mean"
    assert [each["weight"] for each in found["stores"]] == [1.0, 2.0]
    assert [each["sequences"] for each in found["stores"]] == [6, 6]
    assert [each["sequences_alone"] for each in found["stores"]] == [2, 2]
    assert found["store"] == [str(here / "view-1"), f"{here / 'far-store'}:2"]
    digests = [open_store(here / name).digest for name in ("view-1", "far-store")]
    assert [each["store_digest"] for each in found["stores"]] == digests
    assert found["store_digest"] not in digests
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| teacher | mixture, far |" in card
    status, _, _ = run("compare", str(tmp_path / "out"), "--json")
    assert status == 0


def surprise(store: LogitStore, text: str) -> float:
    """Nats a byte of a text, from its records alone, one at a time."""
    for i in range(len(store)):
        if "".join(s.text for s in store.text(i).segments) == text:
            records = store[i]
            nats = bytes_ = 0.0
            for t in range(len(records)):
                if records.byte_lengths[t]:
                    nats -= float(records.token_logprob[t])
                    bytes_ += int(records.byte_lengths[t])
            return nats / bytes_
    return np.inf


def test_the_best_teacher_of_a_row_is_the_least_surprised(here: Path, tmp_path: Path) -> None:
    names = ["view-1", "view-2", "far-store"]
    stores = open_stores([str(here / name) for name in names])
    args = settings(
        tmp_path, store=[str(here / name) for name in names], teachers="best", loss="uld"
    )
    tokenizer = tiny.byte_bpe()
    data = data_of_run(stores, Student(ByteTokenizer(tokenizer), tokenizer, None), args)
    assert not isinstance(data, StoreDataset)
    chosen = []
    for i in range(len(data)):
        (number,) = np.flatnonzero(data.share_ES[i])
        part = data.parts[number]
        line = part.store.text(int(part.sequences[data.table_ES[i, number]]))
        costs = [surprise(each, "".join(s.text for s in line.segments)) for each in stores.each]  # type: ignore[arg-type]
        assert costs[number] == min(costs)
        assert np.isfinite(costs).sum() in (1, 2, 3)
        chosen.append(number)
        assert set(data[i].teacher) == {f"uld@{number}"}
    assert len(set(chosen)) > 1
    learnt = [facts["sequences_learnt"] for facts in data.facts()]
    assert learnt == np.bincount(chosen, minlength=3).tolist()
