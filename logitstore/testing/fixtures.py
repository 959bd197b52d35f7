"""Give tests that run on pytest an empty bucket.

Import the fixtures in `conftest.py`, then ask for them by name:

    from logitstore.testing.fixtures import bucket, fresh_clients, s3_server

    def test_my_copy_survives_a_slow_service(bucket):
        bucket.fail("PUT", "shards/00001", "503", times=2)
        assert my_copy("store", f"{bucket.url}/store")
"""

import os
from collections.abc import Iterator
from pathlib import Path

from logitstore.testing._extras import needed_by
from logitstore.testing.buckets import ENVIRONMENT, Bucket, forget_clients, serve

with needed_by(__name__, extra="testing"):
    import pytest

__all__ = ["bucket", "fresh_clients", "s3_server"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Bucket]:
    """Start the server once for all tests."""
    with serve() as bucket:
        yield bucket


@pytest.fixture
def bucket(s3_server: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Give an empty bucket, the environment to reach it, the test's own cache, and short pauses."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    own = {"AWS_ENDPOINT_URL": s3_server.endpoint, "LOGITSTORE_CACHE": str(tmp_path / "cache")}
    for name, value in (ENVIRONMENT | own).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("logitstore.storage.retry.PAUSES_S", (0.01,) * 4)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    s3_server.empty()
    return s3_server


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """Make new clients for a test that changes endpoint or credentials, and after it."""
    forget_clients()
    yield
    forget_clients()
