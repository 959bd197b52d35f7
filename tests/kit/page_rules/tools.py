"""Change a part of a store, and make every digest and checksum around it right again.

All of them change the first shard, so that they work on golden stores, which have no other.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from logitstore import open_store
from logitstore.format.canonical_json import canonical_json
from logitstore.format.index import encode_index
from logitstore.format.rows_parquet import SCHEMA, line_digest
from logitstore.format.shard_arrays import array_specs
from logitstore.format.shard_group import ShardSize
from logitstore.format.spec import StoreHeader, StoreSpec
from logitstore.format.zarr_arrays import array_metadata, encode_array
from logitstore.reading.shard import Shard
from logitstore.reading.shard_head import index_line
from logitstore.records import SequenceText
from logitstore.testing import stores
from tests.kit import hostile, reader_from_spec
from tests.kit.hostile import edit_spec, parquet, put_index, reseal
from tests.kit.paths import GOLDEN

SHARD = "shards/00000.zarr.zip"
Change = Callable[[Path], None]


class Case(NamedTuple):
    """A store in which one thing is wrong.

    Attributes:
        change: Changes a copy of a golden store.
        ours: What our reader says of it, or `logitstore verify`.
        theirs: What the second reader says.
        golden: The name of the golden store; or `shards`, a store of three.
    """

    change: Change
    ours: str = ""
    theirs: str = ""
    golden: str = "plain"


class Limit(NamedTuple):
    """A limit, with the last store within it and the first beyond.

    Attributes:
        within, beyond: Change a copy of a golden store.
        ours, theirs: What the readers say of the second.
        golden: As in `Case`.
    """

    within: Change
    beyond: Change
    ours: str
    theirs: str
    golden: str = "plain"


def copy_of(golden: str, to: Path) -> Path:
    if golden == "shards":
        stores.write(to)
        return to
    return Path(shutil.copytree(GOLDEN / f"v1-{golden}", to))


def read_by_us(path: Path) -> None:
    """Read everything that a reader reads of a store."""
    store = open_store(path, allow_partial=True)
    assert len(list(store.shard_facts)) == len(store.shards)
    assert store.statuses is not None
    for i in range(len(store)):
        store.text(i)
        store[i]
    assert len(store.sequence_rows) == len(store.token_counts)
    assert store.boundaries is not None
    if store.is_complete:
        assert store.tokenizer_path.is_dir()


def read_by_them(path: Path) -> None:
    reader_from_spec.read_store(path)
    if (path / "boundaries").exists():
        reader_from_spec.read_boundaries(path)


# -- store.json and DONE --------------------------------------------------------------------------


def content(part: str, **changes: Any) -> Change:
    return lambda store: edit_spec(store, lambda body: body["content"][part].update(changes))


def without(part: str, name: str) -> Change:
    return lambda store: edit_spec(store, lambda body: body["content"][part].pop(name))


def body(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change `store.json`, but not its digests."""

    def change_it(store: Path) -> None:
        value = json.loads((store / "store.json").read_bytes())
        change(value)
        put_spec(store, canonical_json(value))

    return change_it


def spec_text(old: str, new: str) -> Change:
    """Change the text of `store.json`."""

    def change_it(store: Path) -> None:
        text = (store / "store.json").read_text()
        assert old in text
        put_spec(store, text.replace(old, new, 1).encode())

    return change_it


def put_spec(store: Path, raw: bytes) -> None:
    (store / "store.json").write_bytes(raw)
    reseal(store)


def seal(change: Callable[[dict[str, Any]], Any], *, anew: bool = True) -> Change:
    """Change `DONE`, and compute its own digest anew."""

    def change_it(store: Path) -> None:
        done = json.loads((store / "DONE").read_bytes())
        change(done)
        if anew:
            done.pop("sha256_of_this", None)
            done["sha256_of_this"] = hashlib.sha256(canonical_json(done)).hexdigest()
        (store / "DONE").write_bytes(canonical_json(done))

    return change_it


# -- shards ---------------------------------------------------------------------------------------


def members_of(store: Path) -> dict[str, bytes]:
    return hostile.members_of(store, SHARD)


def put_members(store: Path, members: dict[str, bytes]) -> None:
    hostile.put_members(store, members, SHARD)


def members(**changes: bytes) -> Change:
    return lambda store: put_members(store, members_of(store) | changes)


def about(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change what the group says."""
    return lambda store: hostile.edit_group(store, change, SHARD)


def shard_bytes(change: Callable[[bytearray], None]) -> Change:
    """Change the bytes of the file; only its own digest is made right."""

    def change_it(store: Path) -> None:
        data = bytearray((store / SHARD).read_bytes())
        change(data)
        hostile.put_shard(store, bytes(data), SHARD)

    return change_it


def opened(store: Path) -> Shard:
    header = StoreHeader.read(store)
    return Shard(store / SHARD, header.spec, header.plan, 0)


def arrays(**changes: Callable[[np.ndarray[Any, Any]], Any]) -> Change:
    """Change values of arrays in place."""

    def change_it(store: Path) -> None:
        shard, found = opened(store), members_of(store)
        for spec in shard.array_specs:
            if spec.name in changes:
                values = shard.array(spec.name).copy()
                changes[spec.name](values)
                found[spec.data_member] = encode_array(spec, values)
        put_members(store, found)

    return change_it


def put(index: int, *values: Any) -> Callable[[np.ndarray[Any, Any]], None]:
    """Set some elements."""

    def set_them(array: np.ndarray[Any, Any]) -> None:
        array[index : index + len(values)] = np.array(values, array.dtype).reshape(
            -1, *([1] * (array.ndim - 1))
        )

    return set_them


def chunk(name: str, change: Callable[[bytearray], None]) -> Change:
    """Change the first chunk of an array, without its checksum, as it is stored."""

    def change_it(store: Path) -> None:
        payloads = [bytearray(c.payload) for c in opened(store).all_chunks(name)]
        change(payloads[0])
        member = hostile.data_member([bytes(p) for p in payloads])
        put_members(store, members_of(store) | {f"{name}/c/0": member})

    return change_it


def metadata(name: str, old: str, new: str) -> Change:
    def change_it(store: Path) -> None:
        found = members_of(store)
        text = found[f"{name}/zarr.json"].decode()
        assert old in text
        put_members(store, found | {f"{name}/zarr.json": text.replace(old, new, 1).encode()})

    return change_it


def hollow(records: int = 3, *, copied: Sequence[str] = (), **parts: dict[str, Any]) -> Change:
    """Give the shard other settings, and records that are all zeros, in its first sequence.

    Args:
        records: How many.
        copied: Arrays to leave uncompressed.
        parts: What changes in the parts of the content; without, no entries and no draws.
    """

    def change_it(store: Path) -> None:
        def change(value: dict[str, Any]) -> None:
            value["content"]["capture"] |= {"top_k": 0, "draws": 0, "max_tail": None}
            for part, changes in parts.items():
                value["content"][part] |= changes

        edit_spec(store, change)
        spec = StoreSpec(**json.loads((store / "store.json").read_bytes())["content"])
        size = ShardSize(3, records, 0, 0)
        found = {"rows.parquet": members_of(store)["rows.parquet"]}
        for array in array_specs(spec, size):
            values = np.zeros(array.shape, array.dtype)
            values[1:] = records if array.name == "sequence_records" else 0
            found[array.metadata_member] = array_metadata(array)
            if array.chunk_count:
                data = encode_array(array, values, copy=array.name in copied)
                found[array.data_member] = data
        put_members(store, found | {"zarr.json": members_of(store)["zarr.json"]})
        about(lambda a: a["size"].update(vars(size)))(store)

    return change_it


# -- text and index -------------------------------------------------------------------------------


def lines_of(store: Path) -> list[SequenceText]:
    shard = opened(store)
    return [shard.text(i) for i in range(len(shard))]


def lines_table(lines: Sequence[SequenceText], **columns: Any) -> pa.Table:
    whole: dict[str, Any] = {
        name: [getattr(line, name) for line in lines]
        for name in ("row", "part", "status", "supervised_start", "messages")
    }
    whole["segments"] = [[s._asdict() for s in line.segments] for line in lines]
    whole["digest"] = [line_digest(line) for line in lines]
    whole |= columns
    return pa.table({name: whole[name] for name in SCHEMA.names}, schema=SCHEMA)


def text(
    change: Callable[[list[SequenceText]], list[SequenceText]] = lambda lines: lines,
    columns: Callable[[list[SequenceText]], dict[str, Any]] = lambda lines: {},
    **options: Any,
) -> Change:
    """Change lines, or columns of them, or how they are written; lines keep right digests."""

    def change_it(store: Path) -> None:
        lines = change(lines_of(store))
        data = parquet(lines_table(lines, **columns(lines)), **options)
        put_members(store, members_of(store) | {"rows.parquet": data})

    return change_it


def index(columns: dict[str, list[Any]] | None = None, **options: Any) -> Change:
    """Change columns of the index, or how it is written."""

    def change_it(store: Path) -> None:
        table = hostile.index_table(store, **(columns or {}))
        put_index(store, parquet(table, **{"row_group_size": 1 << 20} | options))

    return change_it


def both(*changes: Change) -> Change:
    def change_them(store: Path) -> None:
        for change in changes:
            change(store)

    return change_them


def index_again(store: Path) -> None:
    """Make the index say what the shard says now."""
    header = StoreHeader.read(store)
    put_index(
        store,
        encode_index(
            [
                index_line(Shard(path, header.spec, header.plan, i), i)
                for i, path in enumerate(shards_of(store))
            ]
        ),
    )


def shards_of(store: Path) -> Iterator[Path]:
    yield from sorted((store / "shards").iterdir())
