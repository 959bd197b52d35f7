"""Read rows that have only a prompt: before the teacher writes the completion, and after.

    prompt        `prompt` is text, or a list of messages, or there are `messages` that no turn of
                  the assistant ends; a conversation is rendered up to where the assistant begins
    completed     the prompt's text, then the completion, which is supervised; then the end, if
                  the teacher wrote one

The completed row is tokenised once, as text, like any other row. So a store of written completions
is the store that their text would give, and a student, which reads text, meets tokens as it would
write them. Mostly these are the tokens that the teacher wrote; where it wrote others (two where its
tokenizer has one, half of a character at the end), the records are those of the text.
"""

from dataclasses import replace
from typing import NamedTuple

from logitstore.capture.sequences.row_reader import RowReader
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.format.numpy_types import I64
from logitstore.records import Segment, SequenceText
from logitstore.rows.dataset import Dialogue
from logitstore.rows.renderer import Rendered
from logitstore.text import own_text
from logitstore.text.conversation import Conversation
from logitstore.text.token_ids import END

#: Statuses of rows: a prompt nothing was written for yet; one that leaves no room to write; a
#: completion cut off at the most tokens; one that a stop string ended. One that the teacher ended
#: is `ok`.
PROMPT, TOO_LONG, UNFINISHED, STOPPED, OK = "prompt", "too_long", "unfinished", "stopped", "ok"


class Prompt(NamedTuple):
    """Holds the part of a row that a completion is written for.

    Attributes:
        segments: Text of the prompt.
        token_ids: Tokens of the prompt.
        conversation: The conversation so far, as the student sees it; None where the row is not
            one.
        own: The text of the prompt as the student sees it; None where the teacher sees the same.
    """

    segments: tuple[Segment, ...]
    token_ids: I64
    conversation: Conversation | None
    own: tuple[Segment, ...] | None = None


class Completion(NamedTuple):
    """Holds what the teacher wrote.

    Attributes:
        text: The text without end, stop string, special tokens, or half of a character.
        status: `OK`, `STOPPED`, `UNFINISHED` or `TOO_LONG`.
        token_ids: All tokens but the one that ended it.
        end_id: The token that ended it; None if none did.
    """

    text: str
    status: str
    token_ids: list[int]
    end_id: int | None = None


class PromptReader(RowReader):
    """Makes the sequences of a row that has a prompt only."""

    def prompt(self, row: int) -> Prompt:
        """Read the prompt of a row; without tokens where there is no text.

        Raises:
            InputError: The row cannot be read, or the template rejects it.
        """
        if self.render.template is not None:
            own = _asked(self.rows.dialogue(row))
            private = self.rows.teacher_dialogue(row)
            theirs = own if private is None else _asked(private)
            text = self.render.template.prompt(theirs, self.rows.where(row))
            segments: tuple[Segment, ...] = (Segment(text, False),) if text else ()
            tokens = self.tokenizer.encode(segments, add_eos=False, add_prefix=False)
            return Prompt(segments, tokens.token_ids, own)
        seen, private_text = self.rows.segments(row), self.rows.teacher_segments(row)
        segments = self.render.parsed(private_text or seen, add_eos=False)
        tokens = self.tokenizer.encode(segments, add_eos=False)
        asked = None if private_text is None else self.render.parsed(seen, add_eos=False)
        return Prompt(segments, tokens.token_ids, None, asked)

    def wholes(self, row: int) -> list[TeacherSequence]:
        """Return the prompt alone as a sequence, before anything is written."""
        prompt = self.prompt(row)
        status = PROMPT if len(prompt.token_ids) else "empty"
        return [self._without_records(row, prompt, status)]

    def completed(self, row: int, prompt: Prompt, written: Completion) -> list[TeacherSequence]:
        """Return the sequences of the row with its completion."""
        if not len(prompt.token_ids):
            return [self._without_records(row, prompt, "empty")]
        if written.status == TOO_LONG:
            return [self._without_records(row, prompt, TOO_LONG)]
        sequences = self.cut(row, self._rendered(prompt, written))
        return [_with_status(s, written.status) for s in sequences]

    def is_as_written(self, prompt: Prompt, written: Completion, read: TeacherSequence) -> bool:
        """Tell whether the tokens of the text are those that the teacher wrote."""
        ids: list[int] = read.text.token_ids.tolist()
        length = len(prompt.token_ids) + len(written.token_ids)
        return ids[:length] == [*prompt.token_ids.tolist(), *written.token_ids]

    def _rendered(self, prompt: Prompt, written: Completion) -> Rendered:
        is_ended = written.status == OK
        if prompt.conversation is None:
            answer: tuple[Segment, ...] = (Segment(written.text, True),)
            has_special = self.render.special is not None
            if is_ended and has_special:
                answer += (Segment(self._end_text(written.end_id), False, END),)
            segments = (*prompt.segments, *answer)
            end_id = written.end_id if written.end_id in self.tokenizer.eos_ids else None
            tokens = self.tokenizer.encode(
                segments, add_eos=is_ended and not has_special, end_id=end_id
            )
            messages = None if prompt.own is None else own_text.to_json((*prompt.own, *answer))
            return Rendered(segments, tokens, messages, self.tokenizer.prefix_length)
        segments = (*prompt.segments, Segment(written.text, True, "assistant"))
        if is_ended:
            segments += (Segment(self._end_text(written.end_id), False),)
        tokens = self.tokenizer.encode(segments, add_eos=False, add_prefix=False)
        messages = _with_turn(prompt.conversation, written.text).to_json()
        return Rendered(segments, tokens, messages, self.render.prefix_length(tokens))

    def _end_text(self, end_id: int | None) -> str:
        """Return the text of the token that ended a turn; of the template's where it is not one."""
        template = self.render.template
        if end_id not in self.tokenizer.eos_ids:
            own = () if template is None else template.end_ids
            end_id = own[-1] if own else self.tokenizer.eos_token_id
        return self.tokenizer.spelt(end_id) or ""

    def _without_records(self, row: int, prompt: Prompt, status: str) -> TeacherSequence:
        conversation = prompt.conversation
        messages = None if conversation is None else conversation.to_json()
        if prompt.own is not None:
            messages = own_text.to_json(prompt.own)
        line = SequenceText(row, 0, status, prompt.segments, messages=messages)
        tokens = self.tokenizer.encode(
            prompt.segments, add_eos=False, add_prefix=conversation is None
        )
        return TeacherSequence(line, tokens)


def _asked(row: Dialogue) -> Conversation:
    """Make a conversation of messages that the teacher is to go on with."""
    first = len(row.messages)
    return Conversation.choose(
        row.messages, "last", first=first, tools=row.tools, kwargs=row.kwargs
    )


def _with_turn(conversation: Conversation, text: str) -> Conversation:
    messages = (*conversation.messages, {"role": "assistant", "content": text})
    return Conversation(messages, (len(messages) - 1,), conversation.tools, conversation.kwargs)


def _with_status(sequence: TeacherSequence, status: str) -> TeacherSequence:
    """Keep a completion's status (such as `unfinished`) also where it was truncated."""
    if status == OK or sequence.line.status not in (OK, "truncated"):
        return sequence
    return replace(sequence, line=sequence.line._replace(status=status))
