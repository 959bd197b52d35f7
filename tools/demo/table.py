"""Format what the demo measured as the table that it prints at its end."""

from collections.abc import Sequence
from typing import Any

from distill.report.comparison import spread
from distill.report.metrics import METRICS
from logitstore.console.terminal import aligned
from tools.demo.settings import CONTENDERS

Run = dict[str, Any]
BITS = next(metric for metric in METRICS if metric.name == "bits_per_byte")


def table(results: dict[str, Any]) -> str:
    """Format the results as aligned text, then say which losses beat cross-entropy.

    Args:
        results: The content of `results.json`.
    """
    by_name = {c.name: [r for r in results["runs"] if r["name"] == c.name] for c in CONTENDERS}
    head = ("students", "bits/byte", "from - to", "against ce", "time", "peak memory")
    lines = [head, *(_line(c.label, by_name[c.name], by_name["ce"]) for c in CONTENDERS)]
    body = aligned(lines)
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
    return "\n".join([title, "", body, "", *facts, "", *verdicts])


def _line(label: str, runs: Sequence[Run], baseline: Sequence[Run]) -> tuple[str, ...]:
    bits = spread(runs, None if runs is baseline else baseline, BITS)
    return (
        label,
        BITS.shown(bits["mean"]),
        f"{BITS.shown(bits['min'])} - {BITS.shown(bits['max'])}",
        "" if runs is baseline else BITS.shown(bits["difference"], "+"),
        f"{sum(run['time_s'] for run in runs) / len(runs):.1f} s",
        f"{max(run['peak_rss_bytes'] for run in runs) / 2**20:,.0f} MiB",
    )


def _verdict(label: str, runs: Sequence[Run], baseline: Sequence[Run]) -> str:
    """Say which contenders beat the baseline; one does only if it does with every seed."""
    wins = spread(runs, baseline, BITS)["wins"]
    said = {len(runs): "beats cross-entropy", 0: "does not beat cross-entropy"}
    return f"{label}: {said.get(wins, 'undecided')} ({wins} of {len(runs)} seeds)"
