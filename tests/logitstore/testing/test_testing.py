"""`logitstore.testing` as users of the library import it."""

import asyncio
import gc
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import fsspec
import numpy as np
import pytest
import zarr.core.sync
from zarr.storage import FsspecStore

import logitstore
import logitstore.testing
from logitstore.errors import MissingLibraryError
from logitstore.records import Segment
from logitstore.testing import buckets, stores, tiny
from logitstore.testing.buckets import Bucket, forget_clients
from logitstore.testing.fake_store import FakeStore
from tests.kit.made_stores import put

#: Module, a library that it needs, the extra that brings it.
NEEDS = [
    ("tiny", "tokenizers", "train"),
    ("tiny", "transformers", "train"),
    ("unigram", "tokenizers", "train"),
    ("fake_store", "torch", "train"),
    ("fixtures", "pytest", "testing"),
]


def test_the_docstring_names_every_module() -> None:
    text = logitstore.testing.__doc__ or ""
    folder = Path(logitstore.testing.__file__).parent
    modules = [path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")]
    assert [name for name in modules if f"| `{name}`" not in text] == []


@pytest.mark.parametrize(("module", "library", "extra"), NEEDS)
def test_without_a_library_the_error_names_the_extra(
    module: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"logitstore.testing.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibraryError) as caught:
        importlib.import_module(name)
    assert str(caught.value) == (
        f"{name} needs the library {library}, which is not installed. Install it with "
        f"`pip install 'logitstore[{extra}]'`."
    )


def test_without_a_server_library_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with (
        pytest.raises(MissingLibraryError, match=r"boto3.*'logitstore\[testing\]'"),
        buckets.serve(),
    ):
        pass


def test_a_written_store_opens(tmp_path: Path) -> None:
    stores.write(tmp_path / "store", stores.spec(top_k=4))
    store = logitstore.open_store(tmp_path / "store")
    assert (len(store), store.spec.top_k) == (12, 4)


@pytest.mark.parametrize("how", [{}, {"parts": 2}, {"boundaries": (0, 4, 8)}], ids=str)
def test_a_store_that_is_put_is_the_one_that_is_written(tmp_path: Path, how: Any) -> None:
    of = put(tmp_path / "put", stores.spec(top_k=4), **how)
    put(tmp_path / "again", stores.spec(top_k=4), **how)
    assert stores.write(tmp_path / "written", stores.spec(top_k=4), **how) == of
    written = stores.tree(tmp_path / "written")
    assert stores.tree(tmp_path / "put") == stores.tree(tmp_path / "again") == written
    journals = [tmp_path / f"{name}.journal.jsonl" for name in ("put", "written")]
    lines = [len(path.read_text().splitlines()) for path in journals]
    assert lines[0] == lines[1]


def test_a_fake_store_holds_what_its_teacher_predicts(tmp_path: Path) -> None:
    tokenizer = tiny.byte_bpe()
    rows = [(Segment("read ", False), Segment("the page", True))]
    teacher = tiny.llama(len(tokenizer))
    store = FakeStore.from_teacher(teacher, tokenizer, rows, tmp_path, top_k=len(tokenizer))
    [records] = store.read_many([0])
    total = np.exp(records.padded().logprobs.astype(np.float64)).sum(1)
    assert total == pytest.approx(np.ones(len(records)), abs=1e-6)
    assert store.token_counts.tolist() == [len(records)]


def test_a_bucket_fails_as_often_as_it_is_told_to(bucket: Bucket) -> None:
    from botocore.exceptions import ClientError

    bucket.put("key", b"value")
    bucket.fail("GET", "key", "503", times=2)
    for left in (1, 0):
        with pytest.raises(ClientError, match="SlowDown"):
            bucket.get("key")
        assert bucket.unmet == left
    assert bucket.get("key") == b"value"
    assert os.environ["AWS_ENDPOINT_URL"] == bucket.endpoint


# -- clients of a bucket -------------------------------------------------------------------------


def open_sessions() -> int:
    """Count the sessions that would warn if they were collected now."""
    gc.collect()
    sessions = [each for each in gc.get_objects() if type(each) is aiohttp.ClientSession]
    return sum(not session.closed for session in sessions)


def read_by_three_clients(bucket: Bucket) -> None:
    """By this library's, and by zarr's and another of s3fs as others use it."""
    stores.write(f"{bucket.url}/s")
    group = FsspecStore.from_url(f"{bucket.url}/s")
    assert zarr.core.sync.sync(group.exists("store.json"))
    assert fsspec.filesystem("s3", use_listings_cache=True).exists(f"{bucket.url}/s/store.json")


def test_a_forgotten_client_is_closed_however_long_that_takes(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = aiohttp.ClientSession.close

    async def slowly(session: aiohttp.ClientSession) -> None:
        await asyncio.sleep(0.5)  # s3fs itself waits for a fifth of that
        await close(session)

    forget_clients()
    monkeypatch.setattr(aiohttp.ClientSession, "close", slowly)
    read_by_three_clients(bucket)
    assert open_sessions() == 3
    forget_clients()
    assert open_sessions() == 0


@pytest.mark.usefixtures("bucket", "fresh_clients")
def test_no_client_outlives_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with buckets.serve() as own:
        monkeypatch.setenv("AWS_ENDPOINT_URL", own.endpoint)
        read_by_three_clients(own)
        assert open_sessions() == 3
    assert open_sessions() == 0
