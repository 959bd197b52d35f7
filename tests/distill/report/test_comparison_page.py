"""The comparison as a page: right numbers, whatever a run folder holds, alone in a real browser."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distill import cli
from distill.report.comparison import compare, key_of, read
from distill.report.curve_figures import axis_of, curves
from distill.report.facts import differing
from distill.report.figures import colour, strips, widened
from distill.report.history import STATE_FILE, Curve, Point, read_curves, together
from distill.report.metrics import METRICS
from distill.report.page import MOST_CONTENDERS, page, write_page
from logitstore.console.html_document import beside
from logitstore.console.svg import FRAME, ticks
from logitstore.errors import InputError
from tests.kit.browser import ATTACK, Browser
from tests.kit.html_pages import Outline, check_structure, contrast, palettes
from tests.kit.look_at_pages import look
from tests.kit.paths import ROOT

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
    board = text.split('class="board"')[1].split("</table>")[0]
    rows = [Outline(f"<table>{row}</table>") for row in re.findall("<tr>.*?</tr>", board)[1:]]
    named = {row.of("th")[0][1].split()[0]: row.of("td") for row in rows}
    assert list(named) == ["mapped", "alm", "ce"], "the best first"
    for name, bits in BITS.items():
        cells = {attributes["data-label"]: (attributes, said) for attributes, said in named[name]}
        attributes, said = cells["bits/byte"]
        mean = sum(bits) / 2
        assert float(attributes["data-value"]) == pytest.approx(mean)
        assert said == f"{mean:.3f} {bits[0]:.3f} - {bits[1]:.3f}"
    # t(1) at 1 - 0.05 / 2 / 2 is 25.45; the differences are -0.1 and -0.3
    against = {name: cells_of(cells)["against the baseline"] for name, cells in named.items()}
    assert against["mapped"] == f"\N{MINUS SIGN}0.200 ± {25.45 * 0.1:.3f} undecided"
    assert against["ce"] == ""
    first = json.loads(text.split('id="data">')[1].split("</script>")[0])["curves"][0]
    assert first["right"] == 100
    for name, bits, line in zip(BITS, BITS.values(), first["lines"], strict=True):
        last = [9, 100, 100, 4 / 100 + sum(bits) / 2, 4 / 100 + bits[0], 4 / 100 + bits[1]]
        assert line[-1] == pytest.approx(last), name


def cells_of(cells: list[tuple[dict[str, str], str]]) -> dict[str, str]:
    return {attributes["data-label"]: said for attributes, said in cells}


def test_what_was_found_stands_above_everything(folders: list[Path], tmp_path: Path) -> None:
    text = written(folders, tmp_path / "r.html")
    runs = [read(str(folder)) for folder in folders]
    assert Outline(text).of("p")[0][1] == compare(runs)["finding"]
    assert text.index('class="finding"') < text.index("<h2>")


def test_the_page_has_an_outline_labels_and_nothing_empty(
    folders: list[Path], hostile: list[Path], tmp_path: Path
) -> None:
    single = student(tmp_path / "a", {"name": "a", "seed": 0, "bits_per_byte": 1.0}, [])
    for n, given in enumerate((folders, hostile, folders[:3], [single])):
        check_structure(written(given, tmp_path / f"{n}.html"))


def test_every_text_can_be_read_in_light_and_in_dark() -> None:
    css = beside("logitstore.console", "page.css") + beside("distill.report", "page.css")
    texts = ("text", "dim", "bar", "second", "good", "bad", *(f"c{i}" for i in range(8)))
    for scheme, colours in palettes(css).items():
        for ground in ("back", "card"):
            for name in texts:
                found = contrast(colours[name], colours[ground])
                assert found >= 4.5, f"{scheme}: {name} on {ground} has {found:.2f}"
            assert contrast(colours["focus"], colours[ground]) >= 3


def test_what_was_logged_once_is_no_card_of_its_own(folders: list[Path], tmp_path: Path) -> None:
    text = written(folders, tmp_path / "r.html")
    titles = [said for _, said in Outline(text).of("h3")]
    assert "Training: cross-entropy" in titles
    assert "Held-out: whole loss" not in titles
    last = text.split("Last values, as a table")[1].split("</table>")[0]
    assert last.count("step 100</small>") == 3 * 3  # loss, ce_loss and eval_loss of three
    assert '5.2 <small class="dim">step 100' in last  # the mean of 3 + 2.0 and 3 + 2.4


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
    runs = [{"name": "a", "seed": i, "uld": 1.0} for i in (0, 1)] + [{"name": "b", "seed": 0}]
    text = page(compare(runs), {key_of(run): tmp_path for run in runs})
    assert ">not measured</text>" in text
    [row] = re.findall(r'<tr><th scope="row"><span class="name c1.*?</tr>', text)
    assert '<td data-label="ULD"><div>-</div></td>' in row


def test_seeds_are_drawn_where_there_are_several(folders: list[Path], tmp_path: Path) -> None:
    assert "<h2>Seed by seed</h2>" in written(folders, tmp_path / "r.html")
    one = written(folders[:3], tmp_path / "one.html")
    assert "<h2>Seed by seed</h2>" not in one
    assert "Every seed" not in one


# ---- axes ----


@pytest.mark.parametrize(
    ("values", "wanted"),
    [((5.535, 5.5351), 0.05535), ((2.0, 3.0), 1.0), ((0.0, 0.0), 1.0), ((-4.0, -4.0), 0.04)],
)
def test_an_axis_never_stretches_noise(values: tuple[float, float], wanted: float) -> None:
    low, high = widened(*values)
    assert high - low == pytest.approx(wanted, rel=1e-3)
    assert low <= values[0] <= values[1] <= high
    assert low + high == pytest.approx(sum(values))


def test_seeds_that_hardly_differ_lie_together_and_the_figure_says_why() -> None:
    runs = [{"name": n, "seed": s, "uld": 5.535 + s / 1e4} for n in "ab" for s in (0, 1)]
    found = compare(runs)
    drawn, is_wider = strips(found["contenders"], METRICS[3])
    assert is_wider
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    assert max(places) - min(places) < 5  # of 312
    assert "All of them lie within 1 %" in page(found, {key_of(run): Path("no") for run in runs})


# ---- curves ----


def test_runs_of_a_contender_become_their_mean_least_and_most() -> None:
    runs: list[Curve] = [[(10, 1.0), (20, 2.0)], [(10, 3.0), (30, 5.0)]]
    assert together([runs], 9) == [
        [(0, 10, 10, 2, 1, 3), (1, 20, 20, 2, 2, 2), (2, 30, 30, 5, 5, 5)]
    ]
    # Two steps share a point, which says which ones.
    assert together([runs], 2) == [[(0, 10, 20, 2.25, 1.5, 3), (1, 30, 30, 5, 5, 5)]]
    assert together([[], []], 9) == [[], []]


def test_a_value_says_the_steps_that_it_is_from() -> None:
    """Contenders share groups of steps; what one logged at other steps keeps its own."""
    often: Curve = [(step, float(step)) for step in range(10, 70, 10)]
    seldom: Curve = [(20, 1.0), (60, 2.0)]
    one, other = together([[often], [seldom]], 3)
    assert [point[:3] for point in one] == [(0, 10, 20), (1, 30, 40), (2, 50, 60)]
    assert [point[:3] for point in other] == [(0, 20, 20), (2, 60, 60)]


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


def test_lines_that_lie_on_each_other_are_told_apart_without_colour() -> None:
    """What lies below is seen in the gaps of what lies above it; a colour has each kind once."""
    points = line_of((1, 3.0), (50, 2.5), (100, 2.0))
    drawn = curves("x", [points] * 4).picture
    kinds = re.findall(r'<polyline [^>]*class="line c\d (d\d)"', drawn)
    assert kinds == ["d0", "d1", "d2", "d0"]
    assert len({colour(i) for i in range(24)}) == 24
    style = (ROOT / "distill/report/page.css").read_text()
    for kind in ("d1", "d2"):
        assert re.search(rf"svg \.line\.{kind} {{ stroke-dasharray:", style)
        assert re.search(rf"\.values dt\.{kind}::before {{ border-top-style:", style)


def test_negative_numbers_have_a_minus_sign() -> None:
    points = line_of((1, -1.0), (50, -2.5), (100, -2.0))
    ticks = re.findall(r'class="end">([^<]*)<', curves("x", [points]).picture)
    assert any(tick.startswith("\N{MINUS SIGN}") for tick in ticks)
    assert not any("-" in tick for tick in ticks)
    metric = METRICS[0]
    assert metric.shown(-0.0123, "+") == "\N{MINUS SIGN}0.012"
    assert metric.shown(-0.0001) == "0.000"


def line_of(*values: tuple[int, float]) -> list[Point]:
    return [Point(i, step, step, v, v, v) for i, (step, v) in enumerate(values)]


def test_a_curve_is_whole_from_its_first_step() -> None:
    points = line_of((1, 7.5), (10, 6.5), (20, 6.0), (100, 5.5))
    assert axis_of([points], 100).kind == "whole"
    drawn = curves("x", [points])
    assert drawn.note == ""
    [listed] = re.findall(r'<polyline points="([^"]*)"', drawn.picture)
    assert len(listed.split()) == 4
    heights = [float(at.split(",")[1]) for at in listed.split()]
    assert min(heights) > FRAME.top  # no value is pressed to the edge


def test_a_steep_beginning_is_drawn_on_a_logarithmic_axis() -> None:
    points = line_of((1, 900.0), (20, 30.0), (50, 5.0), (100, 2.0))
    drawn = curves("x", [points])
    assert drawn.note == "The axis is logarithmic."
    heights = [float(y) for y in re.findall(r",([\d.]+)", drawn.picture.split("polyline")[1])][:4]
    steps = [a - b for a, b in zip(heights[1:], heights, strict=False)]
    exact = [math.log(a / b) for a, b in ((900, 30), (30, 5), (5, 2))]
    assert [s / sum(steps) for s in steps] == [
        pytest.approx(e / sum(exact), abs=0.01) for e in exact
    ]


def test_what_is_cut_off_is_marked_and_said() -> None:
    steep = line_of((1, 900.0), (50, 3.0), (100, 2.0))
    drawn = curves("x", [steep, [], line_of((7, 1.9))])
    assert drawn.note == "▲ comes from above the figure, where it begins: from up to 900."
    assert drawn.picture.count('class="above c0') == 1
    assert ">3<" in drawn.picture
    assert drawn.numbers["lines"] == [[list(p) for p in steep], [], [[0, 7, 7, 1.9, 1.9, 1.9]]]
    assert 'class="above' not in curves("x", [line_of((1, 3.0), (50, 2.5), (100, 2.0))]).picture


def test_a_curve_that_hardly_moves_looks_so() -> None:
    drawn = curves("x", [line_of((1, 6.2021), (50, 6.2020), (100, 6.2019))])
    assert drawn.note == "All of it lies within 1 %: the axis is wider."
    axis = axis_of([line_of((1, 6.2021), (100, 6.2019))], 100)
    assert axis.share(6.2021) - axis.share(6.2019) < 0.01


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
    entropy = figure.format("Training: cross-entropy")

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
        act(f"{entropy}.querySelector('svg')")  # its middle: nearer to step 40 than to 50
        step = browser.ask(f"{entropy}.querySelector('.readout').textContent")
        assert step == "at step 40"
        assert numbers() == exactly(40)
        browser.ask(f"{entropy}.querySelector('svg').focus()")
        browser.press("ArrowRight")
        assert numbers() == exactly(50)
        browser.press("End")
        assert numbers() == exactly(100)
        said = browser.ask(f"{entropy}.querySelector('svg').getAttribute('aria-valuetext')")
        assert said.startswith("at step 100: ce 2.2400 (2.0400 \N{EN DASH} 2.4400), mapped ")
        assert browser.ask("document.documentElement.scrollWidth") <= (390 if how else 1200)
        assert (browser.said, len(browser.asked_for)) == ([], 1)


def test_a_student_that_did_not_log_at_a_step_lists_no_value_of_another(
    browser: Browser, tmp_path: Path
) -> None:
    seldom = [{"step": step, "ce_loss": 1.0 * step} for step in (20, 40, 60)]
    often = [{"step": step, "ce_loss": 2.0 * step} for step in range(10, 70, 10)]
    places = [
        student(tmp_path / name, {"name": name, "seed": 0, "bits_per_byte": 1.0}, log)
        for name, log in (("seldom", seldom), ("often", often))
    ]
    written(places, tmp_path / "r.html")
    browser.open(tmp_path / "r.html")
    browser.ask("document.querySelector('figure.curves svg').focus()")
    browser.press("ArrowLeft")
    values = "[...document.querySelectorAll('figure.curves dd')].map(e => e.textContent)"
    assert browser.ask("document.querySelector('.readout').textContent") == "at step 50"
    assert browser.ask(values) == ["not logged", "100.00"]


def test_a_click_on_a_head_sorts_the_leaderboard_by_its_better_end(
    browser: Browser, folders: list[Path], tmp_path: Path
) -> None:
    written(folders, tmp_path / "r.html")
    browser.open(tmp_path / "r.html")
    order = "[...document.querySelectorAll('.board tbody tr')].map(r => r.cells[0].textContent)"
    head = "[...document.querySelectorAll('.board th')].find(h => h.textContent == 'bits/byte')"
    assert browser.ask(order) == ["mapped", "alm", "ce baseline"]
    assert browser.ask(f"{head}.getAttribute('aria-sort')") == "ascending"
    browser.ask(f"{head}.querySelector('button').focus()")
    browser.press("Enter")
    assert browser.ask(order) == ["ce baseline", "alm", "mapped"]
    assert browser.ask(f"{head}.getAttribute('aria-sort')") == "descending"
    browser.press(" ")
    assert browser.ask(order) == ["mapped", "alm", "ce baseline"]
    browser.open(tmp_path / "r.html", width=390, height=844)
    assert browser.ask("getComputedStyle(document.querySelector('.sort')).display") == "block"
    assert browser.said == []


@pytest.mark.slow
def test_the_page_fits_a_desk_and_a_phone_in_light_and_in_dark(
    browser: Browser, folders: list[Path], tmp_path: Path
) -> None:
    written(folders, tmp_path / "r.html")
    assert list(look(browser, tmp_path / "r.html", tmp_path, None)) == []


def test_a_run_folder_full_of_scripts_runs_nothing(
    browser: Browser, hostile: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "r.html"
    written(hostile, out)
    browser.open(out)
    assert browser.ask("document.querySelector('.finding').textContent").startswith("No verdict")
    assert "</script>" in browser.ask("document.querySelector('.board').textContent")
    assert ATTACK in browser.ask("document.querySelector('.sample').textContent")
    assert "not all were measured alike" in browser.ask("document.body.textContent")
    assert browser.ask("window.ran") is None
    assert browser.ask("document.querySelectorAll('img, script').length") == 2
    assert (browser.said, browser.asked_for) == ([], [out.resolve().as_uri()])
