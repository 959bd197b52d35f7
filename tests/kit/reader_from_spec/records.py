"""Sections 4 to 6: what a shard says of itself, and its sequences decoded."""

import math

import numpy as np

from tests.kit.reader_from_spec.arrays import open_arrays, read_arrays
from tests.kit.reader_from_spec.json_text import (
    canonical,
    is_digest,
    is_number,
    is_whole,
    parse_canonical,
    sha256,
)
from tests.kit.reader_from_spec.parquet import FIDELITY, read_lines
from tests.kit.reader_from_spec.refusing import must

ABOUT = {"version", "shard", "rows", "content_sha256", "plan_sha256", "size", "fidelity"}
ABOUT |= {"statuses", "supervised_bytes"}
BESIDE = {"sha256", "bytes"}
STEP = np.float32(-1 / 96)
FIRST_SMALL_TAIL = 178  # e^(-177/256) is above one half


def read_shard(members, content, plan, number):
    """One dict a sequence."""
    first, stop = plan["boundaries"][number : number + 2]
    size = read_group(members, content, plan, number)
    stored = open_arrays(members, content, size)
    lines = read_lines(members["rows.parquet"], size["sequences"], first, stop)
    arrays = read_arrays(stored, size)
    return [line | decode(arrays, i, content["capture"]) for i, line in enumerate(lines)]


def read_group(members, content, plan, number):
    """Section 4: how much the shard holds."""
    must("zarr.json" in members, "the group is there")
    must(len(members["zarr.json"]) <= 64 << 10, "the group is not too large")
    group = parse_canonical(members["zarr.json"], "the group")
    must(
        isinstance(group, dict) and set(group) == {"attributes", "node_type", "zarr_format"},
        "group",
    )
    must((group["node_type"], group["zarr_format"]) == ("group", 3), "group")
    must(type(group["zarr_format"]) is int and isinstance(group["attributes"], dict), "group")
    must(set(group["attributes"]) == {"logitstore"}, "attributes of the group")
    about = group["attributes"]["logitstore"]
    hidden = {"hidden"} if "hidden" in content["capture"] else set()
    must(isinstance(about, dict) and set(about) == ABOUT | hidden, "fields of the group")
    if hidden:
        beside = about["hidden"]
        must(isinstance(beside, dict) and set(beside) == BESIDE, "hidden states of the group")
        must(is_digest(beside["sha256"]), "digest of hidden states")
        must(is_whole(beside["bytes"], 2**53 - 1), "size of hidden states")
    first, stop = plan["boundaries"][number : number + 2]
    own = {"version": 1, "shard": number, "rows": [first, stop]}
    own |= {"content_sha256": sha256(canonical(content)), "plan_sha256": plan["sha256"]}
    must(all(canonical(about[k]) == canonical(v) for k, v in own.items()), "which shard it is")
    size, capture = about["size"], content["capture"]
    names = {"sequences", "records", "entries", "draws"}
    must(isinstance(size, dict) and set(size) == names, "sizes")
    must(all(is_whole(n, 2**32 - 1) for n in size.values()), "sizes")
    must(size["sequences"] >= stop - first, "a line for every row")
    must(size["entries"] <= size["records"] * capture["top_k"], "entries of the shard")
    must(size["draws"] <= size["records"] * capture["draws"], "draws of the shard")
    statuses, fidelity = about["statuses"], about["fidelity"]
    must(isinstance(statuses, dict), "statuses")
    must(all(is_whole(n, 2**32 - 1) for n in statuses.values()), "statuses")
    must(sum(statuses.values()) == size["sequences"], "statuses add up")
    must(isinstance(fidelity, dict) and set(fidelity) == set(FIDELITY), "fidelity")
    must(all(is_number(n) and -1 < n < 2**53 for n in fidelity.values()), "fidelity")
    must(is_whole(fidelity["dropped_entries"], 2**53 - 1), "dropped entries")
    must(is_whole(about["supervised_bytes"], 2**53 - 1), "supervised bytes")
    return size


def decode(arrays, i, capture):
    """Section 5: the records of sequence i."""

    def span(name):
        return slice(*arrays[name][i : i + 2].tolist())

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
    must(((times >= 1) & (times <= 255)).all(), "how often a draw was drawn")
    if "draw_count" in arrays:
        count, ids = arrays["draw_count"][records].astype(np.int64), arrays["sample_ids"][draws]
        must(count.sum() == len(ids), "draw counts add up")
        for part in np.split(ids.astype(np.int64), np.cumsum(count)[:-1]):
            must((np.diff(part) >= 0).all(), "draws ascend")
        return {"draw_count": count, "sample_ids": ids, "sample_counts": times}
    gaps, counts, ids, at = arrays["sample_gaps"][draws].tolist(), [], [], 0
    for total in arrays["draw_total"][records].tolist():
        begin, last = at, 0
        while total > 0:
            must(at < len(gaps), "draws of a record")
            total, last = total - int(times[at]), last + gaps[at]
            ids.append(last)
            at += 1
        must(total == 0, "draws add up")
        must(last < 2**32, "ids of draws")
        counts.append(at - begin)
    must(at == len(gaps), "no draw is left")
    return {
        "draw_count": np.array(counts, np.int64),
        "sample_ids": np.array(ids, np.uint32),
        "sample_counts": times.astype(np.uint8),
    }


def decode_entries(deltas, counts, tail_codes):
    """Section 5, "Decoding entries", one record at a time."""
    logprobs, tails, at = [np.zeros(0, np.float32)], [], 0
    for count, code in zip(counts.tolist(), tail_codes.tolist(), strict=True):
        if count == 0:  # h is 0
            tails.append(0.0)
            continue
        q = np.cumsum(deltas[at : at + count], dtype=np.int64)
        at += count
        must((q < 65535).all(), "codes of entries")
        h = math.fsum(math.exp(-x / 96) for x in q.tolist())
        shift = 0.0
        if code >= FIRST_SMALL_TAIL:
            left = 0.0 if code == 65535 else math.log(-math.expm1(-code / 256))
            shift = left - math.log(h)
            tails.append(-math.inf if code == 65535 else -code / 256)
        else:
            must(h < 1, "head below one")
            tails.append(math.log1p(-h))
        logprobs.append(q.astype(np.float32) * STEP + np.float32(shift))
    return np.concatenate(logprobs), np.array(tails, np.float32)
