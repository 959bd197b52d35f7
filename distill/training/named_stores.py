"""The stores that a run names, each with a weight: `--store a --store b:0.5`.

my-store              weight 1
my-store:0.5          weight 0.5: what is behind the last colon is a number
s3://bucket/store:2   weight 2; the colon of a URL is none, nor is one before a name
run:2                 weight 1, if a folder `run:2` is there
"""

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from distill.losses import all_losses, find
from logitstore.errors import InputError

#: What is learnt of a row that several stores have.
Teachers = Literal["mean", "best"]
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class NamedStore(NamedTuple):
    """A store that a run names."""

    path: str
    weight: float = 1.0
    has_weight: bool = False


def parse_store(text: str, flag: str = "--store") -> NamedStore:
    """Parse `PATH[:WEIGHT]`.

    Raises:
        InputError: The weight is not above 0, or there is no path.
    """
    path, colon, number = text.rpartition(":")
    if not (colon and _NUMBER.fullmatch(number)) or Path(text).exists():
        return NamedStore(text)
    weight = float(number)
    if not (math.isfinite(weight) and weight > 0):
        raise InputError(
            f"{flag} {text}: the weight {number} is not a number above 0. Write b:0.5."
        )
    if not path:
        raise InputError(f"{flag} {text}: names no store before the weight. Write b:{number}.")
    return NamedStore(path, weight, has_weight=True)


def parse_stores(given: str | Sequence[str], flag: str = "--store") -> list[NamedStore]:
    """Parse all that a flag names.

    Raises:
        InputError: As :func:`parse_store`, or the only store has a weight.
    """
    named = [parse_store(text, flag) for text in ([given] if isinstance(given, str) else given)]
    if len(named) == 1 and named[0].has_weight:
        raise InputError(
            f"{flag} {named[0].path}:{named[0].weight:g}: the weight of a store is against that of "
            "others, and there is one alone. Leave it out; --ce_weight and --loss NAME:WEIGHT "
            "weigh teacher and text."
        )
    return named


def check_teachers(teachers: str, named: Sequence[NamedStore]) -> None:
    """Check what is learnt of a row of several stores, `--teachers`.

    Raises:
        InputError: It is not known, or would do nothing.
    """
    if teachers not in (ways := get_args(Teachers)):
        raise InputError(f"--teachers is {teachers}, expected {' or '.join(ways)}.")
    if teachers == "best" and len(named) == 1:
        raise InputError(
            "--teachers best would have no effect: --store names one store. Leave it out, or name "
            "another store."
        )
    if teachers == "best":
        check_unweighed(named, "--teachers best")


def check_cot_store(cot_store: str | None, losses: Collection[str], *, several: bool) -> None:
    """Check that a store of second texts is read by a loss, and has one store beside it.

    Raises:
        InputError: Names the flag.
    """
    if cot_store is None:
        return
    if several:
        raise InputError(
            f"--cot_store {cot_store}: has a second text for the rows of one store, and --store "
            "names several. Name one."
        )
    if not any(find(name).second_text for name in losses):
        readers = ", ".join(name for name, each in all_losses().items() if each.second_text)
        raise InputError(
            f"--cot_store {cot_store} would have no effect beside --loss "
            f"{','.join(losses) or 'ce'}, which compares no two texts of a row. Add --loss "
            f"{readers}, or leave it out."
        )


def check_unweighed(named: Sequence[NamedStore], flag: str) -> None:
    """Reject the weight of a store where it would do nothing.

    Raises:
        InputError: Names the store.
    """
    for each in named:
        if each.has_weight:
            raise InputError(
                f"{flag}: the weight of {each.path}:{each.weight:g} would have no effect. Leave "
                "the weight out."
            )
