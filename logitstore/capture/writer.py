"""Write what a capture makes: a store, and inside it the store of a student's boundaries, if asked.

    my-store/…                                 the teacher's own tokens, an ordinary store
    my-store/boundaries/1f2e3d4c5b6a7988/…     the boundaries of one student, an ordinary store too

The two have the same plan. A shard of the one and the shard of the same rows of the other are
written one after the other, each committed by itself; a resumed run does what either lacks. The
inner store is sealed first, so that a store that is finished has finished answers.
"""

from collections.abc import Sequence
from typing import Any

from logitstore.capture.boundaries.student import Student
from logitstore.capture.passes.engine import Engine
from logitstore.format.encoded import EncodedRecords
from logitstore.format.spec import (
    BOUNDARIES_FOLDER,
    STUDENT_FOLDER,
    Plan,
    StoreSpec,
    boundaries_name,
)
from logitstore.records import SequenceText
from logitstore.storage.paths import StorePath
from logitstore.writing.digests import tokenizer_digests
from logitstore.writing.some_records import check_shards
from logitstore.writing.writer import StoreWriter

Sequences = Sequence[tuple[SequenceText, EncodedRecords | None]]


class CaptureWriter:
    """Writes the shards of a capture. Its attributes are those of the outer store's writer.

    Args:
        own: Writes the records at the teacher's own tokens.
        boundaries: Writes the records at a student's boundaries, with the same plan.
        lacks_boundaries: Whether those are wanted, and not begun: then every shard is missing.
    """

    def __init__(
        self,
        own: StoreWriter,
        boundaries: StoreWriter | None = None,
        *,
        lacks_boundaries: bool = False,
    ) -> None:
        self.own, self.boundaries, self._lacks = own, boundaries, lacks_boundaries
        self.path: StorePath = own.path
        self.plan: Plan = own.plan
        self.provenance = own.provenance
        self.journal = own.journal

    def missing(self) -> list[int]:
        """List the shards that one of the stores lacks, in order."""
        if self._lacks:
            return list(range(self.plan.shard_count))
        return sorted({i for writer in self._both for i in writer.missing()})

    def has_shard(self, index: int) -> bool:
        """Tell whether a shard is there, in both stores, without a look at all others."""
        return all(writer.has_shard(index) for writer in self._both)

    @property
    def is_sealed(self) -> bool:
        """Tell whether nothing more will be written."""
        return all(writer.is_sealed for writer in self._both)

    @property
    def lacks_lm_head(self) -> bool:
        """Tell whether the store should have the teacher's output embedding, and has none yet."""
        return self.own.lacks_lm_head

    def keep_lm_head(self, teacher: Engine) -> None:
        """Commit the teacher's output embedding, if the store should have it and does not."""
        if self.lacks_lm_head:
            self.own.write_lm_head(teacher.lm_head())

    def write_shard(self, index: int, own: Sequences, boundaries: Sequences) -> None:
        """Commit the shard of each store that lacks it."""
        for writer, sequences in zip(self._both, (own, boundaries), strict=False):
            if not writer.has_shard(index):
                writer.write_shard(index, sequences)

    def seal(self) -> None:
        """Seal the stores that are not, the inner one first.

        Raises:
            CorruptStoreError: The bytes of a shard are not those that were committed.
            InputError: Not one of its shards has a record.
        """
        for writer in reversed(self._both):
            if not writer.is_sealed:
                writer.seal(check_shards(self.path) if writer is self.own else None)

    def shard_bytes(self, index: int) -> int:
        """Count the bytes of a shard that is there, in both stores."""
        return sum(writer.shard_bytes(index) for writer in self._both)

    def note(self, event: str, **facts: Any) -> None:
        """Write an event to the journal beside the store."""
        self.own.note(event, **facts)

    @property
    def _both(self) -> list[StoreWriter]:
        return [self.own] if self.boundaries is None else [self.own, self.boundaries]


def boundaries_spec(spec: StoreSpec, student: Student) -> StoreSpec:
    """Describe the records at a student's boundaries: those of the outer store, at other places."""
    return spec.at_boundaries(student.recorded() | {"files": tokenizer_digests(student.files)})


def boundaries_path(own: StoreWriter, student: Student) -> StorePath:
    """Name the place of the store of a student's boundaries inside another."""
    return own.path / BOUNDARIES_FOLDER / boundaries_name(student.tokenizer.fingerprint)


def boundaries_writer(own: StoreWriter, student: Student, files: dict[str, bytes]) -> StoreWriter:
    """Begin or resume the store of a student's boundaries inside another.

    Args:
        own: The writer of the outer store.
        student: The student.
        files: The teacher's tokenizer.

    Raises:
        MismatchError: It was begun with another chat template of this student's.
        StorageError: The file system rejected a file.
    """
    path = boundaries_path(own, student)
    return StoreWriter(
        path,
        boundaries_spec(own.spec, student),
        own.plan,
        files,
        own.provenance | {"boundaries_of": student.name},
        folders={STUDENT_FOLDER: student.files},
        journal=own.journal.within(f"{BOUNDARIES_FOLDER}/{path.name}"),
    )
