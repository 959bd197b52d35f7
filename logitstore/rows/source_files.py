"""Tell whether the files of a dataset are still those that were read.

`datasets` keeps what it made of a file, and knows the file by its path and time; of an archive, by
its path alone. A file may be written anew and keep its time (`cp -p`, `tar`, trees with fixed
times, file systems that count in seconds). So what is made of local files is kept in a folder that
is named after all that such a file cannot keep (`file_sign`). Where it was written so lately that
the clock may not tell it from the next write, the name counts its content, too.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitstore.errors import InputError
from logitstore.storage.files import TICK_NS, FileSign, file_sha256, file_sign

if TYPE_CHECKING:
    from datasets import Dataset


class SourceFiles:
    """Local files that `datasets` is about to read.

    Args:
        files: Their paths.
        name: What the user called the dataset, for messages.

    Raises:
        OSError: One cannot be read.
    """

    def __init__(self, files: Iterable[Path], name: str) -> None:
        self._name = name
        self._signs = signs_of(files)

    @classmethod
    def of_folder(cls, folder: Path, config_name: str | None) -> SourceFiles:
        """Find the files that `load_dataset` reads for a folder; its card may name some outside."""
        import datasets

        found = datasets.load_dataset_builder(str(folder), config_name).config.data_files or {}
        listed = {Path(file) for files in found.values() for file in files if "://" not in file}
        return cls(sorted({*listed, *folder.glob("*.md"), *folder.glob("*.y*ml")}), str(folder))

    @property
    def cache(self) -> Path:
        """The folder for what `datasets` makes of the files as they are now."""
        import datasets

        new = time.time_ns() - TICK_NS
        known = [
            (str(file), sign, file_sha256(file) if sign and max(sign[1:3]) > new else None)
            for file, sign in self._signs.items()
        ]
        key = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        return Path(datasets.config.HF_DATASETS_CACHE) / f"logitstore-{key[:32]}"

    def check(self) -> None:
        """Check that nothing was written to the files since they were first looked at.

        Raises:
            InputError: Something was, so that what was read may be of both.
        """
        for file, sign in self._signs.items():
            if signs_of([file]) != {file: sign}:
                raise InputError(
                    f"{self._name}: {file} was written to while it was read. Run the same command "
                    "again when nothing writes to it any more."
                )


def mapped_files(dataset: Dataset) -> Sequence[Path]:
    """List the files that a dataset is mapped from; none for one in memory."""
    files: list[dict[str, Any]] = dataset.cache_files
    return [Path(file["filename"]) for file in files]


def signs_of(files: Iterable[Path]) -> dict[Path, FileSign | None]:
    """Look at each file; None for one that is not there any more."""
    return {file: _sign_or_none(file) for file in files}


def _sign_or_none(file: Path) -> FileSign | None:
    try:
        return file_sign(file)
    except FileNotFoundError:
        return None
