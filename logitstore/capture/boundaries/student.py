"""Read a store's lines as one student will: where do its tokens begin?

Teacher and student share the supervised bytes of a line and nothing else: each has its own BOS,
its own chat template, its own names of special tokens. So a boundary is found in the student's own
reading of the line, as training reads it, and then moved to the place of the same supervised byte
in the teacher's text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import I64, Bools
from logitstore.format.spec import SPEC_FILE, STUDENT_FOLDER, StoreHeader
from logitstore.models.loading import load_tokenizer
from logitstore.reading.bucket import checked_folder
from logitstore.reading.shard_cache import ShardCache
from logitstore.records import Segment, SequenceText
from logitstore.storage.folder import LocalPath
from logitstore.text import own_text
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.crossings import is_space_of_template
from logitstore.text.stored import Stored, files_to_store, stored_tokenizer
from logitstore.text.student_turns import SUPERVISED_TEXT, StudentTurns, read_turns
from logitstore.text.supervised_bytes import SupervisedBytes
from logitstore.text.token_ids import begins_bare, for_student
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer

_FLAG = "--boundaries-of"
#: Statuses of a line with text that the student cannot be asked about.
UNKNOWN, CHANGED = "spans_unknown", "text_changed"


class Labels(NamedTuple):
    """The student's supervised tokens in one line: its labels.

    Attributes:
        starts: (n,) bytes of the line's own supervised text before the token.
        lengths: (n,) bytes of the token; 0 for the end of a text or turn.
        is_eos: (n,) whether it is such an end.
        places: (n,) byte of the teacher's text where the token begins; -1 where it has none, for
            an end and for a token whose context the teacher's text does not have.
    """

    starts: I64
    lengths: I64
    is_eos: Bools
    places: I64


@dataclass(frozen=True)
class Student:
    """One student's tokenizer.

    Attributes:
        name: As the user gave it.
        tokenizer: The tokenizer by bytes.
        files: What `save_pretrained` writes for it, by name.
        template: Its chat template, where rows are conversations.
        are_tokens: Whether rows are token ids of the teacher's.
        supervised_text: What of a turn is supervised, `content` or `turn`.
    """

    name: str
    tokenizer: ByteTokenizer
    files: dict[str, bytes]
    template: ChatTemplate | None = None
    are_tokens: bool = False
    supervised_text: str = "content"

    @classmethod
    def load(
        cls, name: str, kind: str, teacher: ByteTokenizer, supervised_text: str = "content"
    ) -> Self:
        """Load the tokenizer of a student.

        Args:
            name: A folder or hub id, of a model or a tokenizer.
            kind: The kind of the dataset's rows.
            teacher: The teacher's tokenizer.
            supervised_text: What of a turn is supervised, `content` or `turn`.

        Raises:
            InputError: It cannot be loaded, does not know where its tokens lie, has no chat
                template for conversations, or is the teacher's.
            CorruptStoreError: It is the one that a store keeps, and its files have changed.
        """
        found, tokenizer = _load(name)
        if tokenizer.is_one_with(teacher):
            raise InputError(
                f"{_FLAG} {name}: its tokenizer is the teacher's own, so every boundary has a "
                f"record already. Leave {_FLAG} out."
            )
        template = None
        if kind == "conversation":
            if not found.chat_template:
                raise InputError(
                    f"{_FLAG} {name}: the rows are conversations, but this student's tokenizer has "
                    "no chat template to write them with. Save one with it: a file "
                    "chat_template.jinja beside its tokenizer.json."
                )
            template = ChatTemplate.of(found, tokenizer)
            tokenizer = tokenizer.with_ends(template.end_ids)
        files, are_tokens = files_to_store(found), kind == "tokens"
        return cls(name, tokenizer, files, template, are_tokens, supervised_text)

    def labels(self, line: SequenceText, where: str) -> Labels | str:
        """Find the student's labels in a line.

        Args:
            line: The line as the teacher reads it.
            where: Names the row in messages.

        Returns:
            The labels; or the status of a line that this student cannot read.

        Raises:
            InputError: Its chat template rejects the conversation.
        """
        found = self._read(line, where)
        if found is None:
            return CHANGED
        segments, tokens = found.segments, found.tokens
        if tokens.status == UNKNOWN:
            return UNKNOWN
        own = line.supervised_bytes
        is_part = line.messages is not None and line.status == "split"
        starts = tokens.byte_starts - (line.supervised_start if is_part else 0)
        inside = tokens.has_record & (starts >= 0)
        inside &= np.where(tokens.is_eos, starts <= len(own), starts < len(own))
        starts, lengths = starts[inside], tokens.byte_lengths[inside]
        heads_end = (tokens.text_starts + tokens.heads)[inside]
        heads = heads_of(line, segments, tokens, self.tokenizer)[inside]
        places = _places(line, _text(segments), starts, heads_end, heads)
        is_eos = tokens.is_eos[inside]
        return Labels(starts, lengths, is_eos, np.where(is_eos | (lengths == 0), -1, places))

    def _read(self, line: SequenceText, where: str) -> StudentTurns | None:
        """Tokenise a line as training does; an end that the teacher does not have is dropped later.

        See `distill.student.text`.
        """
        if line.messages is not None and self.template is not None:
            mode = {SUPERVISED_TEXT: self.supervised_text}
            return read_turns(line, mode, self.template, self.tokenizer, where)
        own = line.segments if line.messages is None else own_text.from_json(line.messages, where)
        if not self.are_tokens:
            return StudentTurns(own, self.tokenizer.encode(own))
        segments = for_student(own, self.tokenizer)
        has_prefix = not begins_bare(own)
        tokens = self.tokenizer.encode(segments, add_eos=False, add_prefix=has_prefix)
        return StudentTurns(segments, tokens)

    def recorded(self) -> dict[str, Any]:
        """Describe what decides the boundaries, for the spec of their store."""
        said: dict[str, Any] = {"fingerprint": self.tokenizer.fingerprint}
        if self.template is not None:
            said["chat_template_sha256"] = self.template.digest
        return said


def _load(name: str) -> Stored:
    """Load a student's tokenizer; one that a store keeps is held to what the store says of it."""
    folder = LocalPath(name)
    if folder.name == STUDENT_FOLDER and (folder.parent / SPEC_FILE).exists():
        known = StoreHeader.read(folder.parent).spec.boundaries_of
        if known is not None:
            whole = checked_folder(folder, known["files"], ShardCache.chosen())
            return stored_tokenizer(whole, str(known["fingerprint"]), folder)
    found = load_tokenizer(name, named_by=_FLAG)
    return Stored(found, ByteTokenizer(found))


def heads_of(
    line: SequenceText,
    segments: Sequence[Segment],
    tokens: TokenizedText,
    tokenizer: ByteTokenizer,
) -> I64:
    """Count the bytes of context that each token of a line begins with: (T,).

    A space that a chat template writes in front of an answer is not counted: there it is as good as
    added by the tokenizer, for each side has a template of its own.
    """
    crossing = np.flatnonzero(tokens.heads)
    if line.messages is None or not len(crossing):
        return tokens.heads
    data, heads = _text(segments), tokens.heads.copy()
    for i, written in zip(crossing, tokenizer.written(tokens.token_ids[crossing]), strict=True):
        start = int(tokens.text_starts[i])
        if is_space_of_template(written, data[start : start + int(heads[i])], tokenizer):
            heads[i] = 0
    return heads


def _places(line: SequenceText, ours: bytes, starts: I64, text_ends: I64, heads: I64) -> I64:
    """Find where each label begins in the teacher's text; -1 where its context is another there.

    Args:
        line: The teacher's text.
        ours: The student's text.
        starts: (n,) bytes of the line's supervised text before each label.
        text_ends: (n,) where its head ends in the student's text.
        heads: (n,) bytes of its head.
    """
    if not line.supervised_bytes:
        return np.full(len(starts), -1, np.int64)
    places = SupervisedBytes(line.segments).places(starts)[0] - heads
    theirs = _text(line.segments)
    for i in np.flatnonzero(heads):
        place, stop, size = int(places[i]), int(text_ends[i]), int(heads[i])
        if place < 0 or theirs[place : place + size] != ours[stop - size : stop]:
            places[i] = -1
    return places


def _text(segments: Sequence[Segment]) -> bytes:
    return "".join(segment.text for segment in segments).encode()
