"""Claims: advice that saves work, expires with who gave it, and decides nothing.

Two captures that do not know of each other are told; a killed one is in nobody's way.
"""

import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import logitstore
from logitstore.capture.sharing.claims import (
    CLAIM_EXPIRES_S,
    PROCESS_EXPIRES_S,
    Claims,
    exclusive,
    shared,
)
from logitstore.capture.sharing.heartbeat import Heartbeat, file_system_time_ns, read_heartbeat
from logitstore.capture.sharing.process_identity import ProcessIdentity
from logitstore.capture.sharing.sharing import ByClaim
from logitstore.checking.verify import verify_store
from logitstore.console.launcher import Ranks
from logitstore.errors import BusyError, InputError, StorageError
from logitstore.format.spec import Plan
from logitstore.storage import commit
from logitstore.storage.commit import OsFs
from logitstore.storage.paths import remove_temporaries, store_path
from logitstore.testing import stores, tiny
from logitstore.testing.stores import tree
from logitstore.writing.writer import StoreWriter
from tests.kit.rows import texts_file

ELSEWHERE = vars(ProcessIdentity("another machine", "node-7", 4711, "1"))
SETTINGS: dict[str, Any] = {"top_k": 8, "shard_text_bytes": 400}


def heartbeat_of(path: Path, process: dict[str, Any] | str, age_s: float = 0.0) -> Path:
    """Another's heartbeat, last touched `age_s` ago."""
    path.write_text(process if isinstance(process, str) else json.dumps(process))
    touched = path.stat().st_mtime_ns - int(age_s * 1e9)
    os.utime(path, ns=(touched, touched))
    return path


def killed() -> dict[str, Any]:
    """A process of this machine that was, and is no more."""
    code = (
        "import json; from logitstore.capture.sharing.process_identity import ProcessIdentity; "
        "print(json.dumps(vars(ProcessIdentity.this())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# ---- claims ----


def test_what_one_has_claimed_another_does_not_get_until_it_is_released(tmp_path: Path) -> None:
    one, other = Claims(tmp_path), Claims(tmp_path)
    assert [one.take(["0", "1", "2"]), other.take(["0", "1", "2"])] == ["0", "1"]
    assert one.take(["0", "1"]) is None
    other.release("1")
    assert one.take(["0", "1"]) == "1"
    one.release_all()
    assert list(tmp_path.iterdir()) == []


def test_what_was_never_claimed_comes_before_what_a_dead_worker_left(tmp_path: Path) -> None:
    heartbeat_of(tmp_path / ".tmp-claim-0", killed())
    claims = Claims(tmp_path)
    assert [claims.take(["0", "1"]), claims.take(["0", "1"])] == ["1", "0"]


def test_a_claim_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path: Path) -> None:
    dead = killed()
    heartbeat_of(tmp_path / ".tmp-claim-0", dead)
    assert Claims(tmp_path).take(["0"]) == "0"
    # A number that another process has by now is told from it by its start.
    heartbeat_of(tmp_path / ".tmp-claim-1", dead | {"number": os.getpid()})
    assert Claims(tmp_path).take(["1"]) == "1"


def test_a_process_that_has_ended_is_dead_also_before_its_parent_has_asked() -> None:
    this = ProcessIdentity.this()
    assert this.is_alive
    with subprocess.Popen(["true"]) as child:
        stat = Path(f"/proc/{child.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.001)
        started = stat.read_text().rpartition(")")[2].split()[19]
        assert ProcessIdentity(this.machine, this.host, child.pid, started).is_alive is False


@pytest.mark.parametrize("process", [ELSEWHERE, "", "{", '{"number": 1}', "[]"])
def test_a_claim_of_which_nothing_can_be_known_expires_by_age(
    tmp_path: Path, process: dict[str, Any] | str
) -> None:
    heartbeat_of(tmp_path / ".tmp-claim-0", process, CLAIM_EXPIRES_S - 5)
    assert Claims(tmp_path).take(["0"]) is None
    heartbeat_of(tmp_path / ".tmp-claim-0", process, CLAIM_EXPIRES_S + 5)
    assert Claims(tmp_path).take(["0"]) == "0"


def test_age_is_by_the_file_systems_clock_and_not_by_this_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    heartbeat_of(tmp_path / ".tmp-claim-1", ELSEWHERE, CLAIM_EXPIRES_S + 5)
    assert Claims(tmp_path).take(["1"]) == "1", "by this host's clock it is of the future"
    heartbeat_of(tmp_path / ".tmp-claim-0", ELSEWHERE)
    assert Claims(tmp_path).take(["0"]) is None
    # A file server two hours ahead: all that counts is how much later its own "now" is.
    two_hours = 7200 * 10**9
    now = file_system_time_ns(tmp_path)
    monkeypatch.setattr(
        "logitstore.capture.sharing.claims.file_system_time_ns", lambda folder: now + two_hours
    )
    touched = now + two_hours - 10**9
    os.utime(tmp_path / ".tmp-claim-0", ns=(touched, touched))
    assert Claims(tmp_path).take(["0"]) is None
    os.utime(tmp_path / ".tmp-claim-0", ns=(now, now))
    assert Claims(tmp_path).take(["0"]) == "0"


def test_a_worker_that_beats_keeps_its_claims(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    claims.take(["0"])
    old = time.time() - 2 * CLAIM_EXPIRES_S
    os.utime(tmp_path / ".tmp-claim-0", (old, old))
    claims.beat()
    assert Claims(tmp_path).take(["0"]) is None
    os.utime(tmp_path / ".tmp-claim-0", (old, old))  # there, but silent: stuck
    other = Claims(tmp_path)
    assert other.take(["0"]) == "0"
    claims.release("0")  # it is the other's now
    assert Claims(tmp_path).take(["0"]) is None
    other.release_all()
    assert list(tmp_path.iterdir()) == []


def test_of_several_who_find_a_stale_claim_one_gets_it(tmp_path: Path) -> None:
    heartbeat_of(tmp_path / ".tmp-claim-0", ELSEWHERE, 2 * CLAIM_EXPIRES_S)
    seen = read_heartbeat(tmp_path / ".tmp-claim-0", lambda: file_system_time_ns(tmp_path))
    assert seen is not None
    quick = Claims(tmp_path)
    assert quick.take(["0"]) == "0"
    before = (tmp_path / ".tmp-claim-0").read_bytes()
    assert not seen.remove(), "a fresh claim was taken for the stale one that was seen"
    assert (tmp_path / ".tmp-claim-0").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [".tmp-claim-0"]


def test_a_claim_that_is_no_ordinary_file_is_nobodys_business(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".tmp-claim-0")
    began = time.monotonic()
    assert Claims(tmp_path).take(["0", "1"]) == "1"
    assert time.monotonic() - began < 2, "waited for a pipe"


def test_claims_in_a_bucket_are_refused() -> None:
    with pytest.raises(InputError, match=r"^s3://bucket/name: --claim works in a folder that all"):
        ByClaim(store_path("s3://bucket/name"))


def test_a_folder_that_refuses_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere: its folder is gone"):
        Claims(tmp_path / "nowhere").take(["0"])


# ---- captures that share, and captures that do not ----


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts_file(tmp_path_factory.mktemp("claims") / "rows.jsonl", tiny.corpus())


@pytest.fixture(scope="module")
def wanted(teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store that one process writes, alone."""
    out = tmp_path_factory.mktemp("claims") / "one"
    logitstore.capture(teacher, str(data), out, **SETTINGS)
    return tree(out)


@pytest.fixture
def begun(teacher: Path, data: Path, tmp_path: Path) -> Path:
    """A store without three of its shards and without its seal."""
    out = tmp_path / "s"
    logitstore.capture(teacher, str(data), out, **SETTINGS)
    (out / "DONE").unlink()
    for index in (0, 2, 3):
        (out / "shards" / f"{index:05d}.zarr.zip").unlink()
    return out


def together(*jobs: Callable[[], object]) -> None:
    """Run them at the same time, and raise what one of them raises."""
    failed: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def journal(out: Path) -> list[dict[str, Any]]:
    path = out.with_name(f"{out.name}.journal.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_workers_with_claims_write_the_store_of_one_process_and_no_shard_twice(
    teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    work = [lambda: logitstore.capture(teacher, str(data), out, **SETTINGS, claim=True)] * 3
    together(*work)
    assert tree(out) == wanted
    lines = [line for line in journal(out) if line["event"] == "shard"]
    assert all(line["committed"] for line in lines)
    shards = sum(name.startswith("shards/") for name in wanted)
    assert sorted(line["shard"] for line in lines) == list(range(shards))


def test_without_any_regard_for_claims_the_store_is_the_same(
    teacher: Path,
    data: Path,
    wanted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Claims are advice: twins that do everything twice lose every second commit, and no more."""
    out, meet = tmp_path / "s", threading.Barrier(2, timeout=60)
    write = StoreWriter.write_shard

    def at_the_same_time(self: StoreWriter, *args: Any) -> bool:
        meet.wait()
        return write(self, *args)

    def every_shard(self: ByClaim, writer: StoreWriter) -> Iterator[int]:
        yield from range(writer.plan.shard_count)

    monkeypatch.setattr(ByClaim, "shards", every_shard)
    monkeypatch.setattr(StoreWriter, "write_shard", at_the_same_time)
    together(*[lambda: logitstore.capture(teacher, str(data), out, **SETTINGS, claim=True)] * 2)
    assert tree(out) == wanted
    won = Counter(line["committed"] for line in journal(out) if line["event"] == "shard")
    assert won[True] == won[False] == sum(name.startswith("shards/") for name in wanted)


@pytest.mark.parametrize("left_by", ["killed here", "silent elsewhere"])
def test_the_shard_of_a_dead_worker_is_done_again(
    teacher: Path, data: Path, wanted: dict[str, bytes], begun: Path, left_by: str
) -> None:
    dead, age_s = (killed(), 0.0) if left_by == "killed here" else (ELSEWHERE, CLAIM_EXPIRES_S + 9)
    heartbeat_of(begun / "shards" / ".tmp-claim-00002", dead, age_s)
    heartbeat_of(begun / "shards" / ".tmp-claim-seal", dead, age_s)
    logitstore.capture(teacher, str(data), begun, **SETTINGS, claim=True)
    assert tree(begun) == wanted


def test_a_worker_waits_for_a_shard_that_another_is_at_and_seals(
    teacher: Path,
    data: Path,
    wanted: dict[str, bytes],
    begun: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A live worker elsewhere has shard 2. This one does the rest, waits, then finds it there."""
    monkeypatch.setattr("logitstore.capture.sharing.sharing.POLL_S", 0.01)
    monkeypatch.setattr("logitstore.capture.in_process.POLL_S", 0.01)
    claim = heartbeat_of(begun / "shards" / ".tmp-claim-00002", ELSEWHERE)

    def other() -> None:
        while len(list((begun / "shards").glob("*.zip"))) < len(names) - 1:
            time.sleep(0.01)
        time.sleep(0.1)
        assert not (begun / "DONE").exists()
        (begun / "shards" / "00002.zarr.zip").write_bytes(wanted["shards/00002.zarr.zip"])
        claim.unlink()

    names = [name for name in wanted if name.startswith("shards/")]
    together(other, lambda: logitstore.capture(teacher, str(data), begun, **SETTINGS, claim=True))
    assert tree(begun) == wanted
    assert 2 not in [line.get("shard") for line in journal(begun)[len(names) + 2 :]]


def test_a_second_capture_that_does_not_share_is_told_how_to(
    teacher: Path, data: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("logitstore.capture.passes.teacher_pass.load_model", never)
    before = tree(begun)
    says = (
        rf"{begun}: a capture is at work here already \(process {os.getpid()} on .*, last "
        r"heartbeat \d+ s ago\)\. Two that do not share do everything twice\. "
        r"Start all with --claim, or wait until it has ended; one that was killed on another "
        r"machine is forgotten after 60 s\."
    )
    with exclusive(begun / "shards"):
        for settings in ({}, {"ranks": Ranks(0, 2)}):
            with pytest.raises(BusyError, match=says):
                logitstore.capture(teacher, str(data), begun, **SETTINGS, **settings)
        with pytest.raises(BusyError, match=r"here without --claim .* Start it with --claim, too"):
            logitstore.capture(teacher, str(data), begun, **SETTINGS, claim=True)
    with (
        shared(begun / "shards"),
        pytest.raises(BusyError, match=r"here with --claim .* Add --claim here, too"),
    ):
        logitstore.capture(teacher, str(data), begun, **SETTINGS)
    assert tree(begun) == before


def test_whoever_begins_at_the_same_time_one_of_two_goes_on(
    teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    refused: list[BusyError] = []

    def run() -> None:
        try:
            logitstore.capture(teacher, str(data), out, **SETTINGS)
        except BusyError as e:
            refused.append(e)

    together(run, run)
    assert len(refused) <= 1  # none, if the first had finished when the second came
    assert tree(out) == wanted


@pytest.mark.parametrize("name", [".tmp-alone", ".tmp-worker-1-aa"])
@pytest.mark.parametrize(
    ("process", "age_s", "blocks"),
    [
        ("killed", 0.0, False),
        (ELSEWHERE, PROCESS_EXPIRES_S - 20, True),
        (ELSEWHERE, PROCESS_EXPIRES_S + 5, False),
        ("", PROCESS_EXPIRES_S + 5, False),
        ("this", 3 * PROCESS_EXPIRES_S, True),  # stopped with Ctrl-Z: it is there all the same
    ],
)
def test_who_was_killed_is_in_nobodys_way(
    tmp_path: Path, name: str, process: Any, age_s: float, blocks: bool
) -> None:
    known = {"killed": killed(), "this": vars(ProcessIdentity.this())}
    heartbeat_of(
        tmp_path / name, known[process] if process in ("killed", "this") else process, age_s
    )
    if blocks:
        with pytest.raises(BusyError), exclusive(tmp_path):
            pass
        assert (tmp_path / name).exists()
    else:
        with exclusive(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []


def test_a_heartbeat_is_touched_while_its_process_is_busy_and_gone_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitstore.capture.sharing.heartbeat.BEAT_EVERY_S", 0.01)
    path = tmp_path / ".tmp-alone"
    with exclusive(tmp_path):
        os.utime(path, (1, 1))
        while path.stat().st_mtime < 2:
            time.sleep(0.005)
    assert list(tmp_path.iterdir()) == []
    with exclusive(tmp_path):
        path.unlink()
        time.sleep(0.05)
        assert not path.exists(), "a heartbeat that a seal removed came back"
        heartbeat_of(path, ELSEWHERE)  # another took this process for dead
    assert path.exists(), "another's heartbeat was removed"


# ---- sealing at once ----


def writer_of(path: Path, fs: commit.Fs = commit.OS_FS) -> StoreWriter:
    plan = Plan("d" * 64, (0, 3, 7, 12))
    return StoreWriter(
        path, stores.spec(), plan, stores.TOKENIZER_FILES, {"tokens_per_batch": 64}, fs=fs
    )


def test_several_may_seal_at_once(tmp_path: Path) -> None:
    stores.write(tmp_path / "one")
    for turn in range(8):
        out = tmp_path / f"many-{turn}"
        stores.write(out, seal=False)
        together(*[writer_of(out).seal for _ in range(4)])
        assert tree(out) == tree(tmp_path / "one")
        assert verify_store(out, deep=True).damaged == []


class Swept(OsFs):
    """Another seal removes all temporary files right before the n-th of ours gets its name."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _sweep(self, folder: Path) -> None:
        self.left -= 1
        if self.left == 0:
            remove_temporaries(store_path(folder))

    def link(self, source: Path, target: Path) -> None:
        self._sweep(target.parent)
        super().link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        self._sweep(target.parent)
        super().replace(source, target)


@pytest.mark.parametrize("at", [1, 2])
def test_a_seal_that_another_one_sweeps_is_made_again(tmp_path: Path, at: int) -> None:
    stores.write(tmp_path / "one")
    stores.write(tmp_path / "s", seal=False)
    writer_of(tmp_path / "s", Swept(at)).seal()
    assert tree(tmp_path / "s") == tree(tmp_path / "one")


def test_a_twin_that_a_seal_sweeps_has_lost_and_nobody_else_has(tmp_path: Path) -> None:
    stores.write(tmp_path / "s")
    before = tree(tmp_path / "s")
    sequences = [s for row in range(3) for s in stores.row_sequences(stores.spec(), row)]
    assert writer_of(tmp_path / "s", Swept(1)).write_shard(0, sequences) is False
    assert tree(tmp_path / "s") == before
    (tmp_path / "s" / "shards" / "00000.zarr.zip").unlink()
    with pytest.raises(StorageError):  # swept, and yet not there: no seal did that
        writer_of(tmp_path / "s", Swept(1)).write_shard(0, sequences)


def test_the_claim_on_the_seal_stays_while_the_index_is_made(tmp_path: Path) -> None:
    """Others wait for it instead of making one of their own, and it is gone with the seal."""
    stores.write(tmp_path / "s", seal=False)
    claims, there = Claims(tmp_path / "s" / "shards"), []

    class Watched(OsFs):
        def replace(self, source: Path, target: Path) -> None:
            there.append((target.name, (tmp_path / "s/shards/.tmp-claim-seal").exists()))
            super().replace(source, target)

    assert claims.take(["seal"])
    writer_of(tmp_path / "s", Watched()).seal()
    assert there == [("index.parquet", True), ("DONE", False)]
    assert not list((tmp_path / "s").rglob(".tmp-*"))


class Gone(OsFs):
    """The folder is taken away for good."""

    def write_durably(self, path: Path, pieces: Iterable[Any]) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def test_a_folder_that_is_gone_ends_a_seal(tmp_path: Path) -> None:
    stores.write(tmp_path / "s", seal=False)
    with pytest.raises(StorageError, match=r"its folder is gone"):
        writer_of(tmp_path / "s", Gone()).seal()


def test_a_store_that_is_sealed_while_it_is_opened_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seal is looked for before the shards: the other way round, the last would be missed."""
    stores.write(tmp_path / "s", shards=(0, 1), seal=False)
    listdir = os.listdir

    def sealed_meanwhile(path: Any) -> list[str]:
        found = listdir(path)
        monkeypatch.setattr(os, "listdir", listdir)
        stores.write(tmp_path / "s")
        return found

    monkeypatch.setattr(os, "listdir", sealed_meanwhile)
    store = logitstore.open_store(tmp_path / "s", allow_partial=True)
    assert store.shards == [0, 1]
    assert len(list(store)) == 7


def test_a_heartbeat_is_created_only_where_there_is_no_file_of_its_name(tmp_path: Path) -> None:
    assert Heartbeat.create(tmp_path / "x") is not None
    assert Heartbeat.create(tmp_path / "x") is None


# -- a disk that is full when a process says that it is at work ----------------------------------


@contextmanager
def full_disk() -> Iterator[None]:
    """No byte of any file can be written: a limit on their sizes stands for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_did_not_take_is_in_nobodys_way(tmp_path: Path) -> None:
    """The file that says "at work here" stayed, empty, and locked its owner out for a minute."""
    claims = Claims(tmp_path)
    with full_disk():
        with pytest.raises(StorageError):
            claims.take(["00001"])
        with pytest.raises(StorageError), exclusive(tmp_path):
            pass
        with pytest.raises(StorageError), shared(tmp_path):
            pass
        with pytest.raises(StorageError):
            Heartbeat.start(tmp_path / ".tmp-alive-0")
    assert os.listdir(tmp_path) == []
    assert claims.take(["00001"]) == "00001"
    with exclusive(tmp_path):
        pass
