"""The report page: right numbers, whatever text the store holds, alone in a real browser."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from logitstore import open_store
from logitstore.cli.app import app
from logitstore.console.html_document import as_script, beside, clipped_text
from logitstore.console.svg import axis_top, bars, curve, histogram
from logitstore.errors import InputError
from logitstore.format.spec import Plan
from logitstore.info import facts, uld_within
from logitstore.inspection import meaning, page_data
from logitstore.inspection.page import write_page
from logitstore.inspection.page_data import browsed, curves, picked, spread
from logitstore.inspection.scalars import survey
from logitstore.inspection.trust import checks, numbers
from logitstore.records import Segment, SequenceText
from logitstore.store import LogitStore
from logitstore.testing import stores
from logitstore.text.sequence_facts import sequence_facts
from logitstore.writing.encode import encode_records
from logitstore.writing.writer import StoreWriter
from tests.kit.browser import ATTACK, Browser
from tests.kit.html_pages import Outline, check_structure, contrast, palettes
from tests.kit.look_at_pages import look
from tests.kit.made_stores import put


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    path = tmp_path_factory.mktemp("page") / "s"
    put(path, stores.spec(top_k=16))
    return open_store(path)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """A store of which every string is markup: text, tokens' names, teacher, dataset, status."""
    path = tmp_path_factory.mktemp("hostile") / "<img src=x onerror=window.ran=3>"
    vocabulary = {f"{ATTACK}{i}": i for i in range(500)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": f"{ATTACK}0"}
    described = json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()
    of = stores.spec()
    digests = {"tokenizer.json": hashlib.sha256(described).hexdigest()}
    of = replace(of, tokenizer=dict(of.tokenizer) | {"files": digests})
    of = replace(of, teacher=dict(of.teacher) | {"architecture": ATTACK})
    names = {"teacher": ATTACK, "dataset": ATTACK}
    writer = StoreWriter(path, of, Plan("d" * 64, (0, 2)), {"tokenizer.json": described}, names)
    lines = []
    for row in range(2):
        pieces = [*re.split(r"(?<=>)", ATTACK), "\u202eabc", "\x1b[31m"]
        segments = (Segment(ATTACK * 3, False, "user"), Segment("".join(pieces), True))
        raw = stores.raw_records(of, pieces, np.random.default_rng(row))
        lines.append((SequenceText(row, 0, "ok", segments), encode_records(raw, of)))
    writer.write_shard(0, lines)
    writer.seal()
    return open_store(path)


# ---- what is on the page ----


def test_the_page_is_one_file_that_asks_for_nothing(store: LogitStore, tmp_path: Path) -> None:
    found = write_page(store, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert found["bytes"] == len(text.encode()) < 2_000_000
    assert list(tmp_path.iterdir()) == [tmp_path / "r.html"]
    for asking in ("http:", "https:", '"//', "'//", " src=", "@import", "url("):
        assert asking not in text


def test_only_the_script_and_the_style_of_the_page_may_run(
    store: LogitStore, tmp_path: Path
) -> None:
    write_page(store, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]
    for tag in ("script", "style"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "&amp;", "\u2028", '"\\'])
def test_data_in_a_script_element_cannot_end_it(text: str) -> None:
    written = as_script([text, {text: text}])
    assert json.loads(written) == [text, {text: text}]
    assert not set(written) & set("<>&\u2028\u2029")


def test_text_keeps_its_lines_and_nothing_invisible() -> None:
    assert clipped_text("a\nb\x07\u202e", 9) == "a\nb\\x07\\u202e"
    assert clipped_text("abcd", 2) == "ab…"


def test_no_markup_of_a_store_is_markup_of_the_page(hostile: LogitStore, tmp_path: Path) -> None:
    write_page(hostile, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert text.count("<script") == text.count("</script") == 2
    assert "<img" not in text


def test_mass_and_bound_at_k_are_those_of_the_records(store: LogitStore) -> None:
    found = curves(store)
    within = uld_within(store)
    assert found
    assert within
    assert found["k"] == [1, 2, 4, 8, 16]
    heads = [np.exp(records.padded(16).logprobs.astype(np.float64)) for records in store]
    for k, mass, bound in zip(found["k"], found["mass"], found["bound_mean"], strict=True):
        exact = np.concatenate([head[:, :k].sum(1) for head in heads]).mean()
        assert mass == pytest.approx(exact, abs=1e-6)
        assert 2 * (1 - exact) <= bound <= 2
    # All of this store is looked at, so the last is what `info` says (which saw unrounded tails).
    assert found["bound_mean"][-1] == pytest.approx(within["mean"], rel=5e-3)
    assert found["bound_mean"] == sorted(found["bound_mean"], reverse=True)


def test_what_is_not_known_has_no_curve(tmp_path: Path) -> None:
    missing = ("entropy", "tail_logmass", "token_logprob")
    for name, of in {
        "draws": stores.spec(top_k=0, draws=4),
        "import": stores.spec(missing=missing),
    }.items():
        put(tmp_path / name, of)
        opened = open_store(tmp_path / name)
        assert curves(opened) is None
        write_page(opened, tmp_path / "r.html")
        assert "not known" in (tmp_path / "r.html").read_text()


def test_sequences_to_browse_are_those_of_show(store: LogitStore) -> None:
    found = browsed(store, 100, survey(store).sequence_surprise)
    assert sorted(s["sequence"] for s in found["sequences"]) == spread(store, 100)
    for sequence in found["sequences"]:
        exact = sequence_facts(store, sequence["sequence"])["tokens"]
        tokens = [t for supervised, held in sequence["parts"] if supervised for t in held]
        assert [t[2] for t in tokens] == [t["token_id"] for t in exact]
        for token, wanted in zip(tokens, exact, strict=True):
            said = [token[3], token[4], token[5], *(p for _, p in token[7])]
            best = [e["p"] for e in wanted["entries"][:10]]
            exactly = [wanted["logprob"], wanted["entropy"], wanted["tail"], *best]
            assert said == pytest.approx(exactly, rel=1e-5)
            assert token[6] == len(wanted["entries"])


def test_a_token_that_is_the_end_of_a_line_is_seen() -> None:
    """As `show` has it; in the text itself a line still ends."""
    entry = {"id": 7, "token": "\n\t␣", "p": 0.5}
    numbers = {"token_id": 7, "logprob": -1.0, "entropy": 1.0, "tail": 0.1}
    names: dict[str, str] = {}
    token = page_data._token(0, {"text": "\n", "entries": [entry], **numbers}, names)
    assert names == {"7": r"\n\t␣"}
    assert token[1] == "\n"


def test_long_sequences_and_many_are_cut_to_the_size_of_a_page(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_data, "_SHOWN_RECORDS", 3)
    surprise = survey(store).sequence_surprise
    found = browsed(store, 5, surprise)
    assert len(found["sequences"]) == 5
    for sequence in found["sequences"]:
        shown = sum(len(held) for supervised, held in sequence["parts"] if supervised)
        assert shown == min(3, sequence["records"])
    monkeypatch.setattr(page_data, "_DATA_BYTES", 2 * len(as_script(found["sequences"][0])))
    assert 1 <= len(browsed(store, 5, surprise)["sequences"]) < 5
    for limit in (10, 300, 1000, 3000):
        monkeypatch.setattr(page_data, "_DATA_BYTES", limit)
        assert len(as_script(browsed(store, 5, surprise)).encode()) <= limit + 100


# ---- what decides ----


def exact_surprise(store: LogitStore, i: int) -> float:
    logprobs = store[i].token_logprob.astype(np.float64)
    return float(np.clip(-logprobs, 0, 32).mean()) if len(logprobs) else float("nan")


def test_a_survey_is_of_every_record(store: LogitStore) -> None:
    found = survey(store)
    exact = np.array([exact_surprise(store, i) for i in range(len(store))])
    np.testing.assert_allclose(found.sequence_surprise, exact, atol=1e-5)
    flat = np.concatenate([-r.token_logprob.astype(np.float64) for r in store])
    finite = flat[np.isfinite(flat)]
    assert found.histograms["surprise"]["mean"] == pytest.approx(finite.mean(), rel=1e-5)
    assert found.impossible == len(flat) - len(finite)
    firsts = np.array([-r.token_logprob[0] for r in store if len(r)], np.float64)
    assert found.first_surprise == pytest.approx(firsts[np.isfinite(firsts)].mean(), rel=1e-5)


def test_the_most_surprising_rows_of_the_whole_store_come_first(store: LogitStore) -> None:
    surprise = survey(store).sequence_surprise
    long = [i for i in range(len(store)) if store.token_counts[i] >= 8]
    worst = sorted(long, key=lambda i: -surprise[i])
    assert set(worst[:2]) <= set(picked(store, 4, surprise))
    assert len(picked(store, 4, surprise)) == len(set(picked(store, 4, surprise))) == 4
    shown = [s["surprise"] for s in browsed(store, 4, surprise)["sequences"]]
    assert shown == sorted(shown, reverse=True)
    unknown = np.full(len(store), np.nan)
    assert picked(store, 4, unknown) == spread(store, 4)


def test_a_preview_is_a_short_line_of_the_text_that_is_learnt() -> None:
    segments = [
        {"text": "asked", "supervised": False},
        {"text": "one\n  two\u202e " + "x" * 200, "supervised": True},
    ]
    shown = page_data._preview(segments)
    assert shown.startswith("one two\\u202e xxx")
    assert len(shown) < 110


def test_five_numbers_come_first(store: LogitStore, tmp_path: Path) -> None:
    write_page(store, tmp_path / "r.html")
    page = Outline((tmp_path / "r.html").read_text())
    numbers = [text for _, text in page.of("b")][:5]
    about = facts(store)
    assert numbers[0] == f"{about['records']:,}"
    assert numbers[1] == f"{about['rows']:,}"
    assert numbers[2] == f"{about['bytes_per_token']:.1f}"
    assert numbers[3] == f"{1 - about['fidelity']['tail_mean']:.1%}"
    assert re.fullmatch(r"(\d) of \1", numbers[4])
    assert len(page.of("li")) == 5
    assert page.headings[:2] == [1, 2]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, None),
        ({"complete": False}, "The capture has finished"),
        ({"fidelity": {"dropped_entries": 3}}, "No prediction fell out of the range of its code"),
        (
            {"self_test": {"tokens": 9, "largest": 0.5, "tolerance": 0.1}},
            "The teacher says the same alone and in a batch",
        ),
        ({"turns": {"rows": 9, "without_end": 2}}, "Every answer ends with a token for its end"),
    ],
)
def test_a_check_that_fails_is_named_and_lowers_the_count(
    store: LogitStore, change: dict[str, Any], failed: str | None
) -> None:
    about, found = facts(store), survey(store)
    about["turns"] = {"rows": 9, "without_end": 0}
    about["self_test"] = {"tokens": 9, "largest": 0.01, "tolerance": 0.1}
    for name, value in change.items():
        about[name] = about[name] | value if isinstance(value, dict) else value
    assert [c.name for c in checks(about, found) if c.passed is False] == ([failed] * bool(failed))
    assert numbers(about, found)[4].value == ("5 of 6" if failed else "6 of 6")


def test_a_token_that_the_teacher_excluded_fails_a_check(store: LogitStore) -> None:
    found = survey(store)._replace(impossible=2)
    [check] = [c for c in checks(facts(store), found) if c.passed is False]
    assert check.said.startswith("2 of ")


def test_every_figure_says_what_it_means(store: LogitStore, tmp_path: Path) -> None:
    write_page(store, tmp_path / "r.html")
    page = Outline((tmp_path / "r.html").read_text())
    captions = [text for _, text in page.of("figcaption")]
    assert len(captions) == len(page.of("figure")) >= 6
    for word in ("ce_loss", "tail_kl and mapped_kl", "uld loss", "cross-entropy"):
        assert any(word in text for text in captions), word


def test_what_a_figure_says_is_what_the_tokens_are(store: LogitStore) -> None:
    found, about = survey(store), facts(store)
    flat = np.concatenate([-r.token_logprob.astype(np.float64) for r in store])
    mean = flat[np.isfinite(flat)].mean()
    assert meaning.surprise(found).startswith(f"{mean:.2f} nats a token")
    assert f"{(flat < 1).mean():.0%} of the tokens are below 1" in meaning.surprise(found)
    assert "a larger --top-k would keep more" in meaning.tail(
        found, about | {"fidelity": about["fidelity"] | {"tail_mean": 0.2}}
    )
    assert "template" in meaning.surprise(found._replace(first_surprise=3 * mean + 9))
    assert "template" not in meaning.surprise(found._replace(first_surprise=mean))
    curve = {"k": [1, 2, 4], "mass": [0.5, 0.9, 0.905]}
    assert "--top-k 2 would have done" in meaning.mass(curve)
    assert "more would add more" in meaning.mass(curve | {"mass": [0.3, 0.5, 0.7]})


def test_the_page_has_an_outline_labels_and_nothing_empty(
    store: LogitStore, hostile: LogitStore, tmp_path: Path
) -> None:
    put(tmp_path / "draws", stores.spec(top_k=0, draws=4))
    put(tmp_path / "import", stores.spec(missing=("entropy", "tail_logmass", "token_logprob")))
    every = (store, hostile, *(open_store(tmp_path / name) for name in ("draws", "import")))
    for opened in every:
        write_page(opened, tmp_path / "r.html")
        check_structure((tmp_path / "r.html").read_text())


def test_every_text_can_be_read_in_light_and_in_dark() -> None:
    css = beside("logitstore.console", "page.css") + beside("logitstore.inspection", "browse.css")
    for scheme, colours in palettes(css).items():
        for text in ("text", "dim", "bar", "second"):
            for ground in ("back", "card"):
                found = contrast(colours[text], colours[ground])
                assert found >= 4.5, f"{scheme}: {text} on {ground} has {found:.2f}"
        for shade in ("s1", "s2", "s3"):
            assert contrast(colours["text"], colours[shade]) >= 4.5, (scheme, shade)
            assert contrast(colours["mark"], colours[shade]) >= 3, (scheme, shade)
        assert contrast(colours["focus"], colours["card"]) >= 3
        assert contrast(colours["edge"], colours["card"]) >= 3, "the border of a field"


# ---- figures ----


def test_figures_say_their_numbers_in_words() -> None:
    assert 'aria-label="size: &lt;b&gt;"' in bars([("a", 1, "<i>")], "size: <b>")
    assert "&lt;i&gt;" in bars([("a", 1, "<i>")], "x")
    found = {"label": "entropy, nats", "edges": [0, 1, 2], "counts": [0, 3, 1], "unknown": 0}
    assert 'aria-label="entropy, nats: 1\N{EN DASH}2: 75.0%, 2 and more: 25.0%"' in histogram(found)
    assert "not known" in histogram(found | {"counts": [0, 0, 0]})
    assert "k = 4: 0.5000" in curve([1, 4], {"first": [0.25, 0.5]}, 1.0, "x")
    assert [axis_top(x) for x in (0.0, 0.03, 1.7, 2.0)] == pytest.approx([1e-6, 0.05, 2, 2])


def test_a_store_without_records_has_a_page_too(tmp_path: Path) -> None:
    plan = Plan("d" * 64, (0, 1))
    writer = StoreWriter(tmp_path / "s", stores.spec(), plan, stores.TOKENIZER_FILES)
    writer.write_shard(0, [(SequenceText(0, 0, "empty", ()), None)])
    writer.seal()
    write_page(open_store(tmp_path / "s"), tmp_path / "r.html")
    assert "No row with a token that is kept fits" in (tmp_path / "r.html").read_text()


def test_the_command_says_what_it_wrote(store: LogitStore, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    done = CliRunner().invoke(app, ["report", str(store.path), "-o", str(out), "--json"])
    assert json.loads(done.stdout) == {
        "report": str(out),
        "bytes": out.stat().st_size,
        "sequences": len(spread(store, 24)),
    }
    done = CliRunner().invoke(app, ["report", str(store.path), "-o", str(out)])
    assert done.stdout.startswith(f"{out}: ")


def test_a_place_that_cannot_be_written_is_an_error(store: LogitStore, tmp_path: Path) -> None:
    assert isinstance(store.path, Path)
    with pytest.raises(InputError, match="there is no folder"):
        write_page(store, tmp_path / "none" / "r.html")
    with pytest.raises(InputError, match="it is a folder"):
        write_page(store, tmp_path)
    with pytest.raises(InputError, match="is inside the store"):
        write_page(store, store.path / "r.html")
    with pytest.raises(InputError, match="--sequences is 0"):
        write_page(store, tmp_path / "r.html", sequences=0)
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_replaced_and_nothing_else(store: LogitStore, tmp_path: Path) -> None:
    write_page(store, tmp_path / "r.html")
    write_page(store, tmp_path / "r.html")
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="is not a page for a browser, so it is kept"):
        write_page(store, tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years"


# ---- in a browser ----


def shown_numbers(browser: Browser) -> tuple[dict[str, str], list[list[str]]]:
    facts = browser.ask(
        "Object.fromEntries([...document.querySelectorAll('#detail dt')]"
        ".map(e => [e.textContent, e.nextSibling.textContent]))"
    )
    rows = browser.ask(
        "[...document.querySelectorAll('#detail tr')]"
        ".map(r => [r.querySelector('.number').textContent, r.querySelector('.name').textContent])"
    )
    return facts, rows


def check_shown(browser: Browser, token: dict[str, object], record: int) -> None:
    """The numbers beside the text are those of this record."""
    facts, rows = shown_numbers(browser)
    entries = token["entries"]
    assert isinstance(entries, list)
    assert browser.ask("document.querySelector('#detail h3').textContent").startswith(
        f"Token {record}: "
    )
    assert facts["id"] == str(token["token_id"])
    assert float(facts["probability"]) == pytest.approx(np.exp(token["logprob"]), abs=6e-5)
    assert float(facts["surprise"]) == pytest.approx(-float(str(token["logprob"])), abs=6e-4)
    assert float(facts["entropy"]) == pytest.approx(token["entropy"], abs=6e-4)
    assert rows[-1][1] == "all others, not kept"
    assert float(rows[-1][0]) == pytest.approx(token["tail"], abs=6e-5)
    assert [name for _, name in rows[:10]] == [f"id {e['id']}" for e in entries[:10]]
    for (p, _), entry in zip(rows, entries[:10], strict=False):
        assert float(p) == pytest.approx(entry["p"], abs=6e-5)


def test_pointing_tapping_and_keys_show_the_right_numbers(
    browser: Browser, store: LogitStore, tmp_path: Path
) -> None:
    write_page(store, tmp_path / "r.html")
    browser.open(tmp_path / "r.html")
    surprise = survey(store).sequence_surprise
    first, second = (s["sequence"] for s in browsed(store, 24, surprise)["sequences"][:2])
    tokens = sequence_facts(store, first)["tokens"]
    element = "document.querySelectorAll('#text .token')[{}]".format
    browser.hover(element(2))
    check_shown(browser, tokens[2], 2)
    browser.ask(f"{element(0)}.focus()")
    browser.press("ArrowRight")
    check_shown(browser, tokens[1], 1)
    browser.press("End")
    check_shown(browser, tokens[-1], len(tokens) - 1)
    browser.ask("document.querySelectorAll('#rows .row')[1].click()")
    check_shown(browser, sequence_facts(store, second)["tokens"][0], 0)
    assert browser.said == []

    browser.open(tmp_path / "r.html", width=390, height=844, dark=True)
    browser.tap(element(1))
    check_shown(browser, tokens[1], 1)
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    back = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert back == "rgb(20, 22, 26)"
    assert browser.said == []


def test_everything_can_be_reached_with_the_keyboard(
    browser: Browser, store: LogitStore, tmp_path: Path
) -> None:
    write_page(store, tmp_path / "r.html")
    browser.open(tmp_path / "r.html")
    in_text = "document.activeElement.closest('#text') ? 'text' : "
    focused = in_text + "document.activeElement.id || document.activeElement.className || 'x'"
    seen: list[str] = []
    for _ in range(12):
        browser.press("Tab")
        at = str(browser.ask(focused)).split()[0]
        seen += [at] if at not in seen[-1:] else []
        if at != "x":
            style = browser.ask("getComputedStyle(document.activeElement).outlineStyle")
            assert style == "solid", f"{at}: the focus is not seen"
    # The tokens are one stop of the tabulator: arrows go on from there.
    assert seen[:5] == ["search", "order", "row", "token", "text"]
    browser.ask("document.querySelector('#rows .row').focus()")
    browser.press("ArrowDown")
    selected = "[...document.querySelectorAll('.row')].map(e => e.getAttribute('aria-selected'))"
    assert browser.ask(selected)[:2] == ["false", "true"]
    browser.ask("document.querySelector('#text .token').focus()")
    browser.press("Enter")
    browser.hover("document.querySelectorAll('#text .token')[1]")
    assert browser.ask("document.querySelector('#detail h3').textContent").startswith("Token 0: ")
    browser.press("Escape")
    browser.hover("document.querySelectorAll('#text .token')[2]")
    assert browser.ask("document.querySelector('#detail h3').textContent").startswith("Token 2: ")
    assert browser.said == []


def test_rows_are_searched_and_ordered(browser: Browser, store: LogitStore, tmp_path: Path) -> None:
    write_page(store, tmp_path / "r.html")
    browser.open(tmp_path / "r.html")
    rows = (
        "[...document.querySelectorAll('#rows small')].map(e => parseInt(e.textContent.slice(4)))"
    )
    surprise = survey(store).sequence_surprise
    shown = browsed(store, 24, surprise)["sequences"]
    assert browser.ask(rows) == [s["row"] for s in shown]
    change = (
        "(e => {{ e.value = {}; e.dispatchEvent(new Event('{}')) }})(document.getElementById('{}'))"
    )
    browser.ask(change.format("'row'", "change", "order"))
    assert browser.ask(rows) == sorted(s["row"] for s in shown)
    text = store.text(shown[-1]["sequence"])
    word = text.supervised_bytes.decode()[:6]
    browser.ask(change.format(json.dumps(word), "input", "search"))
    wanted = sorted(s["row"] for s in shown if word.lower() in all_text(store, s["sequence"]))
    assert browser.ask(rows) == wanted
    assert browser.ask("document.getElementById('count').textContent").startswith(
        f"{len(wanted)} of {len(shown)} rows with"
    )
    browser.ask(change.format("'no such text'", "input", "search"))
    assert browser.ask("document.getElementById('count').textContent").startswith("0 of ")
    assert browser.said == []


def all_text(store: LogitStore, i: int) -> str:
    return "".join(segment.text for segment in store.text(i).segments).lower()


@pytest.mark.slow
def test_the_page_fits_a_desk_and_a_phone_in_light_and_in_dark(
    browser: Browser, store: LogitStore, tmp_path: Path
) -> None:
    write_page(store, tmp_path / "r.html")
    assert list(look(browser, tmp_path / "r.html", tmp_path, None)) == []
    assert len({path.read_bytes() for path in tmp_path.glob("r-*.png")}) == 8
    (tmp_path / "wide.html").write_text("<div style='width: 600px'>x</div>")
    wrong = list(look(browser, tmp_path / "wide.html", tmp_path, None))
    assert [said.split(", ")[1] for said in wrong] == ["390 pixels"] * 2


def test_a_store_full_of_scripts_runs_nothing(
    browser: Browser, hostile: LogitStore, tmp_path: Path
) -> None:
    out = tmp_path / "r.html"
    write_page(hostile, out)
    browser.open(out)
    for i in range(3):
        browser.hover(f"document.querySelectorAll('#text .token')[{i}]")
    assert browser.ask("document.querySelector('#detail .name').textContent")
    assert ATTACK[:80] in browser.ask("document.querySelector('#detail table').textContent")
    assert browser.ask("document.querySelector('.context').textContent") == ATTACK * 3
    assert browser.ask("window.ran") is None
    assert browser.ask("document.querySelectorAll('img, script').length") == 2
    assert (browser.said, browser.asked_for) == ([], [out.resolve().as_uri()])


def test_the_policy_stops_what_an_escape_forgot(
    browser: Browser, store: LogitStore, tmp_path: Path
) -> None:
    write_page(store, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    forgotten = "<script>window.ran=1</script><p onclick='window.ran=2' id='p'>x</p>"
    (tmp_path / "r.html").write_text(text.replace("</body>", f"{forgotten}</body>"))
    browser.open(tmp_path / "r.html")
    browser.ask("document.getElementById('p').click()")
    assert browser.ask("window.ran") is None
    assert browser.said, "the browser says that it refused"
