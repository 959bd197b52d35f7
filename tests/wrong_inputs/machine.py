"""What else may be wrong than files: permissions, the network, a launcher's variables.

A wrong input names one in its field `machine`, with what it is about: `may_not_write out`.
"""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.training import unusable_flags
from logitstore import store as store_module

Break = Callable[[Path, pytest.MonkeyPatch], None]


def denied(path: object) -> PermissionError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def may_not_write(folder: str) -> Break:
    """Let `os.access` say no: tests may run as root, who may do anything."""

    def breaks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        access = os.access
        locked = here / folder

        def says(path: Any, mode: int, **more: Any) -> bool:
            return Path(path).absolute() != locked and access(path, mode, **more)

        monkeypatch.setattr(os, "access", says)

    return breaks


def may_not_read(name: str) -> Break:
    """Let files of this name refuse to be opened."""

    def breaks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opens = Path.open

        def refuses(path: Path, *args: Any, **more: Any) -> Any:
            if path.name == name:
                raise denied(path)
            return opens(path, *args, **more)

        monkeypatch.setattr(Path, "open", refuses)

    return breaks


def swapped_maps(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITSTORE_CACHE", str(here / "swapped"))


def may_not_read_header(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, most: int) -> bytes:
        raise denied(path)

    monkeypatch.setattr("logitstore.storage.folder.read_file", refuses)


def may_not_list_shards(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path) -> list[str]:
        raise denied(path)

    monkeypatch.setattr(store_module.os, "listdir", refuses)


def bad_ranks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "one")
    monkeypatch.setenv("WORLD_SIZE", "2")


def two_ranks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")


def no_ray(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


def only_tensorboard(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        unusable_flags, "get_available_reporting_integrations", lambda: ["tensorboard"]
    )


def no_accelerator(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda *_, **__: False)
    monkeypatch.setattr("distill.training.precision.is_torch_bf16_gpu_available", lambda: False)


def no_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", fails)


_OF_ALL: dict[str, Break] = {
    each.__name__: each
    for each in (
        bad_ranks,
        may_not_list_shards,
        may_not_read_header,
        no_accelerator,
        no_network,
        no_ray,
        only_tensorboard,
        swapped_maps,
        two_ranks,
    )
}
_OF_ONE: dict[str, Callable[[str], Break]] = {
    each.__name__: each for each in (may_not_read, may_not_write)
}


def named(machine: str) -> Break:
    """Find the fault with this name, and with the file that it is about."""
    name, _, of = machine.partition(" ")
    return _OF_ONE[name](of) if of else _OF_ALL[name]
