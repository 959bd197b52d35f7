"""Remember which shards a check has found whole, so that an interrupted one can go on.

A file in the user's cache has a line for each: its number, and the stamp that its file or object
had before it was looked at (of a file size and times, of an object what the service says of its
content). Whoever writes a shard anew changes that; what a disk loses in silence does not, which is
why only a check that says so (`--resume`) believes the file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from logitstore.errors import InputError
from logitstore.format.spec import SHARDS_FOLDER, StoreHeader, shard_name
from logitstore.reading.shard_cache import ShardCache
from logitstore.storage.paths import StorePath

_FOLDER = "verified"
#: Of what the checks look at, and of stamps: raised when they look at more.
_CHECKS = 2


@dataclass
class CheckedShards:
    """The shards of a store that were found whole.

    As a context it appends to its file, and removes it if all went through.

    Attributes:
        file: Where they are remembered.
        known: The stamp that each had.
        stamps: Those of all shards when the check began, by the names of their files.
    """

    file: Path
    known: Mapping[int, str]
    stamps: Mapping[str, str]
    _written: IO[str] | None = None

    @classmethod
    def of(
        cls, path: StorePath, header: StoreHeader, what: tuple[bool, ...], *, is_resumed: bool
    ) -> Self:
        """Find what an earlier check has left.

        Args:
            path: The store.
            header: What its `store.json` says.
            what: What is looked at: a check of another kind says nothing.
            is_resumed: Whether to believe it; else it is forgotten.

        Raises:
            InputError: It is to be believed, and nothing tells whether an object is as it was.
            StorageError: The shards cannot be listed.
        """
        content = [str(path.resolve()), header.spec.digest, header.plan.digest, what, _CHECKS]
        name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
        file = ShardCache.chosen().folder / _FOLDER / f"{name}.jsonl"
        stamps = (path / SHARDS_FOLDER).stamps()
        if is_resumed and path.is_remote and not stamps:
            raise InputError(
                f"{path}: --resume knows by what a bucket says of an object (its ETag) whether it "
                "is as it was checked, and this one says nothing. Leave it out."
            )
        return cls(file, _read(file) if is_resumed else {}, stamps)

    def has(self, index: int) -> bool:
        """Tell whether a shard was found whole, and its file is as it was then."""
        stamp = self.stamps.get(shard_name(index))
        return stamp is not None and self.known.get(index) == stamp

    def add(self, index: int) -> None:
        """Note that a shard is whole."""
        stamp = self.stamps.get(shard_name(index))
        if self._written is not None and stamp is not None:
            self._written.write(json.dumps([index, stamp]) + "\n")
            self._written.flush()

    def __enter__(self) -> Self:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._written = self.file.open("a" if self.known else "w", encoding="utf-8")
        except OSError:  # a check needs no cache; it just cannot be resumed
            self._written = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._written is not None:
            self._written.close()
            if kind is None:
                self.file.unlink(missing_ok=True)


def _read(file: Path) -> dict[int, str]:
    """Read what was remembered; a line that was cut off is left out, with all that follow."""
    known: dict[int, str] = {}
    try:
        for line in file.read_text("utf-8").splitlines():
            index, stamp = json.loads(line)
            known[int(index)] = str(stamp)
    except (OSError, ValueError, TypeError):
        pass
    return known
