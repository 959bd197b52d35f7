"""Merge several stores into one: parts of one capture, or captures of several datasets.

    parts of one      Equal content and equal plan: each store holds some of the shards, finished or
    capture           not. The union has the bytes that one capture would have written. It is
                      finished if all shards are present; otherwise a capture can resume it.
    several datasets  Equal content, different plans: finished stores of disjoint rows. The rows of
                      the second store are numbered on from the first; shards keep their rows.

Content decides what a record means: teacher, tokenizer, rendering, capture settings and codec.
Records of different content cannot be kept in one store.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from logitstore.console.progress import progress
from logitstore.errors import InputError, MismatchError
from logitstore.format.canonical_json import canonical_json
from logitstore.format.spec import Plan
from logitstore.moving.folders import open_finished, say_what_stays, tokenizer_files
from logitstore.reading.shard import Shard
from logitstore.storage.paths import StorePath, store_path
from logitstore.store import LogitStore, open_store
from logitstore.writing.lm_head import check_same_lm_head
from logitstore.writing.places import try_place
from logitstore.writing.writer import StoreWriter


def merge(
    stores: Sequence[str | PathLike[str] | StorePath], out: str | PathLike[str] | StorePath
) -> LogitStore:
    """Write the union of stores, or resume writing it.

    Args:
        stores: Two or more folders or URLs; where their plans differ, the rows are in this order.
        out: The new store's folder, or its URL.

    Returns:
        The union. It is unfinished if some parts of the one capture were not given.

    Raises:
        InputError: Fewer than two stores, or one given twice.
        MismatchError: The stores' contents differ, or a row is in more than one of them.
        IncompleteStoreError: The datasets differ, and a capture of one is unfinished.
        CorruptStoreError: A shard is damaged.
    """
    if len(stores) < 2:
        raise InputError("merge needs two stores or more. Name them before --out.")
    named = Counter(str(store_path(s).resolve()) for s in stores)
    if len(named) < len(stores):
        twice = named.most_common(1)[0][0]
        raise InputError(f"{twice}: is given twice. Name each store once.")
    place = try_place(out)
    opened = [open_store(s, allow_partial=True) for s in stores]
    for other in opened[1:]:
        _check_content(opened[0], other)
    plans = {s.plan.digest for s in opened}
    if len(plans) == 1:
        for store in opened:
            say_what_stays(store)
        return _union(opened, place)
    if len(plans) < len(opened):
        raise MismatchError(
            f"{', '.join(str(s.path) for s in opened)}: some are parts of one capture, others of "
            "another dataset. Merge the parts of each capture first, then the finished stores."
        )
    return _one_after_the_other([open_finished(s) for s in stores], place)


def _check_content(first: LogitStore, other: LogitStore) -> None:
    different = first.spec.differences(other.spec)
    if different:
        name, here, there = different[0]
        more = f", and {len(different) - 1} more" if len(different) > 1 else ""
        raise MismatchError(
            f"{first.path} and {other.path}: their records do not mean the same: {name} is "
            f"{_short(here)} in the first, {_short(there)} in the second{more}. Capture both with "
            "the same teacher, tokenizer and settings."
        )


def _union(stores: Sequence[LogitStore], out: StorePath) -> LogitStore:
    """Merge parts of one capture by copying their shards byte for byte."""
    first = stores[0]
    owner: dict[int, LogitStore] = {}
    for store in stores:
        for index in store.shards:
            if index in owner:
                _check_same(owner[index], store, index)
            else:
                owner[index] = store
    writer = StoreWriter(out, first.spec, first.plan, tokenizer_files(first), first.provenance)
    _keep_lm_head(writer, stores)
    with progress(len(owner), "merge", "shards") as shown:
        for index in sorted(set(owner) & set(writer.missing())):
            writer.copy_shard(index, owner[index].shard(index))
            shown.update(1)
    if not (writer.missing() or writer.lacks_lm_head or writer.is_sealed):
        writer.seal()
    return open_store(out, allow_partial=True)


def _keep_lm_head(writer: StoreWriter, stores: Sequence[LogitStore]) -> None:
    """Copy the teacher's output embedding, which is the same in every store that has it."""
    there = [store.path for store in stores if store.lm_head_bytes]
    for other in there[1:]:
        check_same_lm_head(there[0], other)
    if there:
        writer.copy_lm_head(there[0])


def _check_same(one: LogitStore, other: LogitStore, index: int) -> None:
    if one.shard(index).archive.digest != other.shard(index).archive.digest:
        first, stop = one.plan.shard_rows(index)
        raise MismatchError(
            f"{one.path} and {other.path}: both hold rows {first:,} to {stop - 1:,}, and not the "
            "same bytes (captured on other hardware or versions, perhaps). Rows may be in one "
            f"only: move {other.shard(index).path} aside, or leave that store out."
        )


def _one_after_the_other(stores: Sequence[LogitStore], out: StorePath) -> LogitStore:
    """Merge captures of several datasets: write their records and text under new row numbers."""
    seen: dict[str, LogitStore] = {}
    for store in stores:
        twin = seen.setdefault(store.plan.dataset_sha256, store)
        if twin is not store:
            raise MismatchError(
                f"{twin.path} and {store.path}: both are of dataset "
                f"{store.plan.dataset_sha256[:12]}…, cut into other shards, so their rows are the "
                "same. Leave one out."
            )
    plan, places = _joined_plan(stores)
    writer = StoreWriter(out, stores[0].spec, plan, tokenizer_files(stores[0]), _provenance(stores))
    _keep_lm_head(writer, stores)
    missing = [] if writer.is_sealed else writer.missing()
    with progress(len(missing), "merge", "shards") as shown:
        for index in missing:
            store, number, offset = places[index]
            _write_again(writer, index, store.shard(number), offset)
            shown.update(1)
    if not writer.is_sealed:
        writer.seal()
    return open_store(out)


def _joined_plan(
    stores: Sequence[LogitStore],
) -> tuple[Plan, list[tuple[LogitStore, int, int]]]:
    """Return the joined plan, and for each shard its store, its number there and its row offset."""
    digest = hashlib.sha256(canonical_json([s.plan.digest for s in stores])).hexdigest()
    parts, places, offset = [np.zeros(1, np.int64)], [], 0
    for store in stores:
        parts.append(offset + store.plan.boundaries[1:])
        places += [(store, number, offset) for number in range(store.plan.shard_count)]
        offset += store.plan.rows
    return Plan(digest, np.concatenate(parts)), places


def _write_again(writer: StoreWriter, index: int, shard: Shard, offset: int) -> None:
    pairs = []
    for i in range(len(shard)):
        line = shard.text(i)
        pairs.append((line._replace(row=line.row + offset), shard.encoded(i)))
    writer.write_shard(index, pairs, shard.about["fidelity"])


def _provenance(stores: Sequence[LogitStore]) -> dict[str, Any]:
    """Return the first store's provenance without what holds for that store alone."""
    datasets = [s.provenance.get("dataset") for s in stores]
    of_one = ("self_test", "turns")
    shared = {k: v for k, v in stores[0].provenance.items() if k not in of_one}
    return shared | {
        "dataset": " + ".join(str(d) for d in datasets),
        "settings": None,
        "merged": [
            {"store": str(s.path), "digest": s.digest, "dataset": d, "rows": s.plan.rows}
            for s, d in zip(stores, datasets, strict=True)
        ],
    }


def _short(value: object) -> str:
    text = canonical_json(value).decode().strip()
    return text if len(text) <= 48 else f"{text[:45]}…"
