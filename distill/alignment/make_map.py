"""Makes a map of the teacher's tokens to events, of any kind that `--map` names.

For a teacher's token v with bytes b(v) and a student's token u with bytes b(u), φ*(v) is the first
token of the student's own tokenisation of b(v), and ψ(u) the first token of the teacher's of b(u):

    prefix        v to the student's token with the longest bytes that b(v) begins with; white space
                  alone only to its twin. (arXiv:2607.22334)
    strict        v to its twin, the student's token of the same bytes. (arXiv:2610.08448)
    canonical     v to φ*(v)
    counted       v to the tokens that the student writes where the teacher writes v, as often as it
                  does so in the store's own text, smoothed towards φ*(v)
    p_kl          events are the teacher's tokens: u belongs to ψ(u), its twin if it has one, and v
                  is sent to itself. (arXiv:2605.21699)
    p_kl_weighted as published: u is divided among the first four tokens of the teacher's
                  tokenisation of b(u), with shares .9, .09, .009, .0009 made to sum to one
    mined         v to the student's token of the least edit distance (MinED, arXiv:2401.10491)
    events        events are what both can express: connected components of v with φ*(v), u with
                  ψ(u), and the pairs seen in the store's text at least three times and in a tenth
                  of either one's meetings
    alike exact   not of `--map`: v to its twin, or, of one that has none, to every token of less
                  than `UNLIKE` edits a byte of both; the share is how alike they are, 1 for the
                  twin. `alike prefix`, `alike mined`: instead of twins, what these send (CDM)
    twins         not of `--map`: each of the student's tokens that has a twin is an event, and all
                  others together are event 0, to which the teacher's others are sent. (GOLD's
                  hybrid)

The teacher's end-of-text tokens are one event, the student's EOS. Other special tokens write no
text: they are sent nowhere. A teacher's token that stands in for a byte (`<0xE2>`) is sent to the
student's stand-in of that byte. No other token is, unless the student writes it so: a character
that it has no token of begins with the stand-in of its first byte.

Shape legend: V_T, V_S = vocabularies, R = sources of a map.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, repeat

import numpy as np
import numpy.typing as npt

from distill.alignment.edit_distance import alike, nearest
from distill.alignment.event_map import (
    LESS_SPACE,
    MORE_SPACE,
    NEVER,
    PLAIN,
    SPACES,
    EventMap,
)
from distill.alignment.runs import Ints
from distill.alignment.written import Writer
from logitstore.text.tokenizer import ByteTokenizer

Ids = npt.NDArray[np.int32]

#: A pair is a link between events if it was seen so often, and in this share of either's meetings.
LEAST_SEEN, LEAST_SHARE = 3, 0.1
#: The shares of the published projection: 0.9 for a token's first, a tenth of it for each next.
DIVIDED = 0.9 * 0.1 ** np.arange(4)


#: Tokens that are further apart, in edits a byte of both, are never taken for one another.
UNLIKE = 0.1


@dataclass(frozen=True)
class Seen:
    """How often the two tokenizers' tokens began at one place of a text.

    Attributes:
        space: (n,) int64, how a space in front is read, of `distill.alignment.event_map`.
        teacher: (n,) int64, the teacher's token.
        student: (n,) int64, the student's token.
        count: (n,) int64.
    """

    space: Ints
    teacher: Ints
    student: Ints
    count: Ints


def nothing_seen() -> Seen:
    """Make the counts of no text."""
    none = np.zeros(0, np.int64)
    return Seen(none, none, none, none)


class _Pair:
    """Two tokenizers, and what several kinds of map need of them."""

    def __init__(self, teacher: ByteTokenizer, student: ByteTokenizer) -> None:
        self.teacher, self.student = teacher, student
        self.reads, self.writes = Writer(teacher), Writer(student)
        self.written = [each or b"" for each in teacher.token_bytes]
        self.lengths = np.array([len(each) for each in self.written], np.int64)

    @property
    def remainder(self) -> Ints:
        """Number the first remainder of each token, and the end of all."""
        behind = np.maximum(self.lengths - 1, 0)
        return SPACES * self.teacher.size + np.concatenate([[0], np.cumsum(behind)])

    @cached_property
    def sources(self) -> list[bytes]:
        """List the bytes of each token, and those less a space; empty for those without any."""
        less = [each[1:] if each[:1] == b" " else b"" for each in self.written]
        return [*self.written, *less]

    @cached_property
    def behind(self) -> Ids:
        """The student's next token of each remainder.

        A student that writes v has its own tokens of b(v). It can have written the first bytes of
        v, and no more, only where one of its tokens ends there.
        """
        target = np.full(int(np.maximum(self.lengths - 1, 0).sum()), NEVER, np.int32)
        first = self.remainder - SPACES * self.teacher.size
        lengths = [len(each or b"") for each in self.student.token_bytes]
        for v, tokens in enumerate(self.tokens):
            place = 0
            for token, following in pairwise(tokens):
                place += lengths[token]
                target[first[v] + place - 1] = following
        return target

    def sent(self, rule: Callable[[Sequence[bytes]], Ids]) -> Ids:
        """Apply a rule for bytes to every source, and the rules for ends and stand-ins."""
        strings = list(dict.fromkeys(self.sources))
        found = dict(zip(strings, rule(strings).tolist(), strict=True))
        target = np.fromiter(map(found.__getitem__, self.sources), np.int32, len(self.sources))
        self._send_standins(target)
        target = np.concatenate([target, np.full(self.teacher.size, -1, np.int32)])
        ends = self.ends()
        for space in (PLAIN, LESS_SPACE, MORE_SPACE):
            target[np.array(ends, np.int64) + space * self.teacher.size] = self.end
        return np.concatenate([target, self.behind])

    @cached_property
    def canonical(self) -> Ids:
        """The student's first token of every source."""
        return self.sent(self.firsts)

    @cached_property
    def tokens(self) -> list[list[int]]:
        """The student's own tokens of each of the teacher's."""
        return self.writes.all(self.written)

    def firsts(self, strings: Sequence[bytes]) -> Ids:
        """Find the student's first token of each string; the teacher's tokens are known."""
        known = {
            b: found[0] if found else -1 for b, found in zip(self.written, self.tokens, strict=True)
        }
        others = [each for each in strings if each not in known]
        known.update(zip(others, self.writes.first(others).tolist(), strict=True))
        return np.fromiter(map(known.__getitem__, strings), np.int32, len(strings))

    def ends(self) -> list[int]:
        """List the teacher's end-of-text tokens, if the student has one."""
        return list(self.teacher.eos_ids) if self.student.eos_token_id is not None else []

    @property
    def end(self) -> int:
        return -1 if self.student.eos_token_id is None else self.student.eos_token_id

    def _send_standins(self, target: Ids) -> None:
        """Send a stand-in for part of a character to the student's for that byte alone."""
        parts = np.flatnonzero(self.is_part).tolist()
        of_byte = {self.student.token_bytes[i]: i for i in parts}
        for i in np.flatnonzero(self.teacher.is_standin).tolist():
            if len(self.written[i]) == 1 and self.written[i] >= b"\x80":
                target[i] = of_byte.get(self.written[i], target[i])

    def beginnings(self, count: int, *, twins: bool = True) -> Ints:
        """Find (count, V_S) the first teacher tokens of each student token; -1 beyond the last.

        Args:
            count: Teacher tokens of each.
            twins: Whether a teacher token of the same bytes stands alone, however the teacher's
                tokenizer writes these bytes.
        """
        strings = [each or b"" for each in self.student.token_bytes]
        found, ids = self.reads.all(strings), self.reads.ids_by_bytes
        rows = np.full((count, len(strings)), -1, np.int64)
        for i, (written, tokens) in enumerate(zip(strings, found, strict=True)):
            twin = ids.get(written) if twins else None
            few = [twin] if twin is not None else tokens[:count]
            rows[: len(few), i] = few
        if self.student.eos_token_id is not None and self.teacher.eos_ids:
            rows[:, self.student.eos_token_id] = -1
            rows[0, self.student.eos_token_id] = self.teacher.eos_ids[0]
        return rows

    def twins(self, strings: Sequence[bytes]) -> Ids:
        """Find the student's token of these bytes, unless it stands for part of a character."""
        ids = self.writes.ids_by_bytes
        found = np.fromiter(map(ids.get, strings, repeat(-1)), np.int32, len(strings))
        return np.where((found >= 0) & self.is_part[found], -1, found)

    def longest_prefixes(self, strings: Sequence[bytes]) -> Ids:
        """Find the student's longest token that begins the bytes; of white space only its twin."""
        target = self.twins(strings)
        for i in np.flatnonzero(target < 0).tolist():
            if strings[i] and not strings[i].decode("utf-8", "replace").isspace():
                found = self.writes.longest_prefix(strings[i])
                target[i] = -1 if found >= 0 and self.is_part[found] else found
        return target

    def most_edits(self, written: bytes, least: int) -> int:
        """Bound the edits to the nearest token; `least` are the bytes of the student's shortest.

        A token that begins it lacks the others; any as short can have all of its bytes replaced.
        """
        found = self.writes.longest_prefix(written)
        begun = 0 if found < 0 or self.is_part[found] else len(self.writes.written(found))
        return max(len(written) - begun, least, 1)

    @cached_property
    def is_part(self) -> npt.NDArray[np.bool_]:
        """Mark (V_S,) stand-ins for parts of characters that have no token of their own."""
        first = [(each or b"")[:1] for each in self.student.token_bytes]
        return self.student.is_standin & np.array([each >= b"\x80" for each in first], np.bool_)


def make_map(
    kind: str, teacher: ByteTokenizer, student: ByteTokenizer, seen: Seen | None = None
) -> EventMap:
    """Make the map of a kind: a few seconds for 150,000 tokens.

    Args:
        kind: One of `KINDS` or `OF_LOSSES`.
        teacher: The teacher's tokenizer.
        student: The student's.
        seen: Pairs seen in the store's text, for kinds in `LEARNED`.
    """
    made = {**KINDS, **OF_LOSSES}[kind]
    return made(_Pair(teacher, student), nothing_seen() if seen is None else seen)


def _prefix(pair: _Pair, _seen: Seen) -> EventMap:
    return EventMap(pair.sent(pair.longest_prefixes), pair.remainder)


def _strict(pair: _Pair, _seen: Seen) -> EventMap:
    return EventMap(pair.sent(pair.twins), pair.remainder)


def _twins(pair: _Pair, _seen: Seen) -> EventMap:
    """Make an event of each token that both sides have, and one, the first, of all others."""
    target, size = pair.sent(pair.twins), pair.teacher.size
    whole = target[:size]
    matched = np.unique(whole[whole >= 0])
    of_token = np.zeros(pair.student.size, np.int32)
    of_token[matched] = 1 + np.arange(len(matched))
    sent = np.where(target >= 0, of_token[np.maximum(target, 0)], target)
    sent[:size][whole < 0] = 0
    return EventMap(sent.astype(np.int32), pair.remainder, of_token=of_token)


def _alike(fixed: Callable[[_Pair, Seen], EventMap]) -> Callable[[_Pair, Seen], EventMap]:
    """Make the rule that adds to a map what else a token of no place could be."""

    def made(pair: _Pair, seen: Seen) -> EventMap:
        known = fixed(pair, seen)
        ids = {each: i for each, i in pair.writes.ids_by_bytes.items() if not pair.is_part[i]}
        wanted = np.flatnonzero((known.event[: pair.teacher.size] < 0) & (pair.lengths > 0))
        found = alike([pair.written[i] for i in wanted], list(ids), UNLIKE)
        count = np.ones(known.sources, np.int64)
        alone = np.bincount(found.string, minlength=len(wanted))
        count[wanted] = np.maximum(alone, 1)
        first = np.concatenate([[0], np.cumsum(count)])
        event = np.repeat(known.event, count)
        share = np.where(event < 0, 0, 1).astype(np.float32)
        token = wanted[found.string]
        place = first[token] + np.arange(len(token)) - (np.cumsum(alone) - alone)[found.string]
        event[place] = np.array(list(ids.values()), np.int32)[found.token] if ids else event[place]
        share[place] = 1 - found.distance
        return EventMap(event, known.remainder, first=first, share=share)

    return made


def _canonical(pair: _Pair, _seen: Seen) -> EventMap:
    return EventMap(pair.canonical, pair.remainder)


def _mined(pair: _Pair, _seen: Seen) -> EventMap:
    """Send whole tokens to the nearest one, and all else as the student writes it."""
    target = pair.canonical.copy()
    twin = pair.twins(pair.written)
    is_standin = pair.teacher.is_standin & (target[: pair.teacher.size] >= 0)
    wanted = np.flatnonzero((pair.lengths > 0) & (twin < 0) & ~is_standin)
    ids = {each: i for each, i in pair.writes.ids_by_bytes.items() if not pair.is_part[i]}
    strings = [pair.written[i] for i in wanted]
    target[: pair.teacher.size] = np.where(twin >= 0, twin, target[: pair.teacher.size])
    if len(wanted) and ids:
        least = min(map(len, ids))
        most = [pair.most_edits(each, least) for each in strings]
        target[wanted] = np.array(list(ids.values()))[nearest(strings, list(ids), most)]
    return EventMap(target, pair.remainder)


def _counted(pair: _Pair, seen: Seen) -> EventMap:
    return learnt(_canonical(pair, seen), seen)


def learnt(canonical: EventMap, seen: Seen) -> EventMap:
    """Count where each token goes, and its φ*, or the rest, once more.

    Args:
        canonical: The map that sends each source to its φ*.
        seen: The pairs that are counted.
    """
    every = np.arange(canonical.sources)
    source = np.concatenate([canonical.source_of_token(seen.teacher, seen.space), every])
    event = np.concatenate([seen.student, canonical.event]) - NEVER  # so that none is negative
    count = np.concatenate([seen.count, np.ones(len(every), np.int64)])
    width = int(event.max(initial=0)) + 1
    key, which = np.unique(source * width + event, return_inverse=True)
    summed = np.bincount(which, count, len(key))
    source, event = np.divmod(key, width)
    total = np.bincount(source, summed, len(every))
    return EventMap(
        (event + NEVER).astype(np.int32),
        canonical.remainder,
        first=np.searchsorted(source, np.arange(len(every) + 1)),
        share=(summed / total[source]).astype(np.float32),
    )


def _p_kl(pair: _Pair, _seen: Seen) -> EventMap:
    """Make the teacher's tokens the events: a student's token belongs to the one that begins it."""
    return _over_teacher_tokens(pair, pair.beginnings(1))


def _p_kl_weighted(pair: _Pair, _seen: Seen) -> EventMap:
    """Divide a student's token among the tokens in which the teacher writes it, as published."""
    rows = pair.beginnings(len(DIVIDED))
    share = np.where(rows >= 0, DIVIDED[:, None], 0)
    share[0, rows[0] < 0] = 1  # of an event of its own
    made = _over_teacher_tokens(pair, rows)
    return replace(made, divided=(share / share.sum(0)).astype(np.float32))


def _over_teacher_tokens(pair: _Pair, rows: Ints) -> EventMap:
    """Make a map whose events are the teacher's tokens that some student token belongs to.

    Args:
        pair: The tokenizers.
        rows: (r, V_S) the teacher's tokens of each of the student's; -1 for none.
    """
    used = np.unique(rows[rows >= 0])
    number = np.full(pair.teacher.size, -1, np.int64)
    number[used] = np.arange(len(used))
    of_token = np.where(rows >= 0, number[rows], 0)
    alone = np.flatnonzero(rows[0] < 0)
    of_token[0, alone] = len(used) + np.arange(len(alone))
    of_token = of_token.astype(np.int32)
    sent = _through(pair, of_token[0])
    is_text = pair.lengths > 0
    sent[: pair.teacher.size][is_text] = number[is_text]
    of_token = of_token if len(rows) > 1 else of_token[0]
    return EventMap(sent.astype(np.int32), pair.remainder, of_token=of_token)


def _events(pair: _Pair, seen: Seen) -> EventMap:
    """Join tokens that stand for each other, here or there, to one event."""
    size = pair.teacher.size
    canonical = pair.canonical
    own = canonical[:size]
    psi = pair.beginnings(1, twins=False)[0]
    v, u = _often(seen, size, pair.student.size)
    left = np.concatenate([_known(own), psi[_known(psi)], v])
    right = np.concatenate([own[_known(own)], _known(psi), u]) + size
    component = _components(size + pair.student.size, left, right)
    of_student, which = np.unique(component[size:], return_inverse=True)
    number = np.full(len(component), -1, np.int64)
    number[of_student] = np.arange(len(of_student))
    of_token = which.astype(np.int32)
    sent = np.where(canonical >= 0, of_token[canonical], canonical)
    linked = pair.lengths > 0
    sent[:size][linked] = number[component[:size]][linked]
    return EventMap(sent.astype(np.int32), pair.remainder, of_token=of_token)


def _through(pair: _Pair, of_token: Ids) -> Ints:
    """Send every source to the event of the student's first token of its bytes."""
    canonical = pair.canonical
    return np.where(canonical >= 0, of_token[canonical], canonical).astype(np.int64)


def _often(seen: Seen, teacher_size: int, student_size: int) -> tuple[Ints, Ints]:
    """Select pairs that were seen often enough to be a link."""
    plain = seen.space == PLAIN
    v, u, count = seen.teacher[plain], seen.student[plain], seen.count[plain]
    of_v = np.bincount(v, count, teacher_size)[v]
    of_u = np.bincount(u, count, student_size)[u]
    is_link = (count >= LEAST_SEEN) & (
        (count >= LEAST_SHARE * of_v) | (count >= LEAST_SHARE * of_u)
    )
    return v[is_link], u[is_link]


def _components(nodes: int, left: Ints, right: Ints) -> Ints:
    """Find (nodes,) the least node that each node is connected with."""
    least = np.arange(nodes)
    while True:
        before = least.copy()
        joined = np.minimum(least[left], least[right])
        np.minimum.at(least, left, joined)
        np.minimum.at(least, right, joined)
        np.minimum.at(least, before[left], joined)
        np.minimum.at(least, before[right], joined)
        least = least[least]
        if (least == before).all():
            return least


def _known(target: Ids | Ints) -> Ints:
    return np.flatnonzero(target >= 0)


#: Every kind of map, by the name that `--map` gives it.
KINDS: dict[str, Callable[[_Pair, Seen], EventMap]] = {
    "prefix": _prefix,
    "strict": _strict,
    "canonical": _canonical,
    "counted": _counted,
    "events": _events,
    "p_kl": _p_kl,
    "p_kl_weighted": _p_kl_weighted,
    "mined": _mined,
}
#: Those that no flag names, for the losses that ask for them.
OF_LOSSES: dict[str, Callable[[_Pair, Seen], EventMap]] = {
    "twins": _twins,
    "alike exact": _alike(_strict),
    "alike prefix": _alike(_prefix),
    "alike mined": _alike(_mined),
}
#: Kinds that learn from the store's text.
LEARNED = frozenset({"counted", "events"})
