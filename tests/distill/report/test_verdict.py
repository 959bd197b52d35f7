"""A verdict is no surer than its seeds: intervals, ties, and what one seed cannot say."""

import numpy as np
import pytest

from distill.report.verdict import half_width, judge, t_quantile

#: Student's t at 97.5 % and 99.5 %, by degrees of freedom, from a printed table.
PRINTED = {
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    4: (2.776, 4.604),
    5: (2.571, 4.032),
    9: (2.262, 3.250),
    20: (2.086, 2.845),
    30: (2.042, 2.750),
    120: (1.980, 2.617),
}


@pytest.mark.parametrize("freedom", PRINTED)
def test_students_t_is_that_of_a_printed_table(freedom: int) -> None:
    found = [t_quantile(share, freedom) for share in (0.975, 0.995)]
    assert found == [pytest.approx(wanted, abs=6e-4) for wanted in PRINTED[freedom]]


def test_the_interval_is_that_of_the_mean() -> None:
    # mean 0.2, standard deviation 0.1: 4.303 * 0.1 / sqrt(3) = 0.2484
    assert half_width([0.1, 0.2, 0.3]) == pytest.approx(0.2484, abs=1e-4)
    assert half_width([0.1]) is half_width([]) is None


def test_a_verdict_needs_an_interval_without_zero() -> None:
    assert judge([0.1, 0.2, 0.3]).word == "undecided"
    assert judge([0.2, 0.3, 0.4]).word == "worse"
    assert judge([0.2, 0.3, 0.4], lower_is_better=False).word == "better"
    assert judge([-0.2, -0.3, -0.4]).word == "better"
    assert judge([-0.1, 0.2, 0.3]).word == "undecided"
    assert judge([0.1, 0.2, 0.3]).agree
    assert not judge([0.0, 0.2, 0.3]).agree


def test_one_seed_decides_nothing_however_large_its_difference() -> None:
    for difference in (-100.0, 0.0, 1e-9):
        found = judge([difference], margin=1.0)
        assert (found.word, found.is_sure) == ("one seed", False)
    assert judge([]).word == "no shared seed"


def test_a_tie_is_a_whole_interval_below_what_counts() -> None:
    differences = [0.0010, 0.0011, 0.0012]  # beyond their noise, and too small to count
    assert judge(differences).word == "worse"
    assert judge(differences, margin=0.002).word == "tie"
    assert judge([0.001, -0.009, 0.01], margin=0.002).word == "undecided"  # not known to be small
    assert judge([0.0, 0.0]).word == "tie"


def test_more_contenders_need_wider_intervals() -> None:
    differences = [0.2, 0.3, 0.4]
    assert judge(differences).word == "worse"
    assert judge(differences, comparisons=4).word == "undecided"
    # 1 - 0.05 / 5 / 2 = 99.5 %
    assert half_width(differences, 5) == pytest.approx(9.925 * 0.1 / 3**0.5, rel=1e-3)


def test_contenders_without_any_effect_are_called_better_or_worse_in_one_of_twenty_tables() -> None:
    """Of any of four contenders: without the wider intervals it would be one of six."""
    drawn = np.random.default_rng(0).normal(size=(800, 4, 3)).tolist()

    def wrong(comparisons: int) -> float:
        called = [any(judge(d, comparisons=comparisons).is_sure for d in one) for one in drawn]
        return sum(called) / len(called)

    assert wrong(4) == pytest.approx(0.05, abs=0.02)
    assert wrong(1) > 0.12
