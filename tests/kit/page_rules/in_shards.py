"""Faults of a shard's archive and of its group."""

import struct
from collections.abc import Callable
from pathlib import Path

from tests.kit.page_rules.tools import (
    Case,
    about,
    both,
    hollow,
    index,
    index_again,
    members,
    members_of,
    put_members,
    shard_bytes,
)

END = 22 + 64


def directory(data: bytes | bytearray) -> int:
    return int(struct.unpack_from("<I", data, len(data) - END + 16)[0])


def in_directory(field: int, value: int) -> Callable[[bytearray], None]:
    """Set a u16 of the first central header."""
    return lambda data: struct.pack_into("<H", data, directory(data) + field, value)


def crc_of(name: bytes) -> Callable[[bytearray], None]:
    """Another CRC-32 of a member, in both of its headers."""

    def change(data: bytearray) -> None:
        local = data.rindex(b"PK\3\4", 0, data.rindex(name, 0, directory(data)))
        central = data.rindex(name) - 46
        for at in (local + 14, central + 16):
            data[at] ^= 1

    return change


def gap(data: bytearray) -> None:
    at = directory(data)
    data[at:at] = b"hidden"
    struct.pack_into("<I", data, len(data) - END + 16, at + 6)


def unsorted(data: bytearray) -> None:
    """The last member is named so that it would come first."""
    for at in (data.rindex(b"PK\3\4", 0, directory(data)) + 30, data.rindex(b"zarr.json")):
        data[at : at + 9] = b"aarr.json"


def without_member(store: Path) -> None:
    found = members_of(store)
    del found["entropy/c/0"]
    put_members(store, found)


def size(**sizes: int) -> Callable[[Path], None]:
    return about(lambda a: a["size"].update(sizes))


CANNOT = "a value that cannot be"
READING: dict[str, dict[str, Case]] = {
    "the archive: its headers, members, end": {
        "a prefix": Case(
            shard_bytes(lambda d: d.__setitem__(slice(0, 0), b"#!")), "end record", "end"
        ),
        "a gap": Case(shard_bytes(gap), "between or behind", "no gaps"),
        "a flag": Case(shard_bytes(in_directory(8, 8)), "header", "central header"),
        "an extra field": Case(shard_bytes(in_directory(30, 4)), "header", "central header"),
        "another local header": Case(
            shard_bytes(lambda d: d.__setitem__(30, d[30] ^ 1)), "header", "local header"
        ),
        "names out of order": Case(shard_bytes(unsorted), "sorted", "names ascend"),
        "several disks": Case(
            shard_bytes(lambda d: struct.pack_into("<H", d, len(d) - END + 4, 1)),
            "end record",
            "end record",
        ),
        "a member more": Case(members(readme=b"x"), "members", "no other member"),
        "a member less": Case(without_member, "members", "data of entropy"),
    },
    "the CRC-32 of the group": {
        "another": Case(shard_bytes(crc_of(b"zarr.json")), "checksum", "CRC-32"),
    },
    "the group: its JSON, fields, ranges, sizes": {
        "a space": Case(
            lambda s: put_members(
                s, (m := members_of(s)) | {"zarr.json": m["zarr.json"].replace(b":", b": ", 1)}
            ),
            "canonical",
            "canonical",
        ),
        "a field more": Case(about(lambda a: a.update(more=1)), "canonical", "fields"),
        "another shard": Case(about(lambda a: a.update(shard=1)), "shard 1", "which shard"),
        "shard 0.0": Case(about(lambda a: a.update(shard=0.0)), "canonical", "which shard"),
        "version true": Case(about(lambda a: a.update(version=True)), "canonical", "which shard"),
        "rows that are fractions": Case(
            about(lambda a: a.update(rows=[0, 3.0])), "canonical", "which shard"
        ),
        "other rows": Case(about(lambda a: a.update(rows=[0, 2])), "rows", "which shard"),
        "another plan": Case(
            about(lambda a: a.update(plan_sha256="0" * 64)),
            "expected shard 0",
            "which shard",
        ),
        "another content": Case(
            about(lambda a: a.update(content_sha256="0" * 64)), "expected shard", "which"
        ),
        "fewer lines than rows": Case(
            both(size(sequences=2), index({"sequences": [2]})),
            "2 lines",
            "a line for every",
        ),
        "more than N·K entries": Case(size(entries=21), "21 entries", "entries of the shard"),
        "more than N·draws draws": Case(
            size(draws=21), "21 draws", "draws of the shard", golden="gaps"
        ),
        "a negative size": Case(size(records=-1), "-1 records", "sizes"),
        "2^32 records": Case(size(records=2**32), "records", "sizes"),
        "2^32 entries that N·K allows": Case(
            both(
                hollow(66_000, capture={"top_k": 65_535}, codec={"records_per_chunk": 65_536}),
                size(entries=2**32),
            ),
            "4294967296 entries",
            "sizes",
        ),
        "statuses that do not add up": Case(
            about(lambda a: a.update(statuses={"ok": 2})), "add up", "statuses add up"
        ),
        "a status of -1": Case(
            about(lambda a: a.update(statuses={"ok": 4, "x": -1})), "add up", "statuses"
        ),
        "no kl_mean": Case(about(lambda a: a["fidelity"].pop("kl_mean")), "fidelity", "fid"),
        "a fidelity of -1": Case(
            about(lambda a: a["fidelity"].update(kl_mean=-1)), CANNOT, "fidelity"
        ),
        "a fidelity of 2^53": Case(
            about(lambda a: a["fidelity"].update(l1_max=2.0**53)), CANNOT, "fidelity"
        ),
        "half an entry dropped": Case(
            about(lambda a: a["fidelity"].update(dropped_entries=0.5)),
            "cannot be",
            "dropped entries",
        ),
        "half a byte": Case(
            about(lambda a: a.update(supervised_bytes=0.5)),
            "cannot be",
            "supervised bytes",
        ),
        "less than no bytes": Case(
            about(lambda a: a.update(supervised_bytes=-0.5)),
            "cannot be",
            "supervised bytes",
        ),
    },
}
VERIFYING: dict[str, dict[str, Case]] = {
    "the shard digest is not that of the bytes; the CRC-32 of a member other than the group": {
        "the CRC-32 of an array": Case(shard_bytes(crc_of(b"entropy/c/0")), "checksum"),
        "the CRC-32 of the text": Case(shard_bytes(crc_of(b"rows.parquet")), "checksum"),
    },
}
NOBODY: dict[str, dict[str, Case]] = {
    "the fidelity is not that of the records": {
        "another": Case(both(about(lambda a: a["fidelity"].update(l1_max=0.5)), index_again), ""),
    },
}
