"""Sections 2 and 7: what a store says of itself, and its seal."""

from itertools import pairwise

import numpy as np

from tests.kit.reader_from_spec.json_text import (
    canonical,
    is_digest,
    is_number,
    is_whole,
    parse_canonical,
    sha256,
)
from tests.kit.reader_from_spec.parquet import read_index
from tests.kit.reader_from_spec.refusing import must, ordinary

U16, U32 = 2**16 - 1, 2**32 - 1


def is_text(value):
    return isinstance(value, str)


def is_flag(value):
    return isinstance(value, bool)


def is_above_0(value):
    return is_number(value) and value > 0


def is_list_of(check, most=None):
    return lambda x: isinstance(x, list) and (most is None or len(x) <= most) and all(map(check, x))


def is_missing(value):
    known = ("entropy", "tail_logmass", "token_logprob")
    return is_list_of(lambda x: x in known)(value) and value and value == sorted(set(value))


def is_files(value):
    return (
        isinstance(value, dict) and all(map(is_name, value)) and all(map(is_digest, value.values()))
    )


def is_name(name):
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def upto(most, least=0):
    return lambda value: is_whole(value, most, least)


def is_experts(value):
    if not isinstance(value, dict):
        return False
    if value == {"active": "all"} or value == {"active": "N-1"}:
        return True
    return (
        set(value) == {"active", "sample", "seed"}
        and value["active"] == "N-1"
        and is_above_0(value["sample"])
        and value["sample"] <= 1
        and is_whole(value["seed"], U32)
    )


def is_hidden(value):
    if not isinstance(value, dict) or not is_flag(value.get("context")):
        return False
    embeds = value.get("layers") == ["embedding", "last"]
    widths = {"width", "embedding_width"} if embeds else {"width"}
    return (
        set(value) - {"lm_head"} == {"layers", "dtype", "context", *widths}
        and value.get("lm_head", True) is True
        and (embeds or value["layers"] == ["last"])
        and value["dtype"] in ("fp8", "bf16")
        and all(is_whole(value[name], 1 << 20, 1) for name in widths)
    )


#: Part, field -> what it may hold; those in OPTIONAL may be absent.
CONTENT = {
    "teacher": {
        "fingerprint": is_text,
        "architecture": is_text,
        "dtype": is_text,
        "vocab_size": upto(U32, 1),
        "quantization": lambda value: isinstance(value, dict),
        "experts": is_experts,
    },
    "tokenizer": {
        "fingerprint": is_text,
        "size": upto(U32, 1),
        "eos_ids": is_list_of(upto(U32)),
        "files": is_files,
    },
    "capture": {
        "top_k": upto(U16),
        "max_tail": lambda value: value is None or is_above_0(value),
        "ids": is_flag,
        "logit_std": is_flag,
        "temperatures": is_list_of(is_above_0, 64),
        "draws": upto(U16),
        "seed": upto(U32),
        "missing": is_missing,
        "hidden": is_hidden,
    },
    "codec": {
        "name": lambda value: value in ("portable", "compact"),
        "layout": upto(2, 2),
        "records_per_chunk": upto(65_536, 1),
        "entries_per_chunk": upto(1_048_576, 1),
    },
}
OPTIONAL = {"hidden", "experts", "quantization", "seed", "missing", "layout"}


def read_description(path):
    """Section 2: content, plan, and the bytes of `store.json`."""
    raw = ordinary(path / "store.json", 8 << 20)
    body = parse_canonical(raw, "store.json")
    must(isinstance(body, dict), "store.json is an object")
    must(body.get("format") == "logitstore", "format and version")
    must(is_whole(body.get("version"), 2, 1), "version")
    fields = {"content", "content_sha256", "format", "plan", "plan_sha256", "provenance", "version"}
    must(set(body) == fields and isinstance(body["provenance"], dict), "fields of store.json")
    content, plan = body["content"], body["plan"]
    must(isinstance(content, dict) and set(content) == {*CONTENT, "rendering"}, "parts of content")
    for part, checks in CONTENT.items():
        must(isinstance(content[part], dict), part)
        must(set(content[part]) <= set(checks), f"fields of {part}")
        must(set(checks) - OPTIONAL <= set(content[part]), f"fields of {part}")
        for name, value in content[part].items():
            must(checks[name](value), f"{part}.{name}")
    size = content["tokenizer"]["size"]
    must(all(i < size for i in content["tokenizer"]["eos_ids"]), "eos_ids below size")
    check_rendering(content["rendering"])
    must(sha256(canonical(content)) == body["content_sha256"], "content digest")
    must(sha256(canonical(plan)) == body["plan_sha256"], "plan digest")
    must(isinstance(plan, dict), "plan")
    plan = {**plan, "sha256": body["plan_sha256"]}  # as shards have it
    if body["version"] == 2:
        plan["boundaries"] = read_boundaries_file(path, plan)
    check_plan(plan)
    return content, plan, raw


def read_boundaries_file(path, plan):
    """Section 2, version 2: the boundaries of a plan that has them in a file of their own."""
    fields = {"boundaries_sha256", "dataset_sha256", "rows", "shards", "sha256"}
    must(set(plan) == fields, "plan of version 2")
    rows, shards, digest = (plan.pop(name) for name in ("rows", "shards", "boundaries_sha256"))
    must(is_whole(shards, 1 << 24, 1), "shards of the plan")
    must(is_digest(digest), "boundaries_sha256")
    size = 8 * (shards + 1)
    raw = ordinary(path / f"plan-{digest[:16]}.u64", size)
    must(len(raw) == size and sha256(raw) == digest, "the file of the boundaries")
    cuts = np.frombuffer(raw, "<u8").tolist()
    must(is_whole(rows, 2**48 - 1) and rows == cuts[-1], "rows of the plan")
    return cuts


def check_rendering(rendering):
    must(isinstance(rendering, dict), "rendering")
    student = rendering.get("boundaries_of")
    if student is not None:
        must(isinstance(student, dict) and is_text(student.get("fingerprint")), "the student")
        must(is_files(student.get("files")), "the student's files")


def check_plan(plan):
    must(
        isinstance(plan, dict) and plan.keys() == {"dataset_sha256", "boundaries", "sha256"}, "plan"
    )
    must(is_text(plan["dataset_sha256"]), "dataset_sha256")
    cuts = plan["boundaries"]
    must(is_list_of(upto(2**48 - 1))(cuts) and len(cuts) > 1 and cuts[0] == 0, "boundaries")
    must(all(a < b for a, b in pairwise(cuts)), "boundaries ascend")


def read_seal(path, content, plan, description):
    """Section 7: the lines of the index of a finished store; None if it is not finished."""
    if not (path / "DONE").exists():
        return None
    body = parse_canonical(ordinary(path / "DONE", 1 << 20), "DONE")
    must(isinstance(body, dict), "DONE is an object")
    must(set(body) == {"format", "sha256", "sha256_of_this", "version"}, "fields of DONE")
    own = body.pop("sha256_of_this")
    must(own == sha256(canonical(body)), "digest of DONE")
    must((body["format"], body["version"]) == ("logitstore", 1), "format of DONE")
    must(is_whole(body["version"], 1), "version of DONE")
    sealed, files = body["sha256"], content["tokenizer"]["files"]
    names = {"store.json", "index.parquet", *(f"tokenizer/{name}" for name in files)}
    names |= {"lm_head.zarr.zip"} if "lm_head" in content["capture"].get("hidden", {}) else set()
    must(isinstance(sealed, dict) and set(sealed) == names, "files in DONE")
    must(all(map(is_digest, sealed.values())), "digests in DONE")
    must(sealed["store.json"] == sha256(description), "DONE seals store.json")
    for name, digest in files.items():
        must(sealed[f"tokenizer/{name}"] == digest, "DONE and store.json agree")
    shards = len(plan["boundaries"]) - 1
    index = ordinary(path / "index.parquet", (64 << 10) + (4 << 10) * shards)
    must(sealed["index.parquet"] == sha256(index), "DONE seals the index")
    return read_index(index, plan["boundaries"])


def check_tokenizer(path, content):
    """Section 8, "Read the tokenizer"."""
    for name, digest in content["tokenizer"]["files"].items():
        must(sha256(ordinary(path / "tokenizer" / name)) == digest, f"digest of tokenizer/{name}")
