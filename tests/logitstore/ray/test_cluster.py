"""A cluster that cannot be reached is said in a line, before Ray itself tries for minutes."""

import socket
from collections.abc import Iterator

import pytest

from logitstore.errors import InputError, MissingLibraryError
from logitstore.ray import cluster

# What Ray Client 2.60 raises where its server cannot start a process for it.
REFUSED = """Initialization failure from server:
Traceback (most recent call last):
  File "proxier.py", line 770, in Datapath
    raise RuntimeError(
RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for logs.
"""


@pytest.fixture
def listening() -> Iterator[str]:
    """An address where something listens that is no cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_rays_client_has_to_be_installed(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    says = r"^--ray ray://127\S+ needs Ray's client, which is not installed\. Run `pip install "
    with pytest.raises(MissingLibraryError, match=says), cluster.connected(f"ray://{listening}"):
        pass


def test_of_a_traceback_that_ray_quotes_the_cause_is_said(
    listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ConnectionAbortedError(REFUSED)

    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster.ray_library(), "init", fails)
    says = (
        r"be reached there \(RuntimeError: Starting Ray client server failed\. See \S+ for logs\)"
    )
    with pytest.raises(InputError, match=says), cluster.connected(f"ray://{listening}"):
        pass
