"""The settings of an import: each described once, and checked before a dump is read.

The options of `logitstore import` are derived from them (see `logitstore.console.settings`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from logitstore.console.settings import setting
from logitstore.errors import InputError
from logitstore.writing.plan import DEFAULT_IN_WORDS

ALIGNED = ("token", "next")
UNLISTED = ("mark", "drop")

# Headings of `logitstore import --help`.
_TEACHER = "Teacher"
_DUMP = "Dump"
_CONVERSATIONS = "Conversations"
_RUNNING = "Running"
#: In the order of the help.
PANELS = (_TEACHER, _DUMP, _CONVERSATIONS, _RUNNING)


@dataclass(frozen=True)
class ImportSettings:
    """Settings of an import of other tools' files.

    Attributes:
        tokenizer: The teacher's: a folder or hub id that `AutoTokenizer` loads.
    """

    tokenizer: str
    teacher: str | None = setting(
        None,
        _TEACHER,
        "Name of the teacher, or its folder, which also tells its fingerprint.",
        metavar="NAME",
        unset="as the dump says",
    )
    vocab_size: int | None = setting(
        None, _TEACHER, "Width of the teacher's logits.", metavar="N", unset="its tokenizer's size"
    )
    aligned_to: str | None = setting(
        None,
        _DUMP,
        "Which token a list describes: the token it lies on, or the next one.",
        metavar="token|next",
        unset="next for target_logprobs, else token",
    )
    unlisted: str = setting(
        "mark",
        _DUMP,
        "What to do about tokens that are not in their lists: mark the store as without the "
        "tokens' own log-probabilities, or drop their records.",
        metavar="mark|drop",
    )
    renormalised: bool = setting(
        False,
        _DUMP,
        "Accept lists that were made to add up to one; the store is marked as without tails.",
    )
    logprobs_column: str = setting(
        "logprobs", _DUMP, "Column of the lists, in raw rows.", metavar="NAME"
    )
    messages_column: str = setting(
        "messages", _DUMP, "Column of the conversation, in raw rows.", metavar="NAME"
    )
    compression_config: str | None = setting(
        None,
        _DUMP,
        "How DistillKit packed its rows: the file that its sampler wrote.",
        metavar="FILE",
        unset="compression_config.yaml beside the dump",
    )
    supervise: str | None = setting(
        None,
        _CONVERSATIONS,
        "Turns of a conversation to keep records of: all of the assistant's, or the last.",
        metavar="all|last",
        unset="all",
    )
    chat_template_path: str | None = setting(
        None,
        _CONVERSATIONS,
        "Chat template to use: a Jinja file, or the folder of a tokenizer.",
        metavar="PATH",
        unset="the tokenizer's own",
    )
    chat_template_kwargs: str | Mapping[str, Any] | None = setting(
        None,
        _CONVERSATIONS,
        "Variables of the chat template for every row, as JSON; in Python also a dict.",
        metavar="JSON",
    )
    shard_text_bytes: int | None = setting(
        None,
        _RUNNING,
        "Bytes of text per shard, about.",
        metavar="N",
        unset=DEFAULT_IN_WORDS,
    )

    def check(self) -> None:
        """Check that each setting has a value that it can have.

        Raises:
            InputError: One has a value that it cannot have.
        """
        for flag, value, known in (
            ("--aligned-to", self.aligned_to or "token", ALIGNED),
            ("--unlisted", self.unlisted, UNLISTED),
            ("--supervise", self.supervise or "all", ("all", "last")),
        ):
            if value not in known:
                raise InputError(f"{flag} is {value}, expected {' or '.join(known)}.")
        for flag, number in (
            ("--shard-text-bytes", self.shard_text_bytes),
            ("--vocab-size", self.vocab_size),
        ):
            if number is not None and number < 1:
                raise InputError(f"{flag} is {number}, expected 1 or more.")
