"""The losses of a run, their weights and their options, as flags name them."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from distill.losses import all_losses, all_options
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


def check_values(options: Mapping[str, Any]) -> None:
    """Reject a value that an option of a loss cannot have.

    Args:
        options: Values of options, by the names of their flags.

    Raises:
        InputError: Names the flag and what it may be.
    """
    for name, value in options.items():
        option = all_options()[name]
        if option.choices and value not in option.choices:
            known = ", ".join(option.choices)
            raise InputError(f"--{name} {value}: not known. Known: {known}. Name one.")
        if not option.is_valid(value):
            raise InputError(f"--{name} is {value}, expected {option.expected}.")


def check_effects(options: Mapping[str, Any], loss: str, names: Collection[str]) -> None:
    """Reject an option that no chosen loss reads.

    Args:
        options: Values of options, by the names of their flags.
        loss: `--loss` as it was given, for messages.
        names: The losses that it names.

    Raises:
        InputError: Names the flag and the losses that read it.
    """
    for name, value in options.items():
        option = all_options()[name]
        readers = [each for each, known in all_losses().items() if option in known.options]
        if value != option.default and not set(readers) & set(names):
            either = " or ".join(readers)
            raise InputError(
                f"--{name} {value} would have no effect: --loss {loss} is without {either}. "
                f"Leave --{name} out, or add {either}."
            )
