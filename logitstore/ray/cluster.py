"""Reach a Ray cluster, or start one; and what there is to hold on it."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from logitstore.errors import InputError, MissingLibraryError, in_a_line
from logitstore.ray.settings import AUTO, LOCAL

_CONNECT_S = 10.0
_SHOWN = 300  # characters of what Ray says


def ray_library() -> Any:
    """Import Ray.

    Raises:
        MissingLibraryError: It is not installed.
    """
    # Ray counts its users by a request to its makers, unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingLibraryError(
            "--ray needs Ray, which is not installed. Run `pip install 'logitstore[ray]'` here and "
            "on every node."
        ) from error
    return ray


def data_library() -> Any:
    """Import Ray Data.

    Raises:
        MissingLibraryError: It is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise MissingLibraryError(
            "logitstore.ray.dataset needs Ray Data, which is not installed. Run "
            "`pip install 'logitstore[ray]'`."
        ) from error
    return ray.data


@contextmanager
def connected(address: str) -> Iterator[str]:
    """Be connected to a cluster while inside; start and stop it, if it is `local`.

    A program that is connected already stays so, and uses that cluster.

    Yields:
        The name of the cluster, for messages.

    Raises:
        MissingLibraryError: Ray is not installed.
        InputError: The cluster cannot be reached.
    """
    if address == LOCAL:  # for this machine alone, so Ray is to listen on loopback; read on import
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    named = f"--ray {address}"
    ray = ray_library()
    if ray.is_initialized():
        yield "the Ray cluster that this program is connected to"
        return
    _check_listens(address, named)
    _check_client(address, named)
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **options)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError, gRPC's, as it likes
        ray.shutdown()
        raise _unreachable(named, _why(error)) from error
    try:
        yield named
    finally:
        ray.shutdown()


def _check_client(address: str, named: str) -> None:
    """Reject the address of a client's server where Ray has no client.

    Raises:
        MissingLibraryError: What it speaks with is not installed.
    """
    if urlsplit(address).scheme == "ray" and find_spec("grpc") is None:
        raise MissingLibraryError(
            f"{named} needs Ray's client, which is not installed. Run "
            "`pip install 'logitstore[ray]'`, or start this on a node of the cluster with --ray "
            f"{AUTO}."
        )


def _why(error: Exception) -> str:
    """Say why Ray did not connect: of a traceback that it quotes, the last line."""
    return last_line(error) if "Traceback" in str(error) else in_a_line(error)


def last_line(error: BaseException) -> str:
    """Take from what Ray says the cause, which stands last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:_SHOWN].rstrip(".")


def _check_listens(address: str, named: str) -> None:
    """Reject an address where nothing listens: Ray itself tries for minutes."""
    if address in (AUTO, LOCAL):
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.scheme not in ("", "ray"):
        raise InputError(
            f"{named}: not an address of a Ray cluster, expected HOST:PORT, ray://HOST:PORT, "
            f"{AUTO} or {LOCAL}. Give one of these."
        )
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise _unreachable(named, error.strerror or str(error)) from error


def _unreachable(named: str, why: str) -> InputError:
    return InputError(
        f"{named}: no Ray cluster can be reached there ({why}). Start one with `ray start --head`, "
        f"give the address that it prints, or use --ray {LOCAL}."
    )


@dataclass(frozen=True)
class Room:
    """What the nodes of a cluster have in all, whoever holds it now.

    Attributes:
        nodes: (GPUs, processors) of each.
    """

    nodes: tuple[tuple[float, float], ...]

    @classmethod
    def now(cls) -> "Room":
        """Look at the cluster that this program is connected to."""
        found = [node["Resources"] for node in ray_library().nodes() if node["Alive"]]
        return cls(tuple((each.get("GPU", 0.0), each.get("CPU", 0.0)) for each in found))

    @property
    def gpus(self) -> float:
        """The most GPUs of a node."""
        return max((gpus for gpus, _ in self.nodes), default=0.0)

    @property
    def cpus(self) -> float:
        """The most processors of a node."""
        return max((cpus for _, cpus in self.nodes), default=0.0)


@dataclass(frozen=True)
class Needs:
    """What one teacher holds.

    Attributes:
        gpus: GPUs, or a part of one.
        cpus: Processors.
        is_spread: Whether the engine starts processes of its own, which may be on several nodes.
    """

    gpus: float
    cpus: int
    is_spread: bool = False

    def room(self, room: Room) -> int:
        """Count the teachers that a cluster has room for."""
        if self.is_spread:
            gpus, cpus = (sum(node[i] for node in room.nodes) for i in (0, 1))
            return int(min(gpus // self.gpus, cpus // (self.cpus + self.gpus)))
        return sum(self._on(gpus, cpus) for gpus, cpus in room.nodes)

    def _on(self, gpus: float, cpus: float) -> int:
        by_cpus = cpus // self.cpus
        return int(min(by_cpus, gpus // self.gpus) if self.gpus else by_cpus)

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What a placement group for it reserves; empty where a teacher is one process on one GPU.

        A process holds one bundle. An engine that starts processes of its own is given a bundle
        for itself, and one for each of its GPUs.
        """
        if self.is_spread:
            return [{"CPU": self.cpus}, *[{"GPU": 1.0, "CPU": 1.0}] * int(self.gpus)]
        return [{"GPU": self.gpus, "CPU": self.cpus}] if self.gpus > 1 else []

    def __str__(self) -> str:
        gpus = f"{self.gpus:g} GPU{'s' * (self.gpus != 1)} and " if self.gpus else ""
        return f"{gpus}{self.cpus} processor{'s' * (self.cpus != 1)}"
