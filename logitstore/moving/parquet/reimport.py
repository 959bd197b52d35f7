"""Our own Parquet back: the store that was exported, byte for byte.

Codes are taken as they are, never rounded again. Everything is checked as data of a stranger: the
files may have been through other tools since.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.checking.verify import nonsense
from logitstore.console.progress import progress
from logitstore.errors import InputError, LogitStoreError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.logprob_codec import (
    NEG_INF_CODE,
    TOKEN_STEP,
    decode_entries,
    quantise,
    quantise_entropy,
)
from logitstore.format.parquet_limits import PYARROW_ERRORS
from logitstore.format.spec import SPEC_FILE, TOKENIZER_FOLDER, StoreSpec
from logitstore.moving.folders import read_tokenizer
from logitstore.moving.nested import Nested, nested
from logitstore.moving.parquet.columns import schema_of
from logitstore.moving.parquet.exported import EXPORT_AGAIN, Exported
from logitstore.records import Segment, SequenceText, TokenRecords
from logitstore.store import LogitStore, open_store
from logitstore.writing.writer import StoreWriter, check_place

Array = npt.NDArray[Any]
Pair = tuple[SequenceText, EncodedRecords | None]


def reimport(found: Exported, out: Path, tokenizer: Path | None = None) -> LogitStore:
    """Write the store that was exported; resume it if it is begun.

    Args:
        found: What :func:`logitstore.moving.parquet.exported.find_export` found.
        out: The store's folder.
        tokenizer: Where the tokenizer's files are; default: beside the data.

    Raises:
        InputError: A file that is not what was exported.
        CorruptStoreError: A file of the tokenizer is not what was exported.
        MismatchError: `out` holds something else.
    """
    files = read_tokenizer(tokenizer or found.folder / TOKENIZER_FOLDER, found.spec)
    writer = StoreWriter(out, found.spec, found.plan, files, found.provenance)
    missing = [] if writer.is_sealed else writer.missing()
    with progress(len(missing), "import", "shards") as shown:
        for index in missing:
            pairs = list(_sequences(found, index))
            try:
                writer.write_shard(index, pairs, found.fidelity[index])
            except LogitStoreError:
                raise
            except ValueError as e:
                raise InputError(f"{found.files[index]}: {e}. {EXPORT_AGAIN}") from None
            shown.update(1)
    if not writer.is_sealed:
        writer.seal()
    return open_store(out)


def check_export(found: Exported, out: Path, tokenizer: Path | None = None) -> dict[str, int]:
    """Read all of an export, and write nothing.

    Raises:
        InputError: A file that is not what was exported.
        CorruptStoreError: A file of the tokenizer is not what was exported.
        MismatchError: `out` holds something else.
    """
    read_tokenizer(tokenizer or found.folder / TOKENIZER_FOLDER, found.spec)
    if not (out / SPEC_FILE).exists():
        check_place(out)
    sequences = 0
    for index in range(found.plan.shard_count):
        sequences += sum(1 for _ in _sequences(found, index))
    return {"rows": found.plan.rows, "sequences": sequences, "shards": found.plan.shard_count}


def _sequences(found: Exported, index: int) -> Iterator[Pair]:
    """All sequences of a shard's file, in order."""
    path = found.files[index]
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            wanted = schema_of(found.spec)
            lost = sorted(set(wanted.names) - set(file.schema_arrow.names))
            if lost:
                raise InputError(
                    f"{path}: the columns {', '.join(lost)} are missing. {EXPORT_AGAIN}"
                )
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=wanted.names).select(wanted.names)
                yield from _Group(path, table.cast(wanted), found).pairs()
    except PYARROW_ERRORS as e:
        raise InputError(f"{path}: cannot be read as Parquet ({e}). {EXPORT_AGAIN}") from None


class _Group:
    """A row group of a file."""

    def __init__(self, path: Path, table: pa.Table, found: Exported) -> None:
        self.path, self.spec = path, found.spec
        self.table = table.combine_chunks()
        self.lines = [self._line(i) for i in range(len(table))]
        self.lengths = self._column("token_ids").counts[0]

    def pairs(self) -> list[Pair]:
        """Its lines, each with its records."""
        try:
            whole = self._encoded()
        except InputError:
            raise
        except ValueError as e:
            rows = f"rows {self.lines[0].row:,} to {self.lines[-1].row:,}"
            raise InputError(f"{self.path}: {rows}: {e}. {EXPORT_AGAIN}") from None
        parts = whole.split([int(n) for n in self.lengths])
        for i, (line, part) in enumerate(zip(self.lines, parts, strict=True)):
            self._check(i, line, part)
        return list(zip(self.lines, parts, strict=True))

    def _encoded(self) -> EncodedRecords:
        spec = self.spec
        codes = self._column("entry_codes")
        per_record: dict[str, Array] = {
            "token_ids": self._values("token_ids", np.uint32),
            "byte_starts": self._values("byte_starts", np.int64),
            "byte_lengths": self._values("byte_lengths", np.uint16),
            "token_logprob": quantise(self._known("token_logprob", -np.inf), TOKEN_STEP),
            "entry_count": codes.counts[1].astype(np.uint16),
            "tail_logmass": self._values("tail_codes", np.uint16),
            "entropy": quantise_entropy(self._known("entropy", 0.0)),
        }
        per_entry: dict[str, Array] = {"entry_logprobs": _deltas(codes)}
        per_draw: dict[str, Array] = {}
        if spec.has_ids:
            per_entry["entry_ids"] = self._inner("entry_ids", codes, np.uint32)
        if spec.temperatures:
            lognorm = self._column("lognorm")
            if (lognorm.counts[1] != len(spec.temperatures)).any():
                raise ValueError(f"lognorm has not {len(spec.temperatures)} values a token")
            shape = (-1, len(spec.temperatures))
            per_record["lognorm"] = lognorm.numbers(np.float32).reshape(shape)
        if spec.has_logit_std:
            for name in ("logit_std", "lognorm_std"):
                per_record[name] = self._values(name, np.float32)
        if spec.draws:
            draws = self._column("sample_ids")
            if draws.counts[1].max(initial=0) > spec.draws:
                raise ValueError(f"a token has more than {spec.draws} draws")
            per_record["draw_count"] = draws.counts[1].astype(np.uint16)
            per_draw["sample_ids"] = draws.numbers(np.uint32)
            per_draw["sample_counts"] = self._inner("sample_counts", draws, np.uint8)
        nothing = np.zeros(len(per_record["token_ids"]), np.float32)
        dropped = np.zeros(len(nothing), np.int64)
        return EncodedRecords(per_record, per_entry, per_draw, nothing, nothing, dropped)

    def _column(self, name: str) -> Nested:
        """A column of lists, of as many items in each line as there are tokens."""
        found = nested(self.table.column(name).chunk(0))
        if name != "token_ids":
            odd = np.flatnonzero(found.counts[0] != self.lengths)
            if len(odd):
                i = int(odd[0])
                self._refuse(
                    i, f"{name} has {found.counts[0][i]} items for {self.lengths[i]} tokens"
                )
        return found

    def _values(self, name: str, dtype: Any) -> Array:
        return self._column(name).numbers(dtype)

    def _known(self, name: str, unknown: float) -> npt.NDArray[np.float64]:
        """Values, with something in place of those that the store's source did not say."""
        column = self._column(name)
        if name in self.spec.missing:
            return column.numbers(np.float64, unknown)
        found = column.numbers(np.float64)
        if np.isnan(found).any():
            raise ValueError(f"{name} holds a value that is not a number")
        return found

    def _inner(self, name: str, beside: Nested, dtype: Any) -> Array:
        column = self._column(name)
        if (column.counts[1] != beside.counts[1]).any():
            raise ValueError(f"{name} has not as many items a token as the column beside it")
        return column.numbers(dtype)

    def _line(self, i: int) -> SequenceText:
        item = self.table.slice(i, 1).select(list(SequenceText._fields)).to_pylist()[0]
        try:
            item["segments"] = tuple(Segment(**s) for s in item["segments"])
            line = SequenceText(**item)
        except TypeError:
            raise InputError(f"{self.path}: line {i} has no segments. {EXPORT_AGAIN}") from None
        given = [line.row, line.part, line.status, line.supervised_start]
        given += [value for s in line.segments for value in (s.text, s.supervised)]
        if None in given:
            raise InputError(
                f"{self.path}: line {i} lacks a value that every line has. {EXPORT_AGAIN}"
            )
        return line

    def _check(self, i: int, line: SequenceText, encoded: EncodedRecords) -> None:
        """Holds records to what a store's can be."""
        begin = line.supervised_start
        try:
            records = _decoded(encoded, self.spec)
            end = begin + len(line.supervised_bytes)
            reason = next(nonsense(records, self.spec, begin, end), None)
        except ValueError as e:
            reason = str(e)
        if reason is not None:
            self._refuse(i, reason)

    def _refuse(self, i: int, why: str) -> NoReturn:
        raise InputError(f"{self.path}: row {self.lines[i].row:,}: {why}. {EXPORT_AGAIN}")


def _deltas(codes: Nested) -> npt.NDArray[np.uint16]:
    """Rank deltas of codes, flat."""
    values = codes.numbers(np.int64)
    counts = codes.counts[1]
    before = np.concatenate([[0], values[:-1]])[: len(values)]
    before[(np.cumsum(counts) - counts)[counts > 0]] = 0
    deltas = values - before
    if len(values) and (deltas.min() < 0 or values.max() >= NEG_INF_CODE):
        raise ValueError("entry_codes are not those of entries, most probable first")
    return np.asarray(deltas, np.uint16)


def _decoded(encoded: EncodedRecords, spec: StoreSpec) -> TokenRecords:
    """As a reader will see it, as far as it is checked."""
    mine: Mapping[str, Array] = encoded.per_record
    count = mine["entry_count"].astype(np.int64)
    logprobs, tail = decode_entries(
        encoded.per_entry["entry_logprobs"], count, mine["tail_logmass"]
    )
    nothing = np.zeros(len(count), np.float32)
    return TokenRecords(
        token_ids=mine["token_ids"],
        byte_starts=mine["byte_starts"],
        byte_lengths=mine["byte_lengths"].astype(np.int64),
        token_logprob=nothing,
        entry_count=count,
        entry_ids=encoded.per_entry.get("entry_ids"),
        entry_logprobs=logprobs,
        tail_logmass=tail,
        entropy=nothing,
        sample_ids=encoded.per_draw.get("sample_ids"),
    )
