"""A program that writes a store row by row may stop or be killed whenever it likes."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import logitstore
from logitstore.errors import IncompleteStoreError, MismatchError
from logitstore.testing import stores
from tests.kit.created import Rows, created, settings, with_logits
from tests.kit.dumps import ENGLISH, TEXTS, Dumper

PLAIN = {"top_k": 8, "shard_rows": 4, "dataset": "tiny"}


@pytest.fixture(scope="module")
def rows(teacher: Dumper) -> Rows:
    return with_logits(teacher, (*ENGLISH, *TEXTS, ENGLISH[0]))


@pytest.fixture(scope="module")
def whole(teacher: Dumper, rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a program writes that nobody stops."""
    return Path(created(tmp_path_factory.mktemp("whole") / "s", teacher, rows, **PLAIN).path)


class Stop(Exception):
    """Whatever ends a program."""


def stops_at(last: int) -> Callable[[int], None]:
    def before(row: int) -> None:
        if row == last:
            raise Stop

    return before


def test_a_program_that_stops_anywhere_goes_on_to_the_same_bytes(
    teacher: Dumper, rows: Rows, whole: Path, tmp_path: Path
) -> None:
    for stop in (0, 3, 4, 9, len(rows) - 1):
        place = tmp_path / f"s{stop}"
        with pytest.raises(Stop):
            created(place, teacher, rows, before=stops_at(stop), **PLAIN)
        assert place.exists() == (stop >= 4)  # nothing before the first shard is full
        asked: list[int] = []
        created(place, teacher, rows, before=asked.append, **PLAIN)
        assert asked == list(range(stop - stop % 4, len(rows)))
        assert stores.tree(place) == stores.tree(whole)


def test_rows_may_come_in_any_order(
    teacher: Dumper, rows: Rows, whole: Path, tmp_path: Path
) -> None:
    order = random.Random(0).sample(range(len(rows)), len(rows))
    created(tmp_path / "s", teacher, rows, order, **PLAIN)
    assert stores.tree(tmp_path / "s") == stores.tree(whole)


def test_a_row_that_is_there_is_compared_and_not_written(
    teacher: Dumper, rows: Rows, whole: Path, tmp_path: Path
) -> None:
    """So a program may as well begin anew with its first row."""
    with pytest.raises(Stop):
        created(tmp_path / "s", teacher, rows, before=stops_at(6), **PLAIN)
    with logitstore.create(tmp_path / "s", **settings(teacher, rows, **PLAIN)) as w:
        assert [w.add(row, text, **given) for row, (text, given) in enumerate(rows)] == [
            row >= 4 for row in range(len(rows))
        ]
    assert stores.tree(tmp_path / "s") == stores.tree(whole)
    with logitstore.create(tmp_path / "s", **settings(teacher, rows, **PLAIN)) as w:
        assert list(w.missing()) == []
        with pytest.raises(MismatchError, match=r"row 1: the store has another text") as caught:
            w.add(1, rows[2][0], **rows[2][1])
    assert caught.value.kind == "dataset-changed"
    assert stores.tree(tmp_path / "s") == stores.tree(whole)


def test_several_programs_may_each_add_some_rows(
    teacher: Dumper, rows: Rows, whole: Path, tmp_path: Path
) -> None:
    for part in (range(8, len(rows)), range(8)):
        asked = settings(teacher, rows, allow_partial=part.stop > 8, **PLAIN)
        with logitstore.create(tmp_path / "s", **asked) as w:
            for row in part:
                w.add(row, rows[row][0], **rows[row][1])
    assert stores.tree(tmp_path / "s") == stores.tree(whole)


def test_a_program_that_closes_early_is_told_and_may_go_on(
    teacher: Dumper, rows: Rows, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(IncompleteStoreError) as caught:
        created(tmp_path / "s", teacher, rows, order=range(6), **PLAIN)
    assert str(caught.value) == (
        f"{tmp_path / 's'}: closed with 4 of {len(rows)} rows in the store; the first that was not "
        "added is row 6. What is there stays. Run the same program again for the others, which "
        "missing() names."
    )
    assert not (tmp_path / "s" / "DONE").exists()
    created(tmp_path / "s", teacher, rows, **PLAIN)
    assert stores.tree(tmp_path / "s") == stores.tree(whole)
    with pytest.raises(IncompleteStoreError, match=r"closed with 0 of"):
        created(tmp_path / "none", teacher, rows, order=range(3), **PLAIN)
    assert not (tmp_path / "none").exists()


def test_another_program_is_refused(teacher: Dumper, rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        created(tmp_path / "s", teacher, rows, before=stops_at(6), **PLAIN)
    before = stores.tree(tmp_path / "s")
    others = (
        ({"top_k": 4}, r"capture\.top_k is 8 in the store, 4 now"),
        ({"dataset": "other"}, r"the dataset is another, or has changed"),
        ({"shard_rows": 2}, r"plan\.boundaries is"),
        ({"aligned_to": "token"}, r"rendering\.created is"),
        ({"vocab_size": 500}, r"teacher\.vocab_size is 400 in the store, 500 now"),
        ({"teacher": "another"}, r"teacher\.fingerprint is"),
    )
    for more, says in others:
        with pytest.raises(MismatchError, match=says):
            created(tmp_path / "s", teacher, rows, **(PLAIN | more))
    stores.write(tmp_path / "captured")
    with pytest.raises(MismatchError, match=r"was not written row by row"):
        created(tmp_path / "captured", teacher, rows, **PLAIN)
    assert stores.tree(tmp_path / "s") == before


def test_a_store_that_was_renamed_is_resumed_if_its_data_have_no_name(
    teacher: Dumper, rows: Rows, tmp_path: Path
) -> None:
    more = {"top_k": 8, "shard_rows": 4}
    with pytest.raises(Stop):
        created(tmp_path / "s", teacher, rows, before=stops_at(6), **more)
    (tmp_path / "s").rename(tmp_path / "t")
    created(tmp_path / "t", teacher, rows, **more)


def shards_of(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.glob("shards/[0-9]*")}


def killed(place: Path, teacher: Dumper, rows: Rows, shards: int, after_s: float) -> None:
    """Fork a program that writes the store, and kill it soon after so many shards are there."""
    child = os.fork()
    if child == 0:
        try:
            created(place, teacher, rows, **PLAIN)
        finally:
            os._exit(0)
    while len(list(place.glob("shards/[0-9]*"))) < shards:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before its shards were there"
        time.sleep(0.002)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_kill_9_loses_no_row_that_was_committed(
    teacher: Dumper, rows: Rows, whole: Path, tmp_path: Path
) -> None:
    """At many moments, most of them while a shard is made or the store is sealed."""
    wanted, chance = stores.tree(whole), random.Random(0)
    last = len(shards_of(whole))
    for n, counts in enumerate(((0, 1, 3), (0, 2, 4), (1, 2, 3), (3, 4, last))):
        place = tmp_path / f"s{n}"
        for count in counts:
            before = set(shards_of(place))
            killed(place, teacher, rows, max(count, len(before)), chance.uniform(0, 0.06))
            found = shards_of(place)
            assert before <= set(found)
            assert all(data == wanted[f"shards/{name}"] for name, data in found.items())
        created(place, teacher, rows, **PLAIN)
        assert stores.tree(place) == wanted
