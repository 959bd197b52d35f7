"""Every error has a kind, and kinds stay."""

import pickle
from pathlib import Path

import pytest

from logitstore import errors
from logitstore.errors import CorruptStoreError, LogitStoreError, MismatchError, StorageError

#: What callers match. Never take one away, and never give one another meaning.
KINDS = {
    "NotAStoreError": ("not-a-store",),
    "FormatError": ("format",),
    "IncompleteStoreError": ("incomplete",),
    "MismatchError": ("mismatch", "dataset-changed", "no-common-row"),
    "CorruptStoreError": ("corrupt", "missing-file"),
    "InputError": (
        "input",
        "usage",
        "out-of-memory",
        "lost-rows",
        "self-test",
        "untrained",
        "own-loss",
        "one-teacher",
        "engine",
    ),
    "MissingLibraryError": ("missing-library",),
    "StorageError": ("storage", "disk-full"),
    "BusyError": ("busy",),
}


def test_every_error_has_kinds_of_its_own_and_none_is_lost() -> None:
    found = {each.__name__: each.kinds for each in LogitStoreError.__subclasses__()}
    assert found == KINDS
    kinds = [kind for each in found.values() for kind in each]
    assert len(set(kinds)) == len(kinds)


def test_the_table_in_the_docstring_is_true() -> None:
    assert errors.__doc__ is not None
    _, table = errors.__doc__.split("caller would handle in another way.")
    for name, kinds in KINDS.items():
        assert f"    {name}" in table
        for kind in kinds:
            assert f" {kind}" in table, kind


@pytest.mark.parametrize("each", LogitStoreError.__subclasses__())
def test_an_error_has_the_kind_of_its_class_unless_one_is_given(
    each: type[LogitStoreError],
) -> None:
    more = {"path": Path("s/shards/00000.zarr.zip")} if each is CorruptStoreError else {}
    for kind in each.kinds:
        error = each("where: what. Next step.", kind=kind, **more)
        assert (str(error), error.kind, error.facts()["kind"]) == (
            "where: what. Next step.",
            kind,
            kind,
        )
    assert each("x", **more).kind == each.kinds[0]
    with pytest.raises(AssertionError):
        each("x", kind="no-such-kind", **more)


def test_a_kind_survives_another_process() -> None:
    for error in (MismatchError("x", kind="dataset-changed"), StorageError("x", kind="disk-full")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.kind) == (type(error), "x", error.kind)


def test_damage_names_its_file_and_rows() -> None:
    path = Path("s/shards/00001.zarr.zip")
    error = CorruptStoreError("x", path=path, rows=(3, 6), kind="missing-file")
    assert error.facts() == {"kind": "missing-file", "path": str(path), "rows": [3, 6]}
    assert CorruptStoreError("x", path=path).facts()["rows"] is None
