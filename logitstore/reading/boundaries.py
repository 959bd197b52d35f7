"""Find the records at a student's boundaries in a store, and the store around them.

They lie in folders of the store, each of them a store of the same rows.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from logitstore.console.counts import counted
from logitstore.errors import IncompleteStoreError, MismatchError, NotAStoreError
from logitstore.format.spec import Plan, StoreSpec
from logitstore.reading.listing import list_boundaries
from logitstore.storage.paths import StorePath


class Opened(Protocol):
    """What is asked of an open store."""

    path: StorePath
    spec: StoreSpec
    plan: Plan
    provenance: dict[str, Any]
    is_complete: bool

    @property
    def rows_held(self) -> int: ...

    def sequences_of_shards(self) -> Mapping[int, int]: ...


S = TypeVar("S", bound=Opened)


def stores_inside(around: Opened, opened: Callable[[StorePath], S]) -> dict[str, S]:
    """Open the stores at boundaries that lie in a store, by fingerprint of the student.

    Args:
        around: The store.
        opened: Opens a folder, finished or not.

    Raises:
        MismatchError: One of them does not belong to this store.
        LogitStoreError: As `opened` raises.
    """
    found = {}
    for path in list_boundaries(around.path):
        store = opened(path)
        student = store.spec.boundaries_of
        if student is None or not _is_inside(store, around):
            raise MismatchError(
                f"{path}: holds the records of another store, not those of {around.path} at the "
                "boundaries of a student. Move it away, and run the same `logitstore capture … "
                "--boundaries-of STUDENT` again."
            )
        found[str(student["fingerprint"])] = store
    return found


def chosen_inside(
    path: StorePath, inside: Mapping[str, S], fingerprint: str, name: str, *, allow_partial: bool
) -> S:
    """Choose the store at the boundaries of one student.

    Args:
        path: The store around them, for messages.
        inside: All of them.
        fingerprint: Of the student's tokenizer.
        name: The student, for messages.
        allow_partial: Whether an unfinished one will do.

    Raises:
        MismatchError: There is none, or only those of other students.
        IncompleteStoreError: Its capture has not finished.
    """
    found = inside.get(fingerprint)
    if found is None:
        others = ", ".join(map(_student, inside.values()))
        raise MismatchError(
            f"{path}: has no records at the boundaries of {name} ({fingerprint[:12]}…), "
            f"only at those of {others or 'the teacher'}. Run the same `logitstore capture …` "
            "with --boundaries-of and this student, which adds them."
        )
    if not found.is_complete and not allow_partial:
        raise IncompleteStoreError(
            f"{found.path}: holds {found.rows_held:,} of {counted(found.plan.rows, 'row')}; the "
            "capture has not finished. Run the same `logitstore capture … --boundaries-of` again "
            "to resume it, or use what is there with --allow-partial."
        )
    return found


def store_around(store: Opened, opened: Callable[[StorePath], S]) -> S:
    """Open the store in which one at boundaries lies.

    Args:
        store: The inner one.
        opened: Opens a folder, finished or not.

    Raises:
        MismatchError: It lies in no store that it belongs to.
        IncompleteStoreError: The store around it lacks shards that it has.
    """
    path, again = store.path.resolve().parent.parent, "Move it back to where it was captured."
    try:
        around = opened(path)
    except NotAStoreError as error:
        raise MismatchError(
            f"{store.path}: holds records at the boundaries of a student, which are read beside "
            f"those of the store around it, but {path} is no store. {again}"
        ) from error
    if store.spec.boundaries_of is None or not _is_inside(store, around):
        raise MismatchError(f"{store.path}: does not belong to {path}, in which it lies. {again}")
    ours, theirs = store.sequences_of_shards(), around.sequences_of_shards()
    lacking = [shard for shard, count in ours.items() if theirs.get(shard) != count]
    if lacking:
        raise IncompleteStoreError(
            f"{path}: lacks {len(lacking):,} of the {counted(len(ours), 'shard')} that "
            f"{store.path.name} in it has (shard {lacking[0]} first). Run the same `logitstore "
            "capture …` again."
        )
    return around


def _is_inside(store: Opened, around: Opened) -> bool:
    """Tell whether a store has the rows of another, with the same settings, at other places."""
    return (store.spec.at_boundaries(None), store.plan) == (around.spec, around.plan)


def _student(store: Opened) -> str:
    """Name the student at whose boundaries a store's records are."""
    known = store.spec.boundaries_of or {}
    named = store.provenance.get("boundaries_of")
    return f"{named} ({str(known.get('fingerprint'))[:12]}…)"
