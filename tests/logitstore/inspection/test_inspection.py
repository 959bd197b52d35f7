"""`show`, `info --full` and `diff` say what is in the arrays, safely, with colours and without."""

import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from logitstore import open_store
from logitstore.cli.app import app
from logitstore.console.terminal import (
    bar,
    clipped,
    coloured,
    columns_of,
    has_colour,
    marked_spaces,
    printable,
)
from logitstore.errors import InputError, MismatchError
from logitstore.format.spec import Plan
from logitstore.inspection import show
from logitstore.inspection.diff import diff, diff_text, spec_differences
from logitstore.inspection.scalars import histogram_text, histograms, worst
from logitstore.records import Segment, SequenceText
from logitstore.storage.files import file_sha256
from logitstore.store import LogitStore
from logitstore.testing import stores, tiny
from logitstore.text.sequence_facts import sequence_facts, token_names
from logitstore.text.sequence_text import position_text, sequence_text
from logitstore.writing.writer import StoreWriter
from tests.kit.made_stores import put


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    path = tmp_path_factory.mktemp("inspection") / "s"
    put(path)
    return open_store(path)


def longest(store: LogitStore) -> int:
    return int(np.argmax(store.token_counts))


# ---- text that is safe ----


@pytest.mark.parametrize("text", ["\x1b[31m", "\u202e", "\x07", "\ud800", "\u200f", "\x9b1m"])
def test_nothing_that_a_terminal_would_obey_is_printed(text: str) -> None:
    shown = printable(f"a{text}b")
    assert shown.isprintable()
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_wide_letters_take_two_columns_and_marks_none() -> None:
    assert columns_of("ab") == 2
    assert columns_of("日本") == 4
    assert columns_of("e\u0301") == 1


@pytest.mark.parametrize("text", ["short", "a longer text than fits", "日本語のテキスト", ""])
def test_what_is_clipped_fits(text: str) -> None:
    for columns in range(1, 30):
        assert columns_of(clipped(text, columns)) <= columns
    assert clipped(text, 40) == text


def test_a_bar_is_as_long_as_its_share() -> None:
    assert bar(1, 4) == "████"
    assert bar(0, 4) == "    "
    assert bar(0.5, 4) == "██  "
    assert bar(0.03125, 4) == "▏   "
    assert bar(7, 4) == "████"


def test_no_color_and_pipes_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal: object = Terminal()
    assert has_colour(terminal)  # type: ignore[arg-type]
    assert not has_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour(terminal)  # type: ignore[arg-type]
    assert coloured("x", "31", False) == "x"


# ---- one sequence ----


def test_every_token_is_in_the_text_with_its_number(store: LogitStore) -> None:
    i = longest(store)
    found = sequence_facts(store, i)
    records = store[i]
    assert [token["token_id"] for token in found["tokens"]] == records.token_ids.tolist()
    text = sequence_text(found)
    assert text.isprintable() or "\n" in text
    assert text.count("⟦") == len(records)
    assert "\x1b[" not in text
    assert "\x1b[" in sequence_text(found, colour=True) or float(-records.token_logprob.min()) < 1


def test_surprise_is_marked_where_it_is(store: LogitStore) -> None:
    token = {"token_id": 1, "text": "x", "byte_start": 0, "byte_length": 1, "entropy": 1.0}
    token |= {"tail": 0.1, "entries": []}
    sure, unsure = (
        token | {"logprob": -0.1},
        token | {"logprob": -7.0, "byte_start": 1, "text": "y"},
    )
    found = {"sequence": 0, "row": 0, "part": 0, "status": "ok", "supervised_start": 0}
    found |= {"tokens": [sure, unsure], "segments": [Segment("xy", True)._asdict()]}
    assert "supervised: ⟦x⟧⟦y⟧!!" in sequence_text(found)
    assert "\x1b[41;97my\x1b[0m" in sequence_text(found, colour=True)


def test_a_position_has_its_ten_most_probable_tokens(store: LogitStore) -> None:
    i = longest(store)
    found = sequence_facts(store, i)
    text = position_text(found, 1)
    entries = found["tokens"][1]["entries"]
    for entry in entries[:10]:
        assert f"{entry['p']:>9.4f}" in text
    assert "(tail)" in text
    assert text.count("> ") >= 1


def keeping(folder: Path) -> Any:
    """A store that keeps the tokenizer in a folder, as `token_names` asks it."""
    files = {"tokenizer.json": file_sha256(folder / "tokenizer.json")}
    return SimpleNamespace(spec=SimpleNamespace(tokenizer={"files": files}), tokenizer_path=folder)


@pytest.mark.parametrize("make", [tiny.byte_bpe, tiny.unigram])
def test_a_token_of_the_vocabulary_is_called_what_it_writes(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not `Ġthe` or `▁the`, but as in the text that it stands beside."""
    monkeypatch.setattr("logitstore.text.sequence_facts._names", {})  # few are kept: none of others
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    store = keeping(tmp_path)
    names = token_names(store)
    assert names is not None
    ids = tokenizer(" The teacher reads.", add_special_tokens=False)["input_ids"]
    assert "".join(names[i] for i in ids).replace("␣", " ") == " The teacher reads."
    assert any(name[:1] == "␣" and len(name) > 1 for name in names)
    assert token_names(keeping(tmp_path)) is names  # read once
    (tmp_path / "tokenizer.json").write_text("{}")
    assert token_names(keeping(tmp_path)) is None
    assert token_names(store) is names  # of the file that the store describes


def test_spaces_at_the_ends_of_a_token_are_marked() -> None:
    marked = {" a b ": "␣a b␣", "  ": "␣␣", "": "", "a": "a", " \n": "␣\n"}
    assert {text: marked_spaces(text) for text in marked} == marked


@pytest.mark.parametrize("of", [stores.spec(ids=False), stores.spec(top_k=0, draws=4)])
def test_stores_without_ids_or_entries_are_shown(tmp_path: Path, of: object) -> None:
    put(tmp_path / "s", of)  # type: ignore[arg-type]
    opened = open_store(tmp_path / "s")
    i = longest(opened)
    found = sequence_facts(opened, i)
    assert sequence_text(found)
    assert position_text(found, 0)
    assert histogram_text(histograms(opened))


def test_a_place_that_is_not_there_is_an_error_that_names_those_that_are(store: LogitStore) -> None:
    last = len(store) - 1
    with pytest.raises(InputError, match=rf"there is no sequence 999; it holds 0 to {last}"):
        show.shown(store, 999, None, None)
    with pytest.raises(InputError, match="has no record 5000; it has"):
        show.shown(store, longest(store), 5000, None)
    with pytest.raises(InputError, match="a sequence is missing"):
        show.shown(store, None, None, None)
    with pytest.raises(InputError, match="--worst is 0"):
        show.shown(store, None, None, 0)
    with pytest.raises(InputError, match="--worst looks at the whole store"):
        show.shown(store, 1, None, 3)


# ---- all of it ----


def test_histograms_count_every_record_once(store: LogitStore) -> None:
    found = histograms(store)
    records = int(store.token_counts.sum())
    entropies = np.concatenate([store[i].entropy for i in range(len(store))])
    for histogram in found.values():
        assert sum(histogram["counts"]) + histogram["unknown"] == records
    edges = found["entropy"]["edges"]
    for j, (low, high) in enumerate(zip(edges, [*edges[1:], math.inf], strict=True)):
        expected = ((entropies >= low) & (entropies < high)).sum()
        assert abs(found["entropy"]["counts"][j] - expected) <= 1  # at an edge, to half a step


def test_the_worst_are_where_they_are_said_to_be(store: LogitStore) -> None:
    found = worst(store, 4)
    surprises = {
        (i, t): -float(x)
        for i in range(len(store))
        for t, x in enumerate(store[i].token_logprob.tolist())
    }
    largest = sorted(surprises.values(), reverse=True)[:4]
    assert [each["surprise"] for each in found["surprise"]] == pytest.approx(largest)
    for each in found["surprise"]:
        place = surprises[each["sequence"], each["record"]]
        assert place == pytest.approx(each["surprise"])
    for each in found["tail"]:
        tail = math.exp(store[each["sequence"]].tail_logmass[each["record"]])
        assert tail == pytest.approx(each["tail"], rel=0.01)


# ---- two stores ----


def test_a_store_does_not_differ_from_itself(store: LogitStore) -> None:
    found = diff(store, store)
    assert found["same_content"]
    assert found["spec"] == {}
    assert found["uld"]["max"] == 0
    assert found["kl"]["max"] == pytest.approx(0, abs=1e-9)
    assert found["records_compared"] == int(store.token_counts.sum())
    assert "made alike" in diff_text(found)


def test_fewer_entries_differ_by_no_more_than_their_tails(tmp_path: Path) -> None:
    """The same teacher at two k: ULD is what moved from entries into the tail, twice."""
    for k in (3, 12):
        put(tmp_path / str(k), stores.spec(top_k=k))
    a, b = (open_store(tmp_path / str(k)) for k in (3, 12))
    found = diff(a, b)
    assert found["spec"] == {"capture.top_k": [3, 12]}
    rounding = a.fidelity.l1_max + b.fidelity.l1_max
    expected = [2 * (np.exp(a[i].tail_logmass) - np.exp(b[i].tail_logmass)) for i in range(len(a))]
    assert found["uld"]["mean"] == pytest.approx(np.concatenate(expected).mean(), abs=rounding)
    assert found["kl"]["max"] < 0.01
    assert spec_differences(a, a) == {}


def test_other_text_is_counted_and_not_compared(tmp_path: Path) -> None:
    for name, text in (("a", "abc"), ("b", "xyz")):
        plan, of = Plan("0" * 64, (0, 1)), stores.spec()
        writer = StoreWriter(tmp_path / name, of, plan, stores.TOKENIZER_FILES)
        writer.write_shard(0, [(SequenceText(0, 0, "ok", (Segment(text, True),)), None)])
        writer.seal()
    found = diff(*(open_store(tmp_path / name) for name in "ab"))
    assert found["sequences_of_other_text"] == 1
    assert found["sequences_compared"] == 0


def test_stores_without_a_common_row_are_refused(tmp_path: Path) -> None:
    for shard in (0, 1):
        stores.write(tmp_path / str(shard), shards=(shard,), seal=False)
    a, b = (open_store(tmp_path / str(shard), allow_partial=True) for shard in (0, 1))
    with pytest.raises(MismatchError, match="no row in common"):
        diff(a, b)


def test_notebooks_show_a_store_and_records_and_run_nothing_of_it(tmp_path: Path) -> None:
    put(tmp_path / "<img src=x onerror=alert(1)>")
    store = open_store(tmp_path / "<img src=x onerror=alert(1)>")
    assert "<img" not in store._repr_html_()
    assert "&lt;img" in store._repr_html_()
    assert "store.show(0)" in store._repr_html_()
    lines = dict(re.findall(r"<tr><th[^>]*>([^<]*)</th><td[^>]*>([^<]*)</td>", store._repr_html_()))
    assert lines["digest"] == store.digest
    records = store[longest(store)]
    html = records._repr_html_()
    assert html.count("<tr>") == min(len(records), 20) + 1
    assert f"<td>{int(records.token_ids[0])}</td>" in html


# ---- the commands ----


def test_the_commands_print_text_and_json(store: LogitStore) -> None:
    path, runner = str(store.path), CliRunner()
    for arguments in (
        ["info", path, "--full"],
        ["show", path, str(longest(store))],
        ["show", path, str(longest(store)), "--around", "0"],
        ["show", path, "--worst", "3"],
        ["diff", path, path],
    ):
        text = runner.invoke(app, arguments)
        assert text.exit_code == 0, text.output
        assert "\x1b[" not in text.output
        assert json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)
