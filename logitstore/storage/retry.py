"""Requests to an object store: retries of transient failures, and messages for all others.

The client libraries retry some failures by themselves, each in its own way. Beyond that, a request
with a transient failure (a cut connection, a timeout, 408, 409, 425, 429, 5xx) is tried again with
growing, jittered pauses. An object that is missing, exists already, or is forbidden raises
immediately.
"""

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from logitstore.errors import InputError, StorageError, in_a_line

T = TypeVar("T")
log = logging.getLogger(__name__)

#: Seconds before each further attempt; about a minute in all.
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 20.0)
#: Seconds after which nothing is tried again, however long the client took for its own attempts.
MOST_S = 60.0
#: The attempt whose failure is told, so that nobody wonders what is waited for.
_SAID_AT = 3
_PERMANENT = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    StorageError,
    InputError,
)
_TRANSIENT_ERRNO = {
    errno.EIO,
    errno.EREMOTEIO,
    errno.EBUSY,
    errno.EAGAIN,
    errno.EPIPE,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
}
_TRANSIENT_STATUS = {408, 409, 425, 429}
#: Classes of the client libraries, by name: base installs have none of them.
_TRANSIENT_NAMES = {"HTTPClientError", "ClientConnectionError", "ClientPayloadError"}
_TRANSIENT_NAMES |= {"ConnectionError"}  # botocore's and requests', which are not Python's
_TRANSIENT_NAMES |= {"FSTimeoutError", "IncompleteRead", "TransportError", "ResponseParserError"}
_CREDENTIAL_NAMES = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
_CREDENTIAL_NAMES |= {"NoAuthTokenError", "TokenRetrievalError", "UnauthorizedSSOTokenError"}
_CREDENTIAL_NAMES |= {"ProfileNotFound", "SSOTokenLoadError", "ConfigNotFound", "ConfigParseError"}


def retrying(action: Callable[[], T], url: str) -> T:
    """Return the result of `action`, tried again for about a minute while its failures may pass.

    A client library that itself tries for long, as the hub's does, is asked again less often.

    Raises:
        FileNotFoundError: There is no such object.
        FileExistsError: The object exists, and must not be replaced.
        StorageError: Everything else, with what to do about it.
    """
    started = time.monotonic()
    for attempt, pause_s in enumerate((*PAUSES_S, None), start=1):
        try:
            return action()
        except Exception as e:  # client libraries raise classes of their own
            if is_taken(e):
                raise FileExistsError(errno.EEXIST, "the object exists", url) from e
            if isinstance(e, (FileNotFoundError, StorageError, InputError)):
                raise
            waited_s = time.monotonic() - started
            if pause_s is None or not is_transient(e) or waited_s + pause_s > MOST_S:
                raise explain(e, url, attempt, waited_s) from e
            if attempt == _SAID_AT:
                log.warning("%s: %s; it is tried again, for a minute in all", url, in_a_line(e))
            time.sleep(pause_s * random.uniform(0.5, 1.0))
    raise AssertionError("the last attempt returns or raises")


def is_taken(error: BaseException) -> bool:
    """Tell whether a conditional create failed because the object exists."""
    return isinstance(error, FileExistsError) or 412 in http_statuses(error)


def is_transient(error: BaseException) -> bool:
    """Tell whether the same request may succeed a moment later."""
    if isinstance(error, _PERMANENT):
        return False
    statuses = list(http_statuses(error))
    if statuses:
        return any(s in _TRANSIENT_STATUS or s >= 500 for s in statuses)
    if isinstance(error, (TimeoutError, ConnectionError)) or _named(error, _TRANSIENT_NAMES):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


def explain(error: BaseException, url: str, attempts: int, waited_s: float = 0.0) -> StorageError:
    """Turn a failure into a StorageError that says what to do about it.

    Args:
        error: The last failure.
        url: What was asked for.
        attempts: How often.
        waited_s: For how many seconds in all.
    """
    reason = in_a_line(error)
    is_denied = isinstance(error, PermissionError) or _named(error, _CREDENTIAL_NAMES)
    if is_denied or {401, 403} & set(http_statuses(error)):
        return StorageError(
            f"{url}: access was refused ({reason}). Expected credentials that may read it (and "
            "write, to capture there), found where the client libraries look: for s3:// "
            "AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL or ~/.aws, for hf:// HF_TOKEN or "
            "`hf auth login`. Fix these, then run the same command again."
        )
    times = f"{attempts} attempts failed in {waited_s:.0f} s, the last with"
    times = times if attempts > 1 else "the answer was"
    return StorageError(
        f"{url}: the object store refuses: {times} {reason}. Nothing half-written is visible. "
        "Check that address, network and bucket are right, then run the same command again."
    )


def http_statuses(error: BaseException) -> Iterator[int]:
    """List the HTTP statuses of an error and its causes, from where each client library puts it."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # requests, httpx; aiohttp
            status = getattr(response, "status_code", None) or getattr(cause, "status", None)
        if type(status) is int:
            yield status
        cause = cause.__cause__


def _named(error: BaseException, names: set[str]) -> bool:
    return bool({c.__name__ for c in type(error).__mro__} & names)
