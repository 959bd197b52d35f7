"""Import an export of this package: write the store that was exported, byte for byte.

Codes are copied as they are, never rounded again. Everything is checked as untrusted data is: other
tools may have rewritten the files since.
"""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.checking.nonsense import nonsense
from logitstore.console.progress import progress
from logitstore.errors import InputError, LogitStoreError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.fields import DRAWS, ENTRIES, Field, decode_fields, token_records
from logitstore.format.logprob_codec import NEG_INF_CODE
from logitstore.format.numpy_types import F64, U16, Array
from logitstore.format.parquet_limits import PYARROW_ERRORS
from logitstore.format.spec import TOKENIZER_FOLDER
from logitstore.moving.folders import read_tokenizer
from logitstore.moving.nested import Nested, nested
from logitstore.moving.parquet.columns import columns_of, schema_of
from logitstore.moving.parquet.exported import EXPORT_AGAIN, Exported
from logitstore.records import Segment, SequenceText
from logitstore.storage.paths import StorePath, local_path
from logitstore.store import LogitStore, open_store
from logitstore.writing.places import try_place
from logitstore.writing.writer import StoreWriter

Pair = tuple[SequenceText, EncodedRecords | None]


def reimport(
    found: Exported,
    out: str | PathLike[str] | StorePath,
    tokenizer: str | PathLike[str] | None = None,
) -> LogitStore:
    """Write the store that was exported, or resume writing it.

    Args:
        found: The export, from :func:`logitstore.moving.parquet.exported.find_export`.
        out: The store's folder, or its URL.
        tokenizer: Where the tokenizer's files are; default: beside the data.

    Raises:
        InputError: A file that is not what was exported.
        CorruptStoreError: A file of the tokenizer is not what was exported.
        MismatchError: `out` holds something else.
    """
    try_place(out)
    files = read_tokenizer(_tokenizer_of(found, tokenizer), found.spec)
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


def check_export(
    found: Exported,
    out: str | PathLike[str] | StorePath,
    tokenizer: str | PathLike[str] | None = None,
) -> dict[str, int]:
    """Read and check all of an export without writing anything.

    Raises:
        InputError: A file that is not what was exported.
        CorruptStoreError: A file of the tokenizer is not what was exported.
        MismatchError: `out` holds something else.
    """
    try_place(out, dry_run=True)
    read_tokenizer(_tokenizer_of(found, tokenizer), found.spec)
    sequences = 0
    for index in range(found.plan.shard_count):
        sequences += sum(1 for _ in _sequences(found, index))
    return {"rows": found.plan.rows, "sequences": sequences, "shards": found.plan.shard_count}


def _tokenizer_of(found: Exported, named: str | PathLike[str] | None) -> Path:
    if named is None:
        return found.folder / TOKENIZER_FOLDER
    return local_path(named, "the tokenizer of an export", "--tokenizer")


def _sequences(found: Exported, index: int) -> Iterator[Pair]:
    """Yield all sequences of a shard's file, in order."""
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
    """A row group of an exported file, and its conversion to records."""

    def __init__(self, path: Path, table: pa.Table, found: Exported) -> None:
        self.path, self.spec = path, found.spec
        self.table = table.combine_chunks()
        self.lines = [self._line(i) for i in range(len(table))]
        self.lengths = self._column("token_ids").counts[0]

    def pairs(self) -> list[Pair]:
        """Return the lines of the group, each with its records."""
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
        codes = self._column("entry_codes")
        beside = {ENTRIES: codes}
        fields: dict[str, Array] = {
            "entry_count": codes.counts[1].astype(np.uint16),
            "entry_logprobs": _deltas(codes),
            "tail_logmass": self._values("tail_codes", np.uint16),
        }
        if self.spec.draws:
            draws = beside[DRAWS] = self._column("sample_ids")
            if draws.counts[1].max(initial=0) > self.spec.draws:
                raise ValueError(f"a token has more than {self.spec.draws} draws")
            fields["draw_count"] = draws.counts[1].astype(np.uint16)
        for field in columns_of(self.spec):
            if field.name not in fields:
                fields[field.name] = self._field(field, beside.get(field.axis))
        return EncodedRecords.unmeasured(fields)

    def _field(self, field: Field, beside: Nested | None) -> Array:
        """Return the values of a field in encoded form.

        Args:
            field: The field.
            beside: For a field of lists: a column whose lists must have the same lengths.
        """
        if beside is not None:
            return self._inner(field.name, beside, field.encoded)
        if field.quantiser is not None:
            return field.encode(self._known(field.name, field.quantiser.unknown))
        if not field.is_per_temperature:
            return self._values(field.name, field.encoded)
        column, temperatures = self._column(field.name), len(self.spec.temperatures)
        if (column.counts[1] != temperatures).any():
            raise ValueError(f"{field.name} does not have {temperatures} values a token")
        return column.numbers(field.encoded).reshape(-1, temperatures)

    def _column(self, name: str) -> Nested:
        """Return a column of lists, after checking that each list has one item for each token."""
        column = nested(self.table.column(name).chunk(0))
        if name != "token_ids":
            odd = np.flatnonzero(column.counts[0] != self.lengths)
            if len(odd):
                i = int(odd[0])
                self._reject(
                    i, f"{name} has {column.counts[0][i]} items for {self.lengths[i]} tokens"
                )
        return column

    def _values(self, name: str, dtype: Any) -> Array:
        return self._column(name).numbers(dtype)

    def _known(self, name: str, unknown: float) -> F64:
        """Return the values of a column; `unknown` replaces nulls where the spec allows them."""
        column = self._column(name)
        if name in self.spec.missing:
            return column.numbers(np.float64, unknown)
        values = column.numbers(np.float64)
        if np.isnan(values).any():
            raise ValueError(f"{name} holds a value that is not a number")
        return values

    def _inner(self, name: str, beside: Nested, dtype: Any) -> Array:
        column = self._column(name)
        if (column.counts[1] != beside.counts[1]).any():
            raise ValueError(f"{name} does not have as many items a token as the column beside it")
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
        """Raise InputError unless these can be records of a store."""
        begin = line.supervised_start
        try:
            decoded = decode_fields(encoded.fields, self.spec.missing)
            records = token_records(decoded)
            end = begin + len(line.supervised_bytes)
            reason = next(nonsense(records, self.spec, begin, end), None)
        except ValueError as e:
            reason = str(e)
        if reason is not None:
            self._reject(i, reason)

    def _reject(self, i: int, why: str) -> NoReturn:
        raise InputError(f"{self.path}: row {self.lines[i].row:,}: {why}. {EXPORT_AGAIN}")


def _deltas(codes: Nested) -> U16:
    """Return (m,) the rank deltas of entry codes: what is stored of log-probabilities."""
    values = codes.numbers(np.int64)
    counts = codes.counts[1]
    before = np.concatenate([[0], values[:-1]])[: len(values)]
    before[(np.cumsum(counts) - counts)[counts > 0]] = 0
    deltas = values - before
    if len(values) and (deltas.min() < 0 or values.max() >= NEG_INF_CODE):
        raise ValueError("entry_codes are not those of entries, most probable first")
    return np.asarray(deltas, np.uint16)
