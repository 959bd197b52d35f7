"""A real S3 server on loopback (moto's), with faults on demand.

def test_…(bucket: Bucket) -> None:
    bucket.fail("PUT", "shards/00001", "lost")      # it is done, but nobody is told
"""

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

NAME = "a-bucket"
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
_ANSWERS = {
    "503": ("503 Slow Down", "SlowDown"),
    "500": ("500 Internal Error", "InternalError"),
    "403": ("403 Forbidden", "InvalidAccessKeyId"),
    "409": ("409 Conflict", "ConditionalRequestConflict"),
}


class Faults:
    """WSGI middleware: passes requests on, or does to them what a network or a service may do."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.lock = app, threading.Lock()
        self.armed: list[list[Any]] = []  # method, part of the path, kind, times left
        self.requests: list[tuple[str, str]] = []
        self.ignore_conditions = False

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        kind = self._kind(method, path, environ.get("QUERY_STRING", ""))
        if self.ignore_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if kind in _ANSWERS:
            status, code = _ANSWERS[kind]
            start_response(status, [("Content-Type", "application/xml")])
            answer = _ERROR.format(code, "as the test wants it").encode()
            return [b"" if method == "HEAD" else answer]
        if kind == "refused":
            _hang_up(environ)
        answer = self.app(environ, start_response)
        if kind == "lost":
            b"".join(answer)
            _hang_up(environ)
        return _half(answer, environ) if kind == "cut" else answer

    def _kind(self, method: str, path: str, query: str) -> str | None:
        with self.lock:
            self.requests.append((method, f"{path}?{query}" if query else path))
            for fault in self.armed:
                if fault[0] == method and fault[1] in path and fault[3] > 0:
                    fault[3] -= 1
                    return str(fault[2])
        return None


def _half(answer: Iterable[bytes], environ: dict[str, Any]) -> Iterator[bytes]:
    data = b"".join(answer)
    yield data[: len(data) // 2]
    _hang_up(environ)


def _hang_up(environ: dict[str, Any]) -> NoReturn:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


class Bucket:
    """A bucket of the server, empty.

    Attributes:
        url: Its address, as `open_store` takes it.
    """

    url = f"s3://{NAME}"

    def __init__(self, faults: Faults, client: Any) -> None:
        self.faults, self.client = faults, client

    def fail(self, method: str, part: str, kind: str, times: int = 1) -> None:
        """Let the next requests with this method and this in their path fail.

        `kind`: an HTTP status; `refused` before anything is done, `lost` after it; `cut`
        in the body.
        """
        self.faults.armed.append([method, part, kind, times])

    @property
    def requests(self) -> list[tuple[str, str]]:
        """(method, path) of all so far."""
        return self.faults.requests

    def tree(self, prefix: str) -> dict[str, bytes]:
        """Every object below a prefix, by relative name."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=NAME, Prefix=f"{prefix}/"
        )
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key.removeprefix(f"{prefix}/"): self.get(key) for key in keys}

    def get(self, key: str) -> bytes:
        """An object's bytes."""
        return bytes(self.client.get_object(Bucket=NAME, Key=key)["Body"].read())

    def put(self, key: str, data: bytes) -> None:
        """Make or replace an object."""
        self.client.put_object(Bucket=NAME, Key=key, Body=data)

    def upload(self, folder: Path, prefix: str) -> str:
        """Copy a folder there; its address."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
        return f"{self.url}/{prefix}"

    def empty(self) -> None:
        """Delete every object, and forget faults and requests."""
        self.faults.armed.clear()
        self.faults.ignore_conditions = False
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=NAME):
            for entry in page.get("Contents", []):
                self.client.delete_object(Bucket=NAME, Key=entry["Key"])
        self.requests.clear()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[Faults, str, Any]]:
    """The server, started once, with a bucket, and a client for the tests themselves."""
    import boto3
    from moto.server import DomainDispatcherApplication, ThreadedMotoServer, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            """Nothing: the tests count requests by themselves."""

    faults = Faults(DomainDispatcherApplication(create_backend_app))

    class Server(ThreadedMotoServer):
        def _server_entry(self) -> None:
            self._server = make_server("127.0.0.1", 0, faults, True, request_handler=Quiet)
            self._server_ready_event.set()
            self._server.serve_forever(poll_interval=0.05)
            self._server.server_close()

    server = Server(verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
    client.create_bucket(Bucket=NAME)
    yield faults, endpoint, client
    client.close()
    server.stop()


@pytest.fixture
def bucket(
    s3_server: tuple[Faults, str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    """An empty bucket, fake credentials, a cache of the test's own, and no pauses."""
    faults, endpoint, client = s3_server
    use_environment(monkeypatch, endpoint, tmp_path)
    made = Bucket(faults, client)
    made.empty()
    yield made
    made.empty()


def use_environment(monkeypatch: pytest.MonkeyPatch, endpoint: str, tmp_path: Path) -> None:
    """What a user has in the environment; and nothing of the user's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",  # what is retried here is retried by us
        "LOGITSTORE_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("logitstore.storage.retry.PAUSES_S", (0.01,) * 4)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """For a test that changes endpoint or credentials: clients keep those they were made with."""
    forget_clients()
    yield
    forget_clients()


def forget_clients() -> None:
    """Make clients anew when they are next used."""
    from s3fs import S3FileSystem

    from logitstore.storage import objects

    objects._filesystem.cache_clear()
    S3FileSystem.clear_instance_cache()
