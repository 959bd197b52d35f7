"""Finds tokens of the least edit distance, for MinED (arXiv:2401.10491)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from logitstore.errors import InputError

#: Pairs of strings that are compared at once.
_BLOCK = 2**24


def nearest(
    strings: Sequence[bytes], tokens: Sequence[bytes], most: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Find (n,) the token of the least edit distance to each string; of several the first.

    Args:
        strings: What is looked for.
        tokens: Where it is looked for.
        most: (n,) a distance at which there is a token.

    Raises:
        InputError: The package rapidfuzz is not installed.
    """
    try:
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist
    except ImportError as error:
        raise InputError(
            "--map mined compares every token with every other one, for which it needs the package "
            "rapidfuzz. Run `pip install 'logitstore[mined]'`, or use another --map."
        ) from error
    lengths = np.array([len(each) for each in tokens])
    found = np.zeros(len(strings), np.int64)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (each, bound) in enumerate(zip(strings, most, strict=True)):
        groups.setdefault((len(each), bound), []).append(i)
    spelt = [each.decode("latin-1") for each in tokens]
    for (length, bound), members in groups.items():
        # A distance is at least the difference of lengths.
        near = np.flatnonzero(np.abs(lengths - length) <= bound)
        choices = [spelt[j] for j in near.tolist()]
        step = max(1, _BLOCK // max(1, len(choices)))
        for start in range(0, len(members), step):
            part = members[start : start + step]
            distances = cdist(
                [strings[i].decode("latin-1") for i in part],
                choices,
                scorer=Levenshtein.distance,
                score_cutoff=bound,
                dtype=np.uint16,
                workers=-1,
            )
            found[part] = near[distances.argmin(1)]
    return found
