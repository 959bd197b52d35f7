"""A second reader, written from FORMAT.md alone: numpy, a blosc decoder, pyarrow and json.

It imports nothing of ours, is slow and plain, and reads a whole store at once. Section numbers are
those of the page. It checks every MUST that a reader has.
"""

import hashlib
import json
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numcodecs import blosc
from numcodecs.pcodec import PCodec

CONTENT = {"teacher", "tokenizer", "rendering", "capture", "codec"}
PCODEC = {"uint32": 1, "float32": 5, "uint16": 7}
LINE = ("row", "part", "status", "supervised_start", "segments", "messages")


class RefusedError(Exception):
    """The store is not what the page describes."""


def must(holds, what):
    if not holds:
        raise RefusedError(what)


def canonical(value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


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


def read_store(path):
    """(content, plan, sequences): of every sequence its line and its decoded arrays (section 8)."""
    path = Path(path)
    content, plan, raw = read_description(path)
    sealed = (path / "DONE").exists()
    digests = read_seal(path, content, raw) if sealed else None
    cuts = plan["boundaries"]
    sequences = []
    for number in range(len(cuts) - 1):
        file = path / "shards" / f"{number:05d}.zarr.zip"
        if not sealed and not file.exists():
            continue
        members, digest = read_archive(file.read_bytes())
        if digests is not None:
            must(digest == digests[number], "the shard is not the one in the index")
        sequences += read_shard(members, content, plan, number)
    return content, plan, sequences


def read_description(path):
    """Section 2."""
    raw = (path / "store.json").read_bytes()
    body = json.loads(raw)
    must(raw == canonical(body), "store.json is canonical")
    must(body["format"] == "logitstore" and body["version"] == 1, "format and version")
    fields = {"content", "content_sha256", "format", "plan", "plan_sha256", "provenance", "version"}
    must(set(body) == fields, "fields of store.json")
    content, plan = body["content"], body["plan"]
    must(set(content) == CONTENT and set(plan) == {"dataset_sha256", "boundaries"}, "parts")
    must(sha256(canonical(content)) == body["content_sha256"], "content digest")
    must(sha256(canonical(plan)) == body["plan_sha256"], "plan digest")
    cuts = plan["boundaries"]
    must(cuts[0] == 0 and all(a < b for a, b in pairwise(cuts)), "boundaries")
    return content, plan, raw


def read_seal(path, content, description):
    """Section 7: digests of the shards, in order."""
    raw = (path / "DONE").read_bytes()
    body = json.loads(raw)
    must(raw == canonical(body), "DONE is canonical")
    own = body.pop("sha256_of_this")
    must(own == sha256(canonical(body)), "digest of DONE")
    must((body["format"], body["version"]) == ("logitstore", 1), "DONE's format")
    names = {f"tokenizer/{n}" for n in content["tokenizer"]["files"]}
    must(set(body["sha256"]) == names | {"store.json", "index.parquet"}, "files in DONE")
    must(body["sha256"]["store.json"] == sha256(description), "DONE seals store.json")
    for name, digest in content["tokenizer"]["files"].items():
        must(body["sha256"][f"tokenizer/{name}"] == digest, "DONE and content agree")
        must(sha256((path / "tokenizer" / name).read_bytes()) == digest, f"tokenizer/{name}")
    index = (path / "index.parquet").read_bytes()
    must(body["sha256"]["index.parquet"] == sha256(index), "DONE seals the index")
    lines = pq.read_table(pa.BufferReader(index)).to_pylist()
    must([line["shard"] for line in lines] == list(range(len(lines))), "index in order")
    return [line["sha256"] for line in lines]


def read_archive(data):
    """Section 3: members by name, and the shard digest."""
    end = len(data) - 22 - 64
    must(end >= 0, "room for an end record")
    fields = struct.unpack_from("<4s4H2IH", data, end)
    count, size, start = fields[3], fields[5], fields[6]
    must(fields == (b"PK\5\6", 0, 0, count, count, size, start, 64), "end record")
    must(start + size == end, "directory before the end record")
    digest = data[end + 22 :].decode("ascii")
    must(sha256(data[:end]) == digest, "shard digest")
    members, cursor, at, last = {}, start, 0, b""
    for _ in range(count):
        length = struct.unpack_from("<H", data, cursor + 28)[0]
        name = data[cursor + 46 : cursor + 46 + length]
        crc, stored = struct.unpack_from("<2I", data, cursor + 16)
        shared = (0, 0, 0, 0x0021, crc, stored, stored, length, 0)
        central = struct.pack("<4s2H", b"PK\1\2", 10, 10) + struct.pack("<4H3I2H", *shared)
        central += struct.pack("<3H2I", 0, 0, 0, 0, at) + name
        must(data[cursor : cursor + len(central)] == central, "central header")
        local = struct.pack("<4sH", b"PK\3\4", 10) + struct.pack("<4H3I2H", *shared) + name
        must(data[at : at + len(local)] == local, "local header")
        must(name > last, "names ascend")
        at, last = at + len(local), name
        must(at + stored <= start, "members end before the directory")
        members[name.decode("ascii")] = data[at : at + stored]
        must(zlib.crc32(data[at : at + stored]) == crc, "CRC-32")
        at, cursor = at + stored, cursor + len(central)
    must(at == start and cursor == end, "no gaps")
    return members, digest


def arrays_of(content, size):
    """Section 5: name -> (type, shape, chunk length)."""
    capture, codec = content["capture"], content["codec"]
    must(codec["name"] in ("portable", "compact") and codec.get("layout", 2) == 2, "codec")
    n, m, d, s = (size[k] for k in ("records", "entries", "draws", "sequences"))
    per_record, per_entry = codec["records_per_chunk"], codec["entries_per_chunk"]
    found = {
        "sequence_records": ("<u8", (s + 1,), 1024),
        "sequence_entries": ("<u8", (s + 1,), 1024),
        "token_ids": ("<u4", (n,), per_record),
        "byte_starts": ("<u4", (n,), per_record),
        "byte_lengths": ("<u2", (n,), per_record),
        "token_logprob": ("<u2", (n,), per_record),
        "entry_count": ("<u2", (n,), per_record),
        "tail_logmass": ("<u2", (n,), per_record),
        "entropy": ("<u2", (n,), per_record),
        "entry_logprobs": ("<u2", (m,), per_entry),
    }
    if capture["ids"]:
        found["entry_ids"] = ("<u4", (m,), per_entry)
    if capture["temperatures"]:
        found["lognorm"] = ("<f4", (n, len(capture["temperatures"])), per_record)
    if capture["logit_std"]:
        found["logit_std"] = found["lognorm_std"] = ("<f4", (n,), per_record)
    if capture["draws"]:
        first = "layout" not in codec
        found["draw_count" if first else "draw_total"] = ("<u2", (n,), per_record)
        found["sample_ids" if first else "sample_gaps"] = ("<u4", (d,), per_entry)
        found["sample_counts"] = ("|u1" if first else "<u2", (d,), per_entry)
        found["sequence_draws"] = ("<u8", (s + 1,), 1024)
    return found


def codings_of(name, dtype, codec):
    """Section 4: the ways in which an array may be coded."""
    in_bytes = codec.get("layout") == 2 and name in ("sample_gaps", "sample_counts")
    blosc_way = "shuffle" if in_bytes else "bitshuffle"
    if codec["name"] == "compact" and np.dtype(dtype).name in PCODEC:
        return ["pcodec", "bitshuffle"]
    if codec.get("layout") == 2 and name == "entry_ids":
        return ["bitshuffle", "shuffle"]
    return [blosc_way]


def metadata(dtype, shape, chunk, coding):
    """Section 4: the one `zarr.json` an array of this coding may have."""
    dtype = np.dtype(dtype)
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


def read_array(data, dtype, shape, chunk, coding):
    """Section 4: all inner chunks, each checked."""
    dtype = np.dtype(dtype)
    chunks = -(-shape[0] // chunk)
    start = len(data) - 4 - 16 * chunks
    must(start >= 0 and crc32c(data[start:-4]) == data[-4:], "checksum of the chunk index")
    index = np.frombuffer(data[start:-4], "<u8").reshape(-1, 2)
    parts, cursor = [], 0
    full = chunk * int(np.prod(shape[1:]))
    for offset, size in index.tolist():
        must(offset == cursor and 5 <= size <= start - cursor, "chunks back to back")
        piece = data[offset : offset + size]
        must(crc32c(piece[:-4]) == piece[-4:], "checksum of a chunk")
        decode = decode_pcodec if coding == "pcodec" else decode_blosc
        parts.append(decode(piece[:-4], dtype, full, coding))
        cursor += size
    must(cursor == start, "no gap before the index")
    return np.concatenate(parts).reshape(-1, *shape[1:])[: shape[0]]


def decode_blosc(piece, dtype, count, coding):
    must(len(piece) >= 16, "room for a blosc header")
    version, zstd, flags, typesize, decoded, block, stored = struct.unpack_from("<4B3I", piece)
    shuffle = {"shuffle": 0x81, "bitshuffle": 0x84}[coding]
    must((version, zstd, flags & 0xED, typesize) == (2, 1, shuffle, dtype.itemsize), "blosc header")
    full = count * dtype.itemsize
    must((decoded, stored) == (full, len(piece)) and block <= full, "sizes in the blosc header")
    return np.frombuffer(blosc.decompress(piece), dtype)


def decode_pcodec(piece, dtype, count, coding):
    log = count.bit_length() - 1
    hint = (count << 6 | log).to_bytes((6 + log + 1 + 7) // 8, "little")
    head = b"pco!\3\0" + hint + b"\4"
    part = piece[len(head) + 1 : len(head) + 6]
    must(piece.startswith(head) and len(part) == 5, "pcodec header")
    must(part[0] == PCODEC[dtype.name] and part[4] == 0, "type and mode of a pcodec chunk")
    must(int.from_bytes(part[1:4], "little") < count, "count of a pcodec chunk")
    values = PCodec().decode(piece)
    must(len(values) == count and values.dtype == dtype, "numbers of a pcodec chunk")
    return values


def read_shard(members, content, plan, number):
    """Sections 4 to 6: one dict a sequence."""
    group = json.loads(members["zarr.json"])
    must(members["zarr.json"] == canonical(group), "the group is canonical")
    about = group["attributes"]["logitstore"]
    first, stop = plan["boundaries"][number : number + 2]
    must(about["version"] == 1 and about["shard"] == number, "shard number")
    must(about["rows"] == [first, stop], "rows of the shard")
    must(about["content_sha256"] == sha256(canonical(content)), "content of the shard")
    must(about["plan_sha256"] == sha256(canonical(plan)), "plan of the shard")
    wanted, arrays = {"zarr.json", "rows.parquet"}, {}
    for name, (dtype, shape, chunk) in arrays_of(content, about["size"]).items():
        wanted.add(f"{name}/zarr.json")
        ways = codings_of(name, dtype, content["codec"])
        texts = {metadata(dtype, shape, chunk, way): way for way in ways}
        must(members[f"{name}/zarr.json"] in texts, f"metadata of {name}")
        if 0 in shape:
            arrays[name] = np.zeros(shape, dtype)
            continue
        member = f"{name}/c" + "/0" * len(shape)
        wanted.add(member)
        arrays[name] = read_array(
            members[member], dtype, shape, chunk, texts[members[f"{name}/zarr.json"]]
        )
    must(set(members) == wanted, "no other member")
    lines = read_lines(members["rows.parquet"], about["size"]["sequences"])
    must(sorted({line["row"] for line in lines}) == list(range(first, stop)), "every row")
    return [line | decode(arrays, i, content["capture"]) for i, line in enumerate(lines)]


def read_lines(data, count):
    """Section 6."""
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
    must(sizes == [64] * (count // 64) + [count % 64] * (count % 64 > 0), "row groups of 64")
    lines = file.read().to_pylist()
    for line in lines:
        segments = [[s["role"], s["text"], s["supervised"]] for s in line["segments"]]
        fields = [segments if name == "segments" else line[name] for name in LINE]
        digest = line.pop("digest")
        must(digest == hashlib.sha256(canonical(fields)).digest()[:16], "digest of the line")
    return lines


def decode(arrays, i, capture):
    """Section 5: the records of sequence i."""

    def span(name):
        offsets = arrays[name].astype(np.int64)
        must(offsets[0] == 0 and (np.diff(offsets) >= 0).all(), f"{name} ascends")
        return slice(int(offsets[i]), int(offsets[i + 1]))

    def scalar(name, step):
        codes = arrays[name][records]
        return np.where(codes == 65535, -np.inf, -codes.astype(np.float64) * step).astype("f4")

    records, entries = span("sequence_records"), span("sequence_entries")
    count = arrays["entry_count"][records].astype(np.int64)
    must(count.sum() == entries.stop - entries.start, "entry counts add up")
    lengths = arrays["byte_lengths"][records].astype(np.int64)
    stops = np.cumsum(arrays["byte_starts"][records].astype(np.int64) + lengths)
    logprobs, tails = decode_entries(
        arrays["entry_logprobs"][entries], count, arrays["tail_logmass"][records]
    )
    found = {
        "token_ids": arrays["token_ids"][records],
        "byte_starts": stops - lengths,
        "byte_lengths": lengths,
        "token_logprob": scalar("token_logprob", 1 / 512),
        "entry_count": count,
        "entry_ids": arrays["entry_ids"][entries] if capture["ids"] else None,
        "entry_logprobs": logprobs,
        "tail_logmass": tails,
        "entropy": arrays["entropy"][records].astype("f4") / np.float32(256),
    }
    missing = capture.get("missing", [])
    if "entropy" in missing:
        found["entropy"] = np.full(len(lengths), np.nan, "f4")
    if "token_logprob" in missing:
        unknown = np.isneginf(found["token_logprob"])
        found["token_logprob"] = np.where(unknown, np.float32(np.nan), found["token_logprob"])
    for name in ("lognorm", "logit_std", "lognorm_std"):
        found[name] = arrays[name][records] if name in arrays else None
    found |= dict.fromkeys(("draw_count", "sample_ids", "sample_counts"))
    if capture["draws"]:
        found |= decode_draws(arrays, records, span("sequence_draws"))
    return found


def decode_draws(arrays, records, draws):
    """Section 5, "Draws"."""
    times = arrays["sample_counts"][draws]
    if "draw_count" in arrays:
        count = arrays["draw_count"][records].astype(np.int64)
        must(count.sum() == draws.stop - draws.start, "draw counts add up")
        return {
            "draw_count": count,
            "sample_ids": arrays["sample_ids"][draws],
            "sample_counts": times,
        }
    must(((times >= 1) & (times <= 255)).all(), "how often a draw was drawn")
    gaps, counts, ids, at = arrays["sample_gaps"][draws].tolist(), [], [], 0
    for total in arrays["draw_total"][records].tolist():
        begin, last = at, 0
        while total > 0:
            must(at < len(gaps), "draws of a record")
            total, last = total - int(times[at]), last + gaps[at]
            ids.append(last)
            at += 1
        must(total == 0 and last < 2**32, "draws add up")
        counts.append(at - begin)
    must(at == len(gaps), "no draw is left")
    return {
        "draw_count": np.array(counts, np.int64),
        "sample_ids": np.array(ids, np.uint32),
        "sample_counts": times.astype(np.uint8),
    }


def decode_entries(deltas, counts, tail_codes):
    """Section 5, "Decoding entries", one record at a time."""
    logprobs, tails, at = [], [], 0
    for count, code in zip(counts.tolist(), tail_codes.tolist(), strict=True):
        q = np.cumsum(deltas[at : at + count], dtype=np.int64)
        at += count
        must((q < 65535).all(), "codes of entries")
        u = 0.0 if code == 65535 else np.exp(-code / 256)
        h = np.exp(-q / 96).sum()
        if count > 0 and u < 1 / 2:
            logprobs += list(-q / 96 + (np.log(1 - u) - np.log(h)))
            tails.append(-np.inf if code == 65535 else -code / 256)
        else:
            must(h < 1, "head below one")
            logprobs += list(-q / 96)
            tails.append(np.log1p(-h))
    return np.array(logprobs, np.float32), np.array(tails, np.float32)
