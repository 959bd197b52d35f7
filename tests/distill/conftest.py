"""What tests of `distill` share: its command line in this process."""

import pytest

from distill.cli import main
from tests.kit.commands import Run, runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `distill` with the given arguments."""
    return runner("distill", main, monkeypatch, capsys)
