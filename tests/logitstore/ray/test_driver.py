"""What a driver hands its teachers, and what it makes of what they say: one process plays both."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitstore
from logitstore.errors import InputError, MismatchError, StorageError
from logitstore.ray import crew as crew_module
from logitstore.ray import driver, job
from logitstore.ray.cluster import Room
from logitstore.ray.driver import RayHands
from logitstore.ray.teacher import Teacher
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from tests.kit.fake_ray import FakeRay
from tests.kit.rows import texts_file

SETTINGS: dict[str, Any] = {"top_k": 4, "shard_text_bytes": 400, "device": "cpu"}
BAD = "~"  # a token of its own


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    """A cluster with room for two teachers, whose actors are objects of this process."""
    made, logger = FakeRay(), logging.getLogger("logitstore")
    before = list(logger.handlers), logger.level

    @contextmanager
    def connected(address: str) -> Iterator[str]:
        yield f"--ray {address}"

    monkeypatch.setattr(job, "connected", connected)
    monkeypatch.setattr(crew_module, "ray_library", lambda: made)
    monkeypatch.setattr(crew_module, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(Room, "now", classmethod(lambda cls: Room(((0.0, 1.0),) * 2)))
    yield made
    logger.handlers, logger.level = before


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts_file(tmp_path_factory.mktemp("ray") / "rows.jsonl", tiny.corpus())


def capture(teacher: Path, data: Path, out: Path, **more: Any) -> None:
    logitstore.ray.capture(
        teacher, str(data), out, address="local", cpus_per_teacher=1, **(SETTINGS | more)
    )


@pytest.mark.parametrize("more", [{}, {"draws": 3, "seed": 7, "tokens_per_batch": "auto"}])
def test_teachers_are_told_all_that_decides_a_record(
    more: dict[str, Any], teacher: Path, data: Path, tmp_path: Path, ray: FakeRay,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    planned: list[Any] = []
    prepare = job.prepare
    monkeypatch.setattr(job, "prepare", lambda *a: planned.append(a) or prepare(*a))
    capture(teacher, data, tmp_path / "s", **more)
    assert len(planned) == 1, "the dataset is read and hashed once"
    assert len(ray.actors) == 2
    if "draws" in more:  # the size of a batch was measured there
        more["tokens_per_batch"] = logitstore.open_store(tmp_path / "s").provenance[
            "tokens_per_batch"
        ]
    logitstore.capture(teacher, str(data), tmp_path / "one", **SETTINGS, **more)
    assert shards(tmp_path / "s") == shards(tmp_path / "one")


def shards(store: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(store).items() if name.startswith("shards")}


def test_a_row_that_cannot_be_read_is_named_and_costs_its_shard_alone(
    teacher: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    with torch.no_grad():
        weights = model.get_input_embeddings().weight
        weights[tokenizer.convert_tokens_to_ids(BAD)] = float("nan")
    broken = tiny.save(tmp_path / "broken", model, tokenizer)
    texts = [*tiny.corpus()[:20], f"a {BAD} here", *tiny.corpus()[20:]]
    with pytest.raises(InputError, match=r"^shard \d+ of \d+ could not be captured: row 20: the t"):
        capture(broken, texts_file(tmp_path / "rows.jsonl", texts), tmp_path / "s", self_test=False)
    plan = logitstore.open_store(tmp_path / "s", allow_partial=True).plan
    assert len(shards(tmp_path / "s")) == plan.shard_count - 1


def test_a_teacher_looks_whether_it_writes_to_the_drivers_folder(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitstore.ray.teacher._SEEN_WITHIN_S", 0.0)
    begun = RayHands._begun
    monkeypatch.setattr(
        RayHands, "_begun", lambda *args: begun(*args)._replace(sign=b"of another folder")
    )
    with pytest.raises(StorageError, match="another folder of that name"):
        capture(teacher, data, tmp_path / "s")
    assert shards(tmp_path / "s") == {}


def test_a_dataset_that_changes_meanwhile_ends_the_capture(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a teacher is sent is what the plan has the digest of."""
    sent: list[int] = []
    rows_of = RayHands._rows_of

    def changing(self: RayHands, index: int) -> Any:
        sent.append(index)
        if len(sent) == 3:
            monkeypatch.setattr(self.task.watch, "check", has_changed)
        return rows_of(self, index)

    def has_changed() -> None:
        raise MismatchError("rows.jsonl: has changed", kind="dataset-changed")

    monkeypatch.setattr(RayHands, "_rows_of", changing)
    with pytest.raises(MismatchError, match=r"rows\.jsonl: has changed"):
        capture(teacher, data, tmp_path / "s")
    assert len(shards(tmp_path / "s")) == 2


def test_no_gpus_where_some_are_asked_for(teacher: Path, data: Path, tmp_path: Path) -> None:
    says = r"^--gpus-per-teacher is 2: a teacher needs 2 GPUs and 1 processor, and no node of the R"
    with pytest.raises(InputError, match=says):
        capture(teacher, data, tmp_path / "s", device=None, device_map="auto", gpus_per_teacher=2)
    assert list(tmp_path.iterdir()) == []


def test_turns_that_nothing_ends_are_warned_of_by_the_driver(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[tuple[int, dict[str, int]]] = []
    monkeypatch.setattr(driver.OddTurns, "warn", lambda self, *said: warned.append(said))
    read = Teacher._capture

    def noted(self: Teacher, rows: Any) -> Any:
        self._event("turns", shard=rows.index, unended=2)
        return read(self, rows)

    monkeypatch.setattr(Teacher, "_capture", noted)
    capture(teacher, data, tmp_path / "s")
    assert sorted(warned) == [(n, {"unended": 2}) for n in range(len(shards(tmp_path / "s")))]
