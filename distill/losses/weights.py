"""The losses of a run and their weights, as `--loss` names them."""

import math

from distill.losses import all_losses
from logitstore.errors import InputError


def parse_losses(text: str) -> dict[str, float]:
    """Parse `--loss`: `"uld:1.5,mapped_kl"` is `{"uld": 1.5, "mapped_kl": 1.0}`, `"ce"` is `{}`.

    Raises:
        InputError: For an unknown or repeated name, or a weight that is not a number above 0.
    """
    if text.strip() == "ce":
        return {}
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = (piece.strip() for piece in part.partition(":"))
        if name not in all_losses():
            known = ", ".join(["ce", *all_losses()])
            raise InputError(
                f"--loss {text}: no loss is called {name!r}. Known: {known}. "
                "Name one of these. Cross-entropy is added to the others by --ce_weight."
            )
        if name in weights:
            raise InputError(f"--loss {text}: {name} is named twice. Name it once.")
        weights[name] = _weight(text, number) if colon else all_losses()[name].weight
    return weights


def _weight(text: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise InputError(
            f"--loss {text}: the weight {number!r} is not a number above 0. "
            "Write NAME:WEIGHT, such as uld:1.5."
        )
    return weight
