"""The curves of a run as a picture: `curves.png`, from what Trainer logged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVES_FILE = "curves.png"


def can_draw() -> bool:
    """Tell whether matplotlib is installed (`pip install 'logitstore[report]'`)."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def series(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Collect every loss by step: (step, value) of training, and as `eval_…` of evaluation."""
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if name == "loss" or (name.endswith("_loss") and name != "train_loss"):
                found.setdefault(name, []).append((int(entry["step"]), float(value)))
    return found


def draw(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw losses above and the learning rate below, by step; write nothing without a loss.

    Args:
        history: Trainer's `log_history`.
        path: The PNG to write.
    """
    from matplotlib.figure import Figure  # no window system, and no state of pyplot's

    curves = series(history)
    if not curves:
        return
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for name, points in curves.items():
        how = "--" if name.startswith("eval_") else "-"
        above.plot(
            *zip(*points, strict=True), how, label=name, marker="." if len(points) < 3 else ""
        )
    above.set_ylabel("loss")
    above.legend(fontsize="small")
    rates = [(e["step"], e["learning_rate"]) for e in history if "learning_rate" in e]
    if rates:
        below.plot(*zip(*rates, strict=True))
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    # Without the date and version that matplotlib would write: the same run, the same bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})
