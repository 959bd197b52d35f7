"""Teacher vocabulary -> student vocabulary, by the bytes that tokens write.

For a teacher token v with bytes b(v):

    prefix[v] = the student token x with the longest b(x) that b(v) begins with
    exact[v]  = the student token x with b(x) = b(v)

At a position where both sides have the same bytes behind them, a teacher that predicts v predicts
that the text goes on with b(v); prefix[v] is the student token that predicts as much of that as one
token can. Several rules keep the map from claiming what the teacher did not predict:

* All of the teacher's EOS-like tokens are one event, the student's EOS.
* Other special tokens write no text, so they map to nothing: ⊥, here -1.
* White space alone maps to the student token of the same bytes, or to ⊥. A shorter white space
  would claim that a word follows it: a known failure, which cost a code model 40 points of its pass
  rate.

Where several student tokens write the same bytes, the map takes the one that the student's
tokenizer produces: `,` and not `<0x2C>`, which it never uses for a `,`. Among those, the lowest id.

The last few maps of a process are kept, by the fingerprints of the two tokenizers.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from logitstore.text.tokenizer import ByteTokenizer


class VocabMap(NamedTuple):
    """The student ids of a teacher's vocabulary, by teacher id; -1 is ⊥, no student token.

    Attributes:
        prefix: (teacher.size,) int32, by the longest bytes that the teacher's token begins with.
        exact: (teacher.size,) int32, by equal bytes. Where it is not -1, `prefix` is the same.
    """

    prefix: npt.NDArray[np.int32]
    exact: npt.NDArray[np.int32]


#: The maps made last, the newest at the end: training, evaluation and coverage use the same one.
_KEPT: dict[tuple[str, str], VocabMap] = {}
_KEEP = 4


def prefix_map(teacher: ByteTokenizer, student: ByteTokenizer) -> VocabMap:
    """Map `teacher` ids to `student` ids: a fraction of a second for 150,000 tokens.

    Returns:
        Arrays that are shared with later callers, and so are read-only.
    """
    key = (teacher.fingerprint, student.fingerprint)
    made = _KEPT.pop(key, None) or _made(teacher, student)
    _KEPT[key] = made
    while len(_KEPT) > _KEEP:
        del _KEPT[next(iter(_KEPT))]
    return made


def _made(teacher: ByteTokenizer, student: ByteTokenizer) -> VocabMap:
    ids = _ids_by_bytes(student)
    longest = max(map(len, ids), default=0)
    prefix = np.full(teacher.size, -1, np.int32)
    exact = np.full(teacher.size, -1, np.int32)
    for i, written in enumerate(teacher.token_bytes):
        if not written:
            continue
        same_bytes = ids.get(written, -1)
        exact[i] = same_bytes
        prefix[i] = same_bytes if same_bytes >= 0 else _longest_prefix(written, ids, longest)
    if student.eos_token_id is not None:
        ends = list(teacher.eos_ids)
        prefix[ends] = exact[ends] = student.eos_token_id
    prefix.flags.writeable = exact.flags.writeable = False
    return VocabMap(prefix, exact)


def _ids_by_bytes(student: ByteTokenizer) -> dict[bytes, int]:
    """Map the bytes of each token that writes any to the id that the tokenizer produces."""
    ids: dict[bytes, int] = {}
    for i in np.argsort(student.is_standin, kind="stable").tolist():
        written = student.token_bytes[i]
        if written:
            ids.setdefault(written, i)
    return ids


def _longest_prefix(written: bytes, ids: dict[bytes, int], longest: int) -> int:
    """Find the student token with the longest bytes that `written` begins with, or -1."""
    if written.decode("utf-8", "replace").isspace():
        return -1
    for length in range(min(len(written) - 1, longest), 0, -1):
        token_id = ids.get(written[:length])
        if token_id is not None:
            return token_id
    return -1
