"""Cuts of a batch into pieces, so that its loss can be computed chunk by chunk.

A cut goes between two labels, never through a pair: not through a group of tokens, and for a loss
of whole sequences not through a sequence. So every term of the loss is a sum over pieces, and a
piece needs the student at its own labels only. Pairs, and the labels that belong to them, are in
the order of the batch, so a piece of any array is a slice of it, known before the batch is on a
device.

Shape legend: N = labels of a batch; P = pairs of a loss; L = labels that belong to pairs.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from distill.data.token_weights import PEAK
from distill.losses import find

Ints = npt.NDArray[np.int64]

#: Endings of the names of arrays: the further labels that belong to pairs, and the pair of each.
INDEX, PAIR = "_index", "_pair"
#: Begins the names of arrays of whole sequences, which no piece has a part of.
WHOLE = "whole_"
#: Of these, the one that numbers sequences.
WHOLE_SEQUENCE = f"{WHOLE}sequence"


class Piece(NamedTuple):
    """A piece of a batch: labels [start, stop), and the slices of each loss's arrays."""

    start: int
    stop: int
    pairs: dict[str, slice]
    members: dict[str, dict[str, slice]]  # the further labels of each loss's pairs, by their name


class Pieces:
    """The pieces of a batch, in order.

    It is neither tuple nor dataclass, so that code that moves tensors to a device passes it on
    unchanged: accelerate would make a list of the one, Lightning refuses the other.
    """

    def __init__(self, each: tuple[Piece, ...]) -> None:
        self.each = each


def cut(
    teacher: Mapping[str, Mapping[str, npt.NDArray[Any]]], example_N: Ints, size: int
) -> Pieces | None:
    """Cut a batch into the fewest pieces of at most `size` labels.

    Args:
        teacher: The arrays of each loss, as :mod:`distill.data.dataset` lays them out.
        example_N: The sequence of each label.
        size: The most labels of a piece.

    Returns:
        None if something that must stay whole has more labels, or the batch has none.
    """
    ends = _ends(_is_torn(teacher, example_N), size)
    if ends is None or len(ends) < 2:
        return None
    cuts = {name: np.searchsorted(arrays["index"], ends) for name, arrays in teacher.items()}
    members = {
        name: {each: np.searchsorted(arrays[each + INDEX], ends) for each in members_of(arrays)}
        for name, arrays in teacher.items()
    }
    return Pieces(
        tuple(
            Piece(
                int(ends[i]),
                int(ends[i + 1]),
                {name: _slice(at, i) for name, at in cuts.items()},
                {
                    name: {label: _slice(at, i) for label, at in cuts_of.items()}
                    for name, cuts_of in members.items()
                },
            )
            for i in range(len(ends) - 1)
        )
    )


def members_of(arrays: Iterable[str]) -> list[str]:
    """List the names of the further labels that belong to the pairs of a loss."""
    return [key.removesuffix(INDEX) for key in arrays if key.endswith(INDEX)]


def covered_by(arrays: Mapping[str, npt.NDArray[Any]], labels: int) -> npt.NDArray[np.bool_]:
    """Mark (labels,) those that a pair of a loss covers: its own label, and those that belong."""
    covered = np.zeros(labels, np.bool_)
    for key in ("index", *(each + INDEX for each in members_of(arrays))):
        covered[arrays[key]] = True
    return covered


def _slice(at: Ints, i: int) -> slice:
    return slice(int(at[i]), int(at[i + 1]))


def piece_of(
    teacher: Mapping[str, Mapping[str, Tensor]], piece: Piece
) -> dict[str, dict[str, Tensor]]:
    """Take the arrays of each loss for a piece; its labels and pairs are counted from its first."""
    return {name: _piece_of_loss(name, arrays, piece) for name, arrays in teacher.items()}


def _piece_of_loss(name: str, arrays: Mapping[str, Tensor], piece: Piece) -> dict[str, Tensor]:
    pairs, members = piece.pairs[name], piece.members[name]
    taken = {}
    for key, array in arrays.items():
        if key.startswith(WHOLE):
            continue
        owner = next((label for label in members if key.startswith(f"{label}_")), None)
        part = array[pairs if owner is None else members[owner]]
        if key == "index" or key.endswith(INDEX):
            part = part - piece.start
        elif key.endswith(PAIR):
            part = part - pairs.start
        taken[key] = part
    return taken


def _is_torn(teacher: Mapping[str, Mapping[str, npt.NDArray[Any]]], example_N: Ints) -> Ints:
    """Count, before each label (N + 1,), the pairs and sequences that a cut there would divide."""
    change = np.zeros(len(example_N) + 2, np.int64)
    for name, arrays in teacher.items():
        first_P = np.array(arrays["index"], np.int64)
        last_P = first_P.copy()
        assert (np.diff(first_P) >= 0).all(), "pairs must be in the order of the batch"
        for label in members_of(arrays):
            index, pair = arrays[label + INDEX], arrays[label + PAIR]
            assert (np.diff(index) >= 0).all(), "their labels must be, too"
            np.minimum.at(first_P, pair, index)
            np.maximum.at(last_P, pair, index)
        # Some need all labels of a sequence, paired or not.
        if find(name).is_of_sequences or PEAK in arrays:
            first_P = np.searchsorted(example_N, example_N[first_P])
            last_P = np.searchsorted(example_N, example_N[last_P], side="right") - 1
        np.add.at(change, first_P + 1, 1)
        np.add.at(change, last_P + 1, -1)
    return np.cumsum(change)[:-1]


def _ends(is_torn: Ints, size: int) -> Ints | None:
    """Choose the labels at which pieces end, after a first 0; None if no cut keeps to `size`."""
    allowed = np.flatnonzero(is_torn == 0)
    count, ends = len(is_torn) - 1, [0]
    while ends[-1] < count:
        stop = int(allowed[np.searchsorted(allowed, ends[-1] + size, side="right") - 1])
        if stop <= ends[-1]:
            return None
        ends.append(stop)
    return np.array(ends)
