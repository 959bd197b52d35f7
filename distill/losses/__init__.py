"""The losses, one file each: a function of aligned rows, and a description of the loss.

A file of this folder that defines a `LOSS` (see :mod:`distill.losses.loss`) is a loss with the
file's name; no other list of them exists. They are imported when they are first needed:
`import distill.losses` alone does not import torch. A loss of the user's own is here as soon as a
run names it, under the name of its function (:mod:`distill.losses.own`).
"""

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

from distill.losses.uses import loss_of

if TYPE_CHECKING:
    from distill.losses.loss import Loss, Option


#: Losses that are not ours, by name.
_OWN: "dict[str, Loss]" = {}


@cache
def all_losses() -> "dict[str, Loss]":
    """List every loss of ours by its name, in order."""
    losses: dict[str, Loss] = {}
    for module in pkgutil.iter_modules(__path__):
        loss = getattr(importlib.import_module(f"{__name__}.{module.name}"), "LOSS", None)
        if loss is not None:
            losses[module.name] = loss
    return dict(sorted(losses.items(), key=lambda item: (item[1].order, item[0])))


def find(name: str) -> "Loss":
    """Find the loss of a name that exists: one of ours, or one that a run has named.

    A name of :mod:`distill.losses.uses` is that of its loss.
    """
    return all_losses().get(loss_of(name)) or _OWN[loss_of(name)]


def is_own(name: str) -> bool:
    """Tell whether a name is that of a loss of the user's own."""
    return name in _OWN and name not in all_losses()


def keep(name: str, loss: "Loss") -> None:
    """Keep a loss of the user's own under a name, instead of what had it before."""
    _OWN[name] = loss


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
