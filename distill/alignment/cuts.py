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
#: Answers are kept in a table: a question's hash names a row of it, of so many slots. In a full
#: row, another one loses its place. A table half full grows by so many bits, up to the most.
_ROW_BITS, _MORE_BITS, _MOST_ROW_BITS, _SLOTS = 8, 4, 20, 4
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
        self._kept = 0

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
        questions, known = (last << _ID_BITS) + teacher_ids, self._known
        held = known[_rows(questions, len(known))]
        is_it = held >> 1 == questions[:, None] + 1
        answers: Bools = ((held & 1).astype(np.bool_) & is_it).any(1)
        new = np.flatnonzero(~is_it.any(1))
        if len(new):
            distinct, which = np.unique(questions[new], return_inverse=True)
            found = self._ask(distinct.tolist())
            answers[new] = found[which]
            self._keep(distinct, found)
        return answers

    def _keep(self, questions: Ints, answers: Bools) -> None:
        """Write down answers; a thread that holds a smaller table asks again for what is new."""
        self._kept += len(questions)
        known = self._known
        while 2 * self._kept > known.size and len(known) < 1 << _MOST_ROW_BITS:
            known = _larger(known)
        rows = _rows(questions, len(known))
        is_free = known[rows] == 0
        slots = np.where(is_free.any(1), is_free.argmax(1), np.arange(len(rows)) % _SLOTS)
        known[rows, slots] = (questions + 1) * 2 + answers
        self._known = known

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


def _rows(questions: Ints, count: int) -> Ints:
    """Hash questions to the rows of a table of so many, a power of two."""
    hashes = questions.astype(np.uint64) * _MULTIPLIER
    return (hashes >> np.uint64(65 - count.bit_length())).astype(np.int64)


def _larger(known: Ints) -> Ints:
    """Move a table to one of more rows: those that share a row there share one here, too."""
    values = known[known != 0]
    rows = _rows((values >> 1) - 1, len(known) << _MORE_BITS)
    order = np.argsort(rows, kind="stable")
    values, rows = values[order], rows[order]
    larger = np.zeros((len(known) << _MORE_BITS, _SLOTS), np.int64)
    larger[rows, np.arange(len(rows)) - np.searchsorted(rows, rows)] = values
    return larger
