"""A line of a store as the student reads it.

    text, prompts   the store's segments, as they are
    conversations   the messages, written by the student's own chat template
    token rows      the store's segments, with the student's own BOS and EOS for the teacher's
    private prompts the student's own segments, which the store has beside the teacher's

A text that its teacher was not done with (it was cut off at the most tokens, or ended by a stop
string) has no end for the student either.

Of a conversation only what messages say must be the teacher's, since that is what teacher and
student are aligned by (:mod:`logitstore.text.matching`). A template that writes it differently, but
for white space at its ends, makes the line `text_changed`, and one may refuse it. Such lines are
counted and left out, with the reason (:mod:`distill.data.left_out`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distill.alignment.align import Spans
from distill.student.odd_turns import Turns
from logitstore.errors import InputError
from logitstore.records import Segment, SequenceText
from logitstore.storage.paths import StorePath
from logitstore.text import own_text
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.crossings import is_space_of_template
from logitstore.text.student_turns import StudentTurns, read_turns
from logitstore.text.token_ids import begins_bare, for_student
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer

#: Why a student can make nothing of a line, besides what the line itself says.
CHANGED, REFUSED, BEYOND = "template_changed_text", "template_refused", "beyond_max_length"
ENDLESS = ("unfinished", "stopped")
_READ = ("ok", "truncated", "split", *ENDLESS)


class StudentText(NamedTuple):
    """The student's tokens of a line; spans count from the line's own first supervised byte.

    Attributes:
        tokens: None where the student can make nothing of the line.
        text_changed: Because its chat template changes supervised text.
        turns: Of a conversation, its supervised turns.
    """

    tokens: TokenizedText | None
    text_changed: bool = False
    turns: Turns = Turns()


class Explained(NamedTuple):
    """The same, or the reason why there is nothing.

    Attributes:
        tokens: None where the student can make nothing of the line.
        reason: Why, by its name in :mod:`logitstore.format.statuses`.
        refusal: What its chat template said when it refused the line.
        turns: Of a conversation, its supervised turns.
    """

    tokens: TokenizedText | None
    reason: str = ""
    refusal: str = ""
    turns: Turns = Turns()


class StudentReader:
    """Reads lines for one student. Can be pickled.

    Args:
        tokenizer: The student's.
        rendering: How the store's rows became text (`StoreSpec.rendering`).
        path: The store, for messages.
        template: The student's chat template, where rows are conversations.
        max_length: Student tokens of a line at most.
    """

    def __init__(
        self,
        tokenizer: ByteTokenizer,
        rendering: Mapping[str, Any],
        path: StorePath,
        *,
        template: ChatTemplate | None = None,
        max_length: int | None = None,
    ) -> None:
        if template is not None:  # what it writes behind an answer ends a turn
            tokenizer = tokenizer.with_ends(template.end_ids)
        self.tokenizer, self.path, self.template = tokenizer, path, template
        self.rendering, self.are_tokens = rendering, rendering["kind"] == "tokens"
        self.max_length = max_length

    def read(self, line: SequenceText, teacher: Spans) -> StudentText:
        """Tokenise a line for the student.

        Args:
            line: The line.
            teacher: Its records, as :func:`distill.data.targets.teacher_spans` places them.
        """
        found = self.explain(line, teacher)
        return StudentText(found.tokens, found.reason == CHANGED, found.turns)

    def explain(self, line: SequenceText, teacher: Spans) -> Explained:
        """Tokenise a line for the student, or say why that cannot be done; as for `read`."""
        if line.status not in _READ:
            return Explained(None, line.status)
        if line.messages is not None and self.template is None:
            return self._own_text(line, line.messages, teacher)
        if line.messages is not None:
            try:
                return self._conversation(line, teacher)
            except InputError as refused:
                return Explained(None, REFUSED, str(refused))
        if self.are_tokens:
            tokens = self.tokenizer.encode(
                for_student(line.segments, self.tokenizer),
                max_length=self.max_length,
                add_eos=False,
                add_prefix=not begins_bare(line.segments),
            )
        else:
            # A window is the end of its row only where the teacher, too, had the end there.
            ends = self.rendering.get("add_eos", True)
            is_whole = ends and line.status in ("ok", "truncated")
            add_eos = is_whole or bool(teacher.is_eos[-1:].any())
            tokens = self.tokenizer.encode(
                line.segments, max_length=self.max_length, add_eos=add_eos
            )
        return self._usable(tokens)

    def _usable(self, tokens: TokenizedText) -> Explained:
        if tokens.status in ("ok", "truncated"):
            return Explained(tokens)
        is_cut = self.max_length is not None and len(tokens.token_ids) >= self.max_length
        is_beyond = is_cut and tokens.status == "no_supervised_text"
        return Explained(None, BEYOND if is_beyond else tokens.status)

    def _conversation(self, line: SequenceText, teacher: Spans) -> Explained:
        assert self.template is not None
        where = f"{self.path}: row {line.row:,}"
        has_end = line.status not in ENDLESS
        found = read_turns(
            line, self.rendering, self.template, self.tokenizer, where, has_end=has_end
        )
        if found is None:
            return Explained(None, CHANGED)
        tokens = _with_given_spaces(found.tokens, found.segments, self.tokenizer)
        if line.status == "split" and tokens.status == "ok":
            tokens = self._window(tokens, line, teacher)
        return self._usable(tokens.cut(self.max_length))._replace(turns=_turns_of(line, found))

    def _own_text(self, line: SequenceText, messages: str, teacher: Spans) -> Explained:
        """Tokenise a text whose prompt is another for the student than it was for the teacher."""
        segments = own_text.from_json(messages, f"{self.path}: row {line.row:,}")
        has_prefix = True
        if self.are_tokens:
            has_prefix = not begins_bare(segments)
            segments = for_student(segments, self.tokenizer)
        add_eos = not self.are_tokens and line.status not in ENDLESS
        tokens = self.tokenizer.encode(segments, add_eos=add_eos, add_prefix=has_prefix)
        tokens = _with_given_spaces(tokens, segments, self.tokenizer)
        if line.status == "split" and tokens.status == "ok":
            tokens = self._window(tokens, line, teacher)
        return self._usable(tokens.cut(self.max_length))

    def _window(self, tokens: TokenizedText, line: SequenceText, teacher: Spans) -> TokenizedText:
        """Cut out the part of a conversation that the teacher's window has records of.

        It has as much context before its labels as `max_length` allows, behind BOS if the
        template writes one.
        """
        is_label = tokens.has_record & _belongs(tokens, line, teacher)
        labels = np.flatnonzero(is_label)
        if not len(labels):
            return replace(tokens, has_record=is_label, status="no_supervised_text")
        first, stop = int(labels[0]), int(labels[-1]) + 1
        begin, bos = 0, 0
        if self.max_length is not None and stop > self.max_length:
            bos = int(tokens.token_ids[0] == self.tokenizer.bos_token_id)
            # At least one token before the first label, to predict it.
            begin = min(max(stop - self.max_length + bos, 0), max(first - 1, 0))
        chosen = np.concatenate([np.arange(bos), np.arange(max(begin, bos), stop)])
        taken = tokens.take(chosen, is_label[chosen])
        starts = np.where(taken.has_record, taken.byte_starts - line.supervised_start, 0)
        return replace(taken, byte_starts=starts)


def _turns_of(line: SequenceText, found: StudentTurns) -> Turns:
    """Count the turns of a line; those of a row in several windows are of its first.

    A turn that the teacher was not done with has no end by the teacher's fault, not the template's.
    """
    if line.part:
        return Turns()
    unfinished = int(line.status in ENDLESS)
    return Turns(found.turns, max(found.endless - unfinished, 0), found.unwritten)


def _with_given_spaces(
    tokens: TokenizedText, segments: Sequence[Segment], tokenizer: ByteTokenizer
) -> TokenizedText:
    """Take the space that a chat template writes before an answer for an added one."""
    crossing = np.flatnonzero(tokens.heads)
    if not len(crossing):
        return tokens
    data = "".join(segment.text for segment in segments).encode()
    heads, starts = tokens.heads.copy(), tokens.text_starts.copy()
    has_added_space, is_verbatim = tokens.has_added_space.copy(), tokens.is_verbatim.copy()
    for i, written in zip(crossing, tokenizer.written(tokens.token_ids[crossing]), strict=True):
        place = starts[i] + heads[i]
        if is_space_of_template(written, data[starts[i] : place], tokenizer):
            heads[i], starts[i], has_added_space[i] = 0, place, True
            is_verbatim[i] = written[1:] == data[place : tokens.text_ends[i]]
    return replace(
        tokens,
        heads=heads,
        text_starts=starts,
        has_added_space=has_added_space,
        is_verbatim=is_verbatim,
    )


def _belongs(tokens: TokenizedText, line: SequenceText, teacher: Spans) -> npt.NDArray[np.bool_]:
    """Find the tokens of a conversation that belong to one line of it.

    Those that begin in the line's supervised bytes, and at its edges as many ends of turns as the
    teacher has there.

    An empty turn ends where the one before it ends, so the two events may lie in two windows: those
    at a window's end are the first at that byte, those at its beginning the last.
    """
    starts, end = tokens.byte_starts - line.supervised_start, len(line.supervised_bytes)
    inside: npt.NDArray[np.bool_] = (starts >= 0) & (starts < end)
    for edge in {end, 0}:
        events = np.flatnonzero(tokens.has_record & tokens.is_eos & (starts == edge))
        inside[events] = False
        count = int((teacher.is_eos & (teacher.starts == edge)).sum())
        kept = events[:count] if edge == end else events[len(events) - min(count, len(events)) :]
        inside[kept] = True
    return inside
