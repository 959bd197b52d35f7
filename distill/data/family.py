"""Teacher and student of one tokenizer: where an id does not mean the same on both sides after all.

Within one tokenizer each token is itself. Two things are not:

* **Ends.** A fine-tune for chats ends a text with another token than its base model (`<|im_end|>`,
  `<|endoftext|>`), and a template with another one than EOS. Where both sides end at one place with
  different tokens, these are one event, as between any two tokenizers: the row's map sends all of
  the teacher's ends to the student's. Where they end with the same ones, each stays itself.
* **Tokens that one side alone has**, added behind the last. What only the teacher has goes to the
  student's first token of the same bytes. A label that the teacher has no token for has no pair: no
  record of the teacher's could say anything but that it is wrong.
"""

from functools import cached_property

import numpy as np
import numpy.typing as npt

from distill.alignment.align import Spans
from distill.alignment.event_map import EventMap
from distill.alignment.written import Writer
from distill.data.targets import Ints, Pairs
from logitstore.text.tokenizer import ByteTokenizer

Bools = npt.NDArray[np.bool_]


class Family:
    """Two models of one tokenizer.

    Args:
        teacher: The teacher's.
        student: The student's.
        appends_eos: Whether each side ends a text with its own EOS; else with what the text has.
    """

    def __init__(
        self, teacher: ByteTokenizer, student: ByteTokenizer, *, appends_eos: bool
    ) -> None:
        self._teacher, self._student = teacher, student
        self._has_one_eos = not appends_eos or teacher.eos_token_id == student.eos_token_id

    def map(self) -> EventMap:
        """Send each token to itself, even one of several with equal bytes, or an end."""
        teacher, alone = self._teacher, _beyond(self._teacher, self._student)
        made = EventMap.identity(max(teacher.size, self._student.size))
        made.event.reshape(-1, made.tokens)[:, self._unknown] = -1
        if alone:
            first = Writer(self._student).first(teacher.written(np.array(alone, np.int64)))
            made.event.reshape(-1, made.tokens)[:, alone] = first
        return made

    @cached_property
    def _unknown(self) -> list[int]:
        """List the student's tokens that the teacher does not have."""
        return _beyond(self._student, self._teacher)

    def have_one_end(
        self, pairs: Pairs, sides: tuple[Spans, Spans], ids: tuple[Ints, Ints]
    ) -> bool:
        """Tell whether both sides end a row's turns with the same tokens.

        Args:
            pairs: The row's.
            sides: Places of the records and of the labels.
            ids: The records' tokens and the labels.
        """
        record, label = pairs.table[:, 0], pairs.table[:, 2]
        is_end = sides[0].is_eos[record] & sides[1].is_eos[label]
        if not is_end.any():  # of what an end would be, only the roles tell
            return self._has_one_eos
        return bool((ids[0][record[is_end]] == ids[1][label[is_end]]).all())

    def known(self, pairs: Pairs, sides: tuple[Spans, Spans], label_ids: Ints) -> Bools:
        """Tell (P,) which labels the teacher has a token for; an end is one for an end."""
        if not self._unknown:
            return np.ones(len(pairs.table), np.bool_)
        record, label = pairs.table[:, 0], pairs.table[:, 2]
        is_end = sides[0].is_eos[record] & sides[1].is_eos[label]
        return np.asarray(is_end | ~np.isin(label_ids[label], self._unknown), np.bool_)


def _beyond(one: ByteTokenizer, other: ByteTokenizer) -> list[int]:
    """List the tokens that only the first of two has."""
    is_equal = one.fingerprint == other.fingerprint
    return [] if is_equal else one.vocabulary.beyond(other.vocabulary)
