"""Write JSON in one spelling, and read it with a bound on what it may cost."""

import json
from typing import Any, NoReturn

MAX_BRACKETS = 20_000
MAX_QUOTES = 50_000
MAX_DEPTH = 64  # of lists and objects in each other; ours are 6 deep
MAX_DIGITS = 40  # of one number; none of ours has more than 25
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parse_json(raw: bytes) -> Any:
    """Parse a JSON text, unless it holds more values than any file of a store.

    Raises:
        ValueError: It is not JSON, or would cost far more memory than it has bytes.
    """
    if raw.count(b"[") + raw.count(b"{") > MAX_BRACKETS or raw.count(b'"') > MAX_QUOTES:
        raise ValueError("it holds more values than it can need")
    try:
        value = json.loads(raw, parse_constant=_no_constant, parse_int=_int, parse_float=_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _depth(value) > MAX_DEPTH:  # a parser's own limit is another in every version of Python
        raise ValueError("it is nested too deeply")
    return value


def _depth(value: Any) -> int:
    """Count how deep lists and objects lie in each other."""
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        level = [x for each in level for x in (each.values() if isinstance(each, dict) else each)]
    return depth


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits) if len(digits) <= MAX_DIGITS else float("inf")
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
    return _ENCODER.encode(value).encode() + b"\n"
