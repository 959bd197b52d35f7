"""On real Ray: the bytes of one process, whatever dies; a row that fails costs its shard alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitstore
import logitstore.ray
from logitstore.checking.verify import verify_store
from logitstore.errors import InputError
from logitstore.ray.crew import Crew, Hired
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from tests.kit.paths import ROOT
from tests.kit.ray_cluster import NODE, cluster
from tests.kit.rows import rows_file, texts_file

SETTINGS: dict[str, Any] = {"top_k": 8, "shard_text_bytes": 400}
BAD = "~"  # a token of its own


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One cluster for all tests: a node of one processor, which takes one teacher at a time."""
    with cluster() as started:
        yield started


@pytest.fixture
def here(ray: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Connect this process to the cluster; workers import this checkout."""
    import ray as library

    library.init(ray.address, log_to_driver=False, ignore_reinit_error=True)
    yield ray
    library.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts_file(tmp_path_factory.mktemp("ray") / "rows.jsonl", tiny.corpus() * 6)


@pytest.fixture(scope="module")
def wanted(teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store that one process writes."""
    out = tmp_path_factory.mktemp("ray") / "one"
    return tree(Path(str(logitstore.capture(teacher, str(data), out, **SETTINGS).path)))


def processes(out: Path) -> set[int]:
    """Who committed shards, as the journal has it."""
    journal = out.with_name(f"{out.name}.journal.jsonl")
    lines = map(json.loads, journal.read_text().splitlines()) if journal.exists() else ()
    return {line["process"] for line in lines if line.get("committed")}


@contextmanager
def meanwhile(act: Callable[[], None], when: Callable[[], bool]) -> Iterator[None]:
    """Act on another thread as soon as something has happened; the block must last that long."""
    acted, is_over, failed = threading.Event(), threading.Event(), list[BaseException]()

    def watch() -> None:
        try:
            while not when():
                if is_over.wait(0.002):
                    return
            act()
            acted.set()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    assert not failed, failed
    assert acted.is_set(), "the capture was over before"


def has_shards(out: Path, count: int) -> Callable[[], bool]:
    return lambda: len(list((out / "shards").glob("*.zip"))) >= count


def test_a_teacher_on_a_cluster_writes_the_store_of_one_process(
    here: Any, teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    store = logitstore.ray.capture(teacher, str(data), tmp_path / "s", **SETTINGS, log_json=log)
    assert tree(tmp_path / "s") == wanted
    assert len(store) == len(logitstore.open_store(tmp_path / "s"))
    (process,) = processes(tmp_path / "s")
    assert process != os.getpid()
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events.count("shard") == store.plan.shard_count
    assert events[-1] == "finished"


@pytest.mark.slow
def test_a_node_that_joins_takes_part_and_one_that_leaves_costs_nothing(
    here: Any,
    teacher: Path,
    data: Path,
    wanted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, nodes, ready = tmp_path / "s", list[Any](), list[int]()
    choose = Crew._next_for

    def held(self: Crew, each: Hired) -> int | None:
        """Hand out nothing after 4 shards until two nodes joined, after 20 until one has left."""
        ready.append(self.ready)
        there = len(list((out / "shards").glob("*.zip")))
        if there >= 4 and not nodes:  # here, since Ray starts nodes on the main thread alone
            nodes.extend(here.add_node(**NODE, num_cpus=1, wait=False) for _ in range(2))
        if there >= 20 and len(nodes) == 2 and len(processes(out)) == 3:
            here.remove_node(nodes.pop(), allow_graceful=False)
        is_held = (there >= 4 and max(ready) < 3) or (there >= 20 and ready[-1] > 2)
        return None if is_held else choose(self, each)

    monkeypatch.setattr(Crew, "_next_for", held)
    try:
        logitstore.ray.capture(teacher, str(data), out, **SETTINGS)
    finally:
        for node in nodes:
            here.remove_node(node)
    assert len(processes(out)) == 3
    assert ready[-1] == 2
    assert tree(out) == wanted


@pytest.mark.slow
def test_teachers_that_are_killed_cost_their_shards_in_hand_and_are_replaced(
    here: Any, teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "s"

    def kill() -> None:
        for process in processes(out):
            os.kill(process, signal.SIGKILL)

    with meanwhile(kill, has_shards(out, 5)):
        logitstore.ray.capture(teacher, str(data), out, **SETTINGS)
    assert len(processes(out)) == 2
    assert tree(out) == wanted


def command(address: str, teacher: Path, data: Path, out: Path) -> "subprocess.Popen[str]":
    """Drive a capture from a process of its own, by the cluster's address."""
    job = [sys.executable, "-m", "logitstore", "capture", str(teacher), str(data)]
    job += ["--out", str(out), "--top-k", "8", "--shard-text-bytes", "400", "--json"]
    return subprocess.Popen(
        [*job, "--ray", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )


def wait_for(process: "subprocess.Popen[str]", when: Callable[[], bool]) -> None:
    while not when():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.mark.slow
def test_a_driver_that_is_killed_and_started_again_resumes_and_its_teachers_end(
    ray: Any, teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    first = command(ray.address, teacher, data, out)
    wait_for(first, has_shards(out, 3))
    first.kill()
    first.communicate()
    (orphan,) = processes(out)
    assert not (out / "DONE").exists()
    there = {path.name: path.stat().st_mtime_ns for path in (out / "shards").glob("*.zip")}
    second = command(ray.address, teacher, data, out)
    printed, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert json.loads(printed)["complete"]
    assert tree(out) == wanted
    assert {name: (out / "shards" / name).stat().st_mtime_ns for name in there} == there
    assert not Path(f"/proc/{orphan}").exists(), "the actor of a dead driver ends by itself"


@pytest.mark.slow
def test_a_signal_ends_the_driver_after_the_shards_in_hand(
    ray: Any, teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    driver = command(ray.address, teacher, data, out)
    wait_for(driver, has_shards(out, 3))
    driver.send_signal(signal.SIGTERM)
    printed, err = driver.communicate(timeout=120)
    assert driver.returncode == 128 + signal.SIGTERM, err
    assert json.loads(printed)["error"]["kind"] == "stopped"
    there = len(list((out / "shards").glob("*.zip")))
    assert 3 <= there < len(wanted) - 10
    assert f"stopped after whole shards. {out}: {there} of" in err
    assert not list((out / "shards").glob(".tmp-*"))
    assert verify_store(out, allow_partial=True, deep=True).damaged == []


@contextmanager
def client_server(ray: Any) -> Iterator[str]:
    """Serve Ray's client on loopback, as a head node does; yields the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "ray.util.client.server", f"--address={ray.address}"]
    words += ["--host=127.0.0.1", f"--port={port}", "--mode=legacy"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until = time.monotonic() + 60
            while True:
                assert server.poll() is None
                assert time.monotonic() < until, "the server does not listen"
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield f"ray://127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("grpc") is None, reason="ray without its client: ray[client]")
def test_a_driver_outside_the_cluster_reaches_it_by_rays_client(
    ray: Any, teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    with client_server(ray) as address:
        printed, err = command(address, teacher, data, tmp_path / "s").communicate(timeout=300)
    assert json.loads(printed)["complete"], err
    assert tree(tmp_path / "s") == wanted


@pytest.mark.slow
def test_a_row_that_cannot_be_read_costs_its_shard_and_is_named(
    here: Any, teacher: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    with torch.no_grad():
        weights = model.get_input_embeddings().weight
        weights[tokenizer.convert_tokens_to_ids(BAD)] = float("nan")
    broken = tiny.save(tmp_path / "broken", model, tokenizer)
    texts = [*tiny.corpus()[:20], f"a {BAD} here", *tiny.corpus()[20:], f"{BAD}{BAD}", "the end"]
    rows = texts_file(tmp_path / "rows.jsonl", texts)
    out = tmp_path / "s"
    says = (
        r"^shard (\d+) of (\d+), and 1 more could not be captured: row 20: the teacher's logits "
        r"are not finite .*--on-nan skip.* \d+ of \d+ shards there, each of them whole\. Run "
        r"the same command again: it does only what is missing\.$"
    )
    with pytest.raises(InputError, match=says):
        logitstore.ray.capture(broken, str(rows), out, **SETTINGS)
    missing = [
        i
        for i in range(logitstore.open_store(out, allow_partial=True).plan.shard_count)
        if not (out / "shards" / f"{i:05d}.zarr.zip").exists()
    ]
    assert len(missing) == 2, "all others were captured"
    logitstore.ray.capture(broken, str(rows), out, **SETTINGS, on_nan="skip")
    alone = logitstore.capture(broken, str(rows), tmp_path / "one", **SETTINGS, on_nan="skip")
    assert shards_of(out) == shards_of(Path(str(alone.path)))


def shards_of(store: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(store).items() if name.startswith("shards")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["talk", "generate", "tokens"])
def test_rows_of_every_kind_are_sent_to_teachers_as_they_are(
    here: Any, teacher: Path, tmp_path: Path, kind: str
) -> None:
    told = AutoTokenizer.from_pretrained(teacher)
    told.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    chatty = tiny.save(tmp_path / "chatty", AutoModelForCausalLM.from_pretrained(teacher), told)
    rows = {
        "talk": [
            {
                "messages": [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": text[::-1], "weight": i % 2},
                ]
            }
            for i, text in enumerate(tiny.corpus())
        ],
        "generate": [{"prompt": text} for text in tiny.corpus()],
        "tokens": [
            {"input_ids": ids, "attention_mask": [1] * len(ids)}
            for ids in (told(text)["input_ids"] for text in tiny.corpus())
        ],
    }[kind]
    file = rows_file(tmp_path / "rows.jsonl", *rows)
    more: dict[str, Any] = {"max_lost": 1.0, "tokens_per_batch": "auto"}
    if kind == "generate":
        more |= {"generate": True, "max_new_tokens": 4, "generate_temperature": 1.0, "seed": 3}
        more |= {"tokens_per_batch": 512}
    one = logitstore.capture(chatty, str(file), tmp_path / "one", **SETTINGS, **more)
    more["tokens_per_batch"] = one.provenance["tokens_per_batch"]
    logitstore.ray.capture(chatty, str(file), tmp_path / "s", **SETTINGS, **more)
    assert shards_of(tmp_path / "s") == shards_of(tmp_path / "one")


@pytest.mark.slow
def test_a_teacher_holds_its_gpus_together_and_torch_has_to_see_them(
    here: Any, teacher: Path, data: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    import ray as library

    node = here.add_node(**NODE, num_cpus=1, num_gpus=2)  # that there are none is torch's to find
    try:
        with pytest.raises(InputError, match=r"is 3: .*\(the most on one of 2 nodes: 2 GPUs, 1 pr"):
            logitstore.ray.capture(
                teacher, str(data), tmp_path / "s", gpus_per_teacher=3, device_map={"": "cpu"}
            )
        with pytest.raises(InputError, match=r"Ray gave them on node .* torch sees no accelerator"):
            logitstore.ray.capture(teacher, str(data), tmp_path / "s", gpus_per_teacher=1)
        assert not (tmp_path / "s").exists()
        held: list[Any] = []

        def look() -> None:
            from ray.util import placement_group_table

            held.extend(placement_group_table().values())

        with meanwhile(look, has_shards(tmp_path / "s", 2)):
            logitstore.ray.capture(
                teacher,
                str(data),
                tmp_path / "s",
                **SETTINGS,
                gpus_per_teacher=2,
                device_map={"": "cpu"},
            )
        (group,) = [each for each in held if each["state"] == "CREATED"]
        assert group["bundles"] == {0: {"GPU": 2.0, "CPU": 1.0}}
        assert shards_of(tmp_path / "s") == {k: v for k, v in wanted.items() if "shards" in k}
        until = time.monotonic() + 60
        while library.available_resources().get("GPU") != 2.0:
            assert time.monotonic() < until, "they are given back"
            time.sleep(0.2)
    finally:
        here.remove_node(node)
