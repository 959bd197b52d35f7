"""A capture run again with the settings that its store has recorded, for `repair --capture`."""

import os
from dataclasses import replace

from logitstore.capture.settings import CaptureSettings
from logitstore.errors import InputError
from logitstore.format.spec import (
    BOUNDARIES_FOLDER,
    DONE_FILE,
    STUDENT_FOLDER,
    StoreHeader,
    boundaries_name,
)
from logitstore.storage.paths import StorePath, names_in_or_none, store_path


def capture_again(store: str | os.PathLike[str] | StorePath) -> None:
    """Capture what is missing with the teacher, dataset and settings that the store began with.

    Raises:
        InputError: The store has not recorded them, or teacher or dataset cannot be found.
        MismatchError: Teacher or dataset has changed.
    """
    path = store_path(store)
    provenance = StoreHeader.read(path).provenance
    settings = provenance.get("settings")
    teacher, dataset = (str(provenance.get(name, "")) for name in ("teacher", "dataset"))
    if "imported" in provenance:
        raise InputError(
            f"{path}: was imported from {dataset}, not captured. Run the same `logitstore import …`"
            " as then: it does only what is missing."
        )
    if "created" in provenance:
        raise InputError(
            f"{path}: was written by a program (`logitstore.create`), not captured. Run the same "
            "program again: it adds only the rows that are missing."
        )
    if not isinstance(settings, dict) or not teacher or not dataset:
        raise InputError(
            f"{path}: the store does not say how it was captured (it was written by an older "
            "version or from a dataset in memory). Run the same `logitstore capture …` as then."
        )
    from logitstore.capture.job import run_capture

    files = provenance.get("files")  # of a dataset that is several
    again = CaptureSettings.from_recorded(settings)
    students: list[str | None] = [*_students(path)] or [None]
    for student in students:
        run_capture(teacher, files or dataset, path, replace(again, boundaries_of=student))


def _students(path: StorePath) -> list[str]:
    """List the students at whose boundaries records are missing: their tokenizers in the store."""
    folder = path / BOUNDARIES_FOLDER
    found = []
    for name in names_in_or_none(folder):
        is_there = name == boundaries_name(name) and (folder / name / STUDENT_FOLDER).exists()
        if is_there and not (folder / name / DONE_FILE).exists():
            found.append(str(folder / name / STUDENT_FOLDER))
    return found
