"""Run a real S3 server on this machine (moto's) whose requests fail when a test tells them to.

    from logitstore.testing.buckets import ENVIRONMENT, serve

    with serve() as bucket:
        os.environ |= ENVIRONMENT | {"AWS_ENDPOINT_URL": bucket.endpoint}
        bucket.fail("PUT", "shards/00001", "lost")  # it is done, but the client hears nothing
        my_copy("store", f"{bucket.url}/store")

Tests that run on pytest have all of this in the fixture `bucket` of `logitstore.testing.fixtures`.
"""

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from logitstore.testing._extras import needed_by

NAME = "a-bucket"
_CLOSING_S = 10  # a client that is not closed by then never will be
_KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
#: What clients of the server need, beside the `AWS_ENDPOINT_URL` that is its bucket's `endpoint`;
#: and that nothing of the user's own is read.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",  # logitstore retries by itself
}
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
_ANSWERS = {
    "503": ("503 Slow Down", "SlowDown"),
    "500": ("500 Internal Error", "InternalError"),
    "403": ("403 Forbidden", "InvalidAccessKeyId"),
    "409": ("409 Conflict", "ConditionalRequestConflict"),
}


@dataclass
class _Fault:
    """What is to fail: requests with this method and this part of a path, so many times."""

    method: str
    part: str
    kind: str
    times: int


class Faults:
    """Pass requests on to an app (WSGI), or fail them as a network or a service may.

    Attributes:
        requests: (method, path) of all so far.
        ignore_conditions: Whether to write even where an object exists and the request forbids it,
            as services do that know no conditional writes.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.lock = app, threading.Lock()
        self.armed: list[_Fault] = []
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
            error = _ERROR.format(code, "as the test wants it").encode()
            return [b"" if method == "HEAD" else error]
        if kind == "refused":
            _hang_up(environ)
        body = self.app(environ, start_response)
        if kind == "lost":
            b"".join(body)
            _hang_up(environ)
        return _half(body, environ) if kind == "cut" else body

    def _kind(self, method: str, path: str, query: str) -> str | None:
        with self.lock:
            self.requests.append((method, f"{path}?{query}" if query else path))
            for fault in self.armed:
                if fault.method == method and fault.part in path and fault.times > 0:
                    fault.times -= 1
                    return fault.kind
        return None


def _half(answer: Iterable[bytes], environ: dict[str, Any]) -> Iterator[bytes]:
    data = b"".join(answer)
    yield data[: len(data) // 2]
    _hang_up(environ)


def _hang_up(environ: dict[str, Any]) -> NoReturn:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


class Bucket:
    """A bucket of the server.

    Attributes:
        url: Its address, as `open_store` takes it.
        endpoint: The address of the server, for `AWS_ENDPOINT_URL`.
        client: A boto3 client for the test itself, whose requests fail as all others do.
    """

    url = f"s3://{NAME}"

    def __init__(self, faults: Faults, endpoint: str, client: Any) -> None:
        self.faults, self.endpoint, self.client = faults, endpoint, client

    def fail(self, method: str, part: str, kind: str, times: int = 1) -> None:
        """Let the next requests fail that have this method, and this in their path.

        Args:
            method: `GET`, `PUT`, …
            part: Any part of the path.
            kind: `403`, `409`, `500` or `503`: the status of the response. `refused`: the
                connection closes before anything is done; `lost`: after it was done, without a
                response; `cut`: in the middle of the body.
            times: How many requests.
        """
        self.faults.armed.append(_Fault(method, part, kind, times))

    @property
    def unmet(self) -> int:
        """The number of faults that no request has met yet."""
        return sum(fault.times for fault in self.faults.armed)

    @property
    def requests(self) -> list[tuple[str, str]]:
        """(method, path) of all requests so far."""
        return self.faults.requests

    def tree(self, prefix: str) -> dict[str, bytes]:
        """Return the bytes of every object below a prefix, by relative name."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=NAME, Prefix=f"{prefix}/"
        )
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key.removeprefix(f"{prefix}/"): self.get(key) for key in keys}

    def get(self, key: str) -> bytes:
        """Return an object's bytes."""
        return bytes(self.client.get_object(Bucket=NAME, Key=key)["Body"].read())

    def put(self, key: str, data: bytes) -> None:
        """Create or replace an object."""
        self.client.put_object(Bucket=NAME, Key=key, Body=data)

    def upload(self, folder: Path, prefix: str) -> str:
        """Copy a folder to a prefix; return the address of the copy."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
        return f"{self.url}/{prefix}"

    def empty(self) -> None:
        """Delete every object; forget all faults and requests."""
        self.faults.armed.clear()
        self.faults.ignore_conditions = False
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=NAME):
            if keys := [{"Key": entry["Key"]} for entry in page.get("Contents", [])]:
                self.client.delete_objects(Bucket=NAME, Delete={"Objects": keys, "Quiet": True})
        self.requests.clear()


@contextmanager
def serve() -> Iterator[Bucket]:
    """Start a server with one empty bucket; stop it at the end of the block.

    Raises:
        MissingLibraryError: A library of the extra `testing` is not installed.
    """
    with needed_by(__name__, extra="testing"):
        import boto3
        from botocore.config import Config
        from moto.moto_server.threaded_moto_server import ThreadedMotoServer
        from moto.moto_server.werkzeug_app import create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: Any) -> None:
            """Print nothing: tests count requests by themselves."""

    # Not moto's own dispatcher: it looks through its whole package to find S3, at each request.
    faults = Faults(create_backend_app("s3"))

    class Server(ThreadedMotoServer):
        def _server_entry(self) -> None:
            self._server = make_server("127.0.0.1", 0, faults, True, request_handler=Quiet)
            self._server_ready_event.set()
            self._server.serve_forever(poll_interval=0.05)
            self._server.server_close()

    server = Server(verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    once = Config(retries={"total_max_attempts": 1})
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", config=once, **_KEYS
    )
    try:
        client.create_bucket(Bucket=NAME)
        yield Bucket(faults, endpoint, client)
    finally:
        client.close()
        if "s3fs" in sys.modules:
            forget_clients()  # none outlives its server
        server.stop()


def forget_clients() -> None:
    """Close every client, and make new ones when they are next used.

    Old ones keep their endpoint and credentials. Those that are dropped without being closed warn
    whenever they are collected, in whatever test runs then: s3fs gives a client a tenth of a second
    to close, and those of another library's event loop (zarr's) none.
    """
    from s3fs import S3FileSystem

    from logitstore.storage import objects

    for client in list(S3FileSystem._cache.values()):
        _close(client)
    objects._filesystem.cache_clear()
    S3FileSystem.clear_instance_cache()


def _close(client: Any) -> None:
    http = getattr(getattr(client._s3, "_endpoint", None), "http_session", None)
    sessions = getattr(http, "_sessions", None) or {}  # none before the first request
    for session in list(sessions.values()):
        if session._loop.is_running():  # the thread of s3fs, or of zarr
            closed = asyncio.run_coroutine_threadsafe(session.close(), session._loop)
            closed.result(_CLOSING_S)
