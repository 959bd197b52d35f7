"""Know what ends a turn: the tokens that say "nothing follows".

There is one notion of it in the whole program. A token ends a turn, for one tokenizer, if it is

    its EOS
    a special token of it that has one of the names in `END_TOKENS`
    listed in the `eos_token_id` of the model's `generation_config` (`<|eom_id|>`, `<|call|>`)
    what its chat template writes right behind an answer, white space aside

All of them are one event. It has no bytes, and stands behind the last byte of the text it ends. The
names of other families' ends are text like any other.

Shape legend: T = tokens of a text.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from logitstore.format.numpy_types import I64, Bools
from logitstore.records import Segment

#: Special tokens that end a turn or a text, in the tokenizers that have them.
END_TOKENS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<end_of_turn>", "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>", "<|end|>", "<|return|>", "<|endoftext|>", "<|end_of_text|>",
    "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<turn|>",  # noqa: RUF001
)  # fmt: skip

#: Roles of supervised segments besides that of the message: what it thought, and its tool calls.
THINKING, CALLS = "thinking", "tool_calls"


def named_ends(
    eos_token_id: int | None, vocabulary: Mapping[str, int], special: Collection[int]
) -> tuple[int, ...]:
    """List EOS, then the other special tokens named like an end; ordinary words never count."""
    ends = (vocabulary[token] for token in END_TOKENS if token in vocabulary)
    eos = [] if eos_token_id is None else [eos_token_id]
    return tuple(dict.fromkeys([*eos, *(i for i in ends if i in special)]))


def turn_ends(segments: Sequence[Segment]) -> I64:
    """Find the places (bytes of the text) where supervised text ends and context follows."""
    place, ends, is_open = 0, [], False
    for segment in segments:
        if segment.text and not segment.supervised and is_open:
            ends.append(place)
        is_open = segment.supervised or (is_open and not segment.text)
        place += len(segment.text.encode())
    return np.array(ends, np.int64)


def turn_events(
    data: bytes, ids: I64, spans: tuple[I64, I64], lengths: I64, ends: I64, places: I64
) -> tuple[I64, I64]:
    """Find the tokens that end a turn, and the place in the text where each turn ends.

    Between the two there may be white space, which templates write in front of the end.

    Args:
        data: The text.
        ids: (T,) its tokens.
        spans: (T,) first byte of each token, (T,) byte after its last.
        lengths: (T,) supervised bytes of each.
        ends: Ids that end a turn.
        places: Where supervised text ends, as :func:`turn_ends` finds them.
    """
    is_mark = np.zeros(len(ids), np.bool_)
    for end in ends:  # few: np.isin takes several times as long
        is_mark |= ids == end
    marks = np.flatnonzero(is_mark)
    if not len(marks):
        return marks, marks
    after = np.searchsorted(spans[1][marks], places, side="right")  # the first to end behind it
    places, marks = places[after < len(marks)], marks[after[after < len(marks)]]
    # One that strips white space on its left begins before the place.
    is_event = spans[0][marks] <= places
    for i in np.flatnonzero(~is_event & (lengths[marks] == 0)):
        between = data[places[i] : spans[0][marks[i]]].decode("utf-8", "replace")
        is_event[i] = between.isspace()
    events, at = marks[is_event], places[is_event]
    # Of several texts in front of one end, with nothing but white space between, it ends the last.
    is_last = np.append(events[1:] != events[:-1], True)[: len(events)]
    return events[is_last], at[is_last]


def count_turns(segments: Sequence[Segment]) -> int:
    """Count the supervised turns of a text: the places where one should end."""
    return len(_wanted_ends(segments))


def count_endless(segments: Sequence[Segment], byte_starts: I64, is_eos: Bools) -> int:
    """Count the turns that no token ends: a student cannot learn from them when to stop.

    Args:
        segments: The text. What a message thought is not its end.
        byte_starts: (T,) supervised bytes before each token of it.
        is_eos: (T,) whether the token ends a turn.
    """
    places, wanted = np.unique(np.array(_wanted_ends(segments), np.int64), return_counts=True)
    ended = (np.count_nonzero(is_eos & (byte_starts == place)) for place in places)
    return int(sum(max(n - m, 0) for n, m in zip(wanted.tolist(), ended, strict=True)))


def _wanted_ends(segments: Sequence[Segment]) -> list[int]:
    """List where turns should end, in supervised bytes."""
    done, open_at, found = 0, None, []
    for segment in segments:
        if segment.supervised:
            done += len(segment.text.encode())
            open_at = None if segment.role == THINKING else done
        elif segment.text and open_at is not None:
            found.append(open_at)
            open_at = None
    return found if open_at is None else [*found, open_at]
