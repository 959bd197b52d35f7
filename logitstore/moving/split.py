"""Hold a part of a store's documents out: two lists of rows, and a store of the part held out.

A row of the dataset is a document, with all windows that it was split into. Rows of the same text
fall on the same side, or the held-out part would be known from training. Which side a text falls on
depends on the seed and the text alone: not on its place, nor on the other rows but for their
number.
"""

import hashlib
from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np

from logitstore.console.progress import progress
from logitstore.errors import InputError
from logitstore.moving.folders import open_finished
from logitstore.moving.row_list import place_for_rows, write_rows
from logitstore.moving.subset import subset
from logitstore.storage.folder import LocalPath
from logitstore.storage.paths import StorePath, local_path
from logitstore.store import LogitStore

TRAIN_FILE, EVAL_FILE, EVAL_STORE = "train.txt", "eval.txt", "eval"


def split(
    store: str | PathLike[str] | StorePath,
    out: str | PathLike[str],
    *,
    share: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Hold out a share of a store's documents.

    Args:
        store: The store's folder, or its URL.
        out: A folder for `train.txt` and `eval.txt`, lists of rows, and `eval`, a store of the rows
            held out. The same call again finishes what was begun.
        share: Of the texts to hold out, 0 to 1; at least one text.
        seed: Another seed holds others out.

    Returns:
        What was written, as JSON.

    Raises:
        InputError: There is no such share of it; the folder has files of these names that are no
            lists of rows; it is in a bucket.
    """
    if not 0 < share < 1:
        raise InputError(
            f"--eval is {share:g}, expected a share between 0 and 1, such as 0.02. Name one "
            "that leaves texts on both sides."
        )
    folder = local_path(out, "what is split", "--out")
    source = open_finished(store)
    _check_place(folder)
    texts = _texts_of_rows(source)
    if len(set(texts)) < 2:
        raise InputError(
            f"{store}: has {len(set(texts))} different text, so nothing can be held out of it. "
            "Capture more rows."
        )
    held = _held_out(texts, share, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ((TRAIN_FILE, np.flatnonzero(~held)), (EVAL_FILE, np.flatnonzero(held))):
        write_rows(folder / name, rows.tolist())
    made = subset(store, folder / EVAL_FILE, folder / EVAL_STORE)
    return {
        "store": str(store),
        "rows": len(texts),
        "texts": len(set(texts)),
        "held_out_rows": int(held.sum()),
        "train_rows": str(folder / TRAIN_FILE),
        "eval_rows": str(folder / EVAL_FILE),
        "eval_store": str(made.path),
        "seed": seed,
    }


def _check_place(folder: LocalPath) -> None:
    """Reject a place before the texts are read; what is there and no list of rows is kept."""
    if not folder.is_dir():
        folder.try_writing()
        return
    for name in (TRAIN_FILE, EVAL_FILE):
        place_for_rows(folder / name, "--out")


def _texts_of_rows(store: LogitStore) -> list[bytes]:
    """Digest the text of each row; a row without one is a text of its own."""
    found: list[bytes] = []
    with progress(store.plan.rows, "read the text", "rows") as shown:
        for row, text in _rows(store):
            found.append(hashlib.sha256(text).digest() if text else b"row %d" % row)
            shown.update(1)
    return found


def _rows(store: LogitStore) -> Iterator[tuple[int, bytes]]:
    every = store.sequence_rows
    bounds = np.searchsorted(every, np.arange(store.plan.rows + 1))
    for row in range(store.plan.rows):
        lines = map(store.text, range(int(bounds[row]), int(bounds[row + 1])))
        yield row, b"\0".join(s.text.encode() for line in lines for s in line.segments)


def _held_out(texts: list[bytes], share: float, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Mark the rows of the texts with the smallest digests, of seed and text together."""
    keys = {text: hashlib.sha256(b"%d " % seed + text).digest() for text in set(texts)}
    ordered = sorted(keys, key=keys.__getitem__)
    count = min(max(1, round(share * len(ordered))), len(ordered) - 1)
    chosen = set(ordered[:count])
    return np.array([text in chosen for text in texts], np.bool_)
