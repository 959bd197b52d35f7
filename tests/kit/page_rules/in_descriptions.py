"""Faults of `store.json`, of `DONE`, of the tokenizer's files and of the index."""

import json
from pathlib import Path
from typing import Any

from logitstore.format.spec import CAN_BE_MISSING
from tests.kit.page_rules.tools import (
    Case,
    Change,
    body,
    content,
    edit_spec,
    index,
    put_spec,
    reseal,
    seal,
    spec_text,
    without,
)

OUT_OF_RANGE: dict[str, tuple[str, Any]] = {
    "capture.draws": ("above", 65_536),
    "capture.ids": ("a number", 1),
    "capture.logit_std": ("null", None),
    "capture.max_tail": ("0", 0),
    "capture.seed": ("above", 2**32),
    "capture.temperatures": ("0", [0.0]),
    "capture.top_k": ("true", True),
    "codec.entries_per_chunk": ("0", 0),
    "codec.layout": ("1", 1),
    "codec.name": ("unknown", "gzip"),
    "codec.records_per_chunk": ("0", 0),
    "teacher.architecture": ("a number", 7),
    "teacher.dtype": ("null", None),
    "teacher.fingerprint": ("a list", []),
    "teacher.experts": ("all but sampled", {"active": "all", "sample": 0.05, "seed": 1}),
    "teacher.quantization": ("a string", "int8"),
    "teacher.vocab_size": ("0", 0),
    "tokenizer.eos_ids": ("negative", [-1]),
    "tokenizer.files": ("not a digest", {"tokenizer.json": "A" * 64}),
    "tokenizer.fingerprint": ("a number", 7),
    "tokenizer.size": ("0", 0),
}
NOT_MISSING: list[Any] = [[], ["token_ids"], ["entropy"] * 2, list(reversed(CAN_BE_MISSING))]
NAMES = ("", ".", "..", "a/b", "a\\b", "a:b", "a\0b")


def out_of_range(field: str, value: Any) -> Case:
    part, name = field.split(".")
    return Case(content(part, **{name: value}), f"{field} cannot be", field)


def plan(*boundaries: Any) -> Change:
    return lambda store: edit_spec(store, lambda b: b["plan"].update(boundaries=boundaries))


def rendering(value: Any) -> Change:
    return content("rendering", boundaries_of=value)


def tokenizer_changed(store: Path) -> None:
    (store / "tokenizer" / "tokenizer.json").write_bytes(b"{ }\n")


def other_spec(store: Path) -> None:
    """A `store.json` that is right in itself, and not the sealed one."""
    done = (store / "DONE").read_bytes()
    body(lambda b: b["provenance"].update(made_by="another"))(store)
    (store / "DONE").write_bytes(done)


def other_index(store: Path) -> None:
    (store / "index.parquet").write_bytes((store / "index.parquet").read_bytes() + b"\0")


def sealed_tokenizer(store: Path) -> None:
    """The file and `DONE` agree; `store.json` has the digest of another."""
    tokenizer_changed(store)
    reseal(store)


def spaced(store: Path) -> None:
    done = json.loads((store / "DONE").read_bytes())
    (store / "DONE").write_text(json.dumps(done, sort_keys=True) + "\n")


FIELDS = "its fields are not those of format version 1"
READING: dict[str, dict[str, Case]] = {
    "`store.json`: its JSON, fields, ranges, digests; the file of its plan": {
        **{name + " is " + how: out_of_range(name, v) for name, (how, v) in OUT_OF_RANGE.items()},
        **{f"missing is {value}": out_of_range("capture.missing", value) for value in NOT_MISSING},
        **{
            f"a tokenizer file named {name!r}": out_of_range("tokenizer.files", {name: "0" * 64})
            for name in NAMES
        },
        "eos_ids at size": Case(
            content("tokenizer", eos_ids=[1000]), "not all below", "eos_ids below size"
        ),
        "no dtype": Case(without("teacher", "dtype"), "other fields", "fields of teacher"),
        "a field more": Case(content("codec", more=1), "other fields", "fields of codec"),
        "boundaries of nobody": Case(rendering({}), "no fingerprint", "the student"),
        "boundaries with files that are none": Case(
            rendering({"fingerprint": "f", "files": {"/x": "0" * 64}}),
            "files cannot be",
            "the student's files",
        ),
        "a plan that falls": Case(plan(0, 3, 2), "do not increase", "ascend"),
        "a plan from 1": Case(plan(1, 3), "not row numbers", "boundaries"),
        "a plan of 0": Case(plan(0), "not row numbers", "boundaries"),
        "a plan of fractions": Case(plan(0, 3.0), "not row numbers", "boundaries"),
        "no digest of the data": Case(
            lambda store: edit_spec(store, lambda b: b["plan"].update(dataset_sha256=1)),
            "not a digest",
            "dataset_sha256",
        ),
        "version 2": Case(spec_text('"version":1}', '"version":2}'), "version 2", "version"),
        "version 1.0": Case(
            spec_text('"version":1}', '"version":1.0}'), "not the canonical", "version"
        ),
        "another format": Case(
            spec_text('"format":"logitstore"', '"format":"x"'), "not a store", "format"
        ),
        "another content digest": Case(
            body(lambda b: b.update(content_sha256="0" * 64)),
            "its digest",
            "content digest",
        ),
        "another plan digest": Case(
            body(lambda b: b.update(plan_sha256="0" * 64)), "its digest", "plan digest"
        ),
        "another field": Case(body(lambda b: b.update(more=1)), "canonical", "fields"),
        "provenance that is a list": Case(
            body(lambda b: b.update(provenance=[])), "canonical", "fields of store.json"
        ),
        "a space": Case(spec_text('"plan":', '"plan": '), "canonical", "canonical"),
        "a field twice": Case(
            spec_text('"ids":true', '"ids":false,"ids":true'), "canonical", "canonical"
        ),
        "an exponent": Case(spec_text('"top_k":4', '"top_k":4e0'), "cannot be", "canonical"),
        "a byte order mark": Case(
            lambda store: put_spec(store, b"\xef\xbb\xbf" + (store / "store.json").read_bytes()),
            "canonical",
            "JSON",
        ),
        "NaN": Case(spec_text('"max_tail":0.2', '"max_tail":NaN'), "NaN", "NaN"),
    },
    "`DONE`: its JSON, fields, digests; that it pins `store.json` and the index": {
        "spaces": Case(spaced, "not the seal", "DONE is canonical"),
        "a field more": Case(seal(lambda d: d.update(more=1)), "not the seal", "fields"),
        "version 2": Case(seal(lambda d: d.update(version=2)), "not the seal", "format"),
        "version 1.0": Case(seal(lambda d: d.update(version=1.0)), "not the seal", "version"),
        "a file more": Case(
            seal(lambda d: d["sha256"].update(x="0" * 64)), "not the seal", "files in DONE"
        ),
        "a file less": Case(
            seal(lambda d: d["sha256"].pop("index.parquet")),
            "not the seal",
            "files in DONE",
        ),
        "a digest that is none": Case(
            seal(lambda d: d["sha256"].update({"index.parquet": "0"})),
            "a digest that is not 64",
            "digests in DONE",
        ),
        "its own digest": Case(
            seal(lambda d: d.update(sha256_of_this="0" * 64), anew=False),
            "not the seal",
            "digest of DONE",
        ),
        "another store.json": Case(other_spec, "sealed with", "DONE seals store.json"),
        "another index": Case(other_index, "not the file that was", "DONE seals the index"),
        "another tokenizer": Case(sealed_tokenizer, "another tokenizer", "agree"),
    },
    "a file of the tokenizer that has another digest": {
        "another file": Case(tokenizer_changed, "tokenizer.json", "digest of tokenizer"),
        "no file": Case(
            lambda store: (store / "tokenizer/tokenizer.json").unlink(),
            "found nothing",
            "is there",
        ),
    },
    "the index: its pages, its lines, their order": {
        "pages without checksums": Case(
            index(write_page_checksum=False), "no checksum", "checksum of a page"
        ),
        "pages of version 2": Case(index(data_page_version="2.0"), "kind", "kind of a page"),
        "brotli": Case(index(compression="brotli"), "codec", "compression"),
        "small row groups": Case(
            index(row_group_size=2), "row groups", "row groups", golden="shards"
        ),
        "lines that are not in order": Case(
            index({"shard": [0, 2, 1]}), "not that of shard 1", "of its shard", golden="shards"
        ),
        "other rows": Case(index({"stop_row": [4]}), "not that of shard 0", "of its shard"),
        "a null": Case(index({"l1_max": [None]}), "value that cannot be", "no nulls"),
        "a negative count": Case(index({"draws": [-1]}), "value that cannot be", "counts"),
        "statuses that are a list": Case(
            index({"statuses": ["[]"]}), "statuses that cannot be", "statuses"
        ),
        "a status of -1": Case(
            index({"statuses": ['{"ok": -1}']}), "statuses that cannot be", "statuses"
        ),
        "statuses that are no JSON": Case(index({"statuses": ["{"]}), "index", "JSON"),
    },
    "what the index says of a shard: `sha256` and `sequences`": {
        "another digest": Case(
            index({"sha256": ["0" * 64]}), "not the one this store", "one in the index"
        ),
        "other sequences": Case(
            index({"sequences": [4]}), "not the one this store", "sequences in the index"
        ),
    },
}


def file_digest(store: Path) -> None:
    """The declared digest and the index agree, but the bytes are others."""
    shard = store / "shards/00000.zarr.zip"
    data = shard.read_bytes()
    shard.write_bytes(data[:-64] + b"0" * 64)
    index({"sha256": ["0" * 64]})(store)


VERIFYING: dict[str, dict[str, Case]] = {
    "a file of the tokenizer that has another digest": {
        "another file": Case(tokenizer_changed, "recorded as"),
    },
    "what else the index says of a shard": {
        name: Case(index({name: [value]}), "does not say what shard 0 says of itself")
        for name, value in {
            "file_bytes": 7,
            "records": 6,
            "statuses": '{"empty": 1,"ok": 2}',
            "l1_max": 0.5,
            "supervised_bytes": 1,
        }.items()
    },
    "the shard digest is not that of the bytes; the CRC-32 of a member other than the group": {
        "another digest": Case(file_digest, "SHA-256 is"),
    },
}
