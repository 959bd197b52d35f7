"""A Hugging Face Hub of one process: the parts of its API that uploading and reading use.

Written after what `huggingface_hub` sends and expects: repositories, a tree of files, `preupload`,
Git LFS's batch API with single uploads, commits as lines of JSON, and files with ranges.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from logitstore.storage import objects

_REPO = r"(?P<repo>(?:datasets/|models/)?[\w.-]+/[\w.-]+)"
#: Files of this name end, or size, are kept as LFS objects.
_LFS = (".zip", ".parquet", ".safetensors")


class Hub:
    """What a hub holds.

    Attributes:
        url: Its address.
        repos: By `datasets/owner/name` or `models/owner/name`: the bytes of each file.
        private: Which of them are.
        commits: The files of each commit, in order.
        uploads: The sizes of LFS objects that were sent.
        tokens: What came as authorization.
        fails_at: The number of the commit that is refused; None: none is.
        needs_token: Whether a request without one is refused.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[list[str]] = []
        self.uploads: list[int] = []
        self.tokens: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.fails_at: int | None = None
        self.needs_token = False


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def for_client(monkeypatch: pytest.MonkeyPatch, token: str) -> Iterator[Hub]:
    """Serve a hub that `huggingface_hub` takes for the one that there is, with this token."""
    with serving() as found:
        point_at(monkeypatch, found.url)
        monkeypatch.setenv("HF_TOKEN", token)
        yield found
        _forget()


def point_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let `huggingface_hub` ask this address."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    _forget()


def _forget() -> None:
    """Let go of clients that know another hub."""
    from huggingface_hub import HfFileSystem

    close_session()
    if (of_transformers := sys.modules.get("transformers.utils.hub")) is not None:
        of_transformers._hf_api = None  # type: ignore[attr-defined]
    objects._filesystem.cache_clear()
    HfFileSystem.clear_instance_cache()


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._do(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._do(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_PUT = do_POST

    def _do(self, body: bytes) -> None:
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        path = unquote(urlsplit(self.path).path)
        for pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and (self.command in answer[0]):
                if self.hub.needs_token and not self.headers.get("Authorization"):
                    return self._json({"error": "Unauthorized"}, 401)
                return answer[1](self, found, body)
        return self._json({"error": f"no such page: {self.command} {path}"}, 404)

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def _files(self, found: "re.Match[str]") -> dict[str, bytes] | None:
        name = found["repo"]
        name = name if name.startswith(("datasets/", "models/")) else f"models/{name}"
        files = self.hub.repos.get(name)
        if files is None:
            self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return files

    def create(self, _: "re.Match[str]", body: bytes) -> None:
        asked = json.loads(body)
        kind = asked.get("type") or "model"
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        key = f"{kind}s/{name}"
        if key in self.hub.repos:
            return self._json({"error": "exists", "url": f"{self.hub.url}/{key}"}, 409)
        self.hub.repos[key] = {}
        self.hub.private[key] = asked.get("private") or asked.get("visibility") == "private"
        shown = key if kind == "dataset" else name
        return self._json({"url": f"{self.hub.url}/{shown}", "name": name, "id": name})

    def about(self, found: "re.Match[str]", _: bytes) -> None:
        if self._files(found) is not None:
            name = found["repo"].split("/", 1)[1]
            self._json({"id": name, "sha": "0" * 40, "siblings": [], "tags": [], "private": False})

    def tree(self, found: "re.Match[str]", _: bytes) -> None:
        files = self._files(found)
        if files is None:
            return None
        folder = (found["path"] or "").strip("/")
        prefix = f"{folder}/" if folder else ""
        below = {p[len(prefix) :]: d for p, d in files.items() if p.startswith(prefix)}
        if folder and not below:
            return self._json({"error": "none"}, 404, X_Error_Code="EntryNotFound")
        entries: dict[str, Any] = {}
        for path, data in below.items():
            head, *rest = path.split("/")
            whole = prefix + head
            if rest:
                entries[head] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": whole}
            else:
                entries[head] = {"type": "file", "path": whole} | _about(whole, data)
        return self._json(list(entries.values()))

    def preupload(self, found: "re.Match[str]", body: bytes) -> None:
        files = self._files(found)
        if files is None:
            return
        said = []
        for asked in json.loads(body)["files"]:
            path, there = asked["path"], files.get(asked["path"])
            mode = "lfs" if path.endswith(_LFS) else "regular"
            oid = None
            if there is not None:
                oid = hashlib.sha256(there).hexdigest() if mode == "lfs" else _oid(there)
            said.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": said})

    def batch(self, _: "re.Match[str]", body: bytes) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            made: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/lfs/{asked['oid']}"
                made["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(made)
        self._json({"transfer": "basic", "objects": objects})

    def put(self, found: "re.Match[str]", body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == found["oid"]
        self.hub.objects[found["oid"]] = body
        self.hub.uploads.append(len(body))
        self._send(b"")

    def commit(self, found: "re.Match[str]", body: bytes) -> None:
        files = self._files(found)
        if files is None:
            return None
        if self.hub.fails_at == len(self.hub.commits):
            return self._json({"error": "out of order"}, 500)
        changed = []
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"])
            if item["key"] != "header":
                changed.append(value["path"])
        self.hub.commits.append(changed)
        url = f"{self.hub.url}/{found['repo']}/commit/{'0' * 40}"
        return self._json({"commitUrl": url, "commitOid": "0" * 40, "success": True})

    def check_card(self, _: "re.Match[str]", body: bytes) -> None:
        assert "content" in json.loads(body)
        self._json({"errors": [], "warnings": []})

    def resolve(self, found: "re.Match[str]", _: bytes) -> None:
        files = self._files(found)
        if files is None:
            return None
        data = files.get(found["path"])
        if data is None:
            return self._json({"error": "none"}, 404, X_Error_Code="EntryNotFound")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(data, ETag=f'"{_oid(data)}"', X_Repo_Commit="0" * 40)
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
        if start >= len(data):
            return self._send(b"", 416)
        where = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._send(data[start:stop], 206, Content_Range=where)


def _about(path: str, data: bytes) -> dict[str, Any]:
    about: dict[str, Any] = {"size": len(data), "oid": _oid(data)}
    if path.endswith(_LFS):
        sha = hashlib.sha256(data).hexdigest()
        about["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
    return about


_ROUTES = [
    (r"/api/repos/create", (("POST",), _Handler.create)),
    (r"/api/validate-yaml", (("POST",), _Handler.check_card)),
    (rf"/api/{_REPO}(?:/revision/[^/]+)?", (("GET",), _Handler.about)),
    (rf"/api/{_REPO}/tree/[^/]+(?P<path>/.*)?", (("GET",), _Handler.tree)),
    (rf"/api/{_REPO}/preupload/[^/]+", (("POST",), _Handler.preupload)),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", (("POST",), _Handler.batch)),
    (r"/lfs/(?P<oid>\w+)", (("PUT",), _Handler.put)),
    (rf"/api/{_REPO}/commit/[^/]+", (("POST",), _Handler.commit)),
    (rf"/{_REPO}/resolve/[^/]+/(?P<path>.+)", (("GET", "HEAD"), _Handler.resolve)),
]
