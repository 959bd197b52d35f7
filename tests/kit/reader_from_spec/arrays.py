"""Sections 4 and 5: the arrays of a shard, their chunks, and what these may decode to."""

import struct

import numpy as np
from numcodecs import blosc
from numcodecs.pcodec import PCodec

from tests.kit.reader_from_spec.json_text import canonical
from tests.kit.reader_from_spec.refusing import RefusedError, must

PCODEC = {"uint32": 1, "float32": 5, "uint16": 7}
AXES = {"records": "sequence_records", "entries": "sequence_entries", "draws": "sequence_draws"}
FREE, RATIO = 2 << 20, 32


def crc32c(data, table=[]):  # noqa: B006
    """Castagnoli's CRC (RFC 3720), reflected, polynomial 0x82F63B78."""
    if not table:
        for byte in range(256):
            for _ in range(8):
                byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
            table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def arrays_of(content, size):
    """Section 5: name -> (axis, type, shape, chunk length)."""
    capture, codec = content["capture"], content["codec"]
    per = {"sequences": 1024, "records": codec["records_per_chunk"]}
    found = {}

    def add(axis, dtype, *names, columns=()):
        length = size[axis] + (axis == "sequences")
        for name in names:
            found[name] = (
                axis,
                dtype,
                (length, *columns),
                per.get(axis, codec["entries_per_chunk"]),
            )

    add("sequences", "<u8", "sequence_records", "sequence_entries")
    add("records", "<u4", "token_ids", "byte_starts")
    add("records", "<u2", "byte_lengths", "token_logprob", "entry_count", "tail_logmass", "entropy")
    add("entries", "<u2", "entry_logprobs")
    if capture["ids"]:
        add("entries", "<u4", "entry_ids")
    if capture["temperatures"]:
        add("records", "<f4", "lognorm", columns=(len(capture["temperatures"]),))
    if capture["logit_std"]:
        add("records", "<f4", "logit_std", "lognorm_std")
    if capture["draws"]:
        add("sequences", "<u8", "sequence_draws")
        if "layout" in codec:
            add("records", "<u2", "draw_total")
            add("draws", "<u4", "sample_gaps")
            add("draws", "<u2", "sample_counts")
        else:
            add("records", "<u2", "draw_count")
            add("draws", "<u4", "sample_ids")
            add("draws", "|u1", "sample_counts")
    return found


def codings_of(name, dtype, codec):
    """Section 4: the ways in which an array may be coded."""
    if codec["name"] == "compact":
        return ["pcodec", "bitshuffle"] if dtype.name in PCODEC else ["bitshuffle"]
    if codec.get("layout") == 2 and name in ("sample_gaps", "sample_counts"):
        return ["shuffle"]
    if codec.get("layout") == 2 and name == "entry_ids":
        return ["bitshuffle", "shuffle"]
    return ["bitshuffle"]


def metadata(dtype, shape, chunk, coding):
    """Section 4: the one `zarr.json` an array of this coding may have."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    if coding == "pcodec":
        settings = {"level": 8, "mode_spec": "classic", "delta_spec": "none"}
        settings |= {"paging_spec": "equal_pages_up_to", "equal_pages_up_to": 1048576}
        settings |= {"delta_encoding_order": None}
        inner = [{"name": "numcodecs.pcodec", "configuration": settings}]
    else:
        settings = {"cname": "zstd", "clevel": 5, "shuffle": coding}
        settings |= {"typesize": dtype.itemsize, "blocksize": 0}
        inner = [little, {"name": "blosc", "configuration": settings}]
    sharding = {
        "chunk_shape": [chunk, *shape[1:]],
        "codecs": [*inner, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    outer = [chunk * max(-(-shape[0] // chunk), 1), *shape[1:]]
    return canonical(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if dtype.kind == "f" else 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
        }
    )


class Stored:
    """An array whose `zarr.json` and chunk index are right; `decode` reads its chunks."""

    def __init__(self, members, name, about, codec):
        self.axis, dtype, self.shape, self.chunk = about
        self.dtype, self.members = np.dtype(dtype), {f"{name}/zarr.json"}
        ways = codings_of(name, self.dtype, codec)
        texts = {metadata(self.dtype, self.shape, self.chunk, way): way for way in ways}
        text = members.get(f"{name}/zarr.json")
        must(text in texts, f"zarr.json of {name}")
        self.coding, self.places = texts[text], []
        if 0 not in self.shape:
            member = f"{name}/c" + "/0" * len(self.shape)
            must(member in members, f"data of {name}")
            self.members.add(member)
            self.data = members[member]
            self.places = self.index()

    def index(self):
        """Where each chunk lies, checked."""
        start = len(self.data) - 4 - 16 * -(-self.shape[0] // self.chunk)
        must(start >= 0 and crc32c(self.data[start:-4]) == self.data[-4:], "checksum of the index")
        places, cursor = np.frombuffer(self.data[start:-4], "<u8").reshape(-1, 2).tolist(), 0
        for offset, size in places:
            must(offset == cursor and 5 <= size <= start - cursor, "chunks back to back")
            cursor += size
        must(cursor == start, "no gap before the index")
        return places

    def cost(self, start, stop):
        """Decoded bytes of some rows, those of the chunks around them, and their stored bytes."""
        if stop <= start or not self.places:
            return 0, 0, 0
        row = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        chunks = self.places[start // self.chunk : -(-stop // self.chunk)]
        whole = len(chunks) * self.chunk * row
        return (stop - start) * row, whole, sum(size for _, size in chunks)

    def decode(self):
        """The whole array, each chunk checked."""
        parts, full = [], self.chunk * int(np.prod(self.shape[1:]))
        for offset, size in self.places:
            piece = self.data[offset : offset + size]
            must(crc32c(piece[:-4]) == piece[-4:], "checksum of a chunk")
            decode = decode_pcodec if self.coding == "pcodec" else decode_blosc
            parts.append(decode(piece[:-4], self.dtype, full, self.coding))
        if not parts:
            return np.zeros(self.shape, self.dtype)
        return np.concatenate(parts).reshape(-1, *self.shape[1:])[: self.shape[0]]


def decode_blosc(piece, dtype, count, coding):
    must(len(piece) >= 16, "room for a blosc header")
    version, zstd, flags, typesize, decoded, block, stored = struct.unpack_from("<4B3I", piece)
    shuffle = {"shuffle": 0x81, "bitshuffle": 0x84}[coding]
    must((version, zstd, flags & 0xED, typesize) == (2, 1, shuffle, dtype.itemsize), "blosc header")
    full = count * dtype.itemsize
    must((decoded, stored) == (full, len(piece)) and block <= full, "sizes in the blosc header")
    try:
        return np.frombuffer(blosc.decompress(piece), dtype)
    except RuntimeError as e:
        raise RefusedError(f"blosc: {e}") from None


def decode_pcodec(piece, dtype, count, coding):
    log = count.bit_length() - 1
    hint = (count << 6 | log).to_bytes((6 + log + 1 + 7) // 8, "little")
    head = b"pco!\3\0" + hint + b"\4"
    part = piece[len(head) + 1 : len(head) + 6]
    must(piece.startswith(head) and len(part) == 5, "pcodec header")
    must(part[0] == PCODEC[dtype.name] and part[4] == 0, "type and mode of a pcodec chunk")
    must(int.from_bytes(part[1:4], "little") < count, "count of a pcodec chunk")
    try:
        values = PCodec().decode(piece)
    except Exception as e:
        raise RefusedError(f"pcodec: {e}") from None
    must(len(values) == count and values.dtype == dtype, "numbers of a pcodec chunk")
    return values


def open_arrays(members, content, size):
    """Every array of the shard; no other member may be there but for the group and the text."""
    stored = {
        name: Stored(members, name, about, content["codec"])
        for name, about in arrays_of(content, size).items()
    }
    known = {"zarr.json", "rows.parquet"}.union(*(one.members for one in stored.values()))
    must(set(members) == known, "no other member")
    return stored


def read_arrays(stored, size):
    """All arrays decoded, after rejections 7 (offsets) and 9 (each sequence)."""
    offsets = {}
    for axis, name in AXES.items():
        if name in stored:
            values = stored[name].decode().astype(np.int64)
            ends = (values[0], values[-1]) == (0, size[axis])
            must(ends and (np.diff(values) >= 0).all(), f"{name} divides the {axis}")
            offsets[axis] = values.tolist()
    inner = [one for one in stored.values() if one.axis != "sequences"]
    for i in range(size["sequences"]):
        spans = {axis: values[i : i + 2] for axis, values in offsets.items()}
        costs = [one.cost(*spans[one.axis]) for one in inner]
        check_ratio(*map(sum, zip(*costs, strict=True)))
    return {name: one.decode() for name, one in stored.items()}


def check_ratio(decoded, whole, stored):
    """Rejection 9."""
    must(decoded <= max(FREE, RATIO * stored), "a sequence is no bomb")
    must(whole - FREE <= max(FREE, RATIO * stored), "the chunks of a sequence are no bomb")
