"""Write JSON in one spelling, and read it with a bound on what it may cost."""

import json
from typing import Any, NoReturn

_MAX_BRACKETS = 20_000
_MAX_QUOTES = 50_000
_MAX_DIGITS = 40  # of one number; none of ours has more than 25


def parse_json(raw: bytes) -> Any:
    """Parse a JSON text, unless it holds more values than any file of a store.

    Raises:
        ValueError: It is not JSON, or would cost far more memory than it has bytes.
    """
    if raw.count(b"[") + raw.count(b"{") > _MAX_BRACKETS or raw.count(b'"') > _MAX_QUOTES:
        raise ValueError("it holds more values than it can need")
    try:
        return json.loads(raw, parse_constant=_no_constant, parse_int=_int, parse_float=_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits) if len(digits) <= _MAX_DIGITS else float("inf")
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def canonical_json(value: object) -> bytes:
    """Encode a value as JSON in its one spelling: the same value always gives the same bytes.

    Keys are sorted, there are no spaces, and one newline ends the text. So digests can be taken of
    JSON, and a reader can compare bytes.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"
