"""Whatever happens to a store, in any order, it behaves like a dict that says what is true.

Committing, twins with other bytes, crashes, sealing, reopening, reading, damage, verifying and
repairing, in orders that hypothesis chooses. The dict knows which shards are committed, which are
damaged, and what each row must read as.
"""

import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from logitstore import open_store
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError, IncompleteStoreError
from logitstore.format.spec import Plan, shard_name
from logitstore.records import TokenRecords
from logitstore.store import LogitStore
from logitstore.testing import stores
from logitstore.writing.writer import StoreWriter
from tests.logitstore.storage.test_commit_faults import CrashingFs, InjectedCrashError

PLAN = Plan("d" * 64, (0, 2, 3, 6))
SHARDS = st.integers(0, PLAN.shard_count - 1)


def row_of_store(store: LogitStore, row: int) -> tuple[dict[str, Any], str]:
    """What a row reads as, comparable."""
    (i,) = store.row(row)
    records, text = store[i], store.text(i)
    return {n: getattr(records, n) for n in TokenRecords.__slots__}, text.supervised_bytes.decode()


SPEC = stores.spec(chunks=(4, 8))


@cache
def whole() -> tuple[dict[int, tuple[dict[str, Any], str]], dict[str, bytes]]:
    """What each row of a store without any mishap reads as, and its files."""
    with tempfile.TemporaryDirectory(prefix="states-") as folder:
        path = Path(folder) / "whole"
        stores.write(path, SPEC, PLAN.boundaries)
        store = open_store(path)
        rows = {row: row_of_store(store, row) for row in range(PLAN.rows)}
        return rows, stores.tree(path)


@cache
def lines_of(row: int) -> list[Any]:
    """The lines of a row, with their records."""
    return list(stores.row_sequences(SPEC, row))


class StoreMachine(RuleBasedStateMachine):
    """A store on disk beside the dict that it must agree with."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="states-"))
        self.path = self.folder / "s"
        self.committed: set[int] = set()
        self.damaged: set[int] = set()
        self.sealed = False

    @initialize()
    def begin(self) -> None:
        self.rows, self.tree = whole()
        self.writer()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def writer(self, fs: Any = None) -> StoreWriter:
        files = (stores.TOKENIZER_FILES, {"tokens_per_batch": 64})
        return StoreWriter(self.path, SPEC, PLAN, *files, **({"fs": fs} if fs else {}))

    def shard(self, index: int) -> Path:
        return self.path / "shards" / shard_name(index)

    def sequences(self, index: int, seed: int = 0) -> list[Any]:
        lines = [line for row in range(*PLAN.shard_rows(index)) for line in lines_of(row)]
        if seed:  # a twin that kept no records of anything
            return [(line, None) for line, _ in lines]
        return lines

    @rule(index=SHARDS)
    def commit(self, index: int) -> None:
        won = self.writer().write_shard(index, self.sequences(index))
        assert won == (index not in self.committed)
        self.committed.add(index)

    @rule(seals=st.booleans())
    def go_on(self, seals: bool) -> None:
        """As a capture does: all that is missing, then the seal. By single steps few get so far."""
        for index in range(PLAN.shard_count):
            if index not in self.committed:
                self.commit(index)
        if seals and not self.damaged:
            self.seal()

    @precondition(lambda self: self.committed)
    @rule(index=SHARDS)
    def a_late_twin_changes_nothing(self, index: int) -> None:
        if index in self.committed:
            before = self.shard(index).read_bytes()
            assert not self.writer().write_shard(index, self.sequences(index, seed=1))
            assert self.shard(index).read_bytes() == before

    @rule(index=SHARDS, at=st.integers(0, 8), seals=st.booleans())
    def crash(self, index: int, at: int, seals: bool) -> None:
        if self.sealed or self.damaged:
            return
        fs = CrashingFs(at)
        try:
            writer = self.writer(fs)
            writer.write_shard(index, self.sequences(index))
            if seals and not writer.missing():
                writer.seal()
        except InjectedCrashError:
            pass
        there = {i for i in range(PLAN.shard_count) if self.shard(i).exists()}
        assert self.committed <= there <= self.committed | {index}
        self.committed = there
        self.sealed = (self.path / "DONE").exists()

    @precondition(lambda self: len(self.committed) == PLAN.shard_count and not self.damaged)
    @rule()
    def seal(self) -> None:
        self.writer().seal()
        self.sealed = True
        assert stores.tree(self.path) == self.tree

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.committed)))
        if index in self.damaged:
            return  # the same flip again would undo it
        at = data.draw(st.integers(0, self.shard(index).stat().st_size - 1))
        self.flip(index, at, data.draw(st.integers(0, 7)))

    def flip(self, index: int, at: int, bit: int) -> None:
        content = bytearray(self.shard(index).read_bytes())
        content[at] ^= 1 << bit
        self.shard(index).unlink()  # a new file: what an open store has mapped stays as it was
        self.shard(index).write_bytes(content)
        self.damaged.add(index)

    @rule(deep=st.booleans())
    def verify(self, deep: bool) -> None:
        report = verify_store(self.path, deep=deep, allow_partial=True)
        found = {d.file for d in report.damaged}
        assert found == {f"shards/{shard_name(i)}" for i in self.damaged}
        assert report.shards == len(self.committed)

    @precondition(lambda self: self.committed)
    @rule()
    def repair(self) -> None:
        report = repair_store(self.path)
        assert len(report.moved) == len(self.damaged) + (2 if self.sealed and self.damaged else 0)
        self.committed -= self.damaged
        self.damaged = set()
        self.sealed = len(self.committed) == PLAN.shard_count
        assert report.is_complete == self.sealed
        if self.sealed:
            assert stores.tree(self.path) == self.tree

    @rule(row=st.integers(0, PLAN.rows - 1), partial=st.booleans())
    def read(self, row: int, partial: bool) -> None:
        try:
            store = open_store(self.path, allow_partial=partial)
        except IncompleteStoreError:
            assert not partial
            assert not self.sealed
            return
        assert partial or self.sealed
        index = next(i for i in range(PLAN.shard_count) if row < PLAN.boundaries[i + 1])
        try:
            records, text = row_of_store(store, row)
        except IndexError:
            assert index not in self.committed
            return
        except CorruptStoreError as e:
            # Numbering the rows of an unfinished store needs every shard that is there.
            bad = {index} & self.damaged if self.sealed else self.damaged
            assert e.path in {self.shard(i) for i in bad}  # noqa: PT017
            return
        assert index in self.committed
        want_records, want_text = self.rows[row]
        assert text == want_text
        for name, values in want_records.items():
            np.testing.assert_array_equal(records[name], values)

    @invariant()
    def nothing_strange_lies_in_the_store(self) -> None:
        if self.path.exists():
            assert {p.name for p in self.path.iterdir() if not p.name.startswith(".tmp-")} <= {
                "store.json", "tokenizer", "shards", "index.parquet", "DONE"
            }  # fmt: skip


TestStoreStates = StoreMachine.TestCase
TestStoreStates.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture
def machine() -> Iterator[StoreMachine]:
    made = StoreMachine()
    made.begin()
    yield made
    made.teardown()


def look(machine: StoreMachine) -> None:
    """Read and check the store in every way."""
    for deep in (False, True):
        machine.verify(deep)
        for row in (0, 2, 5):
            machine.read(row, partial=deep)


@pytest.mark.parametrize("index", range(PLAN.shard_count))
@pytest.mark.parametrize("seals", [True, False])
def test_what_chance_seldom_meets_a_damaged_shard_and_all_that_follows(
    machine: StoreMachine, index: int, seals: bool
) -> None:
    """Random orders of so many steps hardly ever damage what is sealed."""
    machine.go_on(seals)
    assert (machine.sealed, len(machine.committed)) == (seals, PLAN.shard_count)
    machine.flip(index, 70 + index, index)
    look(machine)
    machine.repair()
    assert (machine.sealed, machine.committed) == (False, {0, 1, 2} - {index})
    look(machine)
    machine.go_on(seals=True)
    machine.a_late_twin_changes_nothing(index)
    look(machine)


def test_a_repair_seals_what_lacks_its_seal_alone(machine: StoreMachine) -> None:
    machine.go_on(seals=False)
    look(machine)
    machine.repair()
    assert machine.sealed
    machine.repair()


@pytest.mark.parametrize("at", range(9))
def test_a_writer_of_the_last_shard_may_crash_anywhere(machine: StoreMachine, at: int) -> None:
    machine.commit(0)
    machine.commit(1)
    machine.crash(2, at, seals=True)
    look(machine)
    machine.go_on(seals=True)
    assert machine.sealed
