"""A repository of the Hugging Face Hub, to be filled so that nobody reads half of it.

`huggingface_hub` uploads: with the token of its own login or environment, which is never read here,
and each file only where it is not there already, so that an upload that was stopped goes on. Files
come in several commits; those that make the rest readable are in the last one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from logitstore.console.progress import progress
from logitstore.errors import InputError, check_installed
from logitstore.storage.objects import RemotePath
from logitstore.storage.retry import explain

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_ADDRESS = re.compile(r"hf://(datasets/)?([\w.-]{1,96}/[\w.-]{1,96})/?")
#: Files and bytes of one commit: what is uploaded before a commit is not uploaded again.
_MOST_FILES, _MOST_BYTES = 50, 4 << 30


class Repository(NamedTuple):
    """The address of a repository.

    Attributes:
        name: ``owner/name``.
        kind: `dataset` or `model`.
    """

    name: str
    kind: str

    @classmethod
    def of(cls, address: str, kind: str) -> Repository:
        """Parse an address of a kind, such as ``hf://datasets/owner/name``.

        Raises:
            InputError: It is none.
        """
        found = _ADDRESS.fullmatch(address)
        expected = "hf://datasets/OWNER/NAME" if kind == "dataset" else "hf://OWNER/NAME"
        if found is None or bool(found[1]) != (kind == "dataset"):
            raise InputError(f"{address}: is no address of a {kind} on the hub. Give {expected}.")
        return cls(found[2], kind)

    @property
    def path(self) -> RemotePath:
        """Its root, to be read from."""
        datasets = "datasets/" if self.kind == "dataset" else ""
        return RemotePath(f"hf://{datasets}{self.name}")

    def fill(
        self,
        files: Mapping[str, Path],
        last: Mapping[str, Path | bytes],
        *,
        public: bool,
        without: Sequence[str] = (),
    ) -> None:
        """Upload files, and those of `last` in one commit after all others.

        Args:
            files: By their path in the repository.
            last: Without them the rest is not read.
            public: Whether a new repository can be seen by everybody.
            without: Paths that must not be there; they go in the last commit.

        Raises:
            StorageError: The hub refuses, or cannot be reached; what is there already stays.
            MissingLibraryError: huggingface_hub is not installed.
        """
        with self._api() as api:
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete

            api.create_repo(self.name, repo_type=self.kind, private=not public, exist_ok=True)
            total = sum(path.stat().st_size for path in files.values())
            with progress(total, "push", "B") as shown:
                for names in _batches(files):
                    adds: list[Any] = [CommitOperationAdd(n, files[n]) for n in names]
                    self._commit(api, adds, f"{len(names)} files")
                    shown.update(sum(files[name].stat().st_size for name in names))
            ends: list[Any] = [CommitOperationAdd(name, data) for name, data in last.items()]
            ends += [CommitOperationDelete(name) for name in without]
            self._commit(api, ends, ", ".join(last))

    def _commit(self, api: HfApi, operations: list[Any], what: str) -> None:
        api.create_commit(
            self.name, operations, commit_message=f"logitstore push: {what}", repo_type=self.kind
        )

    @contextmanager
    def _api(self) -> Iterator[HfApi]:
        """Give the hub's client, without its own bars; explain what it raises."""
        check_installed("huggingface_hub", f"{self.path}: writing to the hub")
        from huggingface_hub import HfApi
        from huggingface_hub.utils import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
            logging,
        )

        was_off, level = are_progress_bars_disabled(), logging.get_verbosity()
        disable_progress_bars()
        logging.set_verbosity_error()  # a commit of nothing new is what going on looks like
        try:
            yield HfApi(library_name="logitstore")
        except (OSError, ValueError, RuntimeError) as error:
            raise explain(_refusal(error), str(self.path), 1) from error
        finally:
            logging.set_verbosity(level)
            if not was_off:
                enable_progress_bars()


def _refusal(error: Exception) -> Exception:
    """Find the error that says most: an upload in a thread wraps it."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def _batches(files: Mapping[str, Path]) -> Iterator[list[str]]:
    """Cut files into commits."""
    batch: list[str] = []
    size = 0
    for name, path in files.items():
        batch.append(name)
        size += path.stat().st_size
        if len(batch) >= _MOST_FILES or size >= _MOST_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
