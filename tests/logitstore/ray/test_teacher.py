"""What a teacher on a node looks at before it writes anything."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import logitstore
from logitstore.capture.estimate.sample import take_sample
from logitstore.capture.settings import CaptureSettings
from logitstore.capture.sharing.claims import exclusive, sign_of_alone
from logitstore.capture.task import Task, prepare
from logitstore.errors import MismatchError, StorageError
from logitstore.ray import teacher as teacher_module
from logitstore.ray.cluster import Needs, Room
from logitstore.ray.driver import job_of, needs_of
from logitstore.ray.messages import Begun, Failure, Job
from logitstore.ray.settings import RaySettings
from logitstore.ray.teacher import Teacher, _check_shared
from logitstore.storage.paths import store_path
from logitstore.testing import tiny
from tests.kit.rows import texts_file


@pytest.fixture(scope="module")
def task(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    file = texts_file(tmp_path_factory.mktemp("rows") / "rows.jsonl", tiny.corpus())
    return prepare(str(teacher), str(file), CaptureSettings(top_k=4))


@pytest.fixture(scope="module")
def job(task: Task) -> Job:
    return job_of(task, take_sample(task.reader, task.sizes), Needs(0, 1))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_module, "_SEEN_WITHIN_S", 0.0)


def test_only_the_folder_that_the_driver_has_begun_is_written_to(
    teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    logitstore.capture(
        teacher, str(texts_file(tmp_path / "rows.jsonl", tiny.corpus()[:3])), out, top_k=4
    )
    digest = hashlib.sha256((out / "store.json").read_bytes()).hexdigest()
    with exclusive(out / "shards"):
        begun = Begun(str(out), digest, sign_of_alone(out / "shards"), 8192)
        _check_shared(store_path(out), begun)
        for changed, says in (
            (begun._replace(sign=b"of another driver"), "another folder of that name"),
            (begun._replace(spec_sha256="0" * 64), r"another store\.json"),
        ):
            with pytest.raises(StorageError, match=rf"on node .* there is {says}, and not .*share"):
                _check_shared(store_path(out), changed)
        with pytest.raises(StorageError, match=r"there is no store\.json.*Give an --out that all"):
            _check_shared(store_path(tmp_path / "nowhere"), begun)
    assert not (tmp_path / "nowhere").exists()


def test_a_store_in_a_bucket_has_no_sign_and_needs_none(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    assert sign_of_alone(tmp_path / "shards") is None


def test_a_node_with_another_teacher_is_told(job: Job, tmp_path: Path) -> None:
    other = tiny.save(tmp_path / "t", tiny.llama(400, seed=9), tiny.byte_bpe(400, bos=True))
    failure = Teacher(replace(job, teacher=str(other))).start()
    assert isinstance(failure, Failure)
    error = failure.error()
    assert isinstance(error, MismatchError)
    assert "is another on node" in str(error)
    assert "it differs in teacher" in str(error)


def test_a_node_with_other_versions_is_warned_of(job: Job) -> None:
    older = job.provenance | {"versions": job.provenance["versions"] | {"torch": "1.0"}}
    teacher = Teacher(replace(job, provenance=older))
    assert isinstance(teacher.start(), str)
    lines = [text for _, text in teacher.said().lines]
    assert any("the driver 1.0: records may differ by rounding" in text for text in lines)
    assert teacher.said().lines == [], "each is told once"


def test_torch_uses_the_drivers_threads(job: Job) -> None:
    before = torch.get_num_threads()
    try:
        assert job.threads == before
        teacher = Teacher(replace(job, threads=before + 1))
        assert isinstance(teacher.start(), str)
        # Of torch, each thread has a number of its own; the model is on this one.
        assert teacher._model.submit(torch.get_num_threads).result() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("settings", "given", "nodes", "needs"),
    [
        ({}, {}, [(0, 4), (8, 64)], Needs(1, 1)),
        ({}, {"device": "cpu"}, [(8, 64)], Needs(0, torch.get_num_threads())),
        ({"cpus_per_teacher": 3}, {}, [(0, 4)], Needs(0, 3)),
        ({"gpus_per_teacher": 4}, {"device_map": "auto"}, [(8, 64)], Needs(4, 1)),
        ({"gpus_per_teacher": 1, "teachers": 9}, {}, [(0, 2)], Needs(1, 1)),
        ({}, {"engine": "server", "server": "http://h"}, [(8, 64)], Needs(0, 1)),
    ],
)
def test_a_teacher_holds_what_is_asked_for_else_what_one_uses(
    settings: dict[str, Any], given: dict[str, Any], nodes: Any, needs: Needs
) -> None:
    how = RaySettings(address="auto", **settings)
    assert needs_of(CaptureSettings(**given), how, Room(tuple(nodes)), "--ray auto") == needs


def test_processors_are_no_gpus_for_who_was_given_none(task: Task, job: Job) -> None:
    """A node may have some, which belong to others."""
    assert job.settings.device == "cpu"
    sample = take_sample(task.reader, task.sizes)
    assert job_of(task, sample, Needs(1, 1)).settings.device is None
