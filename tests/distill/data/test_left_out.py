"""What a student cannot use is counted, said and shown; too much of it stops the run."""

import json
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.alignment.event_map import EventMap
from distill.data.coverage_of_pair import of_pair
from distill.data.coverage_settings import CoverageSettings
from distill.data.coverage_table import table
from distill.data.dataset import StoreDataset
from distill.data.left_out import check_usable, usable, visible_difference
from distill.training.command_line import parse
from logitstore.console.terminal import printable
from logitstore.errors import InputError
from logitstore.store import LogitStore
from logitstore.testing import stores, tiny
from logitstore.testing.fake_store import FakeStore
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import talks, templates
from tests.kit.commands import Run
from tests.kit.students import ragged_rows
from tests.kit.templates import CHATML, turns

CONTENT = "m['content'] }}"
CAPITALS = CHATML.replace(CONTENT, "m['content'] | upper }}")
BACKWARDS = CHATML.replace(CONTENT, "m['content'][::-1] }}")
MAP = EventMap.identity(300)
REFUSES = "{{ raise_exception('no answers here') }}" + CHATML


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = templates.chatml()
    folder = tmp_path_factory.mktemp("talks") / "chatty"
    return tiny.save(folder, tiny.llama(len(tokenizer)), tokenizer)


@pytest.fixture(scope="module")
def talk_store(chatty: Path, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    rows = [{"messages": turns("Who?", "THE TEACHER")}] * 3
    rows += [{"messages": turns("Who?", "the old\triver \x1b[2J")}, {"messages": []}]
    out = tmp_path_factory.mktemp("talks") / "store"
    return talks.capture(chatty, rows, out)


def data_of(chatty: Path, store: LogitStore, template: str) -> StoreDataset:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chatty)
    tokenizer.chat_template = template
    reader = ByteTokenizer(tokenizer)
    return StoreDataset(store, reader, ("uld",), template=ChatTemplate.of(tokenizer, reader))


assert CONTENT in CHATML, "the template of the tests has changed: so must these"


def test_reasons_are_counted_with_first_rows_and_a_difference_that_one_sees(
    chatty: Path, talk_store: LogitStore
) -> None:
    found = usable(data_of(chatty, talk_store, CAPITALS))
    assert (found.sequences, found.with_records, found.looked_at, found.used) == (5, 4, 4, 3)
    by_capture, by_student = found.by_capture[0], found.by_student[0]
    assert (by_capture.reason, by_capture.count, by_capture.first_row) == ("empty", 1, 4)
    assert (by_student.reason, by_student.count) == ("template_changed_text", 1)
    assert (by_student.first_row, by_student.share) == (3, 0.25)
    assert found.example == (
        r"row 3: the store has '⟦the·old⇥river⟧ \x1b[2J', the template writes "
        r"'⟦THE·OLD⇥RIVER⟧ \x1b[2J'"
    )
    assert found.from_facts(found.facts()) == found


def test_more_lost_than_allowed_is_an_error_with_the_way_out(
    chatty: Path, talk_store: LogitStore
) -> None:
    found = usable(data_of(chatty, talk_store, CAPITALS))
    check_usable(found, "store", 0.25)
    with pytest.raises(InputError, match=r"store: this student cannot use 1 of 4 sequences, more "
        r"than --max_lost 0\.1: 1 template_changed_text, .*\(row 3: the store has .*\)\. Give a "
        r"template .* --chat_template_path\. Or add --max_lost 0\.25\."
    ) as refused:  # fmt: skip
        check_usable(found, "store", 0.1)
    assert refused.value.kind == "lost-rows"


def test_nothing_of_use_is_an_error_whatever_may_be_lost(
    chatty: Path, talk_store: LogitStore
) -> None:
    found = usable(data_of(chatty, talk_store, BACKWARDS))
    assert found.used == 0
    with pytest.raises(InputError, match=r"held out store: this student cannot use 4 of 4 seq"):
        check_usable(found, "store", 1, "held out")


def test_a_template_that_refuses_is_quoted(chatty: Path, talk_store: LogitStore) -> None:
    """And does not end a run at the row where it does, hours later."""
    data = data_of(chatty, talk_store, REFUSES)
    assert data[0].skipped
    found = usable(data)
    assert found.by_student[0].reason == "template_refused"
    with pytest.raises(InputError, match=r"row 0: the chat template rejects .* no answers here"):
        check_usable(found, "store", 1)


def test_what_lies_beyond_the_most_tokens_is_called_that(tmp_path: Path) -> None:
    tokenizer = tiny.byte_bpe()
    store = FakeStore.from_teacher(tiny.llama(300), tokenizer, ragged_rows(), tmp_path / "t")
    reader = ByteTokenizer(tokenizer)
    found = usable(StoreDataset(store, reader, ("uld",), max_length=2))
    reasons = {each.reason: each for each in found.by_student}
    assert reasons["beyond_max_length"].count == 2, "the rows with a prompt"
    assert "--max_length" in reasons["beyond_max_length"].step


def test_of_a_large_store_an_even_part_is_looked_at_and_it_is_said(tmp_path: Path) -> None:
    store = FakeStore.from_teacher(
        tiny.llama(300), tiny.byte_bpe(), ragged_rows(), tmp_path / "tokenizer"
    )
    lost = [t._replace(status="template_changed_text") for t in store.texts]
    data = StoreDataset(replace(store, texts=lost), ByteTokenizer(tiny.byte_bpe()), ("uld",))
    found = usable(data, most=4)
    assert (found.looked_at, found.with_records, found.lost) == (4, 8, 4)
    assert "that were looked at" in found.text()
    with pytest.raises(InputError, match=r"4 of 4 sequences that were looked at \(of 8\)"):
        check_usable(found, "store", 0.05)


def test_training_ends_with_what_it_began_with_if_anything_was_lost(
    chatty: Path, tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """What was said before the first step is far above by then; nothing is said of no loss."""
    talks.capture(chatty, [{"messages": turns("Who?", "I", "Who?", "You")}] * 2, tmp_path / "s")
    endless = tmp_path / "endless.jinja"
    endless.write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    typed = ["train", "--model_name_or_path", chatty, "--store", tmp_path / "s", "--use_cpu"]
    typed += ["--max_steps", "1", "--loss", "uld", "--logging_steps", "1", "--json"]
    for name, flags, times in (("a", ["--chat_template_path", endless], 2), ("b", [], 0)):
        caplog.clear()
        status, out, err = run(*typed, "--output_dir", tmp_path / name, *flags)
        assert status == 0, err
        said = [each.getMessage() for each in caplog.records]
        assert sum("not whole" in each for each in said) == times
        found = json.loads(out)["usable"]["turns"]
        assert [(each["count"], each["of"]) for each in found] == [(4, 4)] * bool(times)
        card = (tmp_path / name / "README.md").read_text()
        assert ("| turns not whole | 4 turns" in card) == bool(times)


def test_coverage_renders_as_training_would_and_its_command_says_how(
    chatty: Path, talk_store: LogitStore, tmp_path: Path
) -> None:
    """Every flag that it was given and that a run has, in words that train reads as they were."""
    template = tmp_path / "some capitals.jinja"
    template.write_text(
        CHATML.replace(CONTENT, "(m['content'] | upper if shout else m['content']) }}")
    )
    given: dict[str, Any] = {
        "chat_template_path": str(template),
        "chat_template_kwargs": '{"shout": true}',
        "max_length": 500,
        "allow_partial": True,
    }
    store, student = str(talk_store.path), str(chatty)
    facts = of_pair(store, student, **given, sequences=4)
    assert facts["usable"]["by_student"][0]["reason"] == "template_changed_text"
    without = of_pair(store, student, **(given | {"chat_template_kwargs": None}))
    assert without["usable"]["by_student"] == []
    run, of_student = parse(shlex.split(facts["command"])[2:])
    assert (run.store, of_student.model_name_or_path) == (store, student)
    read = {name: getattr(run, name) for name in given}
    assert read == given | {"chat_template_kwargs": {"shout": True}}
    own = {each.name for each in fields(CoverageSettings)}
    own -= {"sequences", "tokenizer_name_or_path"}
    assert own == {"loss", "map", "between", *given} <= {each.name for each in fields(run)}


def test_a_counted_map_of_other_template_variables_is_another_one(
    chatty: Path, talk_store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted is a rendering, and variables decide what that is."""
    asked: list[Any] = []
    monkeypatch.setattr("distill.data.dataset.map_of", lambda *given: asked.append(given[3]) or MAP)
    student = templates.FAMILIES["gemma"]()
    for kwargs in ({}, {"shout": True}, {"shout": True}):
        reader = ByteTokenizer(student)
        template = ChatTemplate.of(student, reader, kwargs=kwargs)
        StoreDataset(talk_store, reader, ("mapped_kl",), template=template)
    first, second, again = map(json.dumps, asked)
    assert first != second == again


@pytest.mark.parametrize("flag", ["chat_template_path", "chat_template_kwargs"])
def test_coverage_refuses_a_template_where_training_would(tmp_path: Path, flag: str) -> None:
    stores.write(tmp_path / "s")
    tiny.byte_bpe().save_pretrained(tmp_path / "student")
    said = f"--{flag.replace('_', '-')} {{}} would have no effect"
    with pytest.raises(InputError, match=said):
        of_pair(str(tmp_path / "s"), str(tmp_path / "student"), **{flag: "{}"})


def test_coverage_looks_at_all_sequences_and_says_what_it_left_out(
    chatty: Path, talk_store: LogitStore, tmp_path: Path
) -> None:
    template = tmp_path / "capitals.jinja"
    template.write_text(CAPITALS)
    facts = of_pair(str(talk_store.path), str(chatty), chat_template_path=str(template))
    assert (facts["sequences"], facts["sequences_skipped"], facts["sequences_of"]) == (4, 1, 5)
    lines = table(facts).splitlines()
    assert "sequences   3 of 4 with records can be used; below, their labels" in lines
    text = " ".join(" ".join(lines).split())
    assert "not used 1 of 5 sequences, by the capture" in text
    assert "not used 1 of 4 sequences, by this student" in text
    assert "the store has '⟦the·old⇥river⟧" in text
    template.write_text(BACKWARDS)
    with pytest.raises(InputError, match="this student cannot use 4 of 4 sequences"):
        of_pair(str(talk_store.path), str(chatty), chat_template_path=str(template))


# ---- the difference ----


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_difference_is_short_and_harmless(one: str, other: str) -> None:
    shown = visible_difference(one, other)
    for text in shown:
        assert printable(text) == text
        assert text.count("⟦") - (one + other).count("⟦") <= 1
        assert len(text) <= 6 * 64 + 10
    assert (shown[0] == shown[1]) <= (one == other) or "…" in shown[0]


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        ("the old river\n", "the old river", ("the old river⟦⏎⟧", "the old river⟦⟧")),
        ("a b", "a  b", ("a ⟦⟧b", "a ⟦·⟧b")),
        ("same", "same", ("same⟦⟧", "same⟦⟧")),
        ("x" * 90 + "1" + "y" * 90, "x" * 90 + "2" + "y" * 90, None),
    ],
)
def test_white_space_is_seen(one: str, other: str, shown: Any) -> None:
    found = visible_difference(one, other)
    if shown is None:
        shown = tuple(f"…{'x' * 20}⟦{n}⟧{'y' * 20}…" for n in "12")
    assert found == shown
