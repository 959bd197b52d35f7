"""Where a student would have cut: what it never writes behind its own last token.

A student that has written ` to` goes on to no ` total` and no ` tokens`, if these are tokens of its
own: it would have written them at once. A teacher that has read the same bytes may well write `tal`
there, if it has no such tokens. So at a place where both begin a token inside a word, the teacher
holds continuations possible that the student's own tokens rule out.

Which ones, the student's tokenizer says: it is asked for its tokens of the last token and what
follows together, and must end one where the last token ends.

Shape legend: n = pairs of a last token and a continuation, M = entries of all pairs of a sequence.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distill.alignment.runs import Ints
from distill.alignment.written import Writer
from logitstore.text.tokenizer import ByteTokenizer

Bools = npt.NDArray[np.bool_]


#: An entry that is less probable than this is not asked about: there are many, and all of them
#: together have little mass.
LEAST_ASKED = 0.01
#: Answers that are kept.
_MOST_KNOWN = 2**22
#: A question is one integer: the student's token above so many bits of the teacher's.
_ID_BITS = 32


class Cuts:
    """Tells behind which of its tokens a student would write which of the teacher's.

    Args:
        student: The student's tokenizer.
        written: The bytes of each of the teacher's tokens; empty for one that writes none, as for
            the ids beyond them that only a padded head has.
    """

    def __init__(self, student: ByteTokenizer, written: Sequence[bytes]) -> None:
        self._student, self._writer, self._written = student, Writer(student), written
        self._stands_alone: dict[int, bool] = {}
        self._known: dict[int, bool] = {}  # the same few last tokens come again and again

    def __reduce__(self) -> tuple[type["Cuts"], tuple[ByteTokenizer, Sequence[bytes]]]:
        """Send a worker what it asks; what was found stays here."""
        return Cuts, (self._student, self._written)

    def fits(self, last: Ints, teacher_ids: Ints) -> Bools:
        """Tell (n,) whether the student would have ended a token where its last one ends.

        Args:
            last: (n,) the student's last token.
            teacher_ids: (n,) the teacher's token that follows.

        Returns:
            False only where the student's own tokens of both together are known, and none of them
            ends there.
        """
        distinct, which = np.unique((last << _ID_BITS) + teacher_ids, return_inverse=True)
        if len(self._known) > _MOST_KNOWN:
            self._known = {}
        keys = distinct.tolist()
        self._ask([key for key in keys if key not in self._known])
        return np.fromiter(map(self._known.__getitem__, keys), np.bool_, len(keys))[which]

    def _ask(self, keys: Sequence[int]) -> None:
        token_bytes, asked = self._student.token_bytes, []
        for key in keys:
            last, following = key >> _ID_BITS, key & (1 << _ID_BITS) - 1
            begin = token_bytes[last] or b""
            end = self._written[following] if following < len(self._written) else b""
            if begin and end and self._is_alone(last):
                asked.append((key, begin, end))
            else:
                self._known[key] = True
        tokens = self._writer.all([begin + end for _, begin, end in asked])
        for (key, begin, _), own in zip(asked, tokens, strict=True):
            self._known[key] = self._has_end_at(own, len(begin))

    def _is_alone(self, token: int) -> bool:
        """Tell whether the student writes the bytes of a token as that token."""
        known = self._stands_alone.get(token)
        if known is None:
            known = self._writer.all([self._student.token_bytes[token] or b""]) == [[token]]
            self._stands_alone[token] = known
        return known

    def _has_end_at(self, tokens: Sequence[int], length: int) -> bool:
        """Tell whether a token ends there, or the tokens are not known so far."""
        place = 0
        for token in tokens:
            place += len(self._student.token_bytes[token] or b"")
            if place >= length:
                return place == length
        return True
