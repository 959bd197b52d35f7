"""A file that becomes shorter while it is read is damage like any other, never a dead process.

Through a memory map it was a signal (SIGBUS), without a message. `cp` over a shard, which errors of
this package advise ("restore the file from a copy"), cuts it to nothing first.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from logitstore import open_store
from logitstore.errors import CorruptStoreError
from logitstore.storage.file_bytes import FileBytes
from logitstore.testing import stores
from tests.kit.made_stores import put
from tests.kit.paths import ROOT

READS = """
import os, sys
import logitstore
from logitstore.errors import CorruptStoreError
store = logitstore.open_store(sys.argv[1])
shard, size = store.shard(0), os.path.getsize(sys.argv[2])
reads = {
    "records": lambda: shard.records(0), "text": lambda: shard.text(0),
    "text of another": lambda: shard.text(1), "rows": shard.sequence_rows,
    "stored": lambda: shard.stored_bytes("token_ids/c/0"),
    "an array": lambda: shard.array("token_ids"), "tail": shard.largest_tail,
    "digest": shard.archive.check_digest, "entries": lambda: shard.entries(0),
}
for cut in (size // 2, 4096, 1, 0):
    os.truncate(sys.argv[2], cut)
    for name, read in reads.items():
        try:
            read()
        except CorruptStoreError as error:
            print(cut, name, "refused", "shorter" in str(error))
        else:
            print(cut, name, "read")
"""


def test_no_read_of_a_file_that_was_cut_ends_the_process(tmp_path: Path) -> None:
    put(tmp_path / "s", stores.spec(vocab_size=5000, top_k=64))
    shard = tmp_path / "s" / "shards" / "00000.zarr.zip"
    assert shard.stat().st_size > 2 * 4096
    done = subprocess.run(
        [sys.executable, "-c", READS, str(tmp_path / "s"), str(shard)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    assert len(lines) == 4 * 9
    said = [line for line in lines if line.startswith(("0 ", "1 "))]
    assert len(said) == 2 * 9
    assert all(line.endswith("refused True") for line in said), said


def test_a_shard_that_is_put_back_by_copying_over_it_reads_again(tmp_path: Path) -> None:
    put(tmp_path / "s")
    shard = tmp_path / "s" / "shards" / "00001.zarr.zip"
    whole = shard.read_bytes()
    store = open_store(tmp_path / "s")
    expected = store[4].token_ids.tolist()
    shard.write_bytes(b"")  # as `cp` begins
    with pytest.raises(CorruptStoreError, match=r"shorter|restore the file from a copy"):
        store.shard(1).array("token_ids")
    shard.write_bytes(whole)
    assert store[4].token_ids.tolist() == expected


def test_file_bytes_are_slices_of_the_file(tmp_path: Path) -> None:
    data = bytes(range(200)) * 3
    path = tmp_path / "f"
    path.write_bytes(data)
    with path.open("rb") as f:
        whole = FileBytes(f)
    part, mine = whole.part(50, 400), data[50:450]
    cuts = [slice(None), slice(3, 9), slice(-7, None), slice(-8, -4), slice(9, 3), slice(390, 900)]
    assert [part[cut] for cut in cuts] == [mine[cut] for cut in cuts]
    assert bytes(part) == b"".join(part.pieces()) == mine
    assert len(part) == 400
