"""Writing a store: make or resume the folder, commit shards in any order, seal it.

    my-store/
      tokenizer/        before store.json, so that a store never lacks it
      store.json        its appearance makes the folder a store
      shards/           one link each (see commit.py)
      index.parquet     at the seal
      DONE              last of all

The journal (who wrote what, when) lies beside the folder, not in it: nothing in a store names a
host, a time or a worker, so the same capture is the same bytes anywhere.
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logitstore import commit
from logitstore.archive import pack
from logitstore.commit import OS_FS, TEMPORARY_PREFIX, Fs
from logitstore.encode import EncodedRecords
from logitstore.errors import InputError, MismatchError
from logitstore.index import encode_index, index_line
from logitstore.records import SequenceText
from logitstore.seal import file_sha256, seal_bytes, sealed_names
from logitstore.shard import Shard, build_shard, shard_name
from logitstore.spec import (
    DONE_FILE,
    INDEX_FILE,
    SHARDS_FOLDER,
    SPEC_FILE,
    TOKENIZER_FOLDER,
    Plan,
    StoreHeader,
    StoreSpec,
)
from logitstore.untrusted import MAX_SPEC_BYTES

_OURS = {TOKENIZER_FOLDER, SHARDS_FOLDER, SPEC_FILE, INDEX_FILE, DONE_FILE}


class StoreWriter:
    """A store being written. Safe to kill at any moment and to make again with the same arguments.

    Attributes:
        path: The store's folder.
        spec: What it holds.
        plan: Which rows are in which shard.
        provenance: As recorded when the store was begun.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: StoreSpec,
        plan: Plan,
        tokenizer_files: Mapping[str, bytes],
        provenance: Mapping[str, Any] | None = None,
        *,
        fs: Fs = OS_FS,
    ) -> None:
        """Begin a store, or resume one made with the same spec and plan.

        Raises:
            MismatchError: The folder holds a store made with other settings, or something else.
            StorageError: The file system refused.
        """
        self.path, self.spec, self.plan, self._fs = Path(path), spec, plan, fs
        spec.check()
        plan.check()
        header = StoreHeader(spec, plan, dict(provenance or {}))
        if not (self.path / SPEC_FILE).exists():
            self._begin(header, tokenizer_files)
        found = StoreHeader.read(self.path)
        self._check_same(found)
        self.provenance = found.provenance
        if not self.is_sealed:
            self._complete_folders(tokenizer_files)

    def missing(self) -> list[int]:
        """Shards not committed yet, in order."""
        there = set(os.listdir(self.path / SHARDS_FOLDER))
        return [i for i in range(self.plan.shard_count) if shard_name(i) not in there]

    @property
    def is_sealed(self) -> bool:
        """Whether the store is finished: nothing more will be written."""
        return (self.path / DONE_FILE).exists() and not self.missing()

    def write_shard(
        self, index: int, sequences: Sequence[tuple[SequenceText, EncodedRecords | None]]
    ) -> bool:
        """Commit one shard.

        Args:
            index: Which of the plan's shards.
            sequences: All of its rows in order, each with its records, or None for none.

        Returns:
            False if another worker had committed it already; then nothing changed.
        """
        began, ended = self.plan.shard_rows(index)
        rows = [line.row for line, _ in sequences]
        if sorted(set(rows)) != list(range(began, ended)) or rows != sorted(rows):
            raise ValueError(f"shard {index} needs every row from {began} to {ended - 1}, in order")
        members = build_shard(self.spec, self.plan, index, sequences)
        won = commit.create(self.path / SHARDS_FOLDER / shard_name(index), pack(members), self._fs)
        self.note("shard", shard=index, committed=won)
        return won

    def seal(self) -> None:
        """Write index and `DONE` once every shard is there. Several may do so at once.

        Raises:
            CorruptStoreError: A shard is not what was committed.
        """
        if self.missing():
            raise ValueError(f"{len(self.missing())} shards are missing: write them first")
        commit.overwrite(self.path / INDEX_FILE, self._index(), self._fs)
        # Not before: among them is the claim on the seal, which tells others to wait.
        commit.remove_temporaries(self.path / SHARDS_FOLDER)
        commit.remove_temporaries(self.path)
        digests = {name: file_sha256(self.path / name) for name in sealed_names(self.spec)}
        commit.overwrite(self.path / DONE_FILE, seal_bytes(digests), self._fs)
        self.note("sealed")

    def note(self, event: str, **facts: Any) -> None:
        """Append a line to the journal beside the store."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "event": event,
        } | facts
        journal = self.path.with_name(f"{self.path.name}.journal.jsonl")
        try:
            with journal.open("a") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as e:
            raise commit.explain(e, journal) from e

    def _begin(self, header: StoreHeader, tokenizer_files: Mapping[str, bytes]) -> None:
        check_place(self.path)
        try:
            commit.make_folder(self.path, self._fs)
        except OSError as e:
            raise commit.explain(e, self.path) from e
        self._complete_folders(tokenizer_files)
        described = header.to_bytes()
        if len(described) > MAX_SPEC_BYTES:
            raise InputError(
                f"{self.path}: a plan of {self.plan.shard_count:,} shards is more than store.json "
                "holds. Capture with a larger --shard-text-bytes."
            )
        commit.create(self.path / SPEC_FILE, [described], self._fs)

    def _complete_folders(self, tokenizer_files: Mapping[str, bytes]) -> None:
        """What a crash or a repair took away is made again."""
        try:
            commit.make_folder(self.path / SHARDS_FOLDER, self._fs)
            self._write_tokenizer(tokenizer_files)
        except OSError as e:
            raise commit.explain(e, self.path) from e

    def _write_tokenizer(self, files: Mapping[str, bytes]) -> None:
        """A half-written folder from a crash is replaced; a twin's finished one is kept."""
        folder = self.path / TOKENIZER_FOLDER
        wanted = self.spec.tokenizer["files"]
        if folder.exists():
            if self._tokenizer_digests() == wanted:
                return
            shutil.rmtree(folder)
        temporary = commit.temporary(folder)
        temporary.mkdir()
        for name, data in files.items():
            self._fs.write_durably(temporary / name, [data])
        self._fs.sync_folder(temporary)
        try:
            self._fs.replace(temporary, folder)
        except OSError:
            if self._tokenizer_digests() != wanted:  # not a twin's that came first
                raise
            shutil.rmtree(temporary, ignore_errors=True)
        self._fs.sync_folder(self.path)

    def _tokenizer_digests(self) -> dict[str, str]:
        folder = self.path / TOKENIZER_FOLDER
        return {p.name: file_sha256(p) for p in folder.iterdir() if p.is_file()}

    def _check_same(self, found: StoreHeader) -> None:
        different = [
            f"{name} is {_short(there)} in the store, {_short(here)} now"
            for name, here, there in self.spec.differences(found.spec)
        ]
        here, there = self.plan, found.plan
        if here.dataset_sha256 != there.dataset_sha256:
            different.append(
                f"the dataset is another or has changed (plan.dataset_sha256 is "
                f"{_short(there.dataset_sha256)} in the store, {_short(here.dataset_sha256)} now; "
                f"{there.rows:,} rows in the store, {here.rows:,} now)"
            )
        elif here.boundaries != there.boundaries:
            different.append(
                f"plan.boundaries is {_short(list(there.boundaries))} in the store, "
                f"{_short(list(here.boundaries))} now (--shard-text-bytes)"
            )
        if different:
            raise MismatchError(
                f"{self.path}: the store was begun with other settings: {'; '.join(different)}. "
                "Run with the store's settings to resume it, or choose another --out."
            )

    def _index(self) -> bytes:
        lines = []
        for i in range(self.plan.shard_count):
            shard = Shard(self.path / SHARDS_FOLDER / shard_name(i), self.spec, self.plan, i)
            lines.append(index_line(shard, i))
        return encode_index(lines)


def tokenizer_digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file, as the spec records them.

    Raises:
        InputError: There are none.
    """
    if not files:
        raise InputError("the teacher's tokenizer saved no files. Use a fast tokenizer.")
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def check_place(path: Path) -> None:
    """Refuse a folder that no store can begin in. Makes nothing.

    Raises:
        MismatchError: It is a file or below one, or holds something else.
        StorageError: It cannot be read or written.
    """
    places = (path, *path.absolute().parents)
    try:
        found = sorted(os.listdir(path))
    except FileNotFoundError:
        found = []
    except NotADirectoryError:
        file = next((p for p in places if p.is_file()), path)
        raise MismatchError(f"{file}: is a file, not a folder. Choose another --out.") from None
    except OSError as e:
        raise commit.explain(e, path) from e
    strange = [n for n in found if n not in _OURS and not n.startswith(TEMPORARY_PREFIX)]
    if strange or set(found) & {INDEX_FILE, DONE_FILE}:
        raise MismatchError(
            f"{path}: the folder holds something else ({', '.join(strange or found)}) and no "
            "store. Choose another --out, or empty the folder."
        )
    nearest = next(p for p in places if p.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise commit.explain(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), nearest)


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 48 else f"{text[:45]}…"
