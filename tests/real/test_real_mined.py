"""MinED between real vocabularies: every token of a sample against every token, by the definition.

`python -m tools.real_parts` fetches the tokenizers; without them these tests are skipped.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from distill.alignment.make_map import UNLIKE, make_map
from tests.real.vocabularies import file_of, pair

PAIRS = (("gpt2", "qwen3"), ("qwen3", "llama2"))
MISSING = [name for both in PAIRS for name in both if not Path(file_of(name)).exists()]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"{MISSING[:1]} is not there: `python -m tools.real_parts`"
    ),
]
SAMPLE = 20


class Vocabulary:
    """What each token writes, as rows of bytes, but for special ones and parts of characters."""

    def __init__(self, name: str) -> None:
        ours, plain = pair(name)
        self.written = {
            i: each
            for i, each in plain.written.items()
            if each and i not in plain.special
            and not (ours.is_standin[i] and each >= b"\x80")
        }  # fmt: skip
        self.ids = np.array(sorted(self.written))
        self.lengths = np.array([len(self.written[i]) for i in self.ids.tolist()])
        self.table = np.zeros((len(self.ids), int(self.lengths.max())), np.uint8)
        for row, i in enumerate(self.ids.tolist()):
            self.table[row, : self.lengths[row]] = np.frombuffer(self.written[i], np.uint8)

    def edits(self, written: bytes) -> npt.NDArray[np.int64]:
        """The edit distance of these bytes to every token: the recurrence, for all of them at once.

        A token of more than twice the length is further away than any of one byte, so it is left.
        """
        short = np.flatnonzero(self.lengths <= 2 * len(written))
        width = int(self.lengths[short].max())
        table = self.table[short, :width]
        row = np.tile(np.arange(width + 1), (len(short), 1))
        for i, x in enumerate(written, 1):
            above, row = row, np.empty_like(row)
            row[:, 0] = i
            for j in range(1, width + 1):
                replaced = above[:, j - 1] + (table[:, j - 1] != x)
                row[:, j] = np.minimum(replaced, np.minimum(above[:, j], row[:, j - 1]) + 1)
        found = np.full(len(self.ids), np.iinfo(np.int64).max)
        found[short] = row[np.arange(len(short)), self.lengths[short]]
        return found


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_each_token_goes_to_one_of_least_edits_and_is_alike_to_what_is_near(
    teacher: str, student: str
) -> None:
    theirs, ours = Vocabulary(teacher), Vocabulary(student)
    readers = pair(teacher)[0], pair(student)[0]
    mined, alike = make_map("mined", *readers), make_map("alike exact", *readers)
    assert alike.first is not None
    assert alike.share is not None
    twins = set(ours.written.values())
    rng, near = np.random.default_rng(0), 0
    lone = [i for i, each in theirs.written.items() if each not in twins and len(each) <= 10]
    for v in rng.choice(lone, SAMPLE, replace=False).tolist():
        written = theirs.written[v]
        edits = ours.edits(written)
        token = int(mined.event[v])
        assert edits[ours.ids == token].tolist() == [edits.min()], (written, ours.written[token])
        both = ours.lengths + len(written)
        want = set(ours.ids[(edits < UNLIKE * both) & (edits <= both)].tolist())
        found = alike.event[alike.first[v] : alike.first[v + 1]].tolist()
        assert set(found) == (want or {-1}), written
        near += len(want)
    assert near > 0
