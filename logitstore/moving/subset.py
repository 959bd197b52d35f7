"""Write some rows of a store as a new store, with the same records and text.

Rows are renumbered from 0, in the order that they have in the store, because a plan has no gaps.
Everything else of a sequence, its codes included, is copied bit for bit. It can be resumed like a
capture.
"""

import hashlib
from collections.abc import Iterator
from os import PathLike

import numpy as np

from logitstore.console.progress import progress
from logitstore.errors import InputError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.numpy_types import I64
from logitstore.format.spec import Plan
from logitstore.moving.fidelity import Fidelity, of_parts
from logitstore.moving.folders import open_finished, tokenizer_files
from logitstore.moving.row_list import chosen_rows
from logitstore.records import SequenceText
from logitstore.storage.paths import StorePath
from logitstore.store import LogitStore, open_store
from logitstore.writing.places import try_place
from logitstore.writing.plan import make_plan
from logitstore.writing.writer import StoreWriter

Pair = tuple[SequenceText, EncodedRecords | None]


def subset(
    store: str | PathLike[str] | StorePath,
    rows: str | PathLike[str],
    out: str | PathLike[str] | StorePath,
    *,
    shard_text_bytes: int | None = None,
) -> LogitStore:
    """Write a store of some rows of another store, or resume writing it.

    Args:
        store: The store's folder, or its URL.
        rows: A file with one row number a line, or a range ``A:B`` (B not included).
        out: The new store's folder, or its URL.
        shard_text_bytes: Approximate bytes of text in a shard; None: 4 MiB, or as many as make no
            more than 100,000 shards.

    Returns:
        The new store.

    Raises:
        InputError: `rows` names a row that the store does not have, or a shard would have no text.
        MismatchError: `out` holds something else.
        CorruptStoreError: Bytes of the store are damaged.
    """
    if shard_text_bytes is not None and shard_text_bytes < 1:
        raise InputError(f"--shard-text-bytes is {shard_text_bytes}, expected 1 or more.")
    source = open_finished(store)
    numbers = chosen_rows(str(rows), source)
    try_place(out)
    chosen = _Chosen(source, numbers)
    label = f"subset of {source.digest}:".encode()
    digest = hashlib.sha256(label + numbers.astype("<i8").tobytes())
    plan = make_plan(digest.hexdigest(), chosen.text_bytes(), shard_text_bytes)
    provenance = {k: v for k, v in source.provenance.items() if k != "turns"} | {  # of all rows
        "settings": None,  # a capture with these would write another store
        "subset_of": {"store": str(store), "digest": source.digest, "rows": str(rows)},
    }
    writer = StoreWriter(out, source.spec, plan, tokenizer_files(source), provenance)
    writer.copy_lm_head(source.path)
    missing = [] if writer.is_sealed else writer.missing()
    with progress(len(missing), "subset", "shards") as shown:
        for index in missing:
            pairs, fidelity = chosen.shard(plan, index)
            writer.write_shard(index, pairs, fidelity)
            shown.update(1)
    if not writer.is_sealed:
        writer.seal()
    return open_store(out)


class _Chosen:
    """The sequences of the chosen rows, found by the number of their row in the new store."""

    def __init__(self, store: LogitStore, rows: I64) -> None:
        self._store, self._rows = store, rows
        every = store.sequence_rows
        self._first = np.searchsorted(every, rows, side="left")
        self._stop = np.searchsorted(every, rows, side="right")
        counts = [int(facts["sequences"]) for facts in store.shard_facts]
        self._shard_stops = np.cumsum(counts)

    def text_bytes(self) -> I64:
        """Return (rows,) the bytes of text of each row."""
        sizes = np.zeros(len(self._rows), np.int64)
        with progress(len(self._rows), "read the text", "rows") as shown:
            for new in range(len(self._rows)):
                lines = map(self._store.text, self._sequences(new))
                sizes[new] = sum(len(s.text.encode()) for line in lines for s in line.segments)
                shown.update(1)
        return sizes

    def shard(self, plan: Plan, index: int) -> tuple[list[Pair], Fidelity]:
        """Return the sequences of a shard of the new store, and the shard's fidelity."""
        pairs: list[Pair] = []
        parts: list[tuple[Fidelity, EncodedRecords]] = []
        for new in range(*plan.shard_rows(index)):
            for i in self._sequences(new):
                encoded = self._store.encoded(i)
                pairs.append((self._store.text(i)._replace(row=new), encoded))
                parts.append((self._fidelity(i), encoded))
        return pairs, of_parts(self._store.spec, parts)

    def _sequences(self, new: int) -> Iterator[int]:
        return iter(range(int(self._first[new]), int(self._stop[new])))

    def _fidelity(self, i: int) -> Fidelity:
        """Return the fidelity of the shard that sequence i is in."""
        position = int(np.searchsorted(self._shard_stops, i, side="right"))
        facts: Fidelity = self._store.shard_facts[position]
        return facts
