"""Section 1: canonical JSON, digests, and what JSON may hold."""

import hashlib
import json
import math
import re

from tests.kit.reader_from_spec.refusing import RefusedError, must

TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', re.DOTALL)


def canonical(value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def parse(raw):
    """A JSON text, within the limits of section 1."""
    must(raw.count(b"[") + raw.count(b"{") <= 20_000, "brackets of JSON")
    must(raw.count(b'"') <= 50_000, "quotes of JSON")
    must(depth(raw) <= 64, "depth of JSON")
    try:
        return json.loads(
            raw.decode(),
            parse_int=lambda text: int(short(text)),
            parse_float=lambda text: finite(float(short(text))),
            parse_constant=lambda text: must(False, f"{text} in JSON"),
        )
    except (ValueError, RecursionError) as e:
        raise RefusedError(f"JSON ({e})") from None


def parse_canonical(raw, what):
    value = parse(raw)
    try:
        must(raw == canonical(value), f"{what} is canonical")
    except UnicodeEncodeError:
        raise RefusedError(f"{what} is canonical") from None
    return value


def depth(raw):
    level = most = 0
    for found in TOKEN.finditer(raw):
        level += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found.group(), 0)
        most = max(most, level)
    return most


def short(text):
    must(len(text) <= 40, "length of a number")
    return text


def finite(value):
    must(math.isfinite(value), "a number is finite")
    return value


def is_whole(value, most, least=0):
    return type(value) is int and least <= value <= most


def is_number(value):
    return type(value) in (int, float)


def is_digest(value):
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
