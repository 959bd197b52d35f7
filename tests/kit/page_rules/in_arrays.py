"""Faults of arrays: how they are stored, and what they hold."""

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from logitstore.format.zarr_arrays import array_metadata, encode_array
from tests.kit import hostile
from tests.kit.page_rules.tools import (
    Case,
    Change,
    arrays,
    both,
    chunk,
    content,
    members_of,
    metadata,
    opened,
    put,
    put_members,
)


def header(place: slice, value: bytes, name: str = "entropy") -> Change:
    return chunk(name, lambda c: c.__setitem__(place, value))


def wrong_crc(store: Path) -> None:
    """The checksum of a chunk, that of the index left right."""
    found = members_of(store)
    data = bytearray(found["entropy/c/0"])
    size = struct.unpack_from("<Q", data, len(data) - 4 - 16 * 3 + 8)[0]
    data[size - 1] ^= 1
    put_members(store, found | {"entropy/c/0": bytes(data)})


def index_of_chunks(change: Any) -> Change:
    """Change the (offset, size) of the three chunks of an array, its checksum made right."""

    def change_it(store: Path) -> None:
        found = members_of(store)
        data = found["entropy/c/0"]
        places = np.frombuffer(data[-52:-4], "<u8").reshape(3, 2).copy()
        change(places)
        raw = places.tobytes()
        put_members(store, found | {"entropy/c/0": data[:-52] + raw + hostile.crc(raw)})

    return change_it


def wrong_index_crc(store: Path) -> None:
    found = members_of(store)
    data = found["entropy/c/0"]
    put_members(store, found | {"entropy/c/0": data[:-1] + bytes([data[-1] ^ 1])})


def missing_chunk(places: Any) -> None:
    places[1] = 2**64 - 1


def padded(name: str) -> Change:
    """Values behind the last element of an array."""

    def change_it(store: Path) -> None:
        shard, found = opened(store), members_of(store)
        (spec,) = (s for s in shard.array_specs if s.name == name)
        length = spec.chunk_count * spec.chunk_length
        assert length > spec.shape[0]
        values = np.ones(length, spec.dtype)
        values[: spec.shape[0]] = shard.array(name)
        put_members(store, found | {spec.data_member: encode_array(spec, values)})

    return change_it


def recoded(golden_name: str, coding: str) -> Change:
    """Store an array in another coding, `zarr.json` and all."""

    def change_it(store: Path) -> None:
        shard, found = opened(store), members_of(store)
        (spec,) = (s for s in shard.array_specs if s.name == golden_name)
        other = replace(spec, coding=coding)
        found[spec.metadata_member] = array_metadata(other)
        found[spec.data_member] = encode_array(other, shard.array(golden_name))
        put_members(store, found)

    return change_it


ENDS, ADD_UP = "does not divide", "add up"
READING: dict[str, dict[str, Case]] = {
    "an array's `zarr.json`; a chunk index": {
        "another fill value": Case(
            metadata("entropy", '"fill_value":0', '"fill_value":7'),
            "describe",
            "zarr.json",
        ),
        "another length": Case(
            metadata("entropy", '"shape":[5]', '"shape":[6]'), "describe", "zarr.json"
        ),
        "another level": Case(
            metadata("entropy", '"clevel":5', '"clevel":6'), "describe", "zarr.json"
        ),
        "shuffle in layout 1": Case(recoded("entry_ids", "shuffle"), "describe", "zarr.json"),
        "shuffle of other arrays": Case(
            recoded("token_ids", "shuffle"), "describe", "zarr.json", golden="gaps"
        ),
        "bitshuffle of sample_gaps": Case(
            recoded("sample_gaps", "bitshuffle"), "describe", "zarr.json", golden="gaps"
        ),
        **{
            f"shuffle of {name} in a compact store": Case(
                recoded(name, "shuffle"), "describe", f"zarr.json of {name}", golden="compact"
            )
            for name in ("entry_ids", "sample_gaps", "sample_counts")
        },
        "pcodec in a portable store": Case(recoded("entropy", "pcodec"), "describe", "zarr.json"),
        "a checksum": Case(wrong_index_crc, "chunk index", "checksum of the index"),
        "a missing chunk": Case(index_of_chunks(missing_chunk), "outside", "back to back"),
        "overlapping chunks": Case(
            index_of_chunks(lambda p: p.__setitem__((1, 0), 0)), "overlap", "back to back"
        ),
        "a gap": Case(
            index_of_chunks(lambda p: p.__setitem__((2, 1), p[2, 1] - 1)), "leave gaps", "no gap"
        ),
    },
    "a chunk: checksum, header, length": {
        "checksum": Case(wrong_crc, "its checksum", "checksum of a chunk"),
        "version of blosc": Case(header(slice(0, 1), b"\3"), "in a way that", "blosc header"),
        "version of zstd": Case(header(slice(1, 2), b"\2"), "in a way that", "blosc header"),
        "lz4": Case(header(slice(2, 3), b"\x36"), "in a way that", "blosc header"),
        "shuffle for bitshuffle": Case(
            header(slice(2, 3), b"\x93"), "in a way that", "blosc header"
        ),
        "typesize": Case(header(slice(3, 4), b"\4"), "in a way that", "blosc header"),
        "decoded size": Case(header(slice(4, 8), b"\6\0\0\0"), "declares", "sizes in"),
        "block size": Case(header(slice(8, 12), b"\5\0\0\0"), "declares", "sizes in"),
        "stored size": Case(header(slice(12, 16), b"\x15\0\0\0"), "declares", "sizes in"),
        "no room for a header": Case(
            chunk("entropy", lambda c: c.__delitem__(slice(9, None))),
            "too short",
            "room for",
        ),
        "no pcodec": Case(
            header(slice(0, 1), b"q"), "in the one way", "pcodec header", golden="compact"
        ),
        "another count of numbers": Case(
            header(slice(6, 7), b"\xc1"),
            "in the one way",
            "pcodec header",
            golden="compact",
        ),
        "a major version of pcodec": Case(
            header(slice(7, 8), b"\5"), "in the one way", "pcodec header", golden="compact"
        ),
        "another type of numbers": Case(
            header(slice(9, 10), b"\1"), "in the one way", "type and mode", golden="compact"
        ),
        "deltas": Case(
            header(slice(13, 14), b"\x10"),
            "in the one way",
            "type and mode",
            golden="compact",
        ),
        "more numbers in a part": Case(
            header(slice(10, 13), b"\2\0\0"), "declares more", "count of a pcodec", golden="compact"
        ),
        "a file of pcodec's that is cut off": Case(
            chunk("entropy", lambda c: c.__delitem__(slice(-2, None))),
            "cannot be decoded",
            "pcodec",
            golden="compact",
        ),
    },
    "`sequence_…`: not from 0 to the total, falling": {
        "not from 0": Case(arrays(sequence_records=put(0, 1)), ENDS, "divides the records"),
        "falling": Case(arrays(sequence_entries=put(1, 9, 6)), ENDS, "divides the entries"),
        "not to the total": Case(arrays(sequence_records=put(3, 4)), ENDS, "divides the records"),
        "beyond 2^63": Case(arrays(sequence_records=put(1, 2**63)), ENDS, "divides the records"),
        "draws": Case(
            arrays(sequence_draws=put(0, 1)), "does not divide", "divides the draws", golden="gaps"
        ),
    },
    "`entry_count`: not the entries of the sequence": {
        "one more": Case(arrays(entry_count=put(0, 4)), "its records have", "entry counts"),
    },
    "`entry_logprobs`: a code of 65535 or more, h ≥ 1": {
        "65535": Case(arrays(entry_logprobs=put(2, 65535 - 133)), "range", "codes of entries"),
        "65,535 at once": Case(arrays(entry_logprobs=put(5, 65535)), "range", "codes of entries"),
        "h = 1": Case(arrays(tail_logmass=put(2, 177)), "more than one", "head below one"),
    },
    "`draw_total`, `draw_count`: not the draws of the sequence": {
        "draw_total": Case(arrays(draw_total=put(1, 2)), "add up", "draw", golden="gaps"),
        "draw_total, all": Case(arrays(draw_total=put(2, 4)), ADD_UP, "draw", golden="gaps"),
        "draw_count": Case(
            arrays(draw_count=put(1, 2)), "its records have", "draw counts add up", golden="draws"
        ),
    },
    "`sample_counts` outside 1 to 255; `sample_gaps`, `sample_ids`: not ascending, 2³² or more": {
        "0 times": Case(arrays(sample_counts=put(0, 0)), "0 times", "how often", golden="draws"),
        "0 times, of the second layout": Case(
            arrays(sample_counts=put(1, 0)), "other than 1 to 255", "how often", golden="gaps"
        ),
        "256 times": Case(
            both(arrays(sample_counts=put(0, 256)), arrays(draw_total=put(1, 256))),
            "other than 1 to 255",
            "how often",
            golden="gaps",
        ),
        "ids that fall": Case(
            arrays(sample_ids=put(1, 300)), "do not ascend", "draws ascend", golden="draws"
        ),
        "an id of 2^32": Case(
            arrays(sample_gaps=put(1, 2**32 - 1, 1)), "beyond any", "ids of draws", golden="gaps"
        ),
    },
}


def behind_the_end(store: Path) -> None:
    chunk("entropy", lambda c: c.extend(b"hidden"))(store)


def tied(store: Path) -> None:
    """The first two entries, of ids 7 and 3, with the same code."""
    arrays(entry_logprobs=put(1, 0))(store)


def lacking(*names: str) -> Change:
    return content("capture", missing=list(names))


VERIFYING: dict[str, dict[str, Case]] = {
    "values behind the last element of an array; bytes behind the end of a file of pcodec's": {
        "values": Case(padded("entropy"), "entropy: values other than zero lie behind"),
        "values, compact": Case(padded("entropy"), "entropy: values other", golden="compact"),
        "bytes": Case(behind_the_end, "entropy: bytes lie behind the end", golden="compact"),
    },
    "`token_ids`, `entry_ids`, draws of V or more": {
        "token_ids": Case(arrays(token_ids=put(0, 1000)), "token_ids holds 1000"),
        "entry_ids": Case(arrays(entry_ids=put(0, 1000)), "entry_ids holds 1000"),
        "sample_ids": Case(
            arrays(sample_ids=put(0, 1000)), "sample_ids holds 1000", golden="draws"
        ),
        "sample_gaps": Case(
            arrays(sample_gaps=put(0, 1000)), "sample_ids holds 1000", golden="gaps"
        ),
    },
    "`byte_starts`, `byte_lengths`: outside the supervised text of the line": {
        "byte_lengths": Case(arrays(byte_lengths=put(2, 1)), "byte spans reach outside"),
        "byte_starts": Case(arrays(byte_starts=put(0, 1)), "byte spans reach outside"),
        "before the part": Case(
            arrays(byte_starts=put(3, 0)), "byte spans reach outside", golden="parts"
        ),
    },
    "`entry_count`: above K": {
        "3 of 2": Case(content("capture", top_k=2), "a record has 3 entries, at most 2"),
    },
    "`entry_ids`: one twice in a record, not ascending where codes are equal": {
        "twice": Case(arrays(entry_ids=put(1, 7)), "an entry twice"),
        "not ascending": Case(tied, "not in the order of their ids"),
    },
    "`lognorm`, `logit_std`, `lognorm_std`: not finite": {
        "lognorm": Case(
            arrays(lognorm=lambda a: a.fill(math.nan)), "lognorm holds", golden="temperatures"
        ),
        "logit_std": Case(
            arrays(logit_std=put(1, math.inf)), "logit_std holds", golden="logit-std"
        ),
        "lognorm_std": Case(
            arrays(lognorm_std=put(1, -math.inf)), "lognorm_std holds", golden="logit-std"
        ),
    },
    "a value of `entropy` or `tail_logmass` that `missing` lists": {
        "entropy": Case(lacking("entropy"), "entropy holds values, but"),
        "tail_logmass": Case(lacking("tail_logmass"), "tail_logmass holds values, but"),
    },
}
NOBODY: dict[str, dict[str, Case]] = {
    "draws that are also entries, or more of a record than `draws`": {
        "an entry": Case(arrays(sample_ids=put(0, 2)), golden="draws"),
        "more": Case(arrays(sample_counts=put(0, 200), draw_total=put(1, 200)), golden="gaps"),
    },
    "`token_logprob`, `entropy`, `tail_logmass`: any code": {
        f"{name} {code}": Case(arrays(**{name: put(0, code)}))
        for name in ("token_logprob", "entropy", "tail_logmass")
        for code in (0, 177, 178, 65534, 65535)
    },
    "shuffles that a writer may choose": {
        "entry_ids": Case(recoded("entry_ids", "shuffle"), golden="gaps"),
        "entry_ids too": Case(recoded("entry_ids", "bitshuffle"), golden="gaps"),
        **{
            f"{name} in a compact store": Case(recoded(name, "bitshuffle"), golden="compact")
            for name in ("entry_ids", "sample_gaps", "sample_counts", "entropy")
        },
    },
}
