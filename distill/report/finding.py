"""Say in a sentence or two what a comparison of students shows, and how sure that is.

The sentence is about one figure, the first of the table that most contenders have, and about the
differences to the baseline, whose verdicts are those of :mod:`distill.report.verdict`. It is no
surer than they are: one seed is not conclusive, whatever the difference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.report.metrics import METRICS, Metric, is_cost, shown_name
from logitstore.console.counts import counted

Contender = Mapping[str, Any]
_MOST_NAMED = 3
_SURE, _OPEN = ("better", "tie", "worse"), ("undecided", "one seed", "no shared seed")
_MORE_SEEDS = "Train more of each: --seed 1, --seed 2."


def chief(found: Mapping[str, Any]) -> Metric | None:
    """Choose the figure that a comparison is about: the first that most contenders have.

    Returns:
        The metric; None where nothing but costs is known.
    """
    known = {each["name"] for each in found["metrics"]}
    counts = {
        m: sum(c["metrics"][m.name]["mean"] is not None for c in found["contenders"])
        for m in METRICS
        if m.name in known and not is_cost(m)
    }
    return max(counts, key=lambda m: counts[m], default=None)


def ranked(contenders: Sequence[Contender], metric: Metric) -> list[int]:
    """Order the contenders' places by a metric, the best first; those without it come last."""
    sign = 1 if metric.lower_is_better else -1
    means = [contender["metrics"][metric.name]["mean"] for contender in contenders]
    return sorted(range(len(means)), key=lambda i: (means[i] is None, sign * (means[i] or 0.0), i))


def finding(found: Mapping[str, Any]) -> str:
    """Say what a comparison shows, and how sure that is.

    Args:
        found: What `comparison.compare` returns, except its finding.
    """
    metric = chief(found)
    if metric is None:
        return "Not conclusive: nothing but the cost of training is known of these students."
    if metric.name in found["unlike"]:
        return f"No verdict: {metric.label} was not measured alike for all of them (see below)."
    base, *others = found["contenders"]
    if not others:
        mean = metric.shown(base["metrics"][metric.name]["mean"])
        return (
            f"{_name(base)} alone, with a mean of {mean} {metric.label}: there is nothing to "
            "compare it with."
        )
    by_word: dict[str, list[Contender]] = {}
    for i in ranked(others, metric):
        by_word.setdefault(others[i]["metrics"][metric.name]["verdict"], []).append(others[i])
    if by_word.keys() <= {"one seed", "no shared seed"}:
        return _without_spread(base, by_word, metric)
    said = [_listed(word, by_word[word], base, metric) for word in _SURE if word in by_word]
    open_ones = [each for word in _OPEN for each in by_word.get(word, ())]
    if open_ones and "better" in by_word:
        said.append(f"Not conclusive: {_names(open_ones)}.")
    elif open_ones:
        said.insert(0, _nothing_better(open_ones[0], base, metric))
    return " ".join(said)


def how_sure(found: Mapping[str, Any]) -> str:
    """Say where intervals and verdicts come from, for a line below a table."""
    if not any(m["half_width"] for c in found["contenders"] for m in c["metrics"].values()):
        return "With one seed of each nobody knows how much seeds differ."
    count = len(found["contenders"]) - 1
    together = f", wide enough that all {count} hold together" if count > 1 else ""
    return (
        f"± is the 95 % interval of Student's t over the seeds that both have{together}; a "
        "difference below 0.1 % is a tie."
    )


def _without_spread(
    base: Contender, by_word: Mapping[str, Sequence[Contender]], metric: Metric
) -> str:
    """Say what a single seed, or none that is shared, shows: not how much seeds differ."""
    pairs = by_word.get("one seed")
    if not pairs:
        return (
            f"Not conclusive: no other has a {metric.label} with a seed that {_name(base)} has, "
            "too."
        )
    own = {id(each): each["metrics"][metric.name]["mean"] for each in (base, *pairs)}
    best = min(own.values()) if metric.lower_is_better else max(own.values())
    if metric.shown(min(own.values())) == metric.shown(max(own.values())):
        return (
            f"Not conclusive, one seed: all have {metric.shown(best)} {metric.label}. {_MORE_SEEDS}"
        )
    first = next(each for each in (base, *pairs) if own[id(each)] == best)
    against = (
        f"{metric.shown(own[id(base)])} of {_name(base)}"
        if first is not base
        else f"{metric.shown(pairs[0]['metrics'][metric.name]['mean'])} of {_name(pairs[0])}"
    )
    return (
        f"Not conclusive, one seed: {_name(first)} has the {_best(metric)} {metric.label}, "
        f"{metric.shown(best)} against {against}, and another seed may turn that around. "
        f"{_MORE_SEEDS}"
    )


def _nothing_better(first: Contender, base: Contender, metric: Metric) -> str:
    """Say that nothing is proven, and what the best of those that are not is like."""
    start = f"Not conclusive: nothing is surely better than {_name(base)} in {metric.label}."
    own = first["metrics"][metric.name]
    if own["half_width"] is None:
        return start
    although = "all seeds agree, but the" if own["wins"] in (0, own["pairs"]) else "the"
    return (
        f"{start} Of {_interval(first, metric)}, {although} interval includes zero. {_MORE_SEEDS}"
    )


def _listed(word: str, contenders: Sequence[Contender], base: Contender, metric: Metric) -> str:
    """Name the contenders of a verdict that is sure, with their intervals."""
    if word == "tie":
        return f"A tie with {_name(base)} in {metric.label}, within 0.1 %: {_names(contenders)}."
    each = [_interval(contender, metric) for contender in contenders[:_MOST_NAMED]]
    more = len(contenders) - len(each)
    rest = f"; {more} more" if more else ""
    return f"{word.capitalize()} than {_name(base)} in {metric.label}: {'; '.join(each)}{rest}."


def _interval(contender: Contender, metric: Metric) -> str:
    own = contender["metrics"][metric.name]
    low, high = (own["difference"] + side * own["half_width"] for side in (-1, 1))
    return (
        f"{_name(contender)}, {metric.shown(own['difference'], '+')} (95 %: "
        f"{metric.shown(low, '+')} to {metric.shown(high, '+')}, {counted(own['pairs'], 'seed')})"
    )


def _best(metric: Metric) -> str:
    return "lowest" if metric.lower_is_better else "highest"


def _names(contenders: Sequence[Contender]) -> str:
    names = [_name(each) for each in contenders[:_MOST_NAMED]]
    more = len(contenders) - len(names)
    return ", ".join([*names, *([f"{more} more"] if more else [])])


def _name(contender: Contender) -> str:
    return shown_name(contender["name"])
