"""Say which rows are in which shard, fixed before the first is written, and keep it on the disk.

Version 1 keeps the boundaries of all shards in `store.json`, as a list. That costs every reader a
parse, and a limit of 8 MiB holds 848,000 of them. Version 2, which plans of more than 100,000
shards have, keeps them in a file of their own beside it, as one array:

    store.json             "plan": {"boundaries_sha256": …, "dataset_sha256": …, "rows": …,
                           "shards": …}
    plan-<16 digits>.u64   the boundaries; named by their digest, so that two who begin different
                           stores in one folder at once never write the same file

The array is read whole (8 bytes a shard), and not mapped: a map of a file that becomes shorter ends
the process.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from logitstore.errors import CorruptStoreError, InputError, StorageError
from logitstore.format.canonical_json import canonical_json
from logitstore.format.numpy_types import I64
from logitstore.storage.paths import StorePath

#: Shards of a plan that is kept in `store.json`, as all plans were before there was another way.
MOST_IN_JSON = 100_000
#: Shards that a store has at most: a plan of 128 MiB.
MOST_SHARDS_OF_ALL = 1 << 24
_MAX_ROW = 2**48 - 1
_IN_JSON, _BESIDE = 1, 2
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = {
    _IN_JSON: {"boundaries", "dataset_sha256"},
    _BESIDE: {"boundaries_sha256", "dataset_sha256", "rows", "shards"},
}
PREFIX, SUFFIX = "plan-", ".u64"


@dataclass(frozen=True, eq=False)
class Plan:
    """The division of a dataset's rows into shards, fixed before the capture begins.

    Attributes:
        dataset_sha256: The digest of the dataset's rows.
        boundaries: (shards + 1,) shard i holds rows boundaries[i] to boundaries[i + 1] - 1.
        version: How it is kept: 1, in `store.json`; 2, in a file beside it. 0: chosen by its size.
    """

    dataset_sha256: str
    boundaries: I64
    version: int = 0

    def __post_init__(self) -> None:
        cuts = _row_numbers(self.boundaries)
        object.__setattr__(self, "boundaries", cuts)
        if self.version == 0:
            chosen = _IN_JSON if len(cuts) <= MOST_IN_JSON + 1 else _BESIDE
            object.__setattr__(self, "version", chosen)

    def __eq__(self, other: object) -> bool:
        """Tell whether two plans divide the same rows alike, however they are kept."""
        if not isinstance(other, Plan):
            return NotImplemented
        return self.dataset_sha256 == other.dataset_sha256 and np.array_equal(
            self.boundaries, other.boundaries
        )

    def __hash__(self) -> int:
        return hash((self.dataset_sha256, len(self.boundaries)))

    def check(self) -> None:
        """Check the digest and the boundaries.

        Raises:
            ValueError: Not a digest, or boundaries that do not divide rows into shards.
        """
        if not isinstance(self.dataset_sha256, str):
            raise ValueError("dataset_sha256 is not a digest")  # noqa: TRY004
        cuts = self.boundaries
        if len(cuts) < 2 or cuts[0] != 0 or cuts.min() < 0 or cuts.max() > _MAX_ROW:
            raise ValueError("boundaries are not row numbers")
        if not (cuts[1:] > cuts[:-1]).all():
            raise ValueError("boundaries do not increase")

    @property
    def rows(self) -> int:
        return int(self.boundaries[-1])

    @property
    def shard_count(self) -> int:
        return len(self.boundaries) - 1

    def shard_rows(self, index: int) -> tuple[int, int]:
        """Return the first row of a shard, and the first row after it."""
        return int(self.boundaries[index]), int(self.boundaries[index + 1])

    def shard_of_row(self, row: int) -> int:
        """Find the shard of a row of the dataset."""
        return int(np.searchsorted(self.boundaries, row, side="right")) - 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what `store.json` says of the plan, as canonical JSON, in hex."""
        return hashlib.sha256(canonical_json(self.described())).hexdigest()

    def described(self) -> dict[str, Any]:
        """Return what `store.json` says of the plan."""
        said: dict[str, Any] = {"dataset_sha256": self.dataset_sha256}
        if self.version == _IN_JSON:
            return said | {"boundaries": self.boundaries.tolist()}
        return said | {
            "boundaries_sha256": self._boundaries_sha256,
            "rows": self.rows,
            "shards": self.shard_count,
        }

    def files(self) -> dict[str, bytes]:
        """Return the files that the plan needs beside `store.json`, by name."""
        if self.version == _IN_JSON:
            return {}
        return {_file_name(self._boundaries_sha256): self._boundaries_bytes()}

    @classmethod
    def read(cls, store: StorePath, version: int, said: Any) -> Self:
        """Make a plan of what `store.json` says of it, and of the file beside it.

        Args:
            store: The store.
            version: The version that `store.json` has.
            said: What it says of the plan.

        Raises:
            ValueError: It says what cannot be.
            CorruptStoreError: The file is missing, or not the one that was written.
            StorageError: The file cannot be read.
        """
        if not isinstance(said, dict) or set(said) != _FIELDS[version]:
            raise ValueError(f"expected {', '.join(sorted(_FIELDS[version]))}")
        if version == _IN_JSON:
            plan = cls(said["dataset_sha256"], said["boundaries"], version)
            plan.check()
            return plan
        shards, digest = said["shards"], said["boundaries_sha256"]
        if type(shards) is not int or not 1 <= shards <= MOST_SHARDS_OF_ALL:
            raise ValueError(f"a plan of {shards!r:.60} shards cannot be")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError("boundaries_sha256 is not a digest")
        plan = cls(said["dataset_sha256"], _read_boundaries(store, digest, shards), version)
        plan.__dict__["_boundaries_sha256"] = digest  # it has just been compared
        plan.check()
        return plan  # whoever encodes it again, compares its rows

    @cached_property
    def _boundaries_sha256(self) -> str:
        return hashlib.sha256(self._boundaries_bytes()).hexdigest()

    def _boundaries_bytes(self) -> bytes:
        return self.boundaries.astype("<u8").tobytes()


def is_plan_file(name: str) -> bool:
    """Tell whether a file of this name in a store's folder may be that of a plan."""
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


def too_many_shards(count: int) -> InputError:
    """Make the error for a plan that no store can have."""
    return InputError(
        f"{count:,} shards are more than a store can have, {MOST_SHARDS_OF_ALL:,}. Capture with a "
        "larger --shard-text-bytes."
    )


def _file_name(digest: str) -> str:
    return f"{PREFIX}{digest[:16]}{SUFFIX}"


def _read_boundaries(store: StorePath, digest: str, shards: int) -> npt.NDArray[Any]:
    path, size = store / _file_name(digest), 8 * (shards + 1)
    kind = None
    try:
        data = path.read_limited(size)
    except (FileNotFoundError, NotADirectoryError):
        why, kind = "it is missing", "missing-file"
    except (StorageError, InputError):
        raise
    except (OSError, ValueError) as e:
        why = f"it cannot be read ({e})"
    else:
        if len(data) == size and hashlib.sha256(data).hexdigest() == digest:
            return np.frombuffer(data, "<i8")  # one of 2^63 or more is below zero here
        why = f"it is not the file that store.json describes (SHA-256 {digest[:12]}…)"
    raise CorruptStoreError(
        f"{path}: {why}. The shards beside it are still good: restore the file from a copy, or run "
        "the command that made the store again, which writes it anew.",
        path=path,
        kind=kind,
    )


def _row_numbers(values: Any) -> I64:
    """Turn a list into an array that nobody writes to.

    Raises:
        ValueError: They are not whole numbers, or beyond all rows.
    """
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        array = np.zeros(0)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError("boundaries are not row numbers")
    if array.size and array.max() > _MAX_ROW:
        raise ValueError("boundaries are not row numbers")
    whole: I64 = array.astype(np.int64, copy=array.flags.writeable)
    whole.flags.writeable = False
    return whole
