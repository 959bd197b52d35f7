"""Compute what the report page shows beyond `info`: mass and ULD bound at k, and sequences.

Both come from sequences spread evenly over the store, so that a large store takes no longer than a
small one. With p_j the entries of a record, most probable first, and u its tail:

    tail(k)       u + sum_{j>k} p_j: the tail that a store of k entries a record would have
    mass(k)       1 - mean of tail(k)
    bound(k)      2 tail(k) + L1 of coding, at most 2: how far a ULD from such a store can be
                  from the exact one (`logitstore.info.uld_within`)
"""

import math
from typing import Any

import numpy as np

from logitstore.console.html_document import as_script, clipped_text
from logitstore.console.terminal import printable
from logitstore.format.logprob_codec import TAIL_STEP
from logitstore.format.numpy_types import F64
from logitstore.store import LogitStore
from logitstore.text.sequence_facts import SHOWN_ENTRIES, sequence_facts
from logitstore.text.tokens_by_segment import tokens_by_segment

_CURVE_SEQUENCES, _CURVE_RECORDS = 256, 200_000
#: The mean of fewer tokens says little of a sequence.
_JUDGED_RECORDS, _PREVIEW_CHARACTERS = 8, 90
#: The page stays below 2 MB: limits of all sequences together, of one, of a text, of a name.
_DATA_BYTES, _SHOWN_RECORDS, _TEXT_CHARACTERS, _NAME_CHARACTERS = 1_200_000, 512, 4000, 80


def curves(store: LogitStore) -> dict[str, Any] | None:
    """Compute mass and ULD bound for k = 1, 2, 4, … up to the top-k of the store.

    Returns:
        ``k``, ``mass``, ``bound_mean`` and ``bound_p99`` (99 of 100 tokens are within), lists of
        one length; ``records``, how many were looked at. None if no entries are kept, or the tails
        are not known.
    """
    if not store.spec.top_k or "tail_logmass" in store.spec.missing:
        return None
    ks = _powers(store.spec.top_k)
    parts: list[F64] = []
    for i in spread(store, _CURVE_SEQUENCES):
        parts.append(_tails(store, i, ks))
        if sum(map(len, parts)) >= _CURVE_RECORDS:
            break
    tails = np.concatenate(parts) if parts else np.zeros((0, len(ks)))
    if not len(tails):
        return None
    rounding, fidelity = math.exp(TAIL_STEP / 2), store.fidelity
    mean, p99 = tails.mean(0), np.quantile(tails, 0.99, axis=0)
    return {
        "k": ks,
        "mass": (1 - mean).tolist(),
        "bound_mean": np.minimum(2 * mean * rounding + fidelity.l1_mean, 2).tolist(),
        "bound_p99": np.minimum(2 * p99 * rounding + fidelity.l1_max, 2).tolist(),
        "records": len(tails),
    }


def _powers(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length()) if 2**i < most] + [most]


def _tails(store: LogitStore, i: int, ks: list[int]) -> F64:
    """Return (n, len(ks)) the tail that each record would have with its first k entries alone."""
    records = store[i]
    padded = records.padded(max(ks))
    p = np.where(padded.mask, np.exp(padded.logprobs.astype(np.float64)), 0.0)
    behind = np.cumsum(p[:, ::-1], axis=1)[:, ::-1]  # [:, k] is the sum from entry k on
    behind = np.concatenate([behind, np.zeros((len(p), 1))], axis=1)
    tails: F64 = behind[:, ks] + np.exp(records.tail_logmass.astype(np.float64))[:, None]
    return tails


def spread(store: LogitStore, count: int) -> list[int]:
    """List at most `count` of the sequences that have records, evenly spread, in order."""
    held = np.flatnonzero(store.token_counts)
    if not len(held):
        return []
    places = np.linspace(0, len(held) - 1, min(count, len(held))).round().astype(np.int64)
    return [int(i) for i in held[places]]


def picked(store: LogitStore, count: int, surprise: F64) -> list[int]:
    """List sequences to read, in the order in which they get room on the page.

    Half are the most surprising of the whole store, half are evenly spread; one of each in turn.

    Args:
        store: The store.
        count: How many at most.
        surprise: (sequences,) of each, NaN where it is not known.
    """
    even = spread(store, count)
    known = np.flatnonzero(~np.isnan(surprise) & (store.token_counts >= _JUDGED_RECORDS))
    worst = [int(i) for i in known[np.argsort(-surprise[known], kind="stable")][: count // 2]]
    turns = [i for pair in zip(worst, even, strict=False) for i in pair] + even
    return list(dict.fromkeys(turns))[:count]


def browsed(store: LogitStore, count: int, surprise: F64) -> dict[str, Any]:
    """Collect sequences for the page's script; fewer than `count` if they would be too large.

    Args:
        store: The store.
        count: How many.
        surprise: (sequences,) of each, as `scalars.survey` has it.

    Returns:
        ``names``, the text of each id that occurs; ``sequences``, the most surprising first, each
        with its number, row, part, status, ``records`` (how many it has), ``surprise`` (the mean
        of its tokens, or null), ``preview`` and ``parts``: ``[0, text]`` for context, ``[1,
        tokens]`` for supervised text, where a token is ``[record, text, id, logprob, entropy,
        tail, entries, [[id, p], …]]`` with null for what is not known. Long sequences are cut.
    """
    names: dict[str, str] = {}
    sequences: list[dict[str, Any]] = []
    room = _DATA_BYTES
    for i in picked(store, count, surprise):
        facts = sequence_facts(store, i)
        mean = None if np.isnan(surprise[i]) else float(f"{surprise[i]:.3f}")
        # One sequence may be too large already: then show fewer records of the first.
        for most in (_SHOWN_RECORDS,) if sequences else (_SHOWN_RECORDS, 64, 8):
            used: dict[str, str] = {}
            sequence = _sequence(facts, used, most) | {"surprise": mean}
            fresh = {token_id: name for token_id, name in used.items() if token_id not in names}
            size = len(as_script(sequence).encode()) + len(as_script(fresh).encode())
            if size <= room:
                break
        if size > room:
            break
        room -= size
        names |= fresh
        sequences.append(sequence)
    sequences.sort(key=lambda each: -(each["surprise"] or 0.0))
    return {"names": names, "sequences": sequences}


def _preview(segments: list[dict[str, Any]]) -> str:
    """Shorten the supervised text to a line that tells it from others."""
    text = "".join(segment["text"] for segment in segments if segment["supervised"])
    return clipped_text(" ".join(text[:2000].split()), _PREVIEW_CHARACTERS)


def _sequence(found: dict[str, Any], names: dict[str, str], most: int) -> dict[str, Any]:
    parts, shown = list[list[Any]](), 0
    for segment, numbers in tokens_by_segment(found):
        if segment is not None and not segment["supervised"]:
            parts.append([0, clipped_text(segment["text"], _TEXT_CHARACTERS)])
            continue
        kept = numbers[: most - shown]
        parts.append([1, [_token(t, found["tokens"][t], names) for t in kept]])
        shown += len(kept)
        if shown == most:
            break
    facts = {name: found[name] for name in ("sequence", "row", "part", "status")}
    facts |= {"preview": _preview(found["segments"])}
    return facts | {"records": len(found["tokens"]), "parts": parts}


def _token(t: int, token: dict[str, Any], names: dict[str, str]) -> list[Any]:
    entries = token["entries"][:SHOWN_ENTRIES]
    for entry in entries:
        if entry["token"] is not None:
            # Escaped: a line end alone would be invisible.
            names[str(entry["id"])] = clipped_text(printable(entry["token"]), _NAME_CHARACTERS)
    return [
        t,
        clipped_text(token["text"], _NAME_CHARACTERS),
        token["token_id"],
        *(_rounded(token[name]) for name in ("logprob", "entropy", "tail")),
        len(token["entries"]),
        [[entry["id"], _rounded(entry["p"])] for entry in entries],
    ]


def _rounded(value: float | None) -> float | str | None:
    """Round to six digits, more than a store has; infinity is a word, since JSON has none."""
    if value is None or math.isfinite(value):
        return None if value is None else float(f"{value:.6g}")
    return "-inf" if value < 0 else "inf"
