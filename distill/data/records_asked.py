"""What a run asks of a store's records: fewer entries, or only some tokens.

    --train_top_k 16                   the 16 most probable entries; all others join the tail
    --token_filter entropy>2           only where the teacher is unsure: all other labels are as if
    --token_filter surprise>1,entropy<5  no pair of a loss covered them, see --uncovered

A pair is judged by its records: by the last one's entropy, and by the surprise of all its tokens.

Shape legend: n = records, M = entries of all records, P = pairs.
"""

import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distill.alignment.runs import Ints, runs
from logitstore.errors import InputError, MismatchError
from logitstore.records import TokenRecords

_PART = re.compile(r"\s*(\w+)\s*([<>])\s*([^\s<>]+)\s*")
_FIELDS = {"entropy": "entropy", "surprise": "token_logprob"}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {">": operator.gt, "<": operator.lt}


class Condition(NamedTuple):
    """A condition on a token: `entropy > 2` nats."""

    name: str
    sign: str
    nats: float

    @property
    def field(self) -> str:
        """The array of a store that it reads."""
        return _FIELDS[self.name]


def parse_filter(text: str) -> tuple[Condition, ...]:
    """Parse `--token_filter`: conditions that all hold, separated by commas.

    Raises:
        InputError: It cannot be read so; says what is expected.
    """
    found = []
    for part in text.split(","):
        match = _PART.fullmatch(part)
        nats = _number(match[3]) if match else None
        if match is None or match[1] not in _FIELDS or nats is None:
            raise InputError(
                f"--token_filter {text}: {part.strip()!r} is no condition. Write entropy>2, "
                "surprise<5 or the like, in nats, several with commas between them."
            )
        found.append(Condition(match[1], match[2], nats))
    return tuple(found)


def check_filter(store: Any, conditions: tuple[Condition, ...]) -> None:
    """Reject a filter by something that the store's import lacks.

    Raises:
        MismatchError: Names it.
    """
    for each in conditions:
        if each.field in store.spec.missing:
            raise MismatchError(
                f"{store.path}: imported without the {each.field} of every token, which "
                f"--token_filter {each.name}{each.sign}{each.nats:g} asks for. Leave it out, or "
                "capture the text with the teacher."
            )


def holds_for(
    records: TokenRecords, pairs: Ints, conditions: tuple[Condition, ...]
) -> npt.NDArray[np.bool_]:
    """Mark (P,) the pairs for which all conditions hold.

    Args:
        records: Of a sequence.
        pairs: (P, 4) the teacher's first record of each and the one behind its last, and more.
        conditions: Of :func:`parse_filter`.
    """
    holds = np.ones(len(pairs), np.bool_)
    value: npt.NDArray[Any]
    for name, sign, nats in conditions:
        if name == "entropy":
            value = records.entropy[pairs[:, 1] - 1].astype(np.float64)
        else:
            pair, record = runs(pairs[:, 0], pairs[:, 1])
            own = -records.token_logprob[record].astype(np.float64)
            value = np.bincount(pair, own, len(pairs))
        holds &= _COMPARE[sign](value, nats)
    return holds


def check_top_k(store: Any, top_k: int | None, losses_with_draws: list[str]) -> None:
    """Reject a cut that would do nothing, or that draws were not made for.

    Raises:
        InputError: Says why.
    """
    if top_k is None:
        return
    if top_k < 1:
        raise InputError(f"--train_top_k is {top_k}, expected at least 1.")
    if top_k >= (store.spec.top_k or 0):
        raise InputError(
            f"--train_top_k {top_k} would have no effect: {store.path} holds "
            f"{store.spec.top_k or 0} entries a token. Leave it out, or name fewer."
        )
    if losses_with_draws:
        raise InputError(
            f"--train_top_k {top_k}: {', '.join(losses_with_draws)} reads draws from beyond the "
            f"{store.spec.top_k} entries that were stored, which are none from beyond {top_k}. "
            "Leave --train_top_k out."
        )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
