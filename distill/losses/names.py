"""What `--loss` says, told from names alone: no loss is imported for it, so a typo is told at once.

`"uld:1.5,mapped_kl"` names two losses, the first with a weight; `"ce"` none; and
`"my_module:my_loss:0.5"` a function of the user's own, by its address.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from distill.losses.in_source import loss_names
from logitstore.errors import InputError


class Named(NamedTuple):
    """A loss as `--loss` names it.

    Attributes:
        name: Its name; of one of the user's own the address, `module:function`.
        weight: Behind its name; None if there is none.
        is_address: Whether it is the user's own.
    """

    name: str
    weight: float | None
    is_address: bool


def check_loss(text: str) -> None:
    """Check that `--loss` names losses that exist, each once, with weights above 0.

    Nothing is known here of the user's own, but that they are named by an address.

    Raises:
        InputError: It does not; names those that are known.
    """
    for _ in named_in(text):
        pass


def named_in(text: str) -> Iterator[Named]:
    """Yield the losses that `--loss` names, in order.

    Raises:
        InputError: For an unknown or repeated name, or a weight that is not a number above 0.
    """
    if text.strip() == "ce":
        return
    ours, seen = loss_names(), set[str]()
    for part in text.split(","):
        own = is_address(part)
        name, number = split_address(part) if own else _split(part)
        if not own and name not in ours:
            raise InputError(
                f"--loss {text}: no loss is called {name!r}. Known: {', '.join(['ce', *ours])}. "
                "Name one of these. Cross-entropy is added to the others by --ce_weight."
            )
        if name in seen:
            raise named_twice(text, name)
        seen |= set() if own else {name}  # its name is that of its function, not known here
        yield Named(name, None if number is None else _weight(text, number), own)


def named_twice(text: str, name: str) -> InputError:
    """Make the error of a `--loss` that has a name twice."""
    return InputError(f"--loss {text}: {name} is named twice. Name it once.")


def is_address(word: str) -> bool:
    """Tell whether a word of `--loss` is `module:function`, perhaps with a weight behind it."""
    first, colon, rest = word.strip().partition(":")
    if not colon or first.strip() in (*loss_names(), "ce"):
        return False
    return not _is_number(rest.strip())


def split_address(word: str) -> tuple[str, str | None]:
    """Split `module:function[:weight]` into the address and the weight; None if there is none."""
    module, _, rest = word.strip().partition(":")
    function, _, weight = rest.partition(":")
    return f"{module.strip()}:{function.strip()}", weight.strip() or None


def addresses_in(text: str) -> Iterator[str]:
    """List the addresses that a `--loss` names."""
    return (split_address(word)[0] for word in text.split(",") if is_address(word))


def _split(part: str) -> tuple[str, str | None]:
    name, colon, number = (piece.strip() for piece in part.partition(":"))
    return name, number if colon else None


def _weight(text: str, number: str) -> float:
    weight = float(number) if _is_number(number) else math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise InputError(
            f"--loss {text}: the weight {number!r} is not a number above 0. "
            "Write NAME:WEIGHT, such as uld:1.5."
        )
    return weight


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
