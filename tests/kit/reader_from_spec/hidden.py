"""Section 7, "Hidden states": of each sequence of a shard its states, tokens and embeddings."""

import math
from itertools import pairwise

import numpy as np

from tests.kit.reader_from_spec.archive import read_archive
from tests.kit.reader_from_spec.arrays import Stored, check_ratio
from tests.kit.reader_from_spec.json_text import canonical, parse_canonical, sha256
from tests.kit.reader_from_spec.refusing import must, ordinary


def read_hidden(path, content, plan, number, group):
    """One dict a sequence: states (T, D), ids (T,), places (N,), embedding {token: row}."""
    about = group["attributes"]["logitstore"]
    pinned, size = about["hidden"], about["size"]
    data = ordinary(path / "hidden" / f"{number:05d}-{pinned['sha256'][:16]}.zarr.zip")
    members, digest = read_archive(data)
    must((digest, len(data)) == (pinned["sha256"], pinned["bytes"]), "the shard names this file")
    own = parse_canonical(members["zarr.json"], "the group")["attributes"]["logitstore"]["size"]
    wanted = {
        "version": 1,
        "shard": number,
        "rows": plan["boundaries"][number : number + 2],
        "content_sha256": sha256(canonical(content)),
        "plan_sha256": plan["sha256"],
        "size": own,
    }
    group = {"attributes": {"logitstore": wanted}, "node_type": "group", "zarr_format": 3}
    must(members["zarr.json"] == canonical(group), "the group of hidden states")
    must((own["sequences"], own["records"]) == (size["sequences"], size["records"]), "its shard")
    return list(sequences(members, content, own))


def sequences(members, content, size):
    hidden = content["capture"]["hidden"]
    stored = {
        name: Stored(members, name, ("rows", dtype, shape, chunk), {"name": "portable"})
        for name, (dtype, shape, chunk) in arrays_of(hidden, size).items()
    }
    known = {"zarr.json"}.union(*(one.members for one in stored.values()))
    must(set(members) == known, "no other member")
    arrays = {name: one.decode() for name, one in stored.items()}
    states = offsets(arrays["sequence_states"], size["states"])
    records = states
    if hidden["context"]:
        records = offsets(arrays["sequence_records"], size["records"])
    table = {}
    if size["embeddings"]:
        ids = arrays["embedding_ids"].astype(np.int64)
        must((np.diff(ids) > 0).all(), "embeddings ascend")
        table = dict(zip(ids.tolist(), values(arrays, "embedding"), strict=True))
    for (a, b), (first, stop) in zip(pairs(states), pairs(records), strict=True):
        for each in ("last", "last_scale"):
            if each in stored:
                check_ratio(*stored[each].cost(a, b))
        places = np.arange(b - a)
        if hidden["context"]:
            places = arrays["places"][first:stop].astype(np.int64)
        must((places < b - a).all(), "places are of the sequence")
        yield {
            "last": values(arrays, "last")[a:b],
            "ids": arrays["state_ids"][a:b],
            "places": places,
            "embedding": table,
        }


def arrays_of(hidden, size):
    """Name -> (type, shape, chunk length)."""
    found = {
        "sequence_states": ("<u8", (size["sequences"] + 1,), 1024),
        "state_ids": ("<u4", (size["states"],), 1024),
    }

    def rows(name, count, width):
        code = "|u1" if hidden["dtype"] == "fp8" else "<u2"
        chunk = max(1, 65536 // (width * np.dtype(code).itemsize))
        found[name] = (code, (count, width), chunk)
        if hidden["dtype"] == "fp8":
            found[f"{name}_scale"] = ("<f4", (count,), 1024)

    rows("last", size["states"], hidden["width"])
    if hidden["context"]:
        found["sequence_records"] = ("<u8", (size["sequences"] + 1,), 1024)
        found["places"] = ("<u4", (size["records"],), 1024)
    if "embedding" in hidden["layers"]:
        found["embedding_ids"] = ("<u4", (size["embeddings"],), 1024)
        rows("embedding", size["embeddings"], hidden["embedding_width"])
    return found


def values(arrays, name):
    """The numbers of some rows, one code at a time."""
    codes = arrays[name]
    if codes.dtype == np.uint16:
        return (codes.astype(np.uint32) << 16).view(np.float32)
    table = np.array([fp8(code) for code in range(256)], np.float32)
    found = table[codes] * arrays[f"{name}_scale"][:, None]
    must(np.isfinite(found).all(), "numbers of hidden states")
    return found


def fp8(code):
    sign, e, f = code >> 7, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return math.nan
    size = (8 + f) * 2.0 ** (e - 10) if e else f * 2.0**-9
    return -size if sign else size


def offsets(found, count):
    at = found.astype(np.int64)
    must((at[0], at[-1]) == (0, count) and (np.diff(at) >= 0).all(), "states divide")
    return at.tolist()


def pairs(at):
    return list(pairwise(at))
