"""The one-cycle learning rate, which Trainer does not know: `--one_cycle`.

    lr / div_factor  ──pct_start of all steps──▶  lr  ──the rest──▶  lr / div_factor / final_…

both by a cosine, with Adam's first beta the other way round (torch's OneCycleLR; arXiv:1708.07120).
The value is JSON of its arguments, `{}` for torch's own.
"""

import inspect
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import OneCycleLR

from logitstore.errors import InputError

_OURS = ("optimizer", "max_lr", "total_steps", "epochs", "steps_per_epoch", "last_epoch")
#: Arguments of OneCycleLR that a run may set.
KNOWN = tuple(name for name in inspect.signature(OneCycleLR).parameters if name not in _OURS)


def parse_one_cycle(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, checked as far as no optimizer is needed.

    Raises:
        InputError: Not an object of known arguments with usable values.
    """
    try:
        found = json.loads(given) if isinstance(given, str) else dict(given)
    except ValueError as error:
        raise InputError(
            f"--one_cycle {given}: not JSON ({error}). Give an object such as "
            "'{\"pct_start\": 0.1}', or {} for the usual values."
        ) from error
    if not isinstance(found, dict) or not set(found) <= set(KNOWN):
        raise InputError(
            f"--one_cycle {given}: expected a JSON object of {', '.join(KNOWN)}. Leave the rest "
            "out; the largest learning rate is --learning_rate."
        )
    for name in ("pct_start", "div_factor", "final_div_factor"):
        value = found.get(name, 0.5)
        low, high = (0, 1) if name == "pct_start" else (0, math.inf)
        if not isinstance(value, int | float) or not low < value < high:
            between = "between 0 and 1" if name == "pct_start" else "above 0"
            raise InputError(f"--one_cycle: {name} is {value}, expected a number {between}.")
    return found


def one_cycle(
    optimizer: torch.optim.Optimizer, steps: int, max_lr: float, given: Mapping[str, Any]
) -> OneCycleLR:
    """The schedule of a run of so many steps.

    Args:
        optimizer: Whose learning rate it sets.
        steps: Optimizer steps in all.
        max_lr: The largest learning rate.
        given: What :func:`parse_one_cycle` gave.

    Raises:
        InputError: An argument that torch refuses, such as momentum for an optimizer without any.
    """
    shape = dict(given)
    if math.isclose(shape.get("pct_start", 0.3) * steps, 1):  # or torch divides by zero
        shape["pct_start"] = (1 + 1e-6) / steps
    try:
        return OneCycleLR(optimizer, max_lr, total_steps=steps, **shape)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"--one_cycle {json.dumps(dict(given))}: {error}. For --optim without momentum or "
            'betas give "cycle_momentum": false.'
        ) from error
