"""Hold the tokens of some rows to their text before a capture: ids, places, and ends of turns.

Rows are rendered, tokenised and placed by this program, so this tells its own mistakes, and a
tokenizer that does not write what it reads.
"""

from collections.abc import Sequence

import numpy as np

from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.checking.odd_places import odd_places
from logitstore.checking.text_check import TextCheck
from logitstore.errors import InputError
from logitstore.text.tokenizer import ByteTokenizer

#: Sequences that are looked at.
_SEQUENCES = 32


def check_places(
    tokenizer: ByteTokenizer, sequences: Sequence[TeacherSequence], teacher: str
) -> None:
    """Hold the tokens of some sequences to their text, before the teacher reads them.

    Args:
        tokenizer: The teacher's, with the ends of its turns.
        sequences: Of the dataset; some from all over it are taken.
        teacher: Its name, for messages.

    Raises:
        InputError: More of them are odd than a quirk of the tokenizer explains.
    """
    some = [s for s in sequences if s.records]
    if not some:
        return
    some = [some[i] for i in np.unique(np.linspace(0, len(some) - 1, _SEQUENCES).astype(int))]
    placed = [(s.line, s.text.take(np.flatnonzero(s.text.has_record))) for s in some]
    written = tokenizer.written(np.arange(tokenizer.size))
    check = TextCheck(tokenizer.rewritten, written)
    odd = odd_places(placed, check, tokenizer.eos_ids, written)
    if odd is not None:
        whose = "chat template" if odd.is_end else "tokenizer"
        raise InputError(
            f"{teacher}: {odd.what}. Text and tokens are not of the same {whose} or row: check the "
            "teacher's folder and the dataset; --no-self-test captures all the same.",
            kind="self-test",
        )
