"""Import a dump as a store: a first pass checks and counts every row, a second writes.

Nothing is written before every row has been read, so bad input leaves nothing behind. What the spec
says of all records (the longest list, the missing fields) is then known before the first shard.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import dropwhile, islice
from os import PathLike
from typing import Any

import numpy as np

from logitstore.console.progress import progress
from logitstore.errors import InputError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.spec import StoreSpec
from logitstore.moving.dumps import records
from logitstore.moving.dumps.files import Dump, Row
from logitstore.moving.dumps.first_pass import Survey, look_through
from logitstore.moving.dumps.locate import Placed
from logitstore.moving.dumps.settings import ImportSettings
from logitstore.records import SequenceText
from logitstore.rows.survey import DOCUMENTS
from logitstore.storage.paths import StorePath, local_path
from logitstore.store import LogitStore, open_store
from logitstore.writing.digests import tokenizer_digests
from logitstore.writing.places import try_place
from logitstore.writing.plan import make_plan
from logitstore.writing.writer import StoreWriter

Pair = tuple[SequenceText, EncodedRecords | None]
Numbered = Iterator[tuple[int, tuple[str, Row]]]


def import_dump(
    path: str | PathLike[str],
    out: str | PathLike[str] | StorePath,
    settings: ImportSettings,
    *,
    dry_run: bool = False,
) -> tuple[LogitStore | None, dict[str, Any]]:
    """Write a dump as a store, or resume writing it.

    Args:
        path: A .parquet, .jsonl or .json file (the last two also .gz or .zst), a folder of one
            kind, or a pattern.
        out: The store's folder, or its URL.
        settings: What the dump does not say.
        dry_run: Read and check everything, and write nothing.

    Returns:
        The store (None for a dry run), and what was counted.

    Raises:
        InputError: The dump is wrong; names file, row and token.
        MismatchError: `out` holds something else.
        StorageError: The file system failed; what was committed stays good.
    """
    dump = Dump(local_path(path, "what is imported", "DUMP"))
    try_place(out, dry_run=dry_run)
    survey = look_through(dump, settings)
    spec, plan = (
        _spec(survey),
        make_plan(dump.digest(), survey.text_bytes, settings.shard_text_bytes),
    )
    dump.check()  # before the digest counts as that of the rows that were looked through
    counts = survey.facts() | {"shards": plan.shard_count, "missing": list(spec.missing)}
    if dry_run:
        return None, counts
    provenance = {
        "teacher": survey.reader.teacher,
        "dataset": str(path),
        "settings": None,
        "imported": counts,
    }
    writer = StoreWriter(out, spec, plan, survey.reader.files, provenance)
    missing = [] if writer.is_sealed else writer.missing()
    rows = enumerate(dump.rows())  # once: a compressed file has no place to go on from
    with progress(len(missing), "import", "shards") as shown:
        for index in missing:
            pairs = list(_pairs(rows, survey, spec, plan.shard_rows(index)))
            dump.check()  # before anything of these rows is committed
            writer.write_shard(index, pairs)
            shown.update(1)
    if not writer.is_sealed:
        writer.seal()
    return open_store(out), counts


def _spec(survey: Survey) -> StoreSpec:
    reader, settings = survey.reader, survey.reader.settings
    placer, missing = reader.placer, survey.missing()
    rendering: dict[str, Any] = {"kind": "tokens", "add_eos": False, "max_length": None}
    if placer.template is not None:
        rendering |= {
            "kind": "conversation",
            "supervise": placer.supervise,
            "chat_template_sha256": placer.template.digest,
            "chat_template_kwargs": dict(placer.kwargs or {}),
        }
    if survey.is_packed:
        rendering["obeys"] = [DOCUMENTS]
    rendering["imported"] = {
        "layout": reader.layout,
        "aligned_to": reader.aligned_to,
        "unlisted": settings.unlisted,
    }
    return StoreSpec(
        teacher={
            "fingerprint": reader.fingerprint,
            "architecture": "unknown",
            "dtype": "unknown",
            "vocab_size": reader.vocab_size,
        },
        tokenizer={
            "fingerprint": reader.tokenizer.fingerprint,
            "size": reader.tokenizer.size,
            "eos_ids": list(reader.tokenizer.eos_ids),
            "files": tokenizer_digests(reader.files),
        },
        rendering=rendering,
        capture={
            "top_k": survey.top_k,
            "max_tail": None,
            "ids": True,
            "temperatures": [],
            "logit_std": False,
            "draws": 0,
            **({"missing": missing} if missing else {}),
        },
    )


def _pairs(rows: Numbered, survey: Survey, spec: StoreSpec, of: tuple[int, int]) -> Iterator[Pair]:
    """Yield the sequences of a shard, which has the rows `of` the first to the last, not included.

    Rows before the first are passed over.
    """
    first, stop = of
    own = islice(dropwhile(lambda numbered: numbered[0] < first, rows), stop - first)
    for number, (where, row) in own:
        placed, _, _ = survey.reader.read(row, number, where)
        try:
            for each in placed:
                yield each.line, _encoded(each, spec, survey.reader.settings)
        except InputError as e:
            raise InputError(f"{where}: {e}") from None


def _encoded(placed: Placed, spec: StoreSpec, settings: ImportSettings) -> EncodedRecords | None:
    """Encode the records of a row; None if it has none."""
    return records.encoded(kept(placed, settings), spec, renormalised=settings.renormalised)


def kept(placed: Placed, settings: ImportSettings) -> Placed:
    """Drop the records of tokens that are not in their lists, if `--unlisted drop` asks for it."""
    if settings.unlisted == "mark" or settings.renormalised:
        return placed
    chosen = np.flatnonzero(~np.isnan(placed.own))
    return replace(
        placed,
        token_ids=placed.token_ids[chosen],
        byte_starts=placed.byte_starts[chosen],
        byte_lengths=placed.byte_lengths[chosen],
        lists=placed.lists.take(chosen),
        own=placed.own[chosen],
        ranks=placed.ranks[chosen],
    )
