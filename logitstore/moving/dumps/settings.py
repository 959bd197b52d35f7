"""What an import is told beside the dump."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from logitstore.errors import InputError
from logitstore.writing.plan import DEFAULT_SHARD_TEXT_BYTES

ALIGNED = ("token", "next")
UNLISTED = ("mark", "drop")


@dataclass(frozen=True)
class ImportSettings:
    """Settings of an import.

    Attributes:
        tokenizer: The teacher's: a folder or hub id that `AutoTokenizer` loads.
        teacher: Its name, or its folder, which also tells its fingerprint; default: as the dump
            says.
        vocab_size: Width of its logits; default: that of the tokenizer.
        aligned_to: `token`: a list describes the token it lies on; `next`: the one after. Default:
            as the layout has it.
        unlisted: Of tokens that are not in their lists: `mark` the store as without the tokens'
            own log-probabilities, or `drop` their records.
        renormalised: Take lists that were made to add up to one, marked as without their tails.
        logprobs_column: Of raw rows.
        messages_column: Of raw rows that are conversations.
        supervise: `all` assistant turns of a conversation, or the `last`.
        chat_template_path: Instead of the tokenizer's own.
        chat_template_kwargs: Variables of the template, a dict or JSON.
        shard_text_bytes: Text of a shard, about.
    """

    tokenizer: str
    teacher: str | None = None
    vocab_size: int | None = None
    aligned_to: str | None = None
    unlisted: str = "mark"
    renormalised: bool = False
    logprobs_column: str = "logprobs"
    messages_column: str = "messages"
    supervise: str | None = None
    chat_template_path: str | None = None
    chat_template_kwargs: str | Mapping[str, Any] | None = None
    shard_text_bytes: int = DEFAULT_SHARD_TEXT_BYTES

    def check(self) -> None:
        """Hold flags to their range.

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
            ("--vocab-size", self.vocab_size or 1),
        ):
            if number < 1:
                raise InputError(f"{flag} is {number}, expected 1 or more.")
