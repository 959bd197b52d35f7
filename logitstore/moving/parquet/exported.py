"""Recognise an export of this package, check that it is whole, and read what its store was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from logitstore.errors import InputError, in_a_line
from logitstore.format.encoded import NOTHING_MEASURED
from logitstore.format.parquet_limits import PYARROW_ERRORS
from logitstore.format.spec import Plan, StoreSpec
from logitstore.moving.parquet.columns import DATA_FOLDER, EXPORT_VERSION, read_metadata
from logitstore.storage.paths import local_path

EXPORT_AGAIN = "Export the store again with `logitstore export --to parquet`."
_SHARED = ("version", "content", "provenance", "dataset_sha256", "plan_sha256", "shards")
_MAX_FIDELITY = 2**53


@dataclass(frozen=True)
class Exported:
    """An export, and the store that its metadata describes.

    Attributes:
        spec: The spec of the store that was exported.
        plan: The plan of that store.
        provenance: The provenance of that store.
        files: The Parquet file of each shard.
        fidelity: The fidelity of each shard.
    """

    spec: StoreSpec
    plan: Plan
    provenance: dict[str, Any]
    files: list[Path]
    fidelity: list[dict[str, float | int]]

    @property
    def folder(self) -> Path:
        """Return the folder that should hold `tokenizer/`."""
        above = self.files[0].parent
        return above.parent if above.name == DATA_FOLDER else above


def find_export(place: str | PathLike[str]) -> Exported | None:
    """Find the export at a path (its folder, its `data/` or its only file), or return None.

    Raises:
        InputError: It is one, but not whole; or it is in a bucket.
    """
    path = local_path(place, "what is imported", "DUMP")
    files = _parquet_files(path)
    if not files or _metadata(files[0]) is None:
        return None
    return _described(path, [(file, _metadata(file)) for file in files])


def _parquet_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    data = path / DATA_FOLDER
    return sorted((data if data.is_dir() else path).glob("*.parquet"))


def _metadata(file: Path) -> dict[str, Any] | None:
    try:
        return read_metadata(pq.read_schema(file))
    except (*PYARROW_ERRORS, ValueError) as e:
        raise InputError(
            f"{file}: cannot be read as Parquet ({in_a_line(e)}). Write the file again."
        ) from None


def _described(path: Path, found: Sequence[tuple[Path, dict[str, Any] | None]]) -> Exported:
    """Put the export together from the metadata of its files."""
    try:
        about = {int(m["shard"]): (file, m) for file, m in found if m is not None}
        ordered = [about[i] for i in sorted(about)]
        first = ordered[0][1]
        _must(first["version"] == EXPORT_VERSION, f"it is of version {first['version']}")
        _must(first["shards"] == len(about), f"it has {len(about)} of {first['shards']} files")
        _must(sorted(about) == list(range(len(about))), "the files of some shards are missing")
        _must(len(about) == len(found), "some of its files are there twice, or of something else")
        for file, m in ordered:
            is_same = all(m[key] == first[key] for key in _SHARED)
            _must(is_same, f"{file.name} is of another export than {ordered[0][0].name}")
        content = {f.name: first["content"][f.name] for f in fields(StoreSpec)}
        _must(content == first["content"], "its content has other parts than a store's")
        plan = _plan_of(first, [m["rows"][1] for _, m in ordered])
        spec = StoreSpec(**content)
        spec.check()
        plan.check()
        _must(plan.digest == first["plan_sha256"], "its files' rows are not those of its plan")
        fidelity = [_checked_fidelity(m["fidelity"]) for _, m in ordered]
        provenance = dict(first["provenance"])
    except (LookupError, TypeError, ValueError) as e:
        raise InputError(f"{path}: this export is not whole: {e}. {EXPORT_AGAIN}") from None
    return Exported(spec, plan, provenance, [file for file, _ in ordered], fidelity)


def _must(condition: bool, why: str) -> None:
    if not condition:
        raise ValueError(why)


def _checked_fidelity(fidelity: Any) -> dict[str, float | int]:
    is_known = isinstance(fidelity, dict) and set(fidelity) == set(NOTHING_MEASURED)
    _must(is_known, "its fidelity has other fields than a store's")
    is_number = all(type(n) in (int, float) and -1 < n < _MAX_FIDELITY for n in fidelity.values())
    _must(is_number, "its fidelity holds a value that cannot be")
    return dict(fidelity)


def _plan_of(first: Mapping[str, Any], stops: Sequence[int]) -> Plan:
    """Make the plan again, kept as it was: a large one may be of before there were two ways."""
    plan = Plan(first["dataset_sha256"], np.array([0, *stops]))
    return plan if plan.digest == first["plan_sha256"] else replace(plan, version=1)
