"""The one-cycle learning rate, which Trainer does not know: `--one_cycle`.

    lr / div_factor  ──pct_start of all steps──▶  lr  ──the rest──▶  lr / div_factor / final_…

both by a cosine, while Adam's first beta falls and rises (torch's OneCycleLR; arXiv:1708.07120).
The flag's value is a JSON object of OneCycleLR's arguments, `{}` for torch's defaults.
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
    """Parse the arguments of OneCycleLR, and check what can be checked without an optimizer.

    Raises:
        InputError: Not an object of known arguments with usable values.
    """
    try:
        arguments = json.loads(given) if isinstance(given, str) else dict(given)
    except ValueError as error:
        raise InputError(
            f"--one_cycle {given}: not JSON ({error}). Give an object such as "
            "'{\"pct_start\": 0.1}', or {} for the usual values."
        ) from error
    if not isinstance(arguments, dict) or not set(arguments) <= set(KNOWN):
        raise InputError(
            f"--one_cycle {given}: expected a JSON object of {', '.join(KNOWN)}. Leave the rest "
            "out; the largest learning rate is --learning_rate."
        )
    for name in ("pct_start", "div_factor", "final_div_factor"):
        value = arguments.get(name, 0.5)
        low, high = (0, 1) if name == "pct_start" else (0, math.inf)
        if not isinstance(value, int | float) or not low < value < high:
            between = "between 0 and 1" if name == "pct_start" else "above 0"
            raise InputError(f"--one_cycle: {name} is {value}, expected a number {between}.")
    return arguments


def one_cycle(
    optimizer: torch.optim.Optimizer, steps: int, max_lr: float, given: Mapping[str, Any]
) -> OneCycleLR:
    """Make the schedule of a run of `steps` steps.

    Args:
        optimizer: The optimizer whose learning rate it sets.
        steps: Number of optimizer steps of the whole run.
        max_lr: The largest learning rate.
        given: Arguments that :func:`parse_one_cycle` returned.

    Raises:
        InputError: An argument that torch rejects, such as momentum for an optimizer without any.
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
