"""Ask a server: many requests at once, no more than so many a second, each tried again.

`requests` and `urllib3` do the work: connections that fail, and answers that say "later" (429, 502,
503, 504), are tried again with growing pauses, or after what `Retry-After` says. The key is taken
from the environment and goes into a header; no message and no store has it.
"""

import logging
import os
import threading
import time
from typing import Any, Self
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from logitstore.capture.passes.listed import Refused
from logitstore.capture.passes.server.options import Options
from logitstore.errors import InputError, in_a_line

log = logging.getLogger(__name__)

KEYS = ("LOGITSTORE_SERVER_KEY", "OPENAI_API_KEY")
_LATER = (429, 502, 503, 504)
_TIMES = 8
_SLOW_TIMES = 1  # each waits for the whole of `timeout_s`
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_SHOWN, _SAID_EVERY_S = 300, 10.0
_MOST_ANSWER_BYTES = 1 << 30


class _Told(Retry):
    """Says that a server is asked again: not of each of many requests, and in words of ours."""

    next_said_s = 0.0

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: Any = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: Any = None,
    ) -> Self:
        found = super().increment(method, url, response, error, _pool, _stacktrace)
        if time.monotonic() >= _Told.next_said_s:
            _Told.next_said_s = time.monotonic() + _SAID_EVERY_S
            what = "cannot be reached" if response is None else f"answers HTTP {response.status}"
            why = f" ({_cause(error)})" if error is not None else ""
            left = (found.total or 0) + 1
            log.info("the server %s%s; it is asked again, up to %d times.", what, why, left)
        return found


class Client:
    """Sends requests to one server; may be used by several threads.

    Args:
        url: Its address, with or without `/v1`.
        options: How to ask.

    Attributes:
        place: The address without user, password and query, for messages.

    Raises:
        InputError: It is no address.
    """

    def __init__(self, url: str, options: Options) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"--server {_without_secrets(url)}: is no address of a server. Give one such as "
                "http://localhost:8000."
            )
        self._base = url.rstrip("/").removesuffix("/v1")
        self.place = _without_secrets(self._base)
        self._timeout_s = options.timeout_s
        self._pace = _Pace(options.requests_per_s)
        self._session = requests.Session()
        retry = _Told(
            total=_TIMES,
            read=min(_TIMES, _SLOW_TIMES),
            backoff_factor=_FIRST_PAUSE_S,
            backoff_max=_LONGEST_PAUSE_S,
            backoff_jitter=_FIRST_PAUSE_S,
            status_forcelist=_LATER,
            allowed_methods=None,  # asking twice changes nothing
            raise_on_status=False,
        )
        adapter = HTTPAdapter(pool_maxsize=options.concurrency, max_retries=retry)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        if key is not None:
            self._session.headers["Authorization"] = f"Bearer {key}"
        self._session.max_redirects = 0  # a key goes nowhere else

    def get(self, path: str) -> Any:
        """Read an object; None where the server has no such address.

        Raises:
            Refused: It will not answer.
            InputError: It cannot be reached, or answers something else.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Ask for something; None where the server has no such address.

        Raises:
            Refused: It refuses this request.
            InputError: It cannot be reached, or answers something else.
        """
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        self._pace.wait()
        try:
            answer = self._session.request(
                method,
                f"{self._base}{path}",
                json=body,
                timeout=(min(self._timeout_s, 10), self._timeout_s),
                allow_redirects=False,
            )
        except requests.RequestException as e:
            raise self._unreachable(e) from None  # which has the whole address
        if answer.status_code in (404, 405):
            return None
        if answer.status_code in (401, 403):
            raise InputError(
                f"{self.place}: the server does not let us in (HTTP {answer.status_code}). Set its "
                f"key in {KEYS[0]}.",
                kind="engine",
            )
        if answer.status_code in (400, 413, 422):
            raise Refused(_reason(answer))
        if answer.status_code != 200:
            raise InputError(
                f"{self.place}: the server answers HTTP {answer.status_code} ({_reason(answer)}), "
                f"also after {_TIMES} more tries. What is committed stays: look at the server, "
                "then run the same command again.",
                kind="engine",
            )
        try:
            return answer.json()
        except ValueError:
            raise InputError(
                f"{self.place}{path}: answers something that is no JSON. Check the address.",
                kind="engine",
            ) from None

    def _unreachable(self, error: Exception) -> InputError:
        why = _cause(error)
        return InputError(
            f"{self.place}: the server cannot be reached ({why}). What is committed stays: start "
            "it, or give it more time with --engine-args timeout_s=3600, then run the same command "
            "again.",
            kind="engine",
        )


class _Pace:
    """Lets so many through a second."""

    def __init__(self, per_s: float) -> None:
        self._gap_s = 1 / per_s if per_s else 0.0
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self) -> None:
        if not self._gap_s:
            return
        with self._lock:
            now = time.monotonic()
            at = max(self._next, now)
            self._next = at + self._gap_s
        time.sleep(at - now)


def _without_secrets(url: str) -> str:
    """Leave out what an address may have of user, password and query."""
    parts = urlsplit(url)
    if not parts.hostname:
        return url.split("@")[-1].split("?")[0]
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _cause(error: Exception) -> str:
    """Say why in a few words: the classes of libraries repeat the whole address."""
    inner: BaseException | None = error
    while isinstance(inner, Exception):
        if "Timeout" in type(inner).__name__:
            return "it took too long"
        if isinstance(inner, OSError) and inner.strerror:
            return str(inner.strerror)
        found = [getattr(inner, "reason", None), *inner.args, inner.__cause__, inner.__context__]
        inner = next((each for each in found if isinstance(each, Exception)), None)
    return type(error).__name__


def _reason(answer: requests.Response) -> str:
    """Return what a server says is wrong: of JSON its message, else the first line."""
    try:
        said = answer.json()
    except ValueError:
        said = answer.text
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and key in said:
            said = said[key]
    return in_a_line(Exception(str(said)[:_SHOWN])).removeprefix("Exception: ")
