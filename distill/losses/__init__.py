"""The losses, a file each: a function of aligned rows, and what the loss says of itself.

A file of this folder that defines a `LOSS` (see :mod:`distill.losses.loss`) is a loss by its name;
nothing else lists them. They are imported when first asked for: `import distill.losses` alone does
not import torch.
"""

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.losses.loss import Loss, Option


@cache
def all_losses() -> "dict[str, Loss]":
    """List every loss by its name, in order."""
    found: dict[str, Loss] = {}
    for module in pkgutil.iter_modules(__path__):
        loss = getattr(importlib.import_module(f"{__name__}.{module.name}"), "LOSS", None)
        if loss is not None:
            found[module.name] = loss
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def find(name: str) -> "Loss":
    """Find the loss of that name, which is known."""
    return all_losses()[name]


def all_options() -> "dict[str, Option]":
    """List every option of every loss by its name, in the order of the losses."""
    return {option.name: option for loss in all_losses().values() for option in loss.options}


def option_values(given: dict[str, Any]) -> dict[str, Any]:
    """Give every option a value: the given one, or its default.

    Raises:
        TypeError: No loss has such an option.
    """
    every = all_options()
    for name in given:
        if name not in every:
            raise TypeError(f"no loss has an option {name!r}; known: {', '.join(every)}")
    return {name: given.get(name, option.default) for name, option in every.items()}
