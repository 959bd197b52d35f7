"""The sentence above a comparison: what it shows, and no surer than its seeds are."""

from typing import Any

import pytest

from distill.report.comparison import compare
from distill.report.finding import chief, ranked
from distill.report.leaderboard import table
from logitstore.console.terminal import columns_of

BASE = [5.5, 5.6, 5.7]


def runs(name: str, *bits: float | None, **more: Any) -> list[dict[str, Any]]:
    return [{"name": name, "seed": i, "bits_per_byte": b} | more for i, b in enumerate(bits)]


def said(*contenders: list[dict[str, Any]]) -> str:
    return str(compare([run for each in contenders for run in each])["finding"])


CE = runs("ce", *BASE)


def test_a_student_that_is_better_beyond_its_noise_is_called_better_with_its_interval() -> None:
    # 0.10, 0.09, 0.08 less: 4.303 * 0.01 / sqrt(3) = 0.0248
    assert said(CE, runs("kl", 5.40, 5.51, 5.62)) == (
        "Better than ce in bits/byte: kl, \N{MINUS SIGN}0.090 "
        "(95 %: \N{MINUS SIGN}0.115 to \N{MINUS SIGN}0.065, 3 seeds)."
    )


def test_one_seed_is_not_conclusive_whatever_the_difference() -> None:
    found = said(runs("ce", 5.5), runs("kl", 1.0), runs("uld", 2.0))
    assert found.startswith("Not conclusive, one seed: kl has the lowest bits/byte, 1.000 against")
    assert "5.500 of ce" in found
    assert "better" not in found
    best_is_base = said(runs("ce", 1.0), runs("kl", 2.0))
    assert "ce has the lowest bits/byte, 1.000 against 2.000 of kl" in best_is_base


def test_one_seed_without_a_difference_that_the_table_can_show_names_no_best() -> None:
    found = said(runs("ce", 5.5351), runs("kl", 5.5349))
    assert found.startswith("Not conclusive, one seed: all have 5.535 bits/byte.")
    assert "lowest" not in found


def test_a_tie_is_called_a_tie() -> None:
    tied = runs("kl", *(bits + 1e-4 * i for i, bits in enumerate(BASE)))
    assert said(CE, tied) == "A tie with ce in bits/byte, within 0.1 %: kl."


def test_seeds_that_do_not_agree_are_not_conclusive() -> None:
    found = said(CE, runs("kl", 5.4, 5.7, 5.6))
    assert found.startswith("Not conclusive: nothing is surely better than ce in bits/byte. Of kl")
    assert "the interval includes zero" in found
    assert "all seeds agree, but the interval includes zero" in said(CE, runs("kl", 5.1, 5.59, 5.6))


def test_every_contender_is_named_by_its_verdict() -> None:
    found = said(
        runs("worst", *(b + 1 + i / 50 for i, b in enumerate(BASE))),
        CE,
        runs("same", *(b + 1.0001 + i / 50 for i, b in enumerate(BASE))),
        runs("one", 5.0),
    )
    better, tie, rest = found.split(". ")
    assert better.startswith("Better than worst in bits/byte: ce, \N{MINUS SIGN}1.020 (95 %")
    assert tie == "A tie with worst in bits/byte, within 0.1 %: same"
    assert rest == "Not conclusive: one."
    assert said(CE, runs("bad", *(b + 1 for b in BASE))).startswith("Worse than ce")


def test_what_cannot_be_compared_has_no_verdict() -> None:
    assert said(runs("a", 1.0, 2.0)) == (
        "a alone, with a mean of 1.500 bits/byte: there is nothing to compare it with."
    )
    other = [{"name": "kl", "seed": 7, "bits_per_byte": 1.0}]
    assert said(CE, other).startswith("Not conclusive: no other has a bits/byte with a seed that")
    cost = said(runs("a", None, time_s=1.0), runs("b", None, time_s=2.0))
    assert cost.startswith("Not conclusive: nothing but the cost")


def test_it_is_about_the_first_figure_that_most_contenders_have() -> None:
    found = compare([*runs("a", 1.0, agreement=0.5), *runs("b", None, agreement=0.75)])
    metric = chief(found)
    assert metric
    assert metric.name == "agreement"
    assert ranked(found["contenders"], metric) == [1, 0]
    assert "b has the highest agreement, 0.750 against 0.500 of a" in found["finding"]


def test_names_of_strangers_are_clean_and_short() -> None:
    found = said(runs("\x1b[2J" + "x" * 500, 1.0), runs("b", 2.0))
    assert "\x1b" not in found
    assert len(found) < 300


# ---- the table ----


def test_the_table_is_one_leaderboard_the_best_first() -> None:
    shown = table(compare([*CE, *runs("kl", 5.40, 5.51, 5.62, time_s=3.0)]))
    lines = shown.splitlines()
    assert shown.count("bits/byte ") >= 1
    [kl] = [line for line in lines if line.startswith("kl")]
    [ce] = [line for line in lines if line.startswith("ce")]
    assert kl.split() == [
        *("kl", "3", "5.510", "5.400", "-", "5.620"),
        *("\N{MINUS SIGN}0.090", "±", "0.025", "better", "3.0"),
    ]
    assert ce.split() == ["ce", "3", "5.600", "5.500", "-", "5.700", "-"]
    assert lines.index(kl) < lines.index(ce)
    assert "Lower is better: bits/byte." in lines


def test_no_difference_that_rounds_to_zero_has_a_sign() -> None:
    shown = table(compare([*runs("ce", 5.5351), *runs("kl", 5.5349)]))
    assert "\N{MINUS SIGN}0.000" not in shown
    assert "0.000 one seed" in shown


def test_every_line_of_the_table_fits_80_columns() -> None:
    figures = dict.fromkeys(("agreement", "agreement_prefix", "uld", "token_f1", "rouge1"), 0.5)
    figures |= {"calibration_error": 0.1, "time_s": 1234.5, "peak_rss_bytes": 2.0**33}
    names = ["d" * 99, "a", "b" * 24, "c" * 99]
    shown = table(compare([run for name in names for run in runs(name, 1.0, 2.0, **figures)]))
    assert max(map(columns_of, shown.splitlines())) <= 80
    assert shown.count("c" * 39 + "…") >= 3  # a line in each part


@pytest.mark.parametrize("count", [1, 2])
def test_intervals_are_explained_where_there_are_any(count: int) -> None:
    others = [run for i in range(count) for run in runs(f"kl{i}", 5.40, 5.51, 5.62)]
    shown = " ".join(table(compare([*CE, *others])).split())
    assert "95 % interval of Student's t over the seeds that both have" in shown
    assert ("all 2 hold together" in shown) == (count == 2)
