"""A second text for each row: another answer to the same prompt, of a store of its own.

    plain        {"prompt": "3 + 4 =",  "completion": " 7"}
    reasoning    {"prompt": "3 + 4 =",  "completion": " 3 and 4 more is 4, 5, 6, 7. So 7"}

Both stores are of one teacher, and are captured as any other. The student reads both texts of a row
in one batch, one behind the other, and learns both; a loss with weights of its own can compare
across them (`whole_second`, see :mod:`distill.losses.cot2align`).

A row's second text is that with the same prompt, as the student reads it: all before the first
supervised text; of a conversation, what everybody but the assistant says. Where a prompt is there
twice, the first is paired with the first. A row without a prompt, or in several windows, has no
second text, and is learnt alone; rows of the second store that no row asks for are not used.

Shape legend: E = examples; m = records of a sequence.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from distill.alignment.runs import Ints
from distill.data.batch_cuts import WHOLE, WHOLE_SEQUENCE
from distill.data.dataset import StoreDataset
from distill.data.example import Example
from distill.student.text import StudentReader
from logitstore.console.progress import progress
from logitstore.errors import MismatchError
from logitstore.records import SequenceText
from logitstore.text import own_text
from logitstore.text.conversation import ASSISTANT, Conversation

_SECOND = f"{WHOLE}second"


class TwoTexts(StoreDataset):
    """The sequences of a store, each with its second text, if it has one, in `Example.beside`.

    Args:
        own: The store, as the student reads it.
        second: The store of second texts, likewise, for the same losses and options.

    Attributes:
        second: As given.
        partner_E: (E,) the number of each example's second text there; -1: it has none.

    Raises:
        MismatchError: The stores are of two teachers, or have no prompt in common.
    """

    def __init__(self, own: StoreDataset, second: StoreDataset) -> None:
        vars(self).update(vars(own))  # the same dataset, with second texts
        _check_one_teacher(own, second)
        self.second = second
        self.partner_E = _partners(own, second)
        if not (self.partner_E >= 0).any():
            raise MismatchError(
                f"{second.store.path}: none of its prompts is one of {own.store.path}, so no row "
                "has a second text. Capture the same prompts with other answers, where both have "
                "prompts (`prompt` and `completion`, or messages).",
                kind="no-common-row",
            )

    @property
    def records(self) -> Ints:
        """(E,) records of both texts of each example."""
        own, second = super().records, self.second.records
        return own + np.where(self.partner_E >= 0, second[self.partner_E], 0)

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Make the examples of a batch, with one read of each store; DataLoader calls this."""
        partners = self.partner_E[np.asarray(indices, np.int64)]
        wanted = [int(i) for i in partners if i >= 0]
        found = iter(self.second.__getitems__(wanted) if wanted else ())
        return [
            _together(example, next(found) if partner >= 0 else None)
            for example, partner in zip(super().__getitems__(indices), partners, strict=True)
        ]

    def facts(self) -> dict[str, int]:
        """Say how many rows have a second text, as JSON."""
        return {"sequences": len(self), "with_second_text": int((self.partner_E >= 0).sum())}


def _together(example: Example, second: Example | None) -> Example:
    """Mark both texts; one that this student cannot use is left out."""
    if second is not None and not second.skipped:
        second = _marked(second, is_second=True)._replace(row=example.row)
        return _marked(example, is_second=False)._replace(beside=second)
    return _marked(example, is_second=False)


def _marked(example: Example, *, is_second: bool) -> Example:
    """Say (m,) of each record which text it is of, to losses that read whole sequences."""
    teacher = {
        name: arrays | {_SECOND: np.full(len(arrays[WHOLE_SEQUENCE]), is_second, np.int32)}
        if WHOLE_SEQUENCE in arrays
        else arrays
        for name, arrays in example.teacher.items()
    }
    return example._replace(teacher=teacher)


def _check_one_teacher(own: StoreDataset, second: StoreDataset) -> None:
    one, other = (each.store.spec for each in (own, second))
    fingerprints = one.teacher["fingerprint"], other.teacher["fingerprint"]
    if fingerprints[0] != fingerprints[1]:
        raise MismatchError(
            f"{second.store.path}: its teacher is another ({fingerprints[1][:12]}…) than that of "
            f"{own.store.path} ({fingerprints[0][:12]}…), and both texts of a row are one "
            "teacher's. Capture both with the same teacher."
        )


def _partners(own: StoreDataset, second: StoreDataset) -> Ints:
    """Find (E,) the second text of each example: the one with the same prompt."""
    there, seen = dict[tuple[bytes, int], int](), Counter[bytes]()
    for number, prompt in _prompts(second):
        there[prompt, seen[prompt]] = number
        seen[prompt] += 1
    partner_E, seen = np.full(len(own), -1, np.int64), Counter[bytes]()
    for number, prompt in _prompts(own):
        partner_E[number] = there.get((prompt, seen[prompt]), -1)
        seen[prompt] += 1
    return partner_E


def _prompts(data: StoreDataset) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the prompt's digest of each example that is a whole row with one."""
    with progress(len(data), f"prompts of {data.store.path}", "sequences") as shown:
        for number in range(len(data)):
            line = data.store.text(int(data.sequences[number]))
            prompt = "" if line.status == "split" else _prompt_of(line, data.reader)
            if prompt:
                yield number, hashlib.blake2b(prompt.encode(), digest_size=16).digest()
            shown.update(1)


def _prompt_of(line: SequenceText, reader: StudentReader) -> str:
    """Return what stands before the answer, as the student reads it; empty: nothing does."""
    where, segments = f"{reader.path}: row {line.row:,}", line.segments
    if line.messages is not None:
        if reader.template is not None:
            return _asked(Conversation.from_json(line.messages, where))
        segments = own_text.from_json(line.messages, where)
    first = next((n for n, each in enumerate(segments) if each.supervised), len(segments))
    return "".join(each.text for each in segments[:first])


def _asked(conversation: Conversation) -> str:
    others = [each for each in conversation.messages if each["role"] != ASSISTANT]
    tools = None if conversation.tools is None else list(conversation.tools)
    return json.dumps([others, tools], sort_keys=True, ensure_ascii=False) if others else ""
