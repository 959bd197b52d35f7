"""Check that every byte of a store is what was committed.

The fast check covers the seal, the digest of every file and the size of every shard. The deep check
also decodes every chunk and page and checks the values: every row has its lines, ids are in the
vocabulary and decode to the text, entries are sorted, entries and tail sum to 1, byte spans are
inside the text, and parts of a row do not overlap. With `by_zarr`, zarr decodes every array, too,
and the results are compared.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from logitstore.checking.hidden import hidden
from logitstore.checking.nonsense import known_unknowns, nonsense
from logitstore.checking.report import Damage, VerifyReport
from logitstore.checking.text_check import TextCheck
from logitstore.console.progress import progress
from logitstore.errors import CorruptStoreError, IncompleteStoreError, InputError, StorageError
from logitstore.format.index import most_bytes
from logitstore.format.seal import read_seal
from logitstore.format.spec import (
    BOUNDARIES_FOLDER,
    DONE_FILE,
    INDEX_FILE,
    SHARDS_FOLDER,
    SPEC_FILE,
    STUDENT_FOLDER,
    TOKENIZER_FOLDER,
    Plan,
    StoreHeader,
    StoreSpec,
    shard_name,
)
from logitstore.reading.bucket import tokenizer_folder
from logitstore.reading.listing import list_boundaries, list_shards
from logitstore.reading.shard import Shard
from logitstore.reading.shard_cache import ShardCache
from logitstore.reading.shard_head import index_line
from logitstore.storage.files import MAX_SPEC_BYTES, MAX_TOKENIZER_BYTES
from logitstore.storage.objects import RemotePath
from logitstore.storage.paths import StorePath, names_in_or_none, store_path
from logitstore.store import LogitStore

_MISSING = CorruptStoreError.kinds[1]
_MOST_LOST = 1000  # shards that are named one by one; a plan may list hundreds of thousands


def verify_store(
    path: str | os.PathLike[str] | StorePath,
    *,
    deep: bool = False,
    by_zarr: bool = False,
    allow_partial: bool = False,
) -> VerifyReport:
    """Check the digests of a store and, on request, its values.

    Args:
        path: The store's folder, or its address in a bucket, whose objects are downloaded again
            rather than taken from the cache.
        deep: Also decode everything and check the values.
        by_zarr: With `deep`: also decode the arrays by zarr, and compare.
        allow_partial: Check what an unfinished capture has committed.

    Raises:
        NotAStoreError: There is no store here.
        FormatError: The store has a newer format version.
        IncompleteStoreError: The capture has not finished, and `allow_partial` is off.
        InputError: `by_zarr` without `deep`.
    """
    if by_zarr and not deep:
        raise InputError("--zarr is a second opinion on what is decoded: add --deep.")
    path = store_path(path)
    report = VerifyReport()
    try:
        header = StoreHeader.read(path)
    except CorruptStoreError as e:
        report.damaged.append(Damage(SPEC_FILE, None, str(e)))
        return report
    report.is_complete = (path / DONE_FILE).exists()
    if not report.is_complete and not allow_partial:
        held = LogitStore(path, allow_partial=True)
        raise IncompleteStoreError(
            f"{path}: holds {held.rows_held:,} of {held.plan.rows:,} rows; the capture has not "
            "finished. Run the same `logitstore capture …` again to resume it, or check what is "
            "there with --allow-partial."
        )
    if report.is_complete or not _has_just_begun(path, header):
        report.damaged += _check_tokenizer(path, header.spec)
    if report.is_complete:
        report.damaged += _check_seal(path, header)
    _check_shards(path, header, report, deep, by_zarr)
    if header.spec.boundaries_of is None:
        _check_boundaries(path, header, report, deep, by_zarr, allow_partial)
    return report


def _check_boundaries(
    path: StorePath,
    header: StoreHeader,
    report: VerifyReport,
    deep: bool,
    by_zarr: bool,
    allow_partial: bool,
) -> None:
    """Check the stores inside a store, each as a store, and that it belongs there."""
    for inside in list_boundaries(path):
        found = verify_store(inside, deep=deep, by_zarr=by_zarr, allow_partial=allow_partial)
        folder = f"{BOUNDARIES_FOLDER}/{inside.name}"
        report.boundaries[folder] = found
        report.damaged += [replace(d, file=f"{folder}/{d.file}") for d in found.damaged]
        if any(d.file == SPEC_FILE for d in found.damaged):
            continue
        own = StoreHeader.read(inside)
        described = (own.spec.at_boundaries(None), own.plan)
        if own.spec.boundaries_of is None or described != (header.spec, header.plan):
            reason = "describes other records than those of the store around it"
            report.damaged.append(Damage(f"{folder}/{SPEC_FILE}", None, reason))


def _has_just_begun(path: StorePath, header: StoreHeader) -> bool:
    """Tell whether a writer was stopped behind `store.json`, before tokenizer and shards."""
    folders = [TOKENIZER_FOLDER, *([] if header.spec.boundaries_of is None else [STUDENT_FOLDER])]
    is_lacking = not all(names_in_or_none(path / folder) for folder in folders)
    return is_lacking and not list_shards(path, header.plan)


def _check_tokenizer(path: StorePath, spec: StoreSpec) -> Iterator[Damage]:
    for name, digest in spec.tokenizer["files"].items():
        yield from _check_file(path, f"{TOKENIZER_FOLDER}/{name}", digest)
    for name, digest in (spec.boundaries_of or {"files": {}})["files"].items():
        yield from _check_file(path, f"{STUDENT_FOLDER}/{name}", digest)


def _check_file(
    path: StorePath, name: str, digest: str, most_bytes: int = MAX_TOKENIZER_BYTES
) -> Iterator[Damage]:
    try:
        size = (path / name).size_bytes()
        if size > most_bytes:  # a file without content on the disk may have any size
            yield Damage(name, None, f"has {size:,} bytes, at most {most_bytes:,} can be needed")
            return
        sha256 = (path / name).sha256()
    except FileNotFoundError:
        yield Damage(name, None, "is missing", _MISSING)
        return
    except StorageError:
        raise
    except (OSError, ValueError) as e:
        yield Damage(name, None, f"cannot be read ({e})")
        return
    if sha256 != digest:
        yield Damage(name, None, f"SHA-256 is {sha256[:12]}…, recorded as {digest[:12]}…")


def _check_seal(path: StorePath, header: StoreHeader) -> Iterator[Damage]:
    spec, most = header.spec, {SPEC_FILE: MAX_SPEC_BYTES, INDEX_FILE: most_bytes(header.plan)}
    try:
        sealed = read_seal(path, spec)
    except StorageError:
        raise
    except (OSError, ValueError) as e:
        yield Damage(DONE_FILE, None, f"the seal cannot be used: {e}")
        return
    for name in (SPEC_FILE, INDEX_FILE):
        yield from _check_file(path, name, sealed[name], most[name])
    try:
        _ = LogitStore(path, allow_partial=True).shard_facts
    except CorruptStoreError as e:
        if e.path.name == INDEX_FILE and not list(
            _check_file(path, INDEX_FILE, sealed[INDEX_FILE], most[INDEX_FILE])
        ):
            yield Damage(INDEX_FILE, None, str(e))


def _check_shards(
    path: StorePath, header: StoreHeader, report: VerifyReport, deep: bool, by_zarr: bool
) -> None:
    plan, there = header.plan, set(list_shards(path, header.plan))
    indexed = _indexed(path) if report.is_complete else {}
    if report.is_complete:
        report.damaged += _lost(path, plan, there)
    held = range(plan.shard_count) if report.is_complete else there
    report.shards = len(held)
    report.rows = sum(stop - first for first, stop in map(plan.shard_rows, held))
    tokenizer = _tokenizer(path, header.spec) if deep else None
    check = (
        None
        if tokenizer is None
        else TextCheck.from_folder(tokenizer, header.spec.boundaries_of is not None)
    )
    with progress(plan.shard_count, "verify", "shards") as shown:
        for index in range(plan.shard_count):
            name = f"{SHARDS_FOLDER}/{shard_name(index)}"
            first, stop = plan.shard_rows(index)
            if index in there:
                try:
                    shard = _opened(path / name, header, index)
                    shard.archive.check_digest()
                    for member in shard.archive.names if deep else ():
                        shard.archive.check_member(member)
                    report.damaged += _check_index(shard, index, indexed.get(index))
                except CorruptStoreError as e:
                    report.damaged.append(Damage(name, e.rows or (first, stop - 1), str(e), e.kind))
                else:
                    faults = list(_read_all(shard, check)) if deep else []
                    if by_zarr and not faults:
                        faults = list(_read_by_zarr(shard, header, index))
                    report.damaged += (Damage(name, *fault) for fault in faults)
            shown.update(1)


def _lost(path: StorePath, plan: Plan, there: set[int]) -> Iterator[Damage]:
    """Yield the shards that a finished store lacks; beyond the first thousand in one piece."""
    lost = [index for index in range(plan.shard_count) if index not in there]
    for index in lost[:_MOST_LOST]:
        first, stop = plan.shard_rows(index)
        name = f"{SHARDS_FOLDER}/{shard_name(index)}"
        yield Damage(name, (first, stop - 1), f"{path / name}: the file is missing.", _MISSING)
    if more := lost[_MOST_LOST:]:
        name = f"{SHARDS_FOLDER}/{shard_name(more[0])}"
        rows = (plan.shard_rows(more[0])[0], plan.shard_rows(more[-1])[1] - 1)
        reason = f"{path / name}: the file is missing, and so are {len(more) - 1:,} after it."
        yield Damage(name, rows, reason, _MISSING)


def _opened(path: StorePath, header: StoreHeader, index: int) -> Shard:
    """Open a shard; one in a bucket is downloaded again, whatever the cache holds."""
    file = None
    if isinstance(path, RemotePath):  # an object is fetched into a file
        file, _ = ShardCache.chosen().download(path)
    return Shard(path, header.spec, header.plan, index, file)


def _tokenizer(path: StorePath, spec: StoreSpec) -> Path | None:
    try:
        return tokenizer_folder(path, spec, ShardCache.chosen())
    except CorruptStoreError:  # already reported by the check of its files
        return None


def _indexed(path: StorePath) -> dict[int, dict[str, Any]]:
    try:
        return {f["shard"]: f for f in LogitStore(path).shard_facts}
    except CorruptStoreError:
        return {}  # already reported with the seal; shards still have their own digests


def _check_index(shard: Shard, index: int, line: dict[str, Any] | None) -> Iterator[Damage]:
    expected = index_line(shard, index)
    if line is None or line == expected:
        return
    if line["sha256"] != expected["sha256"]:
        name, rows = f"{SHARDS_FOLDER}/{shard_name(index)}", shard.rows
        yield Damage(name, rows, "is not the shard this store was sealed with")
    else:
        yield Damage(INDEX_FILE, None, f"does not say what shard {index} says of itself")


def _read_all(shard: Shard, check: TextCheck | None) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield (rows, reason) for every sequence that cannot be read or has impossible values."""
    ends: dict[int, tuple[int, int]] = {}  # row -> (its parts so far, supervised bytes so far)
    supervised, statuses = 0, Counter[str]()
    for i in range(len(shard)):
        try:
            line, records = shard.text(i), shard.records(i)
        except CorruptStoreError as e:
            yield e.rows or shard.rows, str(e)
            continue
        statuses[line.status] += 1
        begin = line.supervised_start
        end = begin + len(line.supervised_bytes)
        part, so_far = ends.get(line.row, (0, 0))
        if line.part != part or begin < so_far:
            yield (line.row, line.row), f"part {line.part} overlaps the part before it"
        ends[line.row] = (line.part + 1, end)
        supervised += end - begin
        for reason in nonsense(records, shard.spec, begin, end):
            yield (line.row, line.row), reason
        if check is not None and (reason_ := check.disagreement(line, records)):
            yield (line.row, line.row), f"ids and text disagree: {reason_}"
    if sum(statuses.values()) == len(shard):  # else their damage is known
        yield from _check_together(shard)
    lost = sorted(set(range(shard.rows[0], shard.rows[1] + 1)) - ends.keys())
    if lost:
        yield (lost[0], lost[-1]), f"{len(lost)} rows have no line"
    elif supervised != shard.about["supervised_bytes"]:
        yield shard.rows, "the supervised bytes do not add up to what the shard says"
    elif statuses != Counter(shard.about["statuses"]):
        yield shard.rows, "the statuses of its lines are not those that the shard says"


def _check_together(shard: Shard) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield (rows, reason) for what is wrong with sequences that are readable one by one."""
    try:
        shard.sequence_rows()  # are in order
        for reason in (*known_unknowns(shard), *hidden(shard)):
            yield shard.rows, reason
    except CorruptStoreError as e:
        yield e.rows or shard.rows, str(e)


def _read_by_zarr(
    shard: Shard, header: StoreHeader, index: int
) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield (rows, reason) for every array that zarr does not decode as this package does."""
    from logitstore.checking.by_zarr import disagreements  # here: zarr is slow to import

    for reason in disagreements(shard, header, index):
        yield shard.rows, f"{reason}, unlike this program. One of the two is wrong: report it"
