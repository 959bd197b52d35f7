"""Check that every byte of a store is what was committed.

The fast check covers the seal, the digest of every file and the size of every shard. The deep check
also decodes every chunk and page and checks the values: every row has its lines, ids are in the
vocabulary and decode to the text, entries are sorted, entries and tail sum to 1, byte spans are
inside the text, and parts of a row do not overlap. With `by_zarr`, zarr decodes every array, too,
and the results are compared.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from logitstore.checking.checked_shards import CheckedShards
from logitstore.checking.in_parallel import checked_in_parallel
from logitstore.checking.report import Damage, VerifyReport
from logitstore.checking.shard_check import ShardCheck
from logitstore.console.counts import counted
from logitstore.console.progress import progress
from logitstore.errors import CorruptStoreError, IncompleteStoreError, InputError, StorageError
from logitstore.format.index import Line, most_bytes
from logitstore.format.plan import is_plan_file
from logitstore.format.seal import read_seal
from logitstore.format.spec import (
    BOUNDARIES_FOLDER,
    DONE_FILE,
    INDEX_FILE,
    LM_HEAD_FILE,
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
from logitstore.reading.lm_head import lm_head_of, open_lm_head
from logitstore.reading.shard_cache import ShardCache
from logitstore.storage.files import MAX_SPEC_BYTES, MAX_TOKENIZER_BYTES
from logitstore.storage.paths import StorePath, names_in_or_none, store_path
from logitstore.store import LogitStore
from logitstore.writing.lm_head import lacks_lm_head

_MISSING = CorruptStoreError.kinds[1]
#: A process takes a second to begin, and decodes as much meanwhile as a few shards of this size.
_WORTH_A_PROCESS = 8
_MAX_LM_HEAD_BYTES = 4 * 1024**3  # as any archive
_MOST_LOST = 1000  # shards that are named one by one; a plan may list hundreds of thousands


class _How(NamedTuple):
    """The arguments of a check, as `verify_store` describes them."""

    deep: bool
    by_zarr: bool
    allow_partial: bool
    jobs: int
    resume: bool


def verify_store(
    path: str | os.PathLike[str] | StorePath,
    *,
    deep: bool = False,
    by_zarr: bool = False,
    allow_partial: bool = False,
    jobs: int = 1,
    resume: bool = False,
) -> VerifyReport:
    """Check the digests of a store and, on request, its values.

    Args:
        path: The store's folder, or its address in a bucket, whose objects are downloaded again
            rather than taken from the cache.
        deep: Also decode everything and check the values.
        by_zarr: With `deep`: also decode the arrays by zarr, and compare.
        allow_partial: Check what an unfinished capture has committed.
        jobs: How many shards are checked at a time: with `deep` each in a process of its own, so a
            script that asks for several needs `if __name__ == "__main__":`.
        resume: Leave out shards that an interrupted check of the same kind found whole, and whose
            files or objects have not been written to since.

    Raises:
        NotAStoreError: There is no store here.
        FormatError: The store has a newer format version.
        IncompleteStoreError: The capture has not finished, and `allow_partial` is off.
        InputError: `by_zarr` without `deep`; no jobs; `resume` for a bucket that says of its
            objects nothing by which one that was replaced would be known.
    """
    path, how = store_path(path), _How(deep, by_zarr, allow_partial, jobs, resume)
    _check_arguments(how)
    return _verified(path, how)


def _check_arguments(how: _How) -> None:
    if how.by_zarr and not how.deep:
        raise InputError("--zarr is a second opinion on what is decoded: add --deep.")
    if how.jobs < 1:
        raise InputError(f"--jobs is {how.jobs}, expected 1 or more.")


def _verified(path: StorePath, how: _How) -> VerifyReport:
    report = VerifyReport()
    try:
        header = StoreHeader.read(path)
    except CorruptStoreError as e:
        report.damaged.append(Damage(e.path.name, None, str(e), e.kind))
        return report
    report.is_complete = (path / DONE_FILE).exists()
    if not report.is_complete and not how.allow_partial:
        held = LogitStore(path, allow_partial=True)
        raise IncompleteStoreError(
            f"{path}: holds {held.rows_held:,} of {counted(held.plan.rows, 'row')}; the capture "
            "has not finished. Run the same `logitstore capture …` again to resume it, or check "
            "what is there with --allow-partial."
        )
    if report.is_complete or not _has_just_begun(path, header):
        report.damaged += _check_tokenizer(path, header.spec)
    if report.is_complete:
        report.damaged += _check_seal(path, header)
    report.damaged += _check_lm_head(path, header.spec, how)
    _check_shards(path, header, report, how)
    if header.spec.boundaries_of is None:
        _check_boundaries(path, header, report, how)
    return report


def _check_boundaries(
    path: StorePath, header: StoreHeader, report: VerifyReport, how: _How
) -> None:
    """Check the stores inside a store, each as a store, and that it belongs there."""
    for inside in list_boundaries(path):
        found = _verified(inside, how)
        folder = f"{BOUNDARIES_FOLDER}/{inside.name}"
        report.boundaries[folder] = found
        report.damaged += [replace(d, file=f"{folder}/{d.file}") for d in found.damaged]
        if any(d.file == SPEC_FILE or is_plan_file(d.file) for d in found.damaged):
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


def _check_lm_head(path: StorePath, spec: StoreSpec, how: _How) -> Iterator[Damage]:
    """Check the teacher's output embedding, which an unfinished store may lack."""
    is_complete = (path / DONE_FILE).exists()
    if not spec.has_head or (lacks_lm_head(path, spec) and not is_complete):
        return
    try:
        if how.deep:
            lm_head_of(path, spec)
        else:
            open_lm_head(path).check_digest()
    except CorruptStoreError as e:
        yield Damage(LM_HEAD_FILE, None, str(e), e.kind)
        return
    if is_complete:
        try:
            sealed = read_seal(path, spec)[LM_HEAD_FILE]
        except (OSError, ValueError):  # reported by the check of the seal
            return
        yield from _check_file(path, LM_HEAD_FILE, sealed, _MAX_LM_HEAD_BYTES)


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


def _check_shards(path: StorePath, header: StoreHeader, report: VerifyReport, how: _How) -> None:
    plan, there = header.plan, set(list_shards(path, header.plan))
    indexed = _indexed(path) if report.is_complete else ()
    if report.is_complete:
        report.damaged += _lost(path, plan, there)
    held = range(plan.shard_count) if report.is_complete else there
    report.shards = len(held)
    report.rows = sum(stop - first for first, stop in map(plan.shard_rows, held))
    tokenizer = _tokenizer(path, header.spec) if how.deep else None
    check = ShardCheck(path, header, how.deep, how.by_zarr, tokenizer)
    checked = CheckedShards.of(path, header, (how.deep, how.by_zarr), is_resumed=how.resume)
    wanted = [index for index in sorted(there) if not checked.has(index)]
    report.checked_before = len(there) - len(wanted)
    with progress(len(wanted), "verify", "shards") as shown, checked:
        tasks = ((index, indexed[index] if indexed else None) for index in wanted)
        least = _WORTH_A_PROCESS if how.deep else 1
        jobs = max(1, min(how.jobs, len(wanted) // least))
        for index, damaged in checked_in_parallel(check, tasks, jobs):
            report.damaged += damaged
            if not damaged:
                checked.add(index)
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


def _tokenizer(path: StorePath, spec: StoreSpec) -> Path | None:
    try:
        return tokenizer_folder(path, spec, ShardCache.chosen())
    except CorruptStoreError:  # already reported by the check of its files
        return None


def _indexed(path: StorePath) -> Sequence[Line]:
    try:
        return LogitStore(path).shard_facts
    except CorruptStoreError:
        return ()  # already reported with the seal; shards still have their own digests
