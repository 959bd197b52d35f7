"""Choose rows of a store by what its teacher says of them: `distill select`.

    gain        log p of the teacher less that of a reference, a byte: MiniPLM's difference sampling
                (arXiv:2410.17215, whose mean is over tokens; by bytes the two may have different
                tokenizers). The rows that a large model knows better than a small one are kept.
    surprise    -log p of the teacher, nats a byte: the least is kept
    entropy     of the teacher's distribution, nats a token: the least is kept
    length      bytes of text with a record: the most is kept
    agreement   share of tokens that are the teacher's most probable one: the most is kept

Only tokens that write bytes count, so a token that ends a text on one side alone is no difference.
The text of a row is all of its windows together. `--top-k 0` is enough for all but agreement.

Shape legend: R = rows of the dataset, n = records of a shard.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.data.orders import BY
from logitstore.console.counts import counted
from logitstore.console.progress import progress
from logitstore.errors import InputError, MismatchError
from logitstore.format.logprob_codec import TOKEN_STEP, dequantise, dequantise_entropy
from logitstore.moving.row_list import place_for_rows, write_rows
from logitstore.store import LogitStore, open_store

#: The least log-probability of a token: a code may say that the teacher excluded it.
FLOOR_NATS = -256.0
_READ_AT_ONCE = 256

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RowSums:
    """What is summed up of each row of a store, over its tokens that write bytes.

    Attributes:
        logprob_R: (R,) of the text, nats.
        entropy_R: (R,) of the teacher's distributions, nats.
        bytes_R: (R,) of the text.
        tokens_R: (R,) of the teacher.
    """

    logprob_R: Floats
    entropy_R: Floats
    bytes_R: Floats
    tokens_R: Floats

    @property
    def surprise_R(self) -> Floats:
        """(R,) of the teacher by the text, nats a byte; NaN for a row without bytes."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return -self.logprob_R / self.bytes_R

    @classmethod
    def of(cls, store: LogitStore) -> "RowSums":
        """Read a few bytes a token of every shard."""
        sums = np.zeros((4, store.plan.rows))
        counts, rows, first = store.token_counts, store.sequence_rows, 0
        with progress(len(store.shards), "read", "shards") as shown:
            for index, fact in zip(store.shards, store.shard_facts, strict=True):
                stop = first + int(fact["sequences"])
                row_n = np.repeat(rows[first:stop], counts[first:stop])
                if len(row_n):
                    shard = store.shard(index)
                    lengths_n = shard.array("byte_lengths").astype(np.float64)
                    logprob_n = dequantise(shard.array("token_logprob"), TOKEN_STEP)
                    entropy_n = dequantise_entropy(shard.array("entropy"))
                    is_text_n = lengths_n > 0
                    for total, each_n in zip(
                        sums,
                        (
                            np.maximum(logprob_n.astype(np.float64), FLOOR_NATS),
                            entropy_n.astype(np.float64),
                            lengths_n,
                            np.ones_like(lengths_n),
                        ),
                        strict=True,
                    ):
                        total += np.bincount(
                            row_n[is_text_n], each_n[is_text_n], minlength=len(total)
                        )
                first = stop
                shown.update(1)
        return cls(*sums)


def select(
    store: str | PathLike[str],
    out: str | PathLike[str],
    *,
    keep: float,
    over: str | PathLike[str] | None = None,
    by: str | None = None,
    highest: bool | None = None,
    allow_partial: bool = False,
) -> dict[str, Any]:
    """Write the numbers of the rows that are kept, in the order of the dataset.

    Args:
        store: The store.
        out: The file to write, for `--rows`.
        keep: The share of rows with a score that is kept, above 0 and at most 1.
        over: A store of the reference model, of the same texts; for `gain`, and needed for it.
        by: One of `BY`; default: `gain` with a reference, else there is none.
        highest: Whether the highest scores are kept; None: as `BY` says.
        allow_partial: Also read stores that are not finished.

    Returns:
        What was kept, as JSON.

    Raises:
        InputError: Something is not as said above; `out` is in a bucket, or a file that is no list
            of rows.
        MismatchError: A store lacks what is asked for, or the two have no text in common.
    """
    by = _checked(keep, over, by)
    place = place_for_rows(out, "--out")
    if highest is None:
        highest = BY[by]
    opened = open_store(store, allow_partial=allow_partial)
    sums = RowSums.of(opened)
    has_R = sums.tokens_R > 0
    matched: dict[str, int] = {}
    if by == "gain":
        assert over is not None
        reference = open_store(over, allow_partial=allow_partial)
        score_R, has_R, matched = _gain(opened, reference, sums)
    else:
        score_R = _score(by, opened, sums)
    rows = np.flatnonzero(has_R)
    if not len(rows):
        raise InputError(
            f"{store}: none of its {counted(len(has_R), 'row')} has a record to judge it by."
        )
    count = max(1, math.floor(keep * len(rows) + 0.5))
    order = np.argsort(-score_R[rows] if highest else score_R[rows], kind="stable")
    kept = np.sort(rows[order[:count]])
    write_rows(place, kept.tolist())
    return {
        "store": str(store),
        "over": None if over is None else str(over),
        "by": by,
        "kept": "highest" if highest else "lowest",
        "out": str(out),
        "rows": len(has_R),
        "rows_scored": len(rows),
        **matched,
        "rows_kept": len(kept),
        "bytes": int(sums.bytes_R.sum()),
        "bytes_kept": int(sums.bytes_R[kept].sum()),
        "last_score": float(score_R[rows[order[count - 1]]]),
        "mean_score": float(score_R[rows].mean()),
        "mean_score_kept": float(score_R[kept].mean()),
    }


def _checked(keep: float, over: object, by: str | None) -> str:
    """Return what rows are ordered by."""
    if not 0 < keep <= 1:
        raise InputError(f"--keep is {keep:g}, expected a share above 0 and at most 1, as 0.5.")
    if by is not None and by not in BY:
        raise InputError(f"--by {by}: not known. Known: {', '.join(BY)}. Name one.")
    if over is None and by in (None, "gain"):
        raise InputError(
            "--over is missing: a gain is over something. Name the store of a smaller model of the "
            "same text, or choose by the teacher alone, such as --by surprise."
        )
    if over is not None and by not in (None, "gain"):
        raise InputError(f"--by {by} reads no second store. Leave --over out, or --by.")
    return by or "gain"


def _score(by: str, store: LogitStore, sums: RowSums) -> Floats:
    missing = {"surprise": "token_logprob", "entropy": "entropy"}.get(by)
    if missing in store.spec.missing:
        raise _lacks(store, missing)
    with np.errstate(invalid="ignore", divide="ignore"):  # rows without a token are not looked at
        if by == "surprise":
            return sums.surprise_R
        if by == "entropy":
            return sums.entropy_R / sums.tokens_R
        if by == "agreement":
            return _agreed(store) / sums.tokens_R
    return sums.bytes_R


def _lacks(store: LogitStore, array: str | None) -> MismatchError:
    return MismatchError(
        f"{store.path}: was imported without the {array} of every token, which rows would be "
        "chosen by. Choose by something else, or capture the text with the teacher."
    )


def _agreed(store: LogitStore) -> Floats:
    """Count (R,) the tokens that are the teacher's most probable one."""
    if not store.spec.top_k or not store.spec.has_ids:
        lacks = "--top-k 0" if not store.spec.top_k else "--no-ids"
        raise MismatchError(
            f"{store.path}: captured with {lacks}, so the teacher's most probable tokens are not "
            "known. Choose --by surprise, or capture again."
        )
    agreed_R, rows = np.zeros(store.plan.rows), store.sequence_rows
    filled = np.flatnonzero(np.asarray(store.token_counts) > 0)
    with progress(len(filled), "read", "sequences") as shown:
        for start in range(0, len(filled), _READ_AT_ONCE):
            chosen = filled[start : start + _READ_AT_ONCE].tolist()
            for i, records in zip(chosen, store.read_many(chosen), strict=True):
                ids, has = records.entry_ids, records.entry_count > 0
                assert ids is not None
                first = (np.cumsum(records.entry_count) - records.entry_count)[has]
                is_text = records.byte_lengths[has] > 0
                agreed_R[rows[i]] += np.sum((ids[first] == records.token_ids[has]) & is_text)
                shown.update(1)
    return agreed_R


def _gain(
    store: LogitStore, reference: LogitStore, sums: RowSums
) -> tuple[Floats, npt.NDArray[np.bool_], dict[str, int]]:
    """Compute the gain of each row over the row of the same text, and which rows have one."""
    for each in (store, reference):
        if "token_logprob" in each.spec.missing:
            raise _lacks(each, "token_logprob")
    if store.digest == reference.digest:
        raise InputError(
            f"--over {reference.path}: holds what {store.path} does, so no row gains anything. "
            "Name the store of another model."
        )
    others = RowSums.of(reference)
    twin_R = _twins(store, reference)
    has_R = (twin_R >= 0) & (sums.tokens_R > 0) & (others.tokens_R[twin_R] > 0)
    if not has_R.any():
        raise MismatchError(
            f"--over {reference.path}: has no row with the text of a row of {store.path}. Capture "
            "the same dataset with the reference model."
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        own = sums.logprob_R / sums.bytes_R
        gain = own - (others.logprob_R / others.bytes_R)[twin_R]
    return gain, has_R, {"rows_without_reference": int(np.sum((twin_R < 0) & (sums.tokens_R > 0)))}


def _twins(store: LogitStore, reference: LogitStore) -> npt.NDArray[np.int64]:
    """Find (R,) the row of the reference with the same supervised text; -1 for none."""
    if store.plan.dataset_sha256 == reference.plan.dataset_sha256:
        rows = np.arange(store.plan.rows)
        return np.where(rows < reference.plan.rows, rows, -1)
    by_text: Mapping[bytes, int] = {
        text: row for row, text in reversed(list(enumerate(_texts(reference))))
    }
    return np.array([by_text.get(text, -1) if text else -1 for text in _texts(store)], np.int64)


def _texts(store: LogitStore) -> list[bytes]:
    """Digest the supervised text of each row; empty for none."""
    bounds = np.searchsorted(store.sequence_rows, np.arange(store.plan.rows + 1))
    found = []
    with progress(store.plan.rows, "read the text", "rows") as shown:
        for row in range(store.plan.rows):
            lines = map(store.text, range(int(bounds[row]), int(bounds[row + 1])))
            text = b"".join(line.supervised_bytes for line in lines)
            found.append(hashlib.sha256(text).digest() if text else b"")
            shown.update(1)
    return found


def table(facts: Mapping[str, Any]) -> str:
    """Format what was kept, for people."""
    mean, of_all = facts["mean_score_kept"], facts["mean_score"]
    lines = {
        "rows": f"{facts['rows_kept']:,} kept of {facts['rows_scored']:,} with a score, of "
        f"{facts['rows']:,}",
        "bytes": f"{facts['bytes_kept']:,} of {facts['bytes']:,}",
        str(facts["by"]): f"{mean:.4f} on average, {of_all:.4f} of all; the last one kept has "
        f"{facts['last_score']:.4f}",
        "next": f"--rows {facts['out']}, for `distill train` and `logitstore subset`",
    }
    if facts.get("rows_without_reference"):
        lines["no pair"] = (
            f"{counted(facts['rows_without_reference'], 'row')} without text of the reference"
        )
    return "\n".join(f"{name:<10} {value}" for name, value in lines.items())
