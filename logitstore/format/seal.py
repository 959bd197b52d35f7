"""Write and read `DONE`, the last file of a store: the digests of all files that are not shards.

    {"format": "logitstore", "sha256": {"index.parquet": …, "store.json": …, "tokenizer/…": …},
     "sha256_of_this": digest of the same JSON without this field, "version": 1}

(and of "lm_head.zarr.zip", where a store has one). The index in turn has the digest of every shard,
so this one small file pins every byte of a store. Its own digest tells a damaged seal from a
damaged file.
"""

import hashlib
from collections.abc import Mapping

from logitstore.format.canonical_json import canonical_json, parse_json
from logitstore.format.spec import (
    DONE_FILE,
    FORMAT_NAME,
    FORMAT_VERSION,
    INDEX_FILE,
    LM_HEAD_FILE,
    SPEC_FILE,
    TOKENIZER_FOLDER,
    StoreSpec,
    is_digest,
)
from logitstore.storage.files import MAX_SEAL_BYTES
from logitstore.storage.paths import StorePath


def sealed_names(spec: StoreSpec) -> list[str]:
    """List the files that a seal covers."""
    tokenizer = [f"{TOKENIZER_FOLDER}/{name}" for name in spec.tokenizer["files"]]
    head = [LM_HEAD_FILE] if spec.has_head else []
    return sorted([SPEC_FILE, INDEX_FILE, *head, *tokenizer])


def seal_bytes(digests: Mapping[str, str]) -> bytes:
    """Encode a seal as the bytes of the file."""
    body = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "sha256": dict(digests)}
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    return canonical_json(body | {"sha256_of_this": digest})


def read_seal(store: StorePath, spec: StoreSpec) -> dict[str, str]:
    """Read the digests of files by name.

    Raises:
        ValueError: The file is not a seal of this store, to the byte.
        OSError: It cannot be read.
    """
    raw = (store / DONE_FILE).read_limited(MAX_SEAL_BYTES)
    try:
        digests = dict(parse_json(raw)["sha256"])
    except (KeyError, TypeError) as e:
        raise ValueError(f"it is not a seal ({e!r})") from None
    if not all(map(is_digest, digests.values())):
        raise ValueError("it has a digest that is not 64 hex digits")
    if sorted(digests) != sealed_names(spec) or raw != seal_bytes(digests):
        raise ValueError("it is not the seal that was written")
    described = spec.tokenizer["files"].items()
    if any(digests[f"{TOKENIZER_FOLDER}/{name}"] != digest for name, digest in described):
        raise ValueError(f"it seals another tokenizer than {SPEC_FILE} describes")
    return digests
