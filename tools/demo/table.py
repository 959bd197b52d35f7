"""What the demo prints in the end: what it measured, whatever that is."""

from collections.abc import Sequence
from typing import Any

from tools.demo.settings import CONTENDERS

Run = dict[str, Any]


def table(results: dict[str, Any]) -> str:
    """The results as aligned text, and under it which losses beat cross-entropy and which did not.

    Args:
        results: What `results.json` holds.
    """
    by_name = {c.name: [r for r in results["runs"] if r["name"] == c.name] for c in CONTENDERS}
    head = ("students", "bits/byte", "from - to", "against ce", "time", "peak memory")
    lines = [head, *(_line(c.label, by_name[c.name], by_name["ce"]) for c in CONTENDERS)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    body = [
        "  ".join(text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    store, teacher = results["store"], results["teacher"]
    said = results["settings"]
    title = (
        f"Held-out text; {said['student_steps']} steps on {store['supervised_bytes']:,} bytes, "
        f"{len(said['seeds'])} seed(s), the same initial weights and data for each contender:"
    )
    facts = [
        f"teacher: {teacher['bits_per_byte']:.3f} bits/byte on the same text",
        f"store:   {store['bytes_per_token']:.1f} bytes a token",
    ]
    verdicts = [_verdict(c.label, by_name[c.name], by_name["ce"]) for c in CONTENDERS[1:]]
    return "\n".join([title, "", *body, "", *facts, "", *verdicts])


def _line(label: str, runs: Sequence[Run], baseline: Sequence[Run]) -> tuple[str, ...]:
    bits = [run["bits_per_byte"] for run in runs]
    against = "" if runs is baseline else f"{_mean(_differences(runs, baseline)):+.3f}"
    return (
        label,
        f"{_mean(bits):.3f}",
        f"{min(bits):.3f} - {max(bits):.3f}",
        against,
        f"{_mean([run['time_s'] for run in runs]):.1f} s",
        f"{max(run['peak_rss_bytes'] for run in runs) / 2**20:,.0f} MiB",
    )


def _verdict(label: str, runs: Sequence[Run], baseline: Sequence[Run]) -> str:
    """A contender beats the baseline only if it does so with every seed."""
    wins = sum(difference < 0 for difference in _differences(runs, baseline))
    said = {len(runs): "beats cross-entropy", 0: "does not beat cross-entropy"}
    return f"{label}: {said.get(wins, 'undecided')} ({wins} of {len(runs)} seeds)"


def _differences(runs: Sequence[Run], baseline: Sequence[Run]) -> list[float]:
    """By seed: the same initial weights and the same order of rows, so noise is partly shared."""
    bits = {run["seed"]: run["bits_per_byte"] for run in baseline}
    return [run["bits_per_byte"] - bits[run["seed"]] for run in runs]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
