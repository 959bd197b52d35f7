"""Say what the status of a line means, for people: why a row has no records, and what to do.

`rows.parquet` has a status for every line. Those in `_USED` have records. Each other is a reason
why a row gives a student nothing: in the one table below, with what happened and what to do. A
status without a line here is shown by its name alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

from logitstore.console.left_out import LeftOut

#: Statuses of lines with records, or that get them: a prompt waits for its completion.
_USED = ("ok", "split", "unfinished", "stopped", "prompt")


class Reason(NamedTuple):
    """What a status means.

    Attributes:
        why: What happened, in a clause.
        step: What to do about it, in a sentence.
        is_lost: Whether a student could have learnt from the row.
    """

    why: str
    step: str
    is_lost: bool = True


REASONS: Mapping[str, Reason] = {
    "empty": Reason("it has no text", "Check --text-column if it should have some.", is_lost=False),
    "truncated": Reason(
        "its end was cut off at the most tokens, and has no records",
        "Give a larger --max-length, or --overflow split.",
        is_lost=False,
    ),
    "no_supervised_text": Reason(
        "nothing in it is supervised",
        "Check the roles of its messages and which columns are read (--supervise, --text-column).",
    ),
    "unwritten_tool_calls": Reason(
        "the chat template does not write the tool calls that its answers are",
        "Give a template that writes tool calls, with --chat-template-path.",
    ),
    "too_long": Reason(
        "it has more tokens than the teacher reads at once, or than --max-length",
        "Give a larger --max-length, or --overflow split.",
    ),
    "spans_unknown": Reason(
        "the tokenizer does not say where its tokens lie in this text",
        "Use a model with a byte-level or SentencePiece tokenizer.",
    ),
    "not_finite": Reason(
        "the teacher's logits were not finite",
        "Capture it again with --dtype float32, in another store.",
    ),
    "refused": Reason(
        "the engine refused to read it",
        "The journal beside the store has its words. Perhaps a smaller --max-length helps.",
    ),
    "no_lists": Reason(
        "the imported data has no log-probabilities of it",
        "Check the columns of the data that was imported.",
    ),
    "template_changed_text": Reason(
        "the chat template writes its supervised text otherwise",
        "Give a template that writes the messages as they are, with --chat_template_path.",
    ),
    "text_changed": Reason(
        "the student's chat template writes its supervised text otherwise",
        "Give a template that writes the messages as they are, with --chat_template_path.",
    ),
    "template_refused": Reason(
        "the student's chat template refuses the conversation",
        "Give a template that takes such conversations, with --chat_template_path.",
    ),
    "no_prompt": Reason(
        "it has no prompt, or nothing to answer",
        "Give rows with a prompt and a completion, or leave metrics of answers out.",
    ),
    "beyond_max_length": Reason(
        "none of its supervised text is within the most tokens that the student reads",
        "Give a larger --max_length, or a student that reads more.",
    ),
}

_UNKNOWN = Reason("its line says no more than this", "`logitstore show` prints the row.")


def reason_of(status: str) -> Reason:
    """Return what a status means; of one that this version does not know, that."""
    return REASONS.get(status, _UNKNOWN)


def is_used(status: str) -> bool:
    """Tell whether a status is that of a line with records of all its supervised text."""
    return status in _USED


def left_out_of(
    statuses: Mapping[str, int], first_rows: Mapping[str, int] | None = None
) -> list[LeftOut]:
    """List what lines were left out and why, the most frequent reason first.

    Args:
        statuses: The number of lines by status, also of those that are used.
        first_rows: The first row of each status, where it is known.
    """
    total = sum(statuses.values())
    first_rows = first_rows or {}
    found = [
        LeftOut(status, count, total, first_rows.get(status), *reason_of(status))
        for status, count in statuses.items()
        if count and not is_used(status)
    ]
    return sorted(found, key=lambda each: (-each.count, each.reason))
