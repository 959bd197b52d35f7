"""Format what the demo measured as the text that it prints at its end."""

from typing import Any

from distill.report import leaderboard
from distill.report.comparison import compare
from distill.report.metrics import METRICS
from logitstore.console.terminal import aligned
from tools.demo.settings import CONTENDERS

BITS = next(metric for metric in METRICS if metric.name == "bits_per_byte")


def table(results: dict[str, Any]) -> str:
    """Say which students beat cross-entropy and how sure that is, as `distill compare` does.

    Args:
        results: The content of `results.json`. Of a smoke test nothing is said but that it ran.
    """
    runs, said = results["runs"], results["settings"]
    store, teacher = results["store"], results["teacher"]
    if said["is_smoke_test"]:
        lines = [(run["name"], f"{BITS.shown(run['bits_per_byte'])} {BITS.label}") for run in runs]
        return (
            f"SMOKE TEST: every step works. Nothing is learnt in {said['student_steps']} steps, so "
            f"no student is compared.\n\n{aligned(lines)}"
        )
    labels = [(contender.name, contender.label) for contender in CONTENDERS]
    title = (
        f"Held-out text; {said['student_steps']} steps on {store['supervised_bytes']:,} bytes, "
        f"{len(said['seeds'])} seed(s); of a seed all begin with the same weights and read the "
        "same rows:"
    )
    facts = (
        f"teacher  {teacher['bits_per_byte']:.3f} bits/byte on the same text\n"
        f"store    {store['bytes_per_token']:.1f} bytes a token"
    )
    found = leaderboard.table(compare(runs, baseline=CONTENDERS[0].name))
    return "\n\n".join([title, found, aligned(labels), facts])
