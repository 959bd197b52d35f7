"""Remember which shards a check has found whole, so that an interrupted one can go on.

A file in the user's cache has a line for each: its number, and size, time of change and time of
status change of its file then. Whoever writes to a file changes one of them; what a disk loses in
silence does not, which is why only a check that says so (`--resume`) believes the file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from logitstore.format.spec import SHARDS_FOLDER, StoreHeader, shard_name
from logitstore.reading.shard_cache import ShardCache
from logitstore.storage.paths import StorePath, local

_FOLDER = "verified"
#: Of what the checks look at: raised when they look at more.
_CHECKS = 1
Stamp = tuple[int, int, int]


@dataclass
class CheckedShards:
    """The shards of a folder that were found whole; nothing of a bucket is remembered.

    As a context it appends to its file, and removes it if all went through.

    Attributes:
        shards: The folder of its shards.
        file: Where they are remembered; None: nowhere.
        known: The stamp that each had.
    """

    shards: Path
    file: Path | None
    known: Mapping[int, Stamp]
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
        """
        if path.is_remote:
            return cls(Path(), None, {})
        place = str(local(path).resolve())
        content = [place, header.spec.digest, header.plan.digest, what, _CHECKS]
        name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
        file = ShardCache.chosen().folder / _FOLDER / f"{name}.jsonl"
        return cls(local(path) / SHARDS_FOLDER, file, _read(file) if is_resumed else {})

    def has(self, index: int) -> bool:
        """Tell whether a shard was found whole, and its file is as it was then."""
        return index in self.known and self.known[index] == self._stamp(index)

    def add(self, index: int) -> None:
        """Note that a shard is whole."""
        if self._written is not None and (stamp := self._stamp(index)) is not None:
            self._written.write(json.dumps([index, *stamp]) + "\n")
            self._written.flush()

    def __enter__(self) -> Self:
        if self.file is not None:
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
            if kind is None and self.file is not None:
                self.file.unlink(missing_ok=True)

    def _stamp(self, index: int) -> Stamp | None:
        try:
            found = (self.shards / shard_name(index)).stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(file: Path) -> dict[int, Stamp]:
    """Read what was remembered; a line that was cut off is left out, with all that follow."""
    known: dict[int, Stamp] = {}
    try:
        lines = file.read_text("utf-8").splitlines()
        for line in lines:
            index, *stamp = json.loads(line)
            known[int(index)] = (int(stamp[0]), int(stamp[1]), int(stamp[2]))
    except (OSError, ValueError, TypeError, IndexError):
        pass
    return known
