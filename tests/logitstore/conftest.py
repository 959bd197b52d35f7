"""What tests of `logitstore` share: its command line in this process."""

import pytest

from logitstore.cli import main
from tests.kit.commands import Run, runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `logitstore` with the given arguments."""
    return runner("logitstore", main, monkeypatch, capsys)
