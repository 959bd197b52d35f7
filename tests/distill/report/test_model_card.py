"""The model card and the curves: true, bounded, and no more than text whatever a store says."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from distill.report.curves import draw, series
from distill.report.model_card import card, hub_id, renew_results, write_card
from tests.kit.html_pages import Outline

RUN: dict[str, Any] = {
    "name": "mine",
    "seed": 3,
    "steps": 10,
    "loss": "uld:1.5,alm",
    "ce_weight": 1.0,
    "model_name_or_path": "org/student-1.5",
    "store_digest": "d" * 64,
    "sequences": 24,
    "uncovered": "hard",
    "metrics": {"train_tokens": 1234, "covered_fraction": 0.9137},
    "teacher": {
        "name": "org/teacher",
        "revision": "abc",
        "fingerprint": "f00",
        "dataset": "/home/somebody/data.jsonl",
        "top_k": 64,
        "tail_mean": 0.0123,
    },
}
HOSTILE = [
    "<script>alert(1)</script>",
    "[click](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "a | b\n# heading\n---\nbase_model: evil",
    "`code` **bold** http://evil.example www.evil.example me@evil.example",
    "\x1b[2J\u202eabc",
    "x" * 5000,
]


def test_a_card_says_what_the_run_was() -> None:
    text = card(RUN)
    for said in ("abc", "d" * 64, "1.23% on average", "| top k | 64 |", "| tokens read | 1234 |"):
        assert said in text
    assert "| labels without a pair | cross-entropy stands in |" in text
    assert "| covered labels | 91.4% |" in text
    assert "labels without a pair" not in card({**RUN, "loss": "ce", "uncovered": None})
    assert "arxiv.org/abs/2402.12030" in text
    assert "arxiv.org/abs/2503.20083" in text
    assert "somebody" not in text
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "org/student-1.5"


def rendered(markdown: str) -> tuple[str, set[str]]:
    """The text that Markdown shows, tables of GitHub's included, and the elements it makes."""
    page = Outline(MarkdownIt("gfm-like", {"linkify": False}).render(markdown))
    return page.elements[-1][2], {tag for tag, *_ in page.elements}


@pytest.mark.parametrize(
    ("name", "written"),
    [("t_mapped", "t_mapped"), ("kd_2_x.y-z", "kd_2_x.y-z"), ("_em_", "&#95;em&#95;")],
)
def test_a_name_is_written_as_it_is_where_nothing_reads_it_as_more(name: str, written: str) -> None:
    assert f"\n# {written}\n" in card({**RUN, "name": name})


@given(st.text(alphabet="a_*`<é&~[](!)#|\\ 1.:@", min_size=1, max_size=12))
def test_a_name_is_shown_letter_for_letter(name: str) -> None:
    line = next(each for each in card({**RUN, "name": name}).split("\n") if each.startswith("# "))
    shown, elements = rendered(line)
    assert shown == name.strip()
    assert elements <= {"h1"}


def test_the_base_model_is_a_hubs_id_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "student").mkdir(parents=True)
    copy = tmp_path / "hub" / "models--org--small-1.5" / "snapshots" / "abc"
    copy.mkdir(parents=True)
    assert hub_id("org/student-1.5") == "org/student-1.5"
    assert hub_id("runs/student") is hub_id("student") is hub_id(None) is None
    assert hub_id(str(copy)) == "org/small-1.5"
    for base, wanted in (("org/x", "org/x"), (None, None), ("../x\n", None), (3, None)):
        told = {**RUN, "model_name_or_path": "runs/student", "base_model": base}
        assert yaml.safe_load(card(told).split("---")[1]).get("base_model") == wanted


def test_a_card_says_how_the_losses_fell(tmp_path: Path) -> None:
    history = [{"step": 1, "loss": 6.0, "ce_loss": 4.5}, {"step": 20, "loss": 3.0, "ce_loss": 2.5}]
    history += [{"step": 20, "eval_ce_loss": 2.75}]
    text = card(RUN, history)
    assert "| ce_loss | 4.5 at step 1 | 2.5 at step 20 |" in text
    assert "| eval_ce_loss | 2.75 at step 20 |  |" in text
    assert "curves.png" not in text
    assert "## Curves" not in card(RUN)
    draw(history, tmp_path / "curves.png")
    write_card(tmp_path, RUN, history)
    assert "![The losses by step](curves.png)" in (tmp_path / "README.md").read_text()
    assert card(RUN, [{"step": 1, "<b>_loss": 1.0}]).count("<b>") == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_names_of_strangers_are_text_and_nothing_more(text: str) -> None:
    teacher = {**RUN["teacher"], "name": text, "dataset": text, "revision": text}
    told = {**RUN, "name": text, "model_name_or_path": text, "teacher": teacher}
    told |= {"bits_per_byte": 1.0, "evaluation": {"data": text}}
    made, plain = card(told), card({**told, "name": "x", "model_name_or_path": "x"})
    assert set(yaml.safe_load(made.split("---")[1])) == {"library_name", "pipeline_tag", "tags"}
    assert len(made) < 10_000
    assert made.count("\n") == plain.count("\n")  # no line of its own
    own = "https://arxiv.org"
    for mark in ("<script", "](http:", "**bold", "\x1b", "\u202e", "www.", "me@", "`code`"):
        assert mark not in made
    assert all(link.startswith(own) for link in re.findall(r"https?://\S+", made))


def test_an_evaluation_renews_the_results_and_leaves_the_rest(tmp_path: Path) -> None:
    write_card(tmp_path, RUN)
    path = tmp_path / "README.md"
    path.write_text(path.read_text() + "\nMy own words.\n")
    renew_results(tmp_path, {**RUN, "bits_per_byte": 1.25})
    renew_results(tmp_path, {**RUN, "bits_per_byte": 1.5})
    text = path.read_text()
    assert "| bits/byte | 1.500 |" in text
    assert "1.250" not in text
    assert text.endswith("My own words.\n")
    path.write_text("Mine alone.")
    renew_results(tmp_path, RUN)
    assert path.read_text() == "Mine alone."


@pytest.mark.parametrize("odd", [[[]], "text", -1, True, 10**400, None])
def test_a_run_object_of_any_shape_is_renewed(odd: object, tmp_path: Path) -> None:
    """A student's folder is anybody's, and its evaluation may have taken hours by now."""
    write_card(tmp_path, RUN)
    renew_results(tmp_path, {**RUN, "evaluation": odd, "judged": odd, "time_s": odd, "rouge1": odd})
    assert "measured on" not in (tmp_path / "README.md").read_text()


def test_the_command_for_adapters_names_them_as_adapters() -> None:
    assert "pretrained=THIS_FOLDER" in card(RUN)
    text = card({**RUN, "lora": {"lora_r": 4}})
    assert "peft=THIS_FOLDER" in text
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "peft"


def test_curves_are_every_loss_by_step(tmp_path: Path) -> None:
    history = [
        {"step": 1, "loss": 3.0, "ce_loss": 2.0, "learning_rate": 1e-3},
        {"step": 2, "loss": 2.0, "ce_loss": 1.5, "learning_rate": 5e-4},
        {"step": 2, "eval_loss": 2.5, "eval_runtime": 1.0},
        {"step": 2, "train_loss": 2.5, "train_runtime": 1.0},
    ]
    expected = {
        "loss": [(1, 3.0), (2, 2.0)],
        "ce_loss": [(1, 2.0), (2, 1.5)],
        "eval_loss": [(2, 2.5)],
    }
    assert series(history) == expected
    for name in ("a.png", "b.png"):
        draw(history, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    draw([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
