"""Compare two stores over the same rows: their settings and their distributions.

Sequences of the same row and part are compared, record by record, if both stores have the same
tokens at the same bytes. For two records with entries p and q (most probable first) and tails u and
v:

    ULD    sum_i |p_i - q_i| + |u - v|, the shorter list padded with zeros; for two teachers with
           the same distribution it is the effect of coding and of different k
    KL     over the tokens that both records list, and one class for all others; at most the KL of
           the teachers' full distributions

Shape legend: n = records, K = entries of the longest record of both.
"""

import json
from typing import Any, NamedTuple

import numpy as np

from logitstore.console.counts import counted
from logitstore.console.terminal import printable
from logitstore.errors import MismatchError
from logitstore.format.numpy_types import F64
from logitstore.records import TokenRecords
from logitstore.store import LogitStore

_PARTS = ("teacher", "tokenizer", "rendering", "capture", "codec")
_WORST = 5
_LEAST = 1e-12


class _Compared(NamedTuple):
    """The distances between the records of one sequence in A and in B, each (n,)."""

    uld: F64
    kl: F64 | None
    logprob: F64


def diff(a: LogitStore, b: LogitStore, *, sequences: int = 1000) -> dict[str, Any]:
    """Compare two stores; return what `logitstore diff --json` prints.

    Args:
        a: A store.
        b: Another store.
        sequences: About how many sequences of A, evenly spread, are compared.

    Raises:
        MismatchError: The stores have no row in common.
    """
    places = _places(b)
    of_a = [(i, key) for key, i in _places(a).items() if key in places]
    if not of_a:
        raise MismatchError(
            f"{a.path} and {b.path}: they have no row in common (row numbers and parts are "
            "compared), so there is nothing to compare. Name two stores over the same dataset."
        )
    step = max(1, -(-len(of_a) // sequences))
    chosen = of_a[::step]
    uld, kl, logprob, worst = [], [], [], []
    other_text = other_tokens = 0
    for i, key in chosen:
        j = places[key]
        if a.text(i).supervised_bytes != b.text(j).supervised_bytes:
            other_text += 1
            continue
        compared = _compared(a[i], b[j])
        if compared is None:
            other_tokens += 1
            continue
        uld.append(compared.uld)
        logprob.append(compared.logprob)
        if compared.kl is not None:
            kl.append(compared.kl)
        if len(compared.uld):
            facts = {"row": key[0], "part": key[1], "sequence": i}
            worst.append(
                facts | {"uld": float(compared.uld.mean()), "record": int(compared.uld.argmax())}
            )
    worst.sort(key=lambda facts: -facts["uld"])
    return {
        "a": str(a.path),
        "b": str(b.path),
        "same_content": a.spec.digest == b.spec.digest,
        "same_dataset": a.plan.dataset_sha256 == b.plan.dataset_sha256,
        "spec": spec_differences(a, b),
        "rows_in_both": len({key[0] for _, key in of_a}),
        "rows_only_in_a": len(set(_rows(a)) - set(_rows(b))),
        "rows_only_in_b": len(set(_rows(b)) - set(_rows(a))),
        "sequences_compared": len(chosen) - other_text - other_tokens,
        "sequences_of_other_text": other_text,
        "sequences_of_other_tokens": other_tokens,
        "records_compared": sum(map(len, uld)),
        "uld": _summary(uld),
        "kl": _summary(kl),
        "token_logprob": _summary(logprob),
        "worst_rows": worst[:_WORST],
    }


def spec_differences(a: LogitStore, b: LogitStore) -> dict[str, list[Any]]:
    """Map each field of the specs that differs to its values in A and in B."""
    different: dict[str, list[Any]] = {}
    for part in _PARTS:
        one, other = getattr(a.spec, part), getattr(b.spec, part)
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                different[f"{part}.{name}"] = [one.get(name), other.get(name)]
    return different


def _rows(store: LogitStore) -> list[int]:
    return [int(row) for row in store.sequence_rows]


def _places(store: LogitStore) -> dict[tuple[int, int], int]:
    """Map each (row, part) to its sequence; the parts of a row follow each other."""
    places: dict[tuple[int, int], int] = {}
    part, before = 0, -1
    for i, row in enumerate(_rows(store)):
        part = part + 1 if row == before else 0
        places[row, part] = i
        before = row
    return places


def _compared(a: TokenRecords, b: TokenRecords) -> _Compared | None:
    """Compare two sequences record by record; None if they have other tokens."""
    is_same = np.array_equal(a.byte_starts, b.byte_starts)
    if not is_same or not np.array_equal(a.byte_lengths, b.byte_lengths):
        return None
    k = int(max(a.entry_count.max(initial=0), b.entry_count.max(initial=0)))
    entries, tails = [], []
    for records in (a, b):
        padded = records.padded(k)
        entries.append(np.where(padded.mask, np.exp(padded.logprobs.astype(np.float64)), 0.0))
        tails.append(np.exp(records.tail_logmass.astype(np.float64)))
    uld = np.abs(entries[0] - entries[1]).sum(1) + np.abs(tails[0] - tails[1])
    logprob = np.abs(a.token_logprob.astype(np.float64) - b.token_logprob)
    return _Compared(uld, _kl(a, b, k), logprob)


def _kl(a: TokenRecords, b: TokenRecords, k: int) -> F64 | None:
    """Return (n,) KL(A || B) over the tokens that both list, and all others as one class.

    None if either store has no ids.
    """
    one, other = a.padded(k), b.padded(k)
    if one.ids is None or other.ids is None or not k:
        return None
    p_nK, q_nK = np.zeros((2, len(a), k))
    for t in range(len(a)):
        _, at, there = np.intersect1d(
            one.ids[t][one.mask[t]], other.ids[t][other.mask[t]], return_indices=True
        )
        p_nK[t, : len(at)] = np.exp(one.logprobs[t][at].astype(np.float64))
        q_nK[t, : len(at)] = np.exp(other.logprobs[t][there].astype(np.float64))
    parts = [p_nK, 1 - p_nK.sum(1, keepdims=True)], [q_nK, 1 - q_nK.sum(1, keepdims=True)]
    p, q = (np.maximum(np.concatenate(part, 1), 0) for part in parts)
    return np.asarray(
        (p * np.log(np.maximum(p, _LEAST) / np.maximum(q, _LEAST))).sum(1), np.float64
    )


def _summary(parts: list[F64]) -> dict[str, float] | None:
    values = np.concatenate(parts) if parts else np.zeros(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    p99 = float(np.quantile(values, 0.99))
    return {"mean": float(values.mean()), "p99": p99, "max": float(values.max())}


def diff_text(found: dict[str, Any]) -> str:
    """Format what :func:`diff` returns as text."""
    lines = [f"a  {printable(found['a'])}", f"b  {printable(found['b'])}", ""]
    lines += [
        f"{name}: {_short(one)} -> {_short(other)}" for name, (one, other) in found["spec"].items()
    ] or ["made alike: teacher, tokenizer, rendering, capture and codec are the same"]
    dataset = "the same dataset" if found["same_dataset"] else "different datasets"
    lines += [
        "",
        (
            f"{dataset}: {counted(found['rows_in_both'], 'row')} in both, "
            f"{found['rows_only_in_a']:,} "
            f"only in a, {found['rows_only_in_b']:,} only in b"
        ),
        (
            f"compared: {counted(found['sequences_compared'], 'sequence')}, "
            f"{found['records_compared']:,} "
            f"records; not compared: {counted(found['sequences_of_other_text'], 'sequence')} with "
            f"other text, {found['sequences_of_other_tokens']:,} with other tokens"
        ),
    ]
    for name, title in (("uld", "ULD"), ("kl", "KL"), ("token_logprob", "|log p - log q|")):
        if found[name] is not None:
            figures = " ".join(f"{label} {value:.3g}" for label, value in found[name].items())
            lines.append(f"{title:<16} {figures}")
    for facts in found["worst_rows"]:
        lines.append(
            f"  row {facts['row']} part {facts['part']}: ULD {facts['uld']:.3g} on average, "
            f"largest at record {facts['record']}"
        )
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = printable(json.dumps(value))
    return text if len(text) <= 60 else text[:57] + "…"
