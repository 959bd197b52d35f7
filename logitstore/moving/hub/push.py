"""Put a finished store on the Hugging Face Hub (`logitstore push`).

Shards go first. `store.json`, without which a place holds no store, goes with the seal and the card
in the last commit, so a reader sees the whole store or none. The store is checked before, since
what is published is read by others.
"""

import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from logitstore.checking.verify import verify_store
from logitstore.errors import CorruptStoreError, InputError, MismatchError, NotAStoreError
from logitstore.format.spec import (
    BOUNDARIES_FOLDER,
    DONE_FILE,
    HIDDEN_FOLDER,
    INDEX_FILE,
    LM_HEAD_FILE,
    SHARDS_FOLDER,
    SPEC_FILE,
    STUDENT_FOLDER,
    TOKENIZER_FOLDER,
    StoreHeader,
    shard_name,
    sidecar_name,
)
from logitstore.moving.folders import open_finished
from logitstore.moving.hub.card import CARD_FILE, MARK, card
from logitstore.moving.hub.repository import Repository
from logitstore.storage.paths import local, local_path
from logitstore.store import LogitStore

log = logging.getLogger(__name__)

_MAX_CARD_BYTES = 1 << 20


def push(
    store: str | PathLike[str],
    to: str,
    *,
    public: bool = False,
    licence: str | None = None,
) -> dict[str, Any]:
    """Upload a finished store, or go on with an upload that was stopped.

    Args:
        store: Its folder.
        to: ``hf://datasets/OWNER/NAME``; made if it is not there.
        public: Whether a new repository can be seen by everybody.
        licence: For the card: the hub's name of a licence.

    Returns:
        The address, and how many files and bytes the store has.

    Raises:
        InputError: `to` is no such address, or the store is in a bucket.
        IncompleteStoreError: The store is not finished.
        CorruptStoreError: It is damaged.
        MismatchError: Another store is there.
        StorageError: The hub refuses or fails.
    """
    there = Repository.of(to, "dataset")
    _check_licence(licence)
    folder = local_path(store, "a store to push", "STORE")
    source = open_finished(folder)
    _check_whole(source)
    old = _names_there(there, source)
    files = _files(local(folder), source)
    last: dict[str, Path | bytes] = {
        name: folder / name for name in (INDEX_FILE, SPEC_FILE, DONE_FILE)
    }
    if not _has_own_card(there):
        last[CARD_FILE] = card(source, str(there.path), licence).encode()
    there.fill(files, last, public=public, without=sorted(old - files.keys()))
    size = sum(path.stat().st_size for path in files.values())
    return {
        "path": str(there.path),
        "files": len(files) + len(last),
        "file_bytes": size + sum((folder / n).stat().st_size for n in last if n != CARD_FILE),
        "card": CARD_FILE in last,
    }


def _check_licence(licence: str | None) -> None:
    if licence is not None and not all(c.isalnum() or c in "-." for c in licence):
        raise InputError(
            f"--license is {licence}, expected the hub's name of one, such as apache-2.0."
        )


def _check_whole(store: LogitStore) -> None:
    """Check the digests of all files, as `logitstore verify` does.

    Raises:
        CorruptStoreError: One is damaged.
    """
    report = verify_store(store.path)
    if report.damaged:
        first = report.damaged[0]
        raise CorruptStoreError(
            f"{store.path}: {first.file} is damaged ({first.reason}), so nothing was uploaded. Run "
            f"`logitstore repair {store.path}`.",
            path=store.path / first.file,
        )


def _names_there(there: Repository, store: LogitStore) -> set[str]:
    """List the shards that are there already, and hidden states.

    Raises:
        MismatchError: They belong to another store, which is whole.
    """
    try:
        header = StoreHeader.read(there.path)
    except NotAStoreError:
        pass
    else:
        ours = StoreHeader.read(store.path)
        if (header.spec, header.plan.digest) != (ours.spec, ours.plan.digest):
            raise MismatchError(
                f"{there.path}: holds another store (digest {header.spec.digest[:12]}…, and this "
                f"one has {ours.spec.digest[:12]}…), which is not replaced. Choose another name."
            )
    folders = (SHARDS_FOLDER, HIDDEN_FOLDER)
    return {f"{folder}/{name}" for folder in folders for name in (there.path / folder).names()}


def _has_own_card(there: Repository) -> bool:
    """Tell whether somebody wrote the card that is there, which is then kept."""
    try:
        found = (there.path / CARD_FILE).read_limited(_MAX_CARD_BYTES)
    except (FileNotFoundError, ValueError):
        return False
    return MARK.encode() not in found


def _files(folder: Path, store: LogitStore) -> dict[str, Path]:
    """List what belongs to a store, by name, without what makes it readable; nothing else beside.

    Stores at the boundaries of students lie inside it, whole, and are not read without it.
    """
    names = [f"{TOKENIZER_FOLDER}/{name}" for name in store.spec.tokenizer["files"]]
    names += list(store.plan.files())
    names += [LM_HEAD_FILE] if store.spec.has_head else []
    for index in store.shards:
        names.append(f"{SHARDS_FOLDER}/{shard_name(index)}")
        if store.spec.hidden is not None:
            digest = str(store.shard(index).about["hidden"]["sha256"])
            names.append(f"{HIDDEN_FOLDER}/{sidecar_name(index, digest)}")
    found = {name: folder / name for name in names}
    for each in store.boundaries.values():
        inside = local(each.path)
        if not each.is_complete:
            log.warning("%s: is not finished, and stays behind.", inside)
            continue
        below = f"{BOUNDARIES_FOLDER}/{inside.name}"
        parts: Mapping[str, Path] = _files(inside, each)
        found |= {f"{below}/{name}": path for name, path in parts.items()}
        ends = (INDEX_FILE, SPEC_FILE, DONE_FILE)
        found |= {f"{below}/{name}": inside / name for name in ends}
        found |= {
            f"{below}/{STUDENT_FOLDER}/{path.name}": path
            for path in sorted((inside / STUDENT_FOLDER).iterdir())
        }
    return found
