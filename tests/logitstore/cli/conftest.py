"""Commands of both programs as they are typed, in this process."""

from collections.abc import Callable

import pytest

from distill import cli as distill_cli
from logitstore.cli.app import main
from tests.kit.commands import runner

#: Runs words, the program's name first; returns exit status, stdout and stderr.
Typed = Callable[..., tuple[int, str, str]]
_PROGRAMS: dict[str, Callable[[], object]] = {"logitstore": main, "distill": distill_cli.main}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    monkeypatch.setenv("TERM", "dumb")  # no colours, where CI asks for them

    def call(program: str, *words: object) -> tuple[int, str, str]:
        return runner(program, _PROGRAMS[program], monkeypatch, capsys)(*words)

    return call
