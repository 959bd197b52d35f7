"""Edit distances of tokens: the nearest of a vocabulary (MinED), or all that are alike (CDM)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from logitstore.errors import InputError

#: Pairs of strings that are compared at once.
_BLOCK = 2**24

Ints = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


class Alike(NamedTuple):
    """Pairs of strings that are alike, by string, the most alike first.

    Attributes:
        string: (n,) the number of the string.
        token: (n,) the number of the token.
        distance: (n,) edits divided by the bytes of both.
    """

    string: Ints
    token: Ints
    distance: F32


def check_installed(flag: str) -> None:
    """Check that the library is there.

    Args:
        flag: What asks for it, for the message.

    Raises:
        InputError: The package rapidfuzz is not installed.
    """
    try:
        import rapidfuzz  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{flag} compares tokens by their edit distance, for which it needs the package "
            "rapidfuzz. Run `pip install 'logitstore[mined]'`, or leave it out."
        ) from error


def nearest(strings: Sequence[bytes], tokens: Sequence[bytes], most: Sequence[int]) -> Ints:
    """Find (n,) the token of the least edit distance to each string; of several the first.

    Args:
        strings: What is looked for.
        tokens: Where it is looked for.
        most: (n,) a distance at which there is a token.

    Raises:
        InputError: The package rapidfuzz is not installed.
    """
    check_installed("--map mined")
    lengths = np.array([len(each) for each in tokens])
    found = np.zeros(len(strings), np.int64)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (each, bound) in enumerate(zip(strings, most, strict=True)):
        groups.setdefault((len(each), bound), []).append(i)
    for (length, bound), members in groups.items():
        # A distance is at least the difference of lengths.
        near = np.flatnonzero(np.abs(lengths - length) <= bound)
        for part, distances in _blocks(strings, members, tokens, near, bound):
            found[part] = near[distances.argmin(1)]
    return found


def alike(strings: Sequence[bytes], tokens: Sequence[bytes], below: float) -> Alike:
    """Find the tokens whose distance to each string, over the bytes of both, is less than that.

    Args:
        strings: What is looked for.
        tokens: Where it is looked for.
        below: At most 0.5.

    Raises:
        InputError: The package rapidfuzz is not installed.
    """
    check_installed("--loss cdm")
    lengths = np.array([len(each) for each in tokens], np.int64)
    parts: list[tuple[Ints, Ints, F32]] = []
    by_length: dict[int, list[int]] = {}
    for i, each in enumerate(strings):
        by_length.setdefault(len(each), []).append(i)
    for length, members in by_length.items():
        both = lengths + length
        # Of so many bytes, at least the difference of lengths are edits.
        near = np.flatnonzero((np.abs(lengths - length) < below * both) & (below * both > 1))
        if not len(near):
            continue
        bound = int(below * int(both[near].max()))
        for part, edits in _blocks(strings, members, tokens, near, bound):
            row, column = np.nonzero((edits < below * both[near]) & (edits > 0))
            share = edits[row, column] / both[near[column]]
            parts.append((np.array(part)[row], near[column], share.astype(np.float32)))
    none = np.zeros(0, np.int64)
    string = np.concatenate([none, *(each for each, _, _ in parts)])
    token = np.concatenate([none, *(each for _, each, _ in parts)])
    distance: F32 = np.concatenate([np.zeros(0, np.float32), *(each for _, _, each in parts)])
    order = np.lexsort((token, distance, string))
    return Alike(string[order], token[order], distance[order])


def distances(strings: Sequence[bytes], others: Sequence[bytes]) -> F32:
    """Compute (n, m) the edit distances of all pairs, each over the bytes of both; 0 of nothing."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    edits = cdist(_spelt(strings), _spelt(others), scorer=Levenshtein.distance, dtype=np.uint16)
    both = np.add.outer([len(each) for each in strings], [len(each) for each in others])
    found: F32 = (edits / np.maximum(both, 1)).astype(np.float32)
    return found


def _blocks(
    strings: Sequence[bytes], members: list[int], tokens: Sequence[bytes], near: Ints, bound: int
) -> Iterator[tuple[list[int], npt.NDArray[Any]]]:
    """Compare some strings with the tokens that are near, some strings at a time.

    Returns:
        Numbers of strings, and (n, near) edit distances; above the bound any number above it.
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    choices = _spelt([tokens[j] for j in near.tolist()])
    step = max(1, _BLOCK // max(1, len(choices)))
    for start in range(0, len(members), step):
        part = members[start : start + step]
        yield (
            part,
            cdist(
                _spelt([strings[i] for i in part]),
                choices,
                scorer=Levenshtein.distance,
                score_cutoff=bound,
                dtype=np.uint16,
                workers=-1,
            ),
        )


def _spelt(strings: Sequence[bytes]) -> list[str]:
    """Write bytes as text of as many characters."""
    return [each.decode("latin-1") for each in strings]
