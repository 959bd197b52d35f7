"""Find where a chat template writes the texts that it is given, with markers in their place.

A conversation is rendered as it is, and again with a marker of private-use characters in each slot.
What stands between markers is what the template itself writes there:

    as it is        <|im_start|>assistant⏎<think>⏎⏎</think>⏎⏎The sky.<|im_end|>⏎
    with markers    <|im_start|>assistant⏎<think>⏎⏎</think>⏎⏎MARKER<|im_end|>⏎

No rendering of half a conversation is needed, so it does not matter what a template writes in the
last turn only, or into the last message of the user.

Nothing is believed: what stands between the markers, with the texts in their places (perhaps
without white space at their ends, which many templates trim), must be the rendering as it is, to
the last character. A template that looks into a text, or changes it, fails that, and is read in
another way. So does a text that is written twice, but for the name of a tool, which some templates
write again in front of its answer. Around an empty text a template may write less white space than
around a marker.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from logitstore.text.conversation import Message
from logitstore.text.ends import CALLS
from logitstore.text.slots import Holder, Slot, filled

#: Private-use characters, which no script has; planes 0, 15 and 16.
_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_DIGITS = 10
#: Ways to read a text at most, at one place: white space beside white space has several.
_MOST_WAYS = 64
#: Where a slot is written in the text: first character, and the one after the last.
Place = tuple[int, int]


def find_slots(
    text: str,
    messages: Sequence[Message],
    holders: Sequence[Holder],
    render: Callable[[Sequence[Message]], str],
) -> list[tuple[Slot, Place | None]] | None:
    """Find where a template writes each slot.

    Args:
        text: The conversation, rendered as it is.
        messages: The conversation.
        holders: Its strings with slots.
        render: Renders other messages in the same way; raises what it likes.

    Returns:
        Each slot with its place, None for one that the template does not write; or None where that
        cannot be told.
    """
    slots = [part for holder in holders for part in holder.parts if isinstance(part, Slot)]
    characters = _absent(chain([text], _strings(messages)))
    if characters is None:
        return None
    marks = [_mark(n, characters) for n in range(len(slots))]
    try:
        marked = render(filled(messages, holders, marks))
    except Exception:  # a template that looks into a text may refuse the marker
        return None
    around = re.split(f"{characters[0]}([{characters[2:]}]*){characters[1]}", marked)
    between, numbers = around[::2], [_number(digits, characters) for digits in around[1::2]]
    if any(set(piece) & set(characters) for piece in between):
        return None
    if not all(0 <= n < len(slots) for n in numbers):
        return None
    texts = [n for n in numbers if slots[n].role != CALLS]
    if len(set(texts)) < len(texts):
        return None
    places = _placed(text, between, [slots[n] for n in numbers])
    if places is None:
        return None
    found = dict(zip(numbers[::-1], places[::-1], strict=True))  # the first of several
    return [(slot, found.get(n)) for n, slot in enumerate(slots)]


def _placed(text: str, between: Sequence[str], slots: Sequence[Slot]) -> list[Place] | None:
    """Put the slots between the pieces so that they are the text; None: they never are."""
    is_blank = [False, *(not slot.text.strip() for slot in slots), False]
    pieces = [_around(p, *is_blank[i : i + 2]) for i, p in enumerate(between)]
    reached: dict[int, Place] = {len(p): (0, 0) for p in pieces[0] if text.startswith(p)}
    steps = []
    for slot, behind in zip(slots, pieces[1:], strict=True):
        here, reached = reached, {}
        for start in here:
            for written in _trimmed(slot):
                stop = start + len(written)
                if not text.startswith(written, start):
                    continue
                for piece in behind:
                    if text.startswith(piece, stop):
                        reached.setdefault(stop + len(piece), (start, stop))
        if len(reached) > _MOST_WAYS:
            return None
        steps.append(reached)
    if len(text) not in reached:
        return None
    places, end = [], len(text)
    for step in reversed(steps):
        places.append(step[end])
        end = step[end][0]
    return places[::-1]


def _around(piece: str, is_behind_blank: bool, is_before_blank: bool) -> list[str]:
    """List what may stand between two texts: less white space beside one that is empty."""
    pieces = [piece]
    if is_behind_blank:
        pieces.append(piece.lstrip())
    if is_before_blank:
        pieces += [each.rstrip() for each in pieces]
    return list(dict.fromkeys(pieces))


def _trimmed(slot: Slot) -> Iterator[str]:
    """Yield a text as a template may write it: as it is, or with less white space at its ends."""
    text, core = slot.text, slot.text.strip()
    if slot.role == CALLS or text == core:
        yield text
        return
    head, tail = text.partition(core)[::2] if core else (text, "")
    heads = dict.fromkeys([head, head.lstrip("\r\n"), head.lstrip(" "), ""])
    tails = dict.fromkeys([tail, tail.rstrip("\r\n"), tail.rstrip(" "), ""])
    for kept in heads:
        for behind in tails:
            yield kept + core + behind


def _absent(texts: Iterable[str]) -> str | None:
    """Choose private-use characters that texts do not have; None if they have them all."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    free = (chr(i) for each in _PRIVATE for i in each if chr(i) not in seen)
    chosen = "".join(c for c, _ in zip(free, range(_DIGITS + 2), strict=False))
    return chosen if len(chosen) == _DIGITS + 2 else None


def _mark(number: int, characters: str) -> str:
    digits = "".join(characters[2 + int(digit)] for digit in str(number))
    return characters[0] + digits + characters[1]


def _number(digits: str, characters: str) -> int:
    return int("".join(str(characters.index(digit) - 2) for digit in digits) or -1)


def _strings(value: object) -> Iterator[str]:
    """Yield all strings in a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_strings, chain(value, value.values())))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_strings, value))
