"""Stores on a model hub, read through the hub's own client from a hub of 60 lines on loopback."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from logitstore import open_store
from logitstore.testing import stores

REPOSITORY = "datasets/me/stores"


class Hub(BaseHTTPRequestHandler):
    """One data set repository, `me/stores`, with the files of a folder."""

    folder: Path

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith(f"/{REPOSITORY}/resolve/main/"):
            self._file(path.removeprefix(f"/{REPOSITORY}/resolve/main/"))
        elif path.startswith(f"/api/{REPOSITORY}/tree/main"):
            self._listing(path.removeprefix(f"/api/{REPOSITORY}/tree/main").strip("/"))
        elif path in (f"/api/{REPOSITORY}", f"/api/{REPOSITORY}/revision/main"):
            self._json({"id": "me/stores", "sha": "0" * 40, "private": False, "tags": []})
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        asked = json.loads(self.rfile.read(length))["paths"]
        found = [self.folder / p for p in ([asked] if isinstance(asked, str) else asked)]
        self._json([self._about(p) for p in found if p.exists()])

    def _about(self, path: Path) -> dict[str, Any]:
        kind = "file" if path.is_file() else "directory"
        size = path.stat().st_size if path.is_file() else 0
        return {"type": kind, "path": str(path.relative_to(self.folder)), "size": size, "oid": "0"}

    def _listing(self, below: str) -> None:
        if not (self.folder / below).is_dir():
            self.send_error(404)
            return
        self._json([self._about(p) for p in sorted((self.folder / below).iterdir())])

    def _file(self, name: str) -> None:
        if not (self.folder / name).is_file():
            self.send_error(404)
            return
        data = (self.folder / name).read_bytes()
        asked = self.headers.get("Range", f"bytes=0-{len(data) - 1}").removeprefix("bytes=")
        first, last = (int(n) for n in asked.split("-"))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self._body(data[first : last + 1])

    def _json(self, value: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._body(json.dumps(value).encode())

    def _body(self, data: bytes) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a hub whose repository holds a store `s`."""
    stores.write(tmp_path / "hub" / "s")
    Hub.folder = tmp_path / "hub"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


READS = """
import json, sys, logitstore
store = logitstore.open_store(sys.argv[1])
print(json.dumps({
    "tokens": [records.token_ids.tolist() for records in store],
    "counts": store.token_counts.tolist(),
    "tokenizer": sorted(p.name for p in store.tokenizer_path.iterdir()),
}))
"""


def test_a_store_on_a_hub_is_read_like_a_folder(hub: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READS, "hf://datasets/me/stores/s"],
        env=os.environ
        | {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        | {"LOGITSTORE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    near = open_store(tmp_path / "hub" / "s")
    assert json.loads(done.stdout) == {
        "tokens": [records.token_ids.tolist() for records in near],
        "counts": near.token_counts.tolist(),
        "tokenizer": sorted(stores.TOKENIZER_FILES),
    }
