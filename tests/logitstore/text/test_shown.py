"""`store.show(i)`: in a notebook the right tokens in the right colours, whatever text they hold."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from logitstore import open_store
from logitstore.store import LogitStore
from logitstore.testing import stores
from logitstore.text.sequence_facts import Facts, sequence_facts
from logitstore.text.sequence_html import LETTERS, LINE, SHADES, sequence_html
from logitstore.text.sequence_text import sequence_text
from tests.kit.browser import ATTACK
from tests.kit.html_pages import Outline, contrast
from tests.kit.made_stores import put

TAGS = {"div", "p", "b", "span", "bdi", "details", "summary"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td", "br"}
ATTRIBUTES = {"style", "title", "scope"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    path = tmp_path_factory.mktemp("shown") / "s"
    put(path, stores.spec(top_k=16))
    return open_store(path)


def longest(store: LogitStore) -> int:
    return int(np.argmax(store.token_counts))


def token(text: str, logprob: float | None, **more: object) -> Facts:
    entry = {"id": 7, "token": text, "p": 0.25}
    numbers = {"token_id": 7, "byte_start": 0, "byte_length": 1, "entropy": None, "tail": 0.1}
    numbers |= {"is_end": False}
    return {"text": text, "logprob": logprob, "entries": [entry], **numbers, **more}


def facts(*tokens: Facts, context: str = "asked", status: str = "ok") -> Facts:
    return {
        **{"sequence": 0, "row": 0, "part": 0, "status": status, "supervised_start": 0},
        "segments": [
            {"text": context, "supervised": False, "role": "user"},
            {"text": "answer", "supervised": True, "role": None},
        ],
        "tokens": list(tokens),
    }


def test_a_notebook_shows_every_token_with_its_numbers(store: LogitStore) -> None:
    i = longest(store)
    found, page = sequence_facts(store, i), Outline(store.show(i)._repr_html_())
    rows = [text for _, text in page.of("tr")][1:]
    assert len(rows) == len(found["tokens"]) > 5
    cells = [text for _, text in page.of("td")]
    for t, one in enumerate(found["tokens"]):
        p, surprise, entropy, tail = map(float, cells[6 * t + 1 : 6 * t + 5])
        assert p == pytest.approx(math.exp(one["logprob"]), abs=6e-5)
        assert surprise == pytest.approx(-one["logprob"], abs=6e-4)
        assert (entropy, tail) == (
            pytest.approx(one["entropy"], abs=6e-4),
            pytest.approx(one["tail"], abs=6e-5),
        )
        best = one["entries"][0]
        assert cells[6 * t + 5].startswith(f"id {best['id']} {best['p']:.4f}")


@pytest.mark.parametrize(("nats", "shade"), [(0.9, None), (1.0, 2), (3.5, 1), (6.0, 0), (99, 0)])
def test_a_colour_is_that_of_the_surprise(nats: float, shade: int | None) -> None:
    html = sequence_html(facts(token("word", -nats)))
    [span] = re.findall(r"<span style=\"([^\"]*)\"[^>]*>word</span>", html.split("<details>")[0])
    assert [back in span for _, back, _ in SHADES] == [i == shade for i in range(len(SHADES))]


def test_what_is_not_known_has_no_colour() -> None:
    html = sequence_html(facts(token("word", None)))
    assert not any(back in html.split("white-space")[1] for _, back, _ in SHADES)
    assert [text for _, text in Outline(html).of("td")].count("?") == 3  # p, surprise, entropy


def test_colours_bring_their_letters_and_both_can_be_read() -> None:
    for _, back, _ in SHADES:
        assert contrast(LETTERS, back) >= 4.5
        assert contrast(LINE, back) >= 3
    widths = [width for *_, width in SHADES]
    assert widths == sorted(set(widths), reverse=True), "the line alone tells them apart"


def test_no_text_of_a_store_is_markup_of_a_notebook() -> None:
    quoted = '" onmouseover="window.ran=1'
    entries = [{"id": 1, "token": quoted, "p": 0.5}]
    leaving = token(quoted, -2.0, entries=entries)
    assert attributes_of(sequence_html(facts(leaving, status=quoted))) <= ATTRIBUTES
    found = facts(
        token(ATTACK, -7.0), token("\u202eabc\x1b[31m", -1.0), context=ATTACK, status=ATTACK
    )
    found["student_sees"] = [ATTACK, {"role": ATTACK}]
    html = sequence_html(found)
    page = Outline(html)
    assert {tag for tag, *_ in page.elements} <= TAGS
    assert attributes_of(html) <= ATTRIBUTES
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert any(ATTACK[:60] in text for _, text in page.of("span"))


def attributes_of(html: str) -> set[str]:
    return {name for _, attributes, _ in Outline(html).elements for name in attributes}


def test_a_long_sequence_is_cut_and_says_so() -> None:
    html = sequence_html(facts(*(token("word ", -1.0) for _ in range(2500))))
    assert "… 500 tokens more" in html
    assert "2,000 tokens more" in html
    assert len(html) < 2_000_000


def test_a_terminal_shows_what_the_command_prints(store: LogitStore) -> None:
    i = longest(store)
    assert repr(store.show(i)) == sequence_text(sequence_facts(store, i))
    assert store.show(i).facts == sequence_facts(store, i)


def test_a_sequence_that_is_not_there_is_an_error(store: LogitStore) -> None:
    with pytest.raises(IndexError):
        store.show(len(store))


def test_a_store_without_ids_is_shown_too(tmp_path: Path) -> None:
    put(tmp_path / "s", stores.spec(ids=False))
    opened = open_store(tmp_path / "s")
    assert "? 0." in opened.show(longest(opened))._repr_html_()


def of_bytes(text: str, start: int, **more: object) -> Facts:
    return token(text, -1.0, byte_start=start, byte_length=len(text.encode()), **more)


def end(start: int) -> Facts:
    return of_bytes("", start, is_end=True)


def segment(text: str, supervised: bool) -> Facts:
    return {"text": text, "supervised": supervised, "role": None}


def said(segments: list[Facts], tokens: list[Facts]) -> list[str]:
    """The lines of the text of a sequence: context, and supervised text token by token."""
    whole = facts(*tokens) | {"segments": segments}
    return [line.strip() for line in sequence_text(whole).splitlines()[1 : 1 + len(segments)]]


def test_an_end_stands_behind_its_turn_and_not_behind_what_the_template_writes() -> None:
    segments = [segment("Q:", False), segment("one", True), segment("\nQ:", False)]
    segments += [segment("two", True), segment("\n", False)]
    tokens = [of_bytes("one", 0), end(3), of_bytes("tw", 3), of_bytes("o", 5), end(6)]
    wanted = ["context: Q:", "supervised: ⟦one⟧⟦(end)⟧", "context: \\nQ:"]
    assert said(segments, tokens) == [*wanted, "supervised: ⟦tw⟧⟦o⟧⟦(end)⟧", "context: \\n"]
    page = sequence_html(facts(*tokens) | {"segments": segments}).partition("<details>")[0]
    shown = re.sub("<[^>]+>", "", page)
    assert re.sub(r"\s", "", shown).endswith("Q:one(end)Q:two(end)")


def test_an_end_stays_with_its_turn_where_turns_are_empty_or_in_parts() -> None:
    thought = [segment("hm", True), segment("ok", True), segment("|", False)]
    spoken = [of_bytes("hm", 0), of_bytes("ok", 2), end(4)]
    assert said(thought, spoken)[:2] == ["supervised: ⟦hm⟧", "supervised: ⟦ok⟧⟦(end)⟧"]
    empty = [segment("a", True), segment("|", False), segment("", True), segment("|", False)]
    lines = said(empty, [of_bytes("a", 0), end(1), end(1)])
    assert [line.count("(end)") for line in lines] == [1, 0, 1, 0]


def test_a_token_without_bytes_that_is_no_end_stands_where_the_next_turn_begins() -> None:
    """SentencePiece writes a space in front of a text, which is a token of no byte."""
    parts = [segment("a", True), segment("|", False), segment("b", True)]
    lines = said(parts, [of_bytes("a", 0), of_bytes("", 1, is_end=False), of_bytes("b", 1)])
    assert [line.count("⟦") for line in lines] == [1, 0, 2]
