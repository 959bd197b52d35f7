"""No text of a stranger reaches the terminal raw, whatever way it takes out of the program."""

import io
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from logitstore.console.escaped import Escaped, escaped_output, print_coloured
from logitstore.console.terminal import coloured
from logitstore.text.sequence_text import sequence_text
from tests.kit.hostile import edit_spec
from tests.kit.made_stores import put
from tests.logitstore.cli.conftest import Typed

EVIL = "\x1b]0;OWNED\x07\x1b[31m\u202e\x9b2J\rover\u2028\x00"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def written(*pieces: str) -> str:
    inner = io.StringIO()
    stream = Escaped(inner)
    for piece in pieces:
        stream.write(piece)
    return inner.getvalue()


def test_what_a_terminal_obeys_is_spelt_out_and_the_rest_passes() -> None:
    spelt = r"a\x1b]0;OWNED\x07\x1b[31m\u202e\x9b2J\rover\u2028\x00"
    assert written(f"a{EVIL}") == spelt
    plain = "two\tlines\n你好 👩‍💻 é\n"
    assert written(plain) == plain
    assert written("\ud800") == r"\ud800"


def test_a_progress_bar_still_goes_to_its_line() -> None:
    inner = io.StringIO()
    with tqdm(total=3, file=Escaped(inner), position=1, desc=f"d{EVIL}") as bar:
        bar.update(1)
    text = inner.getvalue()
    assert "\rd\\x1b]0;OWNED" in text
    assert "\x1b[A" in text
    assert not RAW.search(text.replace("\x1b[A", "").replace("\r", "")), repr(text)


def test_our_own_colours_pass_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with escaped_output():
        print_coloured(coloured("red", "31;1", True) + "\x1b]0;x\x07\x1b[2J")
    assert capsys.readouterr().out == "\x1b[31;1mred\x1b[0m\\x1b]0;x\\x07\\x1b[2J\n"


def test_a_log_a_warning_and_a_traceback_are_escaped_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sys.stderr

    def fails() -> None:
        with escaped_output():
            logging.StreamHandler().emit(logging.makeLogRecord({"msg": f"log {EVIL}"}))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    sys.excepthook(ValueError, ValueError(EVIL), None)
    sys.stdout, sys.stderr = sys.__stdout__, before
    err = capsys.readouterr().err
    assert "log \\x1b" in err
    assert "ValueError: \\x1b" in err
    assert not RAW.search(err), repr(err)


def test_the_streams_are_the_callers_again_afterwards() -> None:
    before = sys.stdout, sys.stderr
    with escaped_output():
        assert not hasattr(sys.stdout, "buffer")
    with pytest.raises(SystemExit), escaped_output():
        sys.exit(1)
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("where", ["teacher", "architecture"])
def test_what_a_store_says_of_its_teacher_is_escaped(
    typed: Typed, tmp_path: Path, where: str
) -> None:
    put(tmp_path / "s")

    def change(body: dict[str, Any]) -> None:
        part = body["provenance"] if where == "teacher" else body["content"]["teacher"]
        part[where] = f"me{EVIL}"

    edit_spec(tmp_path / "s", change)
    status, out, err = typed("logitstore", "info", tmp_path / "s")
    assert status == 0, err
    assert "me\\x1b" in out
    assert not RAW.search(out + err), repr(out + err)


def test_names_that_a_user_was_made_to_type_are_escaped(typed: Typed, tmp_path: Path) -> None:
    name = EVIL.replace("\0", "")
    status, out, err = typed("logitstore", "info", tmp_path / f"none{name}")
    assert (status, out) == (2, "")
    assert "none\\x1b" in err
    assert not RAW.search(err), repr(err)
    (tmp_path / "flags.yaml").write_text('"key\\e]0;OWNED\\a": 1\nloss: ce\n')
    status, out, err = typed("distill", "train", "--config", tmp_path / "flags.yaml")
    assert status == 2
    assert not RAW.search(out + err), repr(err)


def test_the_status_of_a_sequence_is_escaped_in_any_colour() -> None:
    found = {
        "sequence": 0, "row": 0, "part": 0, "status": f"ok{EVIL}", "tokens": [], "segments": [],
        "supervised_start": 0,
    }  # fmt: skip
    for colour in (False, True):
        text = sequence_text(found, colour=colour)
        assert "ok\\x1b" in text
        assert "\x1b]0" not in text
