"""The experiment on labels compares like with like, and says no more than its figures do."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from logitstore import open_store
from logitstore.testing import tiny
from tools import workers
from tools.experiment_labels_page import HERE, KEPT, MARK, SAID, Key, keep, lines, read, tables
from tools.labels import parts
from tools.labels.renumbered import RenumberedStore
from tools.labels.settings import CONTENDERS, CONTROL, FULL, QUICK, Job, Setting, jobs
from tools.labels.students import tokenizer_of
from tools.labels.trim import TrimError, cuts, trimmed
from tools.workers import Run

TEXTS = ["the old mill by the river", "x = 12_345  # naïve café", "数 and 🙂\n\n    return"]
WORK = "tools.labels.students"
TRAINED = Setting("unigram", "trained", "gentle")


# ---- a trimmed tokenizer ----


@pytest.mark.parametrize("make", [tiny.byte_bpe, tiny.sp_bpe])
def test_a_trimmed_tokenizer_cuts_its_texts_as_the_whole_one_does(
    tmp_path: Path, make: Any
) -> None:
    whole = make(600, bos=True)
    whole.save_pretrained(tmp_path)
    small = trimmed(tmp_path, TEXTS)
    assert len(small) < len(whole)
    assert cuts(small.backend_tokenizer, TEXTS) == cuts(whole.backend_tokenizer, TEXTS)
    around = [small.convert_ids_to_tokens(small(text)["input_ids"]) for text in TEXTS]
    assert around == [whole.convert_ids_to_tokens(whole(text)["input_ids"]) for text in TEXTS]
    other = "a text of quite other words"
    assert small.decode(small(other, add_special_tokens=False)["input_ids"]).strip() == other


def test_only_bpe_can_be_trimmed(tmp_path: Path) -> None:
    tiny.unigram().save_pretrained(tmp_path)
    with pytest.raises(TrimError, match="Unigram, expected a BPE"):
        trimmed(tmp_path, TEXTS)


# ---- the parts, of a tiny teacher ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("labels")
    parts.prepare(made, QUICK)
    return made


def test_the_control_sees_the_teachers_records_with_other_ids_alone(folder: Path) -> None:
    store = open_store(folder / "store")
    whole: Any = AutoTokenizer.from_pretrained(store.tokenizer_path)
    small: Any = tokenizer_of(folder, CONTROL)
    seen = RenumberedStore(store, whole, small)  # type: ignore[arg-type]
    assert len(small) < len(whole)
    for i, (old, new) in enumerate(zip(store, seen.read_many(range(len(store))), strict=True)):
        assert whole.convert_ids_to_tokens(old.token_ids.tolist()) == (
            small.convert_ids_to_tokens(new.token_ids.tolist())
        )
        owner = np.repeat(np.arange(len(new)), new.entry_count)
        held = np.bincount(owner, np.exp(new.entry_logprobs.astype(float)), len(new))
        assert held + np.exp(new.tail_logmass.astype(float)) == pytest.approx(1, abs=1e-3), i


def test_what_is_made_is_not_made_again(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    parts.prepare(folder, QUICK)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_keeps_each_result_and_says_what_it_leaves_out(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.jsonl"
    unknown = CONTENDERS["alm"]._replace(options={"no_such_option": 1})
    monkeypatch.setitem(CONTENDERS, "unknown", unknown)
    monkeypatch.setattr(workers, "_left_out", set())  # as in a process that has said nothing
    run = Run(WORK, folder, QUICK, results, "cpu", 1, time.time() + 600, tmp_path)
    monkeypatch.setattr(workers, "_run", run)
    workers._before(CONTROL, 0)
    same = TRAINED._replace(student=CONTROL)
    wanted = [Job(same, name, "1", 0) for name in ("ce", "control", "unknown")]
    assert [workers._group([job]) for job in wanted] == [1, 1, 0]
    assert "left out: same/trained/gentle/unknown/1/0" in capfd.readouterr().err
    ce, control = map(json.loads, results.read_text().splitlines())
    assert ce["start"] == control["start"] == parts.start_of(folder, same, 0)
    assert control["last"]["tail_kl_loss"] > 0
    covered = {"aligned_fraction", "covered_fraction"} & control["last"].keys()
    assert [control["last"][name] for name in covered] == [1.0]  # every label, by any name
    assert workers.known(tmp_path, results) == {(job.name, ce["start"]) for job in wanted[:2]}


def test_nothing_is_begun_after_the_deadline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.jsonl"
    run = Run(WORK, folder, QUICK, results, "cpu", 1, time.time() - 1, tmp_path)
    monkeypatch.setattr(workers, "_run", run)
    assert workers._group([Job(TRAINED, "ce", "1", 0)]) == 0
    assert not run.results.exists()


# ---- jobs ----


def test_every_contender_has_its_baseline_and_the_most_decisive_come_first() -> None:
    groups = jobs(FULL)
    names = [job.name for group in groups for job in group]
    assert len(set(names)) == len(names)
    assert names[0] == "unigram/trained/gentle/ce/1/0"
    assert {len(group) for group in groups} == {len(FULL.seeds)}
    settings = {job.setting for group in groups for job in group}
    assert {Job(s, "ce", "1", 0).name for s in settings} <= set(names)
    trained = [job for group in groups for job in group if job.setting.start == "trained"]
    is_further = [job.weight != "1" or job.made.is_minor for job in trained]
    assert is_further == sorted(is_further)
    assert names.index("unigram/new/normal/ce/1/0") == len(trained)


def test_jobs_are_chosen_by_patterns_of_their_names() -> None:
    chosen = jobs(FULL, "unigram/trained/gentle/ce/*; same/new/normal/control/0.5/1")
    names = [job.name for group in chosen for job in group]
    assert len(names) == 4
    assert names[-1] == "same/new/normal/control/0.5/1"


# ---- the page ----


def run_of(name: str, bits: float, start: str = "a", device: str = "cpu") -> dict[str, Any]:
    return {
        "name": name,
        "bits_per_byte": bits,
        "start": start,
        "device": device,
        "code": "c",
        "learning_rate": 2e-4,
        "steps": 150,
    }


def results(contender: str, differences: list[float], student: str = "unigram") -> list[Any]:
    base = f"{student}/trained/gentle"
    ce = [run_of(f"{base}/ce/1/{seed}", 2.0 + seed) for seed in range(3)]
    others = [
        run_of(f"{base}/{contender}/1/{seed}", 2.0 + seed + d) for seed, d in enumerate(differences)
    ]
    return ce + others


def test_students_are_compared_with_cross_entropy_of_the_same_start_alone() -> None:
    runs = results("alm", [-0.1, -0.1, -0.1])
    runs.append(run_of("unigram/trained/gentle/alm/1/0", 9.0, start="b"))
    runs.append(run_of("unigram/trained/gentle/alm/1/1", 9.0, device="another"))
    found = lines(runs)[Key(TRAINED, "alm", "1")]
    assert found.differences == pytest.approx([-0.1] * 3)
    assert found.verdict == "better"


def test_the_share_of_the_controls_gain_is_said_where_the_control_surely_gains() -> None:
    half = results("alm", [-0.01, -0.01, -0.01])
    sure = results("control", [-0.02, -0.02, -0.02], CONTROL)
    unsure = results("control", [-0.09, 0.01, 0.02], CONTROL)
    assert "| better | 50% |" in tables([*half, *sure])
    assert "| better |  |" in tables([*half, *unsure])


def test_results_of_several_machines_are_merged_and_conclusions_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, runs in (
        ("results", results("alm", [-0.1] * 3)),
        ("results-2", results("uld", [0.1])),
    ):
        text = "".join(json.dumps(run) + "\n" for run in runs)
        (tmp_path / f"{name}.jsonl").write_text(text)
    said = tmp_path / "said.md"
    said.write_text(f"Conclusions.\n\n{MARK}\n\nold tables\n")
    monkeypatch.setattr("tools.experiment_labels_page.KEPT", tmp_path / "kept.json")
    monkeypatch.setattr("tools.experiment_labels_page.SAID", said)
    shown = keep(tmp_path)
    assert said.read_text() == f"Conclusions.\n\n{MARK}\n\n{shown}\n"
    assert json.loads((tmp_path / "kept.json").read_text()) == read(tmp_path)
    assert len(read(tmp_path)) == 7
    assert "| alm | **-0.1000** |" in shown
    assert "| uld | +0.1000 |" in shown
    for file in tmp_path.glob("results*.jsonl"):
        file.unlink()
    assert keep(tmp_path) == shown  # what was kept stays, though its folder is gone


def test_what_is_kept_has_the_tables_of_its_runs() -> None:
    assert SAID.parent == HERE
    said = SAID.read_text(encoding="utf-8")
    assert said.split(MARK)[1].strip() == tables(json.loads(KEPT.read_text()))
