"""A server on loopback that has a tiny teacher, and answers as vLLM's or SGLang's does.

with serve(teacher, "vllm", fails=2) as server:
    …  --engine server --server {server.url}
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from tests.kit.dumps import Dumper

Json = Any


@dataclass
class Server:
    """What a fake server is like, and what it was asked.

    Attributes:
        teacher: The teacher.
        api: `vllm` or `sglang`.
        model: The name that it has for the teacher.
        key: The key that a request must have; empty: none.
        most: Entries that it gives at most; more is refused.
        short: Entries fewer than it was asked for.
        fails: Requests that it answers with `fail_status` before all others.
        refuses: Which sequences it refuses.
        delay_s: How long each answer takes.
        breaks: Changes an answer.
        asked: (time, path, headers, body) of every request.
        at_once: The most requests that were there at the same time.
    """

    teacher: Dumper
    api: str = "vllm"
    model: str = "tiny/teacher"
    key: str = ""
    most: int = 1000
    short: int = 0
    fails: int = 0
    fail_status: int = 503
    refuses: Callable[[Sequence[int]], bool] = lambda ids: False
    delay_s: float = 0.0
    breaks: Callable[[Json], Json] = lambda answer: answer
    tokenises: bool = True
    asked: list[tuple[float, str, Mapping[str, str], Json]] = field(default_factory=list)
    at_once: int = 0
    url: str = ""

    def scored(self) -> list[Json]:
        """The bodies of the requests for probabilities."""
        return [body for _, path, _, body in self.asked if path in ("/v1/completions", "/generate")]

    def answer(self, path: str, headers: Mapping[str, str], body: Json) -> tuple[int, Json]:
        if self.key and headers.get("Authorization") != f"Bearer {self.key}":
            return 401, {"error": {"message": "no such key"}}
        if path in ("/v1/completions", "/generate") and self.fails:
            self.fails -= 1
            return self.fail_status, {"error": "later"}
        if path == "/tokenize" and self.tokenises:
            tokens = self.teacher.tokenizer(body["prompt"], add_special_tokens=False).input_ids
            return 200, self.breaks({"tokens": tokens, "count": len(tokens)})
        known = {"vllm": self._of_vllm, "sglang": self._of_sglang}.get(self.api)
        status, said = (404, {"detail": "Not Found"}) if known is None else known(path, body)
        return status, self.breaks(said)

    def _of_vllm(self, path: str, body: Json) -> tuple[int, Json]:
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": self.model, "root": self.model}]}
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if path != "/v1/completions":
            return 404, {"detail": "Not Found"}
        ids, k = body["prompt"], body["prompt_logprobs"]
        if k > self.most:
            why = (
                f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.most}"
            )
            return 400, {"error": {"message": why, "type": "BadRequestError"}}
        if self.refuses(ids):
            return 400, {"error": {"message": "This model's maximum context length is 8 tokens."}}
        rows = self.teacher.logprobs(ids)
        lists: list[Json] = [None]
        for row, token in zip(rows[1:], ids[1:], strict=True):
            # The token itself comes first, however improbable it is.
            chosen = dict.fromkeys([token, *_top(row, k - self.short)])
            lists.append({str(i): _ranked(row, i) for i in chosen})
        choice = {"index": 0, "text": "!", "prompt_logprobs": lists, "prompt_token_ids": ids}
        return 200, {"object": "text_completion", "model": self.model, "choices": [choice]}

    def _of_sglang(self, path: str, body: Json) -> tuple[int, Json]:
        if path == "/get_model_info":
            return 200, {"model_path": self.model, "is_generation": True}
        if path == "/server_info":
            return 200, {"version": "0.5.9"}
        if path != "/generate":
            return 404, {"detail": "Not Found"}
        ids, k = body["input_ids"], body["top_logprobs_num"]
        if self.refuses(ids):
            return 400, {"error": {"message": "The input is longer than the model's context."}}
        rows = self.teacher.logprobs(ids)
        meta = {
            "input_token_logprobs": [
                [None if t == 0 else float(rows[t][i]), i, None] for t, i in enumerate(ids)
            ],
            "input_top_logprobs": [
                None if t == 0 else [[float(row[i]), i, None] for i in _top(row, k - self.short)]
                for t, row in enumerate(rows)
            ],
            "output_token_logprobs": [[-0.5, 7, None]],
        }
        return 200, {"text": "?", "output_ids": [7], "meta_info": meta}


def _top(row: Any, k: int) -> list[int]:
    return [int(i) for i in np.argsort(-row, kind="stable")[:k]]


def _ranked(row: Any, i: int) -> Json:
    rank = int((row > row[i]).sum()) + 1
    return {"logprob": float(row[i]), "rank": rank, "decoded_token": "?"}


@contextmanager
def serve(teacher: Dumper, api: str = "vllm", **more: Any) -> Iterator[Server]:
    """Serve until the block ends."""
    server, lock, now = Server(teacher, api, **more), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: Json) -> None:
            with lock:
                now[0] += 1
                server.at_once = max(server.at_once, now[0])
                server.asked.append((time.monotonic(), self.path, dict(self.headers), body))
            time.sleep(server.delay_s)
            with lock:  # one tiny model
                status, said = server.answer(self.path, self.headers, body)
                now[0] -= 1
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status in (429, 503):
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing: the tests read what was asked."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server.url = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
