"""The losses of a run, their weights and their options, as flags name them."""

from collections.abc import Collection, Mapping
from typing import Any

from distill.losses import all_losses, all_options, find
from distill.losses.loss import Loss
from distill.losses.names import is_address, named_in, named_twice, split_address
from distill.losses.own import known
from logitstore.errors import InputError


def parse_losses(text: str) -> dict[str, float]:
    """Parse `--loss`: `"uld:1.5,mapped_kl"` is `{"uld": 1.5, "mapped_kl": 1.0}`, `"ce"` is `{}`.

    A loss of one's own, `my_module:my_loss:0.5`, is `{"my_loss": 0.5}`; nothing is imported for it.

    Raises:
        InputError: For an unknown or repeated name, or a weight that is not a number above 0.
    """
    weights: dict[str, float] = {}
    for each in named_in(text):
        name = _own(text, each.name) if each.is_address else each.name
        if name in weights:
            raise named_twice(text, name)
        weights[name] = find(name).weight if each.weight is None else each.weight
    return weights


def _own(text: str, address: str) -> str:
    """Find a loss of the user's own by its address; return its name."""
    found = known(address)
    if found is None:
        raise InputError(
            f"--loss {text}: {address} is no loss that was imported, and a name alone imports "
            f"nothing. Give --loss {address} on the command line; in Python import it, and give "
            "the function itself: loss=….",
            kind="own-loss",
        )
    return found.name


def known_in(text: str) -> list[Loss]:
    """List the losses of a `--loss` that this process knows, of a run that may be anybody's."""
    found = []
    for part in text.split(","):
        if is_address(part):
            found.append(known(split_address(part)[0]))
        else:
            found.append(all_losses().get(part.partition(":")[0].strip()))
    return [each for each in found if each is not None]


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
        own = {each: find(each) for each in names if each not in all_losses()}
        every = {**all_losses(), **own}
        readers = [each for each, known in every.items() if option in known.options]
        if value != option.default and not set(readers) & set(names):
            either = " or ".join(readers)
            raise InputError(
                f"--{name} {value} would have no effect: --loss {loss} is without {either}. "
                f"Leave --{name} out, or add {either}."
            )
