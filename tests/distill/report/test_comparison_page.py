"""The comparison as a page: right numbers, whatever a run folder holds, alone in a real browser."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distill import cli
from distill.report.comparison import compare, key_of, read
from distill.report.facts import differing
from distill.report.figures import curves, in_words
from distill.report.history import STATE_FILE, read_curves, together
from distill.report.metrics import METRICS
from distill.report.page import MOST_CONTENDERS, page, write_page
from logitstore.console.svg import ticks
from logitstore.errors import InputError
from tests.kit.browser import ATTACK, Browser

BITS = {"ce": (2.0, 2.4), "mapped": (1.9, 2.1), "alm": (1.95, 2.2)}
SAMPLE = {"row": 3, "prompt": "Once upon", "reference": " a time.", "answer": "a <b>midnight</b>"}


def student(folder: Path, run: dict[str, Any], log: Sequence[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(run))
    (folder / STATE_FILE).write_text(json.dumps({"log_history": log}))
    return folder


def logged(last: int, offset: float) -> list[dict[str, Any]]:
    entries = [
        {"step": step, "loss": 9.0 / step + offset, "ce_loss": 4.0 / step + offset, "epoch": 0.1}
        for step in range(10, last + 1, 10)
    ]
    return [*entries, {"step": last, "eval_loss": 3.0 + offset}, {"step": last, "train_loss": 1.0}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three contenders of two seeds; seeds come one after the other, as `students/*-0` would."""
    root = tmp_path_factory.mktemp("students")
    found = []
    for seed in (0, 1):
        for name, bits in BITS.items():
            run = {"name": name, "seed": seed, "bits_per_byte": bits[seed], "time_s": 3.0}
            run |= {"loss": name, "steps": 100, "store": "/home/me/stores/store"}
            run |= {"samples": {"texts": [SAMPLE | {"answer": f"{name} {seed} <b>"}]}}
            found.append(student(root / f"{name}-{seed}", run, logged(100, bits[seed])))
    return found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run folders of which every string is markup, and every list holds what it should not."""
    root = tmp_path_factory.mktemp("hostile")
    texts = [None, 3, {"row": "x"}, dict.fromkeys(SAMPLE, ATTACK) | {"row": 1}]
    run = {"name": ATTACK, "seed": ATTACK, "loss": ATTACK, "store": [ATTACK], "teacher": {}}
    run |= {"bits_per_byte": 1.0, "samples": {"texts": texts}, "evaluation": {"data": ATTACK}}
    run |= {"teacher": {"name": ATTACK, "dataset": {ATTACK: ATTACK}}, "lora": {ATTACK: 1}}
    log = [None, 3, {"loss": 1}, {"step": ATTACK, "loss": 1}, {"step": 1, "loss": ATTACK}]
    log += [{"step": step, f"{ATTACK}_loss": 1.0 / step, "loss": 1e300} for step in (1, 2)]
    other = run | {"name": "\x1b[31m\u202eabc", "evaluation": {"data": ATTACK, "rows": 3}}
    return [student(root / "a", run, log), student(root / "b", other, log)]


def written(folders: Sequence[Path], out: Path, baseline: str | None = None) -> str:
    runs = [read(str(folder)) for folder in folders]
    places = {key_of(run): folder for run, folder in zip(runs, folders, strict=True)}
    write_page(compare(runs, baseline), places, out)
    return out.read_text()


# ---- what is on the page ----


def test_the_page_is_one_file_that_asks_for_nothing(folders: list[Path], tmp_path: Path) -> None:
    text = written(folders, tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == [tmp_path / "r.html"]
    for asking in ("http:", "https:", '"//', "'//", " src=", "@import", "url("):
        assert asking not in text
    assert "/home/me" not in text


def test_a_contenders_numbers_stand_by_its_own_name(folders: list[Path], tmp_path: Path) -> None:
    text = written(folders, tmp_path / "r.html")
    said = dict(re.findall(r'data-said="(\w+): ([^"]*)"', text.split("Time, s")[0]))
    assert said["mapped"] == (
        "1.900 (seed 0), 2.100 (seed 1); standard deviation 0.141; better than the baseline with "
        "2 of 2 seeds"
    )
    assert said["ce"] == "2.000 (seed 0), 2.400 (seed 1); standard deviation 0.283"
    assert "2.000 (-0.200)</text>" in text
    first = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["curves"][0]
    assert first["right"] == 100
    for name, bits, line in zip(BITS, BITS.values(), first["lines"], strict=True):
        last = [100, 3 + sum(bits) / 2, 3 + bits[0], 3 + bits[1]]
        assert line == [pytest.approx(last)], name


def test_what_a_student_writes_is_shown_once_and_as_text(
    folders: list[Path], tmp_path: Path
) -> None:
    text = written(folders, tmp_path / "r.html")
    assert text.count("Once upon") == 1
    for name in BITS:
        assert text.count(f"{name} 0 &lt;b&gt;") == 1
    assert "alm 1 &lt;b&gt;" not in text


def test_without_curves_and_samples_the_page_says_where_they_come_from(tmp_path: Path) -> None:
    folder = student(tmp_path / "a", {"name": "a", "seed": 0, "bits_per_byte": 1.0}, [])
    text = written([folder], tmp_path / "r.html")
    assert "no trainer_state.json with losses" in text
    assert "distill evaluate FOLDER DATA --samples 4" in text


def test_no_markup_of_a_run_is_markup_of_the_page(hostile: list[Path], tmp_path: Path) -> None:
    text = written(hostile, tmp_path / "r.html")
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_half_of_a_surrogate_pair_is_spelt_out(tmp_path: Path) -> None:
    """JSON can say it, and no file of UTF-8 can hold it."""
    runs = [{"name": f"n\ud800{i}", "seed": f"s\udfff{i}", "bits_per_byte": 1.0} for i in range(2)]
    places = [student(tmp_path / str(i), run, []) for i, run in enumerate(runs)]
    text = written(places, tmp_path / "r.html")
    assert r"n\ud8000" in text
    assert r"s\udfff1" in text


def test_however_much_a_run_folder_holds_the_page_is_small(tmp_path: Path) -> None:
    log = [{"step": i, **{f"{n}_loss": i / 7 for n in "abcdefghijklmno"}} for i in range(3000)]
    texts = [SAMPLE | {"row": i, "answer": "&" * 5000} for i in range(300)]
    folders = [
        student(
            tmp_path / str(i),
            {"name": f"{i}" + "<" * 300, "seed": "&" * 9000, "loss": "\x01" * 9000, "uld": i / 3}
            | {"bits_per_byte": i / 7, "samples": {"texts": texts}, "lora": {"x": "<" * 9000}},
            log if i % 16 == 0 else log[:50],
        )
        for i in range(MOST_CONTENDERS)
    ]
    assert len(written(folders, tmp_path / "r.html").encode()) < 2_000_000


def test_more_than_a_page_can_show_is_an_error(tmp_path: Path) -> None:
    runs = [{"name": str(i), "seed": 0, "uld": 1.0} for i in range(MOST_CONTENDERS + 1)]
    with pytest.raises(InputError, match=r"49 runs of 49 contenders.*Name fewer"):
        write_page(compare(runs), {}, tmp_path / "r.html")
    with pytest.raises(InputError, match="there is no folder"):
        write_page(compare(runs), {}, tmp_path / "none" / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_what_differs_is_told_apart_from_what_is_alike() -> None:
    ce, both = (
        {"loss": "ce", "steps": 5, "seed": 0},
        {"loss": "alm", "steps": 5, "pairing": "bytes"},
    )
    alike, own = differing([[ce], [both | {"seed": 0}, both | {"seed": 1}]])
    assert alike == {"steps": "5"}
    assert own == ["loss: ce · seeds: 0", "loss: alm · seeds: 0, 1 · pairing of ULD: bytes"]
    assert differing([[ce]]) == ({"loss": "ce", "steps": "5", "seeds": "0"}, [""])


def test_an_unmeasured_student_has_a_place_on_the_page(tmp_path: Path) -> None:
    runs = [{"name": "a", "seed": 0, "uld": 1.0}, {"name": "b", "seed": 0}]
    text = page(compare(runs), {key_of(run): tmp_path for run in runs})
    assert 'data-said="b: not measured"' in text
    found = compare(runs)["contenders"][1]["metrics"]["uld"]
    assert in_words("b", found, METRICS[3]) == "b: not measured"


# ---- curves ----


def test_runs_of_a_contender_become_their_mean_least_and_most() -> None:
    runs = [[(10, 1.0), (20, 2.0)], [(10, 3.0), (30, 5.0)]]
    assert together(runs, 9) == [(10, 2, 1, 3), (20, 2, 2, 2), (30, 5, 5, 5)]
    assert together(runs, 2) == [(20, 2.25, 1.5, 3), (30, 5, 5, 5)]  # two steps share a point
    assert together([], 9) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"log_history": 3}', "[" * 100_000, ""])
def test_a_state_that_cannot_be_read_is_no_curve(tmp_path: Path, content: str) -> None:
    assert read_curves(tmp_path) == {}
    (tmp_path / STATE_FILE).write_text(content)
    assert read_curves(tmp_path) == {}


def test_a_step_that_was_logged_twice_counts_once(tmp_path: Path) -> None:
    log = [{"step": 2, "loss": 5.0}, {"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0}]
    (tmp_path / STATE_FILE).write_text(json.dumps({"log_history": log}))
    (tmp_path / "results.json").write_text("{}")
    assert read_curves(tmp_path) == read_curves(tmp_path / "results.json")
    assert read_curves(tmp_path) == {"loss": [(1, 4.0), (2, 3.0)]}


def test_a_steep_beginning_does_not_flatten_the_rest() -> None:
    line = [(step, value, value, value) for step, value in ((1, 900.0), (50, 3.0), (100, 2.0))]
    drawn = curves("x", [line, [], [(7, 1.0, 1.0, 1.0)]])
    assert ">900<" not in drawn.picture
    assert ">3<" in drawn.picture
    assert drawn.numbers["lines"] == [[list(point) for point in line], [], [[7, 1, 1, 1]]]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks(1.93, 2.27, 5) == pytest.approx([2.0, 2.1, 2.2])


# ---- the command ----


def test_the_command_writes_the_page_and_says_so_beside_its_table(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "r.html"
    command = ["distill", "compare", *map(str, folders), "--baseline", "mapped", "-o", str(out)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (None, 0)
    said = capsys.readouterr()
    assert said.out.startswith("Not conclusive: nothing is surely better than mapped in bits/byte")
    [head] = [line for line in said.out.splitlines() if line.startswith("students")]
    assert "against mapped" in head
    assert said.err == f"{out}: {out.stat().st_size:,} bytes, 6 runs\n"


# ---- in a browser ----


def test_pointing_tapping_and_keys_show_the_right_numbers(
    browser: Browser, folders: list[Path], tmp_path: Path
) -> None:
    written(folders, tmp_path / "r.html")
    figure = "[...document.querySelectorAll('figure')].find(f => f.textContent.includes('{}'))"
    bits, entropy = figure.format("Bits/byte"), figure.format("Training: cross-entropy")

    def numbers() -> list[float]:
        texts = browser.ask(f"[...{entropy}.querySelectorAll('dd')].map(e => e.textContent)")
        return [float(number) for text in texts for number in re.findall(r"[\d.]+", text)]

    def exactly(step: int) -> list[Any]:
        means = {name: sum(of) / 2 for name, of in BITS.items()}
        three = ((means[name], *of) for name, of in BITS.items())
        return [pytest.approx(4 / step + value, rel=1e-4) for each in three for value in each]

    for how in ({}, {"width": 390, "height": 844, "dark": True}):
        browser.open(tmp_path / "r.html", **how)
        assert numbers() == exactly(100)
        act = browser.tap if how else browser.hover
        act(f"{bits}.querySelectorAll('.row')[1]")
        said = browser.ask(f"{bits}.querySelector('.readout').textContent")
        assert said.startswith("mapped: 1.900 (seed 0), 2.100 (seed 1)")
        act(f"{entropy}.querySelector('svg')")  # its middle: nearer to step 40 than to 50
        step = browser.ask(f"{entropy}.querySelector('.readout').textContent")
        assert step == "at step 40"
        assert numbers() == exactly(40)
        browser.ask(f"{entropy}.querySelector('svg').focus()")
        browser.press("ArrowRight")
        assert numbers() == exactly(50)
        browser.press("End")
        assert numbers() == exactly(100)
        assert browser.ask("document.documentElement.scrollWidth") <= (390 if how else 1200)
        assert (browser.said, len(browser.asked_for)) == ([], 1)


def test_a_run_folder_full_of_scripts_runs_nothing(
    browser: Browser, hostile: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "r.html"
    written(hostile, out)
    browser.open(out)
    browser.hover("document.querySelector('.row')")
    assert browser.ask("document.querySelector('.readout').textContent").startswith("</script>")
    assert ATTACK in browser.ask("document.querySelector('.sample').textContent")
    assert "not all were measured alike" in browser.ask("document.body.textContent")
    assert browser.ask("window.ran") is None
    assert browser.ask("document.querySelectorAll('img, script').length") == 2
    assert (browser.said, browser.asked_for) == ([], [out.resolve().as_uri()])
