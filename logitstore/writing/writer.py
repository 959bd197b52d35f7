"""Write a store: begin or resume its folder, commit shards in any order, seal it.

The order in which files appear is what makes a store safe to kill at any moment:

1. `store.json` makes the folder a store: spec and plan are fixed from here on, and whoever comes
   later compares theirs with it. Of two that begin at once, one file wins; the other continues if
   it wants the same store, and else has written nothing but, before it, the file of a large plan,
   which is named by its content.
2. `tokenizer/`, of which `store.json` has the digests. Whoever resumes completes it.
3. `shards/00000.zarr.zip` … in any order, from any process: each is written under a temporary name,
   synced, and linked to its final name, so it is there whole or not at all; a twin that comes
   second is discarded (see commit.py). Hidden states, if there are any, are there before the shard
   that names them (sidecars.py).
4. `index.parquet` when the last shard is there. It is derived from the shards, with their digests.
5. Temporary files go: claims, heartbeats, and what a killed process left half-written.
6. `DONE` comes last, with the digests of tokenizer, `store.json` and index: a store that has it is
   finished, one without is resumed by writing the shards that are missing.

The journal (who wrote what, when) lies beside the folder, not in it: nothing in a store names a
host, a time or a worker, so the same capture is the same bytes anywhere (see journal.py).

A store in a bucket has the same objects with the same bytes. It is sealed from the ends of its
shards (shard_head.py), so that what other workers wrote is not read again.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from logitstore.errors import CorruptStoreError
from logitstore.format.chunk_codecs import pcodec_library
from logitstore.format.encoded import EncodedRecords
from logitstore.format.index import encode_index
from logitstore.format.lm_head import LmHead
from logitstore.format.seal import seal_bytes, sealed_names
from logitstore.format.shard_group import HIDDEN
from logitstore.format.spec import (
    DONE_FILE,
    HIDDEN_FOLDER,
    INDEX_FILE,
    SHARDS_FOLDER,
    SPEC_FILE,
    STUDENT_FOLDER,
    TOKENIZER_FOLDER,
    Plan,
    StoreHeader,
    StoreSpec,
    shard_name,
)
from logitstore.format.zip_archive import pack
from logitstore.reading.listing import list_shards
from logitstore.reading.shard import Shard
from logitstore.reading.shard_head import Skimmed
from logitstore.records import SequenceText
from logitstore.storage import commit
from logitstore.storage.commit import OS_FS, Fs
from logitstore.storage.paths import StorePath, remove_temporaries, to_write
from logitstore.writing.digests import digests_of, sha256_of
from logitstore.writing.journal import Journal, Notes
from logitstore.writing.lm_head import (
    check_there,
    copy_lm_head,
    lacks_lm_head,
    write_lm_head,
)
from logitstore.writing.places import check_place
from logitstore.writing.same_store import check_same
from logitstore.writing.sealing import gather_lines
from logitstore.writing.shard_builder import build_shard
from logitstore.writing.sidecars import (
    Sidecar,
    bytes_of,
    copy_sidecar,
    remove_strangers,
    write_sidecar,
)

#: Looks at the lines of an index, and may raise.
Check = Callable[[Sequence[Mapping[str, Any]]], None]


class StoreWriter:
    """Writes a store; may be killed at any moment, and made again with the same arguments.

    Attributes:
        path: The store's folder, or its address in a bucket.
        spec: What the store holds.
        plan: Which rows are in which shard.
        provenance: How the store was made, as recorded when it was begun.
        journal: Logs what is written, beside the store.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | StorePath,
        spec: StoreSpec,
        plan: Plan,
        tokenizer_files: Mapping[str, bytes],
        provenance: Mapping[str, Any] | None = None,
        *,
        folders: Mapping[str, Mapping[str, bytes]] | None = None,
        journal: Notes | None = None,
        fs: Fs = OS_FS,
    ) -> None:
        """Begin a store, or resume one made with the same spec and plan.

        Args:
            path: The store's folder, or its address in a bucket.
            spec: What the store holds.
            plan: Which rows are in which shard.
            tokenizer_files: Name and content of the teacher's tokenizer's files.
            provenance: How the store is made, for people.
            folders: Further small files by folder, which the spec has the digests of.
            journal: Where events are written; default: a journal beside the store.
            fs: Writes files, for tests that make it fail.

        Raises:
            MismatchError: The folder holds a store made with other settings, or something else.
            StorageError: The file system rejected a file.
            InputError: A URL that can only be read.
            MissingLibraryError: The codec is `compact`, and pcodec is not installed.
            ValueError: The spec has other digests than those of these files.
        """
        self.path: StorePath = to_write(path)
        self.spec, self.plan, self._fs = spec, plan, fs
        self.journal: Notes = Journal(self.path) if journal is None else journal
        self._folders = {TOKENIZER_FOLDER: tokenizer_files, **(folders or {})}
        spec.check()
        plan.check()
        if spec.codec["name"] == "compact":
            pcodec_library()
        self._check_files()
        header = StoreHeader(spec, plan, dict(provenance or {}))
        if not (self.path / SPEC_FILE).exists():
            self._begin(header)
        found = self._read_header()
        check_same(self.path, StoreHeader(spec, plan, {}), found)
        self.plan = found.plan  # as it is kept there: shards have its digest
        self.provenance, self._described = found.provenance, found.to_bytes()
        if not self.is_sealed:  # and it is ours: nothing is written to another's store
            self._complete_folders()
            (self.path / SPEC_FILE).check_conditional(self._described)

    def missing(self) -> list[int]:
        """List the shards that are not committed yet, in order."""
        there = set(list_shards(self.path, self.plan))
        return [i for i in range(self.plan.shard_count) if i not in there]

    def has_shard(self, index: int) -> bool:
        """Tell whether one shard is committed, without a look at all others."""
        return self.shard_path(index).exists()

    @property
    def is_sealed(self) -> bool:
        """Tell whether the store is finished: nothing more will be written."""
        is_done = (self.path / DONE_FILE).exists() and not self.lacks_lm_head
        return is_done and not self.missing()

    @property
    def lacks_lm_head(self) -> bool:
        """Tell whether the store should have the teacher's output embedding, and has none yet."""
        return lacks_lm_head(self.path, self.spec)

    def write_lm_head(self, head: LmHead) -> None:
        """Commit the teacher's output embedding, unless it is there.

        Raises:
            ValueError: It is not that of the store's teacher.
        """
        write_lm_head(self.path, self.spec, head, self._fs)
        self.note("lm head")

    def copy_lm_head(self, source: StorePath) -> None:
        """Commit that of another store with the same content, if this one should have one.

        Raises:
            CorruptStoreError: Its bytes are not those that were committed there.
        """
        if self.lacks_lm_head:
            copy_lm_head(self.path, source, self._fs)

    def write_shard(
        self,
        index: int,
        sequences: Sequence[tuple[SequenceText, EncodedRecords | None]],
        kept_fidelity: Mapping[str, float | int] | None = None,
    ) -> bool:
        """Build and commit one shard.

        Args:
            index: Number of the shard in the plan.
            sequences: All sequences of its rows in order, each with its records or None.
            kept_fidelity: Measured fidelity of records that come from another store; see
                `build_shard`.

        Returns:
            False if another worker had committed it already; then nothing changed. (In a bucket:
            False if that worker's bytes differ.)
        """
        began, ended = self.plan.shard_rows(index)
        rows = [line.row for line, _ in sequences]
        if sorted(set(rows)) != list(range(began, ended)) or rows != sorted(rows):
            raise ValueError(f"shard {index} needs every row from {began} to {ended - 1}, in order")
        beside = self._write_sidecar(index, [encoded for _, encoded in sequences])
        pinned = None if beside is None else beside.pinned
        members = build_shard(self.spec, self.plan, index, sequences, kept_fidelity, pinned)
        pieces = list(pack(members))
        won = self.shard_path(index).create(pieces, self._fs)
        self.note(
            "shard",
            shard=index,
            committed=won,
            records=sum(len(records) for _, records in sequences if records is not None),
            stored_bytes=bytes_of(pieces) + (0 if beside is None else beside.size_bytes),
        )
        if beside is not None and not won:
            self._remove_unless_pinned(index, beside)
        return won

    def _write_sidecar(
        self, index: int, records: Sequence[EncodedRecords | None]
    ) -> Sidecar | None:
        """Commit the hidden states of a shard, before the shard that names them; None: none."""
        if self.spec.hidden is None:
            return None
        return write_sidecar(self.path, self.spec, self.plan, index, records, self._fs)

    def _remove_unless_pinned(self, index: int, beside: Sidecar) -> None:
        """Remove hidden states that the shard which is there now does not name."""
        there = Skimmed(self.shard_path(index), self.spec, self.plan, index)
        if there.about[HIDDEN] != beside.pinned:
            beside.path.delete()

    def copy_shard(self, index: int, shard: Shard) -> bool:
        """Commit a shard of another store with the same content and plan, byte for byte.

        Returns:
            False if another worker had committed it already; then nothing changed.

        Raises:
            CorruptStoreError: Its bytes are not those that were committed there.
        """
        shard.archive.check_digest()
        if self.spec.hidden is not None:
            copy_sidecar(self.path, shard, self._fs)
        won = self.shard_path(index).create(shard.archive.whole.pieces(), self._fs)
        self.note("shard", shard=index, committed=won)
        return won

    def seal(self, check: Check | None = None) -> None:
        """Write index and `DONE` once every shard is there. Several processes may do so at once.

        Args:
            check: Is given the lines of the index before anything is written, and may raise.

        Raises:
            CorruptStoreError: The bytes of a shard, or of `store.json`, are not those that were
                committed; or the output embedding is missing.
            StorageError: The file system or the object store failed, or the store was moved away.
        """
        if self.missing():
            raise ValueError(f"{len(self.missing())} shards are missing: write them first")
        check_there(self.path, self.spec)
        self._complete_folders()  # as they were begun, whoever else wrote there
        lines = gather_lines(self.path, StoreHeader(self.spec, self.plan, self.provenance))
        if check is not None:
            check(lines)
        (self.path / INDEX_FILE).overwrite(encode_index(lines), self._fs)
        try:
            # Not earlier: one of them is the claim on the seal, which tells others to wait.
            remove_temporaries(self.path / SHARDS_FOLDER)
            remove_temporaries(self.path)
            if self.spec.hidden is not None:
                remove_strangers(self.path, self.spec, self.plan)
            digests = {name: (self.path / name).sha256() for name in sealed_names(self.spec)}
        except FileNotFoundError as e:
            raise commit.explain(e, self.path) from e
        self._check_sealed(digests)
        (self.path / DONE_FILE).overwrite(seal_bytes(digests), self._fs)
        self.note("sealed")

    def shard_bytes(self, index: int) -> int:
        """Count the bytes of a shard that is there, with its hidden states."""
        path = self.shard_path(index)
        if self.spec.hidden is None:
            return path.size_bytes()
        pinned = Skimmed(path, self.spec, self.plan, index).about[HIDDEN]
        return path.size_bytes() + int(pinned["bytes"])

    def note(self, event: str, **facts: Any) -> None:
        """Write an event to the journal beside the store."""
        self.journal.note(event, **facts)

    def _begin(self, header: StoreHeader) -> None:
        check_place(self.path)
        try:
            for folder in self._empty_folders:
                (self.path / folder).make_folder(self._fs)
        except OSError as e:
            raise commit.explain(e, self.path) from e
        for name, data in header.plan.files().items():  # named by content: any writer is right
            (self.path / name).create([data], self._fs)
        (self.path / SPEC_FILE).create([header.to_bytes()], self._fs)

    @property
    def _empty_folders(self) -> list[str]:
        """The folders that are filled later."""
        return [SHARDS_FOLDER, *([] if self.spec.hidden is None else [HIDDEN_FOLDER])]

    def _read_header(self) -> StoreHeader:
        """Read `store.json`; where the file of its plan was lost, and it is ours, write it again.

        Raises:
            CorruptStoreError: It, or the plan of another store, is damaged.
        """
        try:
            return StoreHeader.read(self.path)
        except CorruptStoreError as e:
            lost = e.path.name
            again = self.plan.files().get(lost)
            if again is None:
                raise
        (self.path / lost).overwrite(again, self._fs)
        return StoreHeader.read(self.path)

    def _complete_folders(self) -> None:
        """Make folders and tokenizers again that a crash or a repair removed."""
        try:
            for folder in self._empty_folders:
                (self.path / folder).make_folder(self._fs)
            for folder, files in self._folders.items():
                wanted = {name: sha256_of(data) for name, data in files.items()}
                if digests_of(self.path / folder) != wanted:
                    (self.path / folder).write_folder(files, self._fs)
        except OSError as e:
            raise commit.explain(e, self.path) from e

    def _check_files(self) -> None:
        """Check that the files to write are those that the spec has the digests of."""
        student = self.spec.boundaries_of
        wanted = {TOKENIZER_FOLDER: self.spec.tokenizer["files"]}
        if student is not None:
            wanted[STUDENT_FOLDER] = student["files"]
        found = {
            folder: {name: sha256_of(data) for name, data in files.items()}
            for folder, files in self._folders.items()
        }
        if found != wanted:
            raise ValueError("the spec has other digests than those of the tokenizer's files")

    def _check_sealed(self, digests: Mapping[str, str]) -> None:
        """Check that a seal would pin what was begun, not what somebody put there since.

        Raises:
            CorruptStoreError: It would pin something else.
        """
        begun = {f"{TOKENIZER_FOLDER}/{n}": d for n, d in self.spec.tokenizer["files"].items()}
        begun[SPEC_FILE] = sha256_of(self._described)
        changed = sorted(name for name, digest in begun.items() if digests[name] != digest)
        if changed:
            path = self.path / changed[0]
            raise CorruptStoreError(
                f"{path}: was changed while the store was written (SHA-256 "
                f"{digests[changed[0]][:12]}…, was {begun[changed[0]][:12]}…), so the store is not "
                "sealed. Restore the file from a copy, then run the same command again: it seals.",
                path=path,
            )

    def shard_path(self, index: int) -> StorePath:
        """Name the file or object of a shard."""
        return self.path / SHARDS_FOLDER / shard_name(index)
