"""Make examples of a store's sequences: all tokens as the teacher read them, records at theirs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from logitstore.errors import InputError
from logitstore.format.spec import StoreSpec
from logitstore.records import Example, SequenceText, TokenRecords
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.stored import Stored, stored_tokenizer
from logitstore.text.whole_sequence import Around, WholeSequence, head_of_row, whole_sequence

_NOTHING = WholeSequence(np.zeros(0, np.int64), np.zeros(0, np.int64), True)


class ExampleMaker:
    """Makes the examples of one store. Can be pickled.

    Args:
        stored: The teacher's tokenizer.
        spec: The store's.
        line: Reads the line of a sequence.
    """

    def __init__(
        self, stored: Stored, spec: StoreSpec, line: Callable[[int], SequenceText]
    ) -> None:
        self.tokenizer = stored.by_bytes.with_ends(spec.eos_ids)
        self._rendering, self._line = spec.rendering, line
        self._template = _template(stored, spec)

    @classmethod
    def from_folder(
        cls, folder: Path, spec: StoreSpec, where: object, line: Callable[[int], SequenceText]
    ) -> "ExampleMaker":
        """Load the tokenizer that a store keeps.

        Args:
            folder: Its files alone, which were compared with their digests.
            spec: The store's.
            where: The store, for messages.
            line: Reads the line of a sequence.

        Raises:
            InputError: The store holds records at a student's boundaries; or the tokenizer cannot
                be loaded.
            MismatchError: It is read as another tokenizer than it was.
        """
        if spec.boundaries_of is not None:
            raise InputError(
                f"{where}: holds records at the boundaries of a student, which may lie inside the "
                "teacher's tokens, so no token is theirs. Make examples of the store around it, or "
                "read the records themselves: store[i]."
            )
        stored = stored_tokenizer(folder, spec.tokenizer_fingerprint, where)
        return cls(stored, spec, line)

    def make(self, i: int, records: TokenRecords) -> Example:
        """Make the example of sequence i, whose records were read."""
        line = self._line(i)
        found = _NOTHING
        if len(records):
            around = self._around(i, line) if line.status == "split" else None
            found = whole_sequence(line, records, self.tokenizer, self._rendering, around)
        loss_mask = np.zeros(len(found.token_ids), np.bool_)
        loss_mask[found.positions] = True
        return Example(
            input_ids=found.token_ids,
            attention_mask=np.ones(len(found.token_ids), np.int64),
            loss_mask=loss_mask,
            positions=found.positions,
            records=records,
            text=line,
            agrees=found.agrees,
        )

    def _around(self, i: int, line: SequenceText) -> Around:
        """Find what lies around a window; the parts of a row follow each other in a store."""
        first = self._line(i - line.part) if 0 < line.part <= i else line
        before = self._line(i - 1) if 0 < line.part <= i else None
        is_of_row = before is not None and before.row == line.row == first.row
        head = head_of_row(
            first if is_of_row else line, self.tokenizer, self._rendering, self._template
        )
        return Around(before if is_of_row else None, head)


def _template(stored: Stored, spec: StoreSpec) -> ChatTemplate | None:
    """Read the chat template beside the tokenizer; None where the rows were written by another."""
    if spec.rendering.get("kind") != "conversation":
        return None
    try:
        template = ChatTemplate.of(stored.tokenizer, stored.by_bytes)
    except InputError:
        return None
    is_same = template.digest == spec.rendering.get("chat_template_sha256")
    return template if is_same else None
