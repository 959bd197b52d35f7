"""Export a store to files that any Parquet reader opens (`logitstore export --to parquet`)."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path

import pyarrow.parquet as pq

from logitstore.console.progress import progress
from logitstore.errors import InputError, MismatchError, MissingLibraryError
from logitstore.format.spec import TOKENIZER_FOLDER
from logitstore.moving.folders import (
    open_finished,
    publish_folder,
    say_hidden_stays,
    tokenizer_files,
)
from logitstore.moving.parquet.columns import (
    DATA_FOLDER,
    Sequence_,
    add_examples,
    file_name,
    metadata_of,
    schema_of,
    table_of,
    with_examples,
)
from logitstore.reading.shard import Shard
from logitstore.records import Example
from logitstore.storage import commit
from logitstore.storage.paths import StorePath, local_path
from logitstore.store import LogitStore

_GROUP_RECORDS = 16_384  # of a row group: about 16 MB in memory at 64 entries
_GROUP_LINES = 1024

Examples = Callable[[Iterable[int]], list[Example]]


def export_parquet(
    store: str | PathLike[str] | StorePath, out: str | PathLike[str], *, input_ids: bool = False
) -> Path:
    """Write a finished store as Parquet, in :mod:`logitstore.moving.parquet.columns`' layout.

    The folder appears whole, or not at all. Memory is bounded by the largest sequence.

    Args:
        store: The store's folder, or its URL.
        out: A folder that is not there yet.
        input_ids: Whether every line has all tokens that the teacher read, for which `transformers`
            loads the store's tokenizer.

    Returns:
        `out`.

    Raises:
        InputError: `out` is in a bucket; or the tokenizer cannot be loaded.
        MissingLibraryError: transformers, which would load it, is not installed.
        MismatchError: `out` is there already.
        CorruptStoreError: Bytes of the store are damaged; nothing was written.
        StorageError: The file system failed; nothing was written.
    """
    source, target = open_finished(store), local_path(out, "an export", "--out")
    say_hidden_stays(source)
    _check_free(target)
    examples = _examples(source) if input_ids else None
    target.try_writing(commits=False)
    unnamed = commit.temporary(target)
    try:
        commit.make_folder(unnamed / DATA_FOLDER)
        commit.make_folder(unnamed / TOKENIZER_FOLDER)
        for name, data in tokenizer_files(source).items():
            commit.OS_FS.write_durably(unnamed / TOKENIZER_FOLDER / name, [data])
        with progress(len(source), "export", "sequences") as shown:
            for index in source.shards:
                path = unnamed / DATA_FOLDER / file_name(index, len(source.shards))
                for count in _write_shard(source, index, path, examples):
                    shown.update(count)
        publish_folder(unnamed, target)
    except FileExistsError:
        _check_free(target)
        raise
    except OSError as e:
        raise commit.explain(e, target) from e
    finally:
        shutil.rmtree(unnamed, ignore_errors=True)
    return target


def _check_free(target: Path) -> None:
    if target.is_symlink() or target.exists():
        raise MismatchError(
            f"{target}: is there already, and an export replaces nothing. Choose another --out."
        )


def _examples(store: LogitStore) -> Examples:
    """Load the store's tokenizer, before anything is written.

    Raises:
        InputError, MismatchError, MissingLibraryError: It cannot be loaded.
    """
    try:
        store.examples([])
    except (InputError, MismatchError, MissingLibraryError) as e:
        raise type(e)(
            f"{e} Or leave the tokens between the records out with --no-input-ids."
        ) from e
    return store.examples


def _write_shard(
    store: LogitStore, index: int, path: Path, examples: Examples | None
) -> Iterator[int]:
    """Write one file; yield the number of sequences after each row group."""
    shard = store.shard(index)
    about = {
        "content": vars(store.spec.without_hidden()),
        "provenance": store.provenance,
        "dataset_sha256": store.plan.dataset_sha256,
        "plan_sha256": store.plan.digest,
        "shards": store.plan.shard_count,
        "shard": index,
        "rows": list(store.plan.shard_rows(index)),
        "fidelity": shard.about["fidelity"],
    }
    schema = schema_of(store.spec)
    schema = with_examples(schema) if examples else schema
    schema = schema.with_metadata(metadata_of(about))
    options = {"compression": "zstd", "write_page_checksum": True, "write_statistics": False}
    first = store.first_sequence(index)
    with pq.ParquetWriter(path, schema, **options) as writer:
        for sequences in groups_of(shard):
            table = table_of(store.spec, sequences).replace_schema_metadata()
            if examples:
                table = add_examples(table, examples(range(first, first + len(sequences))))
            writer.write_table(table)
            first += len(sequences)
            yield len(sequences)


def groups_of(shard: Shard) -> Iterator[list[Sequence_]]:
    """Read a shard's sequences, as many at a time as make a table of bounded size."""
    held: list[Sequence_] = []
    records = 0
    for i in range(len(shard)):
        held.append((shard.text(i), shard.records(i), shard.encoded(i, hidden=False)))
        records += len(held[-1][1])
        if records >= _GROUP_RECORDS or len(held) >= _GROUP_LINES:
            yield held
            held, records = [], 0
    if held:
        yield held
