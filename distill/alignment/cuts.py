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
#: A question is one integer: the student's token above so many bits of the teacher's.
_ID_BITS = 32
#: Answers are kept in a table: a question's hash names one of so many rows, of so many slots. In a
#: full row, another one loses its place. (Memory is taken for rows that are used alone.)
_ROW_BITS, _SLOTS = 20, 4
#: Fibonacci hashing: the odd integer nearest to 2^64 divided by the golden ratio.
_MULTIPLIER = np.uint64(0x9E37_79B9_7F4A_7C15)


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
        # The same few last tokens come again and again. What is kept of a question is the integer
        # after it, doubled, and its answer: one value, since threads share it; 0 is nothing.
        self._known = np.zeros((1 << _ROW_BITS, _SLOTS), np.int64)

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
        questions = (last << _ID_BITS) + teacher_ids
        hashes = questions.astype(np.uint64) * _MULTIPLIER
        rows = (hashes >> np.uint64(64 - _ROW_BITS)).astype(np.int64)
        held = self._known[rows]
        is_it = held >> 1 == questions[:, None] + 1
        answers: Bools = ((held & 1).astype(np.bool_) & is_it).any(1)
        new = np.flatnonzero(~is_it.any(1))
        if len(new):
            distinct, which = np.unique(questions[new], return_inverse=True)
            answers[new] = self._ask(distinct.tolist())[which]
            slots = np.where((held[new] == 0).any(1), (held[new] == 0).argmax(1), new % _SLOTS)
            self._known[rows[new], slots] = (questions[new] + 1) * 2 + answers[new]
        return answers

    def _ask(self, keys: Sequence[int]) -> Bools:
        """Ask the student's tokenizer, as for `fits`, about last tokens and what follows them."""
        token_bytes, asked = self._student.token_bytes, []
        for number, key in enumerate(keys):
            last, following = key >> _ID_BITS, key & (1 << _ID_BITS) - 1
            begin = token_bytes[last] or b""
            end = self._written[following] if following < len(self._written) else b""
            if begin and end and self._is_alone(last):
                asked.append((number, begin, end))
        tokens = self._writer.all([begin + end for _, begin, end in asked])
        fits = np.ones(len(keys), np.bool_)
        for (number, begin, _), own in zip(asked, tokens, strict=True):
            fits[number] = self._has_end_at(own, len(begin))
        return fits

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
