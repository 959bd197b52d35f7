"""What comes of teachers and shards when something dies, fails, joins or is asked to stop."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from logitstore import errors
from logitstore.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    InputError,
    LogitStoreError,
    StorageError,
)
from logitstore.ray import crew as crew_module
from logitstore.ray.cluster import Needs, Room
from logitstore.ray.crew import Crew
from logitstore.ray.messages import Done, Failure, Left, Said
from tests.kit.fake_ray import Died, FakeRay

ONE_PLACE = Room(((0.0, 1.0),))
DISK = Failure("disk-full", "s: no space left. Make room.", False)


def of_row(index: int) -> Failure:
    return Failure("input", f"row {index * 10}: is odd. Drop it.", True)


class World:
    """What a test decides, and what it sees.

    Attributes:
        shards: What becomes of a shard: a failure, or how many teachers it kills.
        loads: How many teachers die before they have loaded the model.
        room: The cluster.
        read: The shards that were begun, in order, by teacher.
        beside: Of each shard that was begun, those that its teacher had in hand besides.
    """

    def __init__(self) -> None:
        self.ray = FakeRay()
        self.shards: dict[int, Failure | int] = {}
        self.loads, self.room = 0, ONE_PLACE
        self.read: list[tuple[int, int]] = []
        self.stop_after: int | None = None
        self.after: Callable[[], None] = lambda: None
        self.opens: Failure | None = None

    def teacher(self) -> type:
        world = self

        class Scripted:
            def __init__(self, job: Any) -> None:
                self.number, self.is_stopped = len(world.ray.actors), False

            def start(self) -> str:
                if world.loads:
                    world.loads -= 1
                    raise Died("No module named 'logitstore'")
                return f"cpu of node {self.number}"

            def open(self, begun: Any) -> Failure | None:
                return world.opens

            def capture(self, index: int) -> Any:
                if self.is_stopped:
                    return Left()
                world.read.append((self.number, index))
                what = world.shards.get(index)
                if isinstance(what, Failure):
                    return what
                if what:
                    world.shards[index] = what - 1
                    raise Died("The actor is dead because its worker process has died")
                return Done(1)

            def said(self) -> Said:
                return Said()

            def stop(self) -> None:
                self.is_stopped = True

        return Scripted

    def begun(self) -> list[int]:
        return [index for _, index in self.read]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(crew_module, "ray_library", lambda: made.ray)
    monkeypatch.setattr(crew_module, "Teacher", made.teacher())
    monkeypatch.setattr(crew_module, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(crew_module.Room, "now", classmethod(lambda cls: made.room))
    return made


def run(world: World, shards: int, *, max_restarts: int = 2, wanted: int | None = None) -> Any:
    """Have shards captured; return the crew, and the shards that are done."""
    job: Any = None
    crew = Crew(job, Needs(0, 1), wanted, max_restarts, lambda said: None)
    done: list[int] = []

    def after(newly: Any) -> None:
        done.extend(newly)
        assert all(len(each.shards) <= 2 for each in crew.hired)
        world.after()

    rows: Any = lambda index: index  # noqa: E731
    begun: Any = None
    crew.do(
        range(shards),
        begun,
        rows,
        is_asked_to_stop=lambda: world.stop_after is not None and len(done) >= world.stop_after,
        after_step=after,
    )
    crew.end()
    assert all(actor.is_dead for actor in world.ray.actors), "every teacher is let go"
    return crew, done


def test_every_shard_is_done_once_by_as_many_teachers_as_there_is_room_for(world: World) -> None:
    world.room = Room(((0.0, 1.0), (0.0, 2.0)))
    crew, done = run(world, 30)
    assert sorted(done) == world.begun() == list(range(30))
    assert len(world.ray.actors) == 3
    assert (crew.failed, crew.fatal) == ({}, None)


def test_no_more_teachers_are_hired_than_there_are_shards(world: World) -> None:
    world.room = Room(((0.0, 64.0),))
    assert sorted(run(world, 2)[1]) == [0, 1]
    assert len(world.ray.actors) == 2


def test_a_node_that_joins_is_used(world: World) -> None:
    def join() -> None:
        if len(world.read) >= 4:
            world.room = Room(((0.0, 1.0), (0.0, 1.0)))

    world.after = join
    _, done = run(world, 40)
    assert sorted(done) == list(range(40))
    by = Counter(number for number, _ in world.read)
    assert len(by) == 2
    assert min(by.values()) > 4


def test_a_teacher_that_dies_costs_nothing_but_its_shards_in_hand(world: World) -> None:
    world.shards[3] = 1
    crew, done = run(world, 8)
    assert sorted(done) == list(range(8))
    assert crew.failed == {}
    assert len(world.ray.actors) == 2
    assert Counter(world.begun())[3] == 2
    assert max(Counter(world.begun()).values()) == 2


@pytest.mark.parametrize("teachers", [1, 2])
def test_a_shard_that_kills_its_teachers_is_named_and_takes_no_other_with_it(
    world: World, teachers: int
) -> None:
    world.shards[3] = 99
    world.room = Room(((0.0, 1.0),) * teachers)
    crew, done = run(world, 8, max_restarts=2)
    again = [index for index, count in Counter(world.begun()).items() if count > 1]
    assert len(again) <= 2, "of the others only what its first teacher had in hand beside it"
    assert sorted(done) == [0, 1, 2, 4, 5, 6, 7]
    assert set(crew.failed) == {3}
    assert "3 teachers died while they read it (--max-restarts is 2)" in crew.failed[3].text
    assert "its worker process has died" in crew.failed[3].text
    assert isinstance(crew.failed[3].error(), IncompleteStoreError)
    assert crew.fatal is None


def test_a_row_that_fails_costs_its_shard_alone(world: World) -> None:
    world.shards = {2: of_row(2), 5: of_row(5)}
    crew, done = run(world, 8)
    assert sorted(done) == [0, 1, 3, 4, 6, 7]
    assert {i: each.text for i, each in crew.failed.items()} == {i: of_row(i).text for i in (2, 5)}
    assert len(world.ray.actors) == 1, "its teacher goes on"


def test_ten_shards_that_fail_in_a_row_are_no_matter_of_a_row(world: World) -> None:
    world.shards = {index: of_row(index) for index in range(3, 40)}
    crew, done = run(world, 40)
    assert sorted(done) == [0, 1, 2]
    assert isinstance(crew.fatal, InputError)
    assert len(world.read) < 16


def test_a_disk_that_is_full_ends_the_capture_after_the_shards_in_hand(world: World) -> None:
    world.shards[4] = DISK
    crew, done = run(world, 40)
    assert isinstance(crew.fatal, StorageError)
    assert (crew.fatal.kind, str(crew.fatal)) == ("disk-full", DISK.text)
    assert set(done) <= {0, 1, 2, 3, 5}
    assert len(world.read) <= 7


def test_a_node_that_does_not_see_the_store_ends_the_capture(world: World) -> None:
    world.opens = Failure("storage", "/data/s: on node 7 there is no store.json", False)
    crew, done = run(world, 5)
    assert (done, world.read) == ([], [])
    assert "there is no store.json" in str(crew.fatal)


def test_teachers_that_never_load_are_not_hired_for_ever(world: World) -> None:
    world.loads = 99
    crew, done = run(world, 5, max_restarts=2)
    assert done == []
    assert isinstance(crew.fatal, IncompleteStoreError)
    assert "3 teachers in a row died before they read a shard" in str(crew.fatal)
    assert "No module named 'logitstore'" in str(crew.fatal)
    assert len(world.ray.actors) == 3


def test_one_that_loads_in_the_end_is_good_enough(world: World) -> None:
    world.loads = 2
    crew, done = run(world, 5, max_restarts=2)
    assert (sorted(done), crew.fatal) == (list(range(5)), None)


def test_asked_to_stop_it_finishes_what_is_in_hand_and_begins_nothing(world: World) -> None:
    world.stop_after = 3
    crew, done = run(world, 40)
    assert 3 <= len(done) <= 6
    assert world.begun()[: len(done)] == sorted(done)
    assert crew.fatal is None


def test_a_dataset_that_changes_ends_the_capture(world: World) -> None:
    job: Any = None
    crew = Crew(job, Needs(0, 1), None, 2, lambda said: None)

    def rows_of(index: int) -> Any:
        if index == 2:
            raise errors.MismatchError("rows.jsonl: has changed", kind="dataset-changed")
        return index

    begun: Any = None
    crew.do(range(9), begun, rows_of, is_asked_to_stop=lambda: False, after_step=lambda done: None)
    assert crew.fatal is not None
    assert crew.fatal.kind == "dataset-changed"
    assert world.begun() == [0, 1]


# ---- what it all rests on ----


def kinds() -> list[tuple[type[LogitStoreError], str]]:
    return [(each, kind) for each in LogitStoreError.__subclasses__() for kind in each.kinds]


@pytest.mark.parametrize(("error", "kind"), kinds())
def test_an_error_of_a_teacher_has_its_kind_here_too(
    error: type[LogitStoreError], kind: str, tmp_path: Any
) -> None:
    more = {"path": tmp_path / "x"} if error is CorruptStoreError else {}
    failure = Failure.of(error("what is wrong", kind=kind, **more))
    again = failure.error()
    assert str(again) == "what is wrong"
    assert isinstance(again, InputError if error is CorruptStoreError else error)
    assert again.kind == ("input" if error is CorruptStoreError else kind)
    assert failure.is_of_rows == (error is InputError and kind != "engine")


@pytest.mark.parametrize(
    ("needs", "nodes", "count"),
    [
        (Needs(0, 2), [(0, 5), (8, 4)], 4),
        (Needs(1, 1), [(0, 5), (8, 4)], 4),
        (Needs(2, 1), [(3, 9), (8, 64)], 5),
        (Needs(0.5, 1), [(1, 8)], 2),
        (Needs(4, 1), [(2, 8), (2, 8)], 0),
        (Needs(4, 1, is_spread=True), [(2, 8), (2, 8)], 1),
        (Needs(1, 1), [], 0),
        (Needs(4, 1, is_spread=True), [], 0),
    ],
)
def test_there_is_room_for_as_many_as_nodes_hold(
    needs: Needs, nodes: list[tuple[float, float]], count: int
) -> None:
    assert needs.room(Room(tuple(nodes))) == count


def test_what_holds_several_gpus_reserves_them_together() -> None:
    assert Needs(1, 4).bundles == Needs(0, 4).bundles == []
    assert Needs(2, 4).bundles == [{"GPU": 2, "CPU": 4}]
    spread = Needs(3, 2, is_spread=True).bundles
    assert spread == [{"CPU": 2}, *[{"GPU": 1.0, "CPU": 1.0}] * 3]
