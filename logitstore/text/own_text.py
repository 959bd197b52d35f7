"""A row of text as the student reads it, where the teacher saw another prompt, as JSON.

A store has it in the column that holds the messages of conversations: its segments are what the
teacher read.
"""

from collections.abc import Sequence

from logitstore.errors import InputError
from logitstore.records import Segment
from logitstore.text.strict_json import decode, encode


def to_json(segments: Sequence[Segment]) -> str:
    """Encode the row's segments as JSON, as a store has them."""
    return encode({"segments": [[s.role, s.text, s.supervised] for s in segments]})


def from_json(text: str, where: str) -> tuple[Segment, ...]:
    """Decode the JSON that :func:`to_json` wrote; `where` names the row in messages.

    Raises:
        InputError: It is not JSON of segments.
    """
    whole = decode(text, where)
    try:
        found = [Segment(text, supervised, role) for role, text, supervised in whole["segments"]]
    except (KeyError, TypeError, ValueError):
        found = None
    if found is None or not all(isinstance(segment.text, str) for segment in found):
        raise InputError(
            f"{where}: the store says what the student sees of it in JSON that has no segments. "
            "Capture the dataset again with this version."
        )
    return tuple(found)
