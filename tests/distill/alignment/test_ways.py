"""What can follow a student's boundary, against all that a small teacher can write there.

The teacher's tokens are strings of two letters, the student's are letters: so what the student
writes next is the next letter of the bytes, and nothing about it has to be guessed. The referee
lists sequences of the teacher's tokens, multiplies their probabilities, and adds up.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.alignment.align import Spans, align
from distill.alignment.beginnings import Beginnings
from distill.alignment.event_map import SPACES, EventMap
from distill.alignment.map_entries import VocabularyMap
from distill.alignment.ways import Endings, Known, answers_of, with_answers
from distill.data.targets import aligned_pairs, with_answers_at_labels
from distill.losses.aligned import Aligned
from distill.losses.loss import Pairing
from logitstore.records import TokenRecords

#: The teacher's tokens: not every string is one. The last writes nothing, and ends the text.
WRITTEN = [b"a", b"b", b"ab", b"bb", b"aab", b"aba", b"bab", b"abb", b"bba", b""]
END = len(WRITTEN) - 1
ORDER = Beginnings(WRITTEN)
#: What the student can write next.
LETTERS = (b"a", b"b", b"")

Path = tuple[int, ...]
Chances = dict[bytes, float]


class Teacher:
    """A teacher whose every distribution is made by chance, and its store of some entries.

    Args:
        seed: Of all its distributions.
        kept: Share of the tokens that are entries of a record.
        unwritten: Tokens that its tokenizer never writes for their bytes.
    """

    def __init__(self, seed: int, kept: float = 1.0, unwritten: Sequence[bytes] = ()) -> None:
        self.seed, self.kept, self.unwritten = seed, kept, tuple(unwritten)
        self.q = cache(self._q)
        self.listed = cache(self._listed)

    def _rng(self, path: Path, what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, what, len(path), *path])

    def _q(self, path: Path) -> Any:
        """Its probabilities of the next token behind some tokens."""
        return self._rng(path, 0).dirichlet(np.full(len(WRITTEN), 0.7))

    def _listed(self, path: Path) -> frozenset[int]:
        """The tokens that are entries of the record behind some tokens."""
        chosen = self._rng(path, 1).random(len(WRITTEN)) < self.kept
        return frozenset(np.flatnonzero(chosen).tolist())

    def chance(self, path: Path) -> float:
        return math.prod(float(self.q(path[:i])[v]) for i, v in enumerate(path))

    def records(self, behind: Sequence[Path], ids: Sequence[int], places: Any) -> TokenRecords:
        """Records of the distributions behind some tokens, with the tokens that they are of."""
        lists = [sorted(self.listed(path), key=lambda v, p=path: -self.q(p)[v]) for path in behind]  # type: ignore[misc]
        said = [[float(self.q(p)[v]) for v in each] for p, each in zip(behind, lists, strict=True)]
        with np.errstate(divide="ignore"):
            return TokenRecords(
                token_ids=np.array(ids, np.uint32),
                byte_starts=np.array(places[0], np.int64),
                byte_lengths=np.array(places[1], np.int64),
                token_logprob=np.zeros(len(ids), np.float32),  # never read
                entry_count=np.array(list(map(len, lists)), np.int64),
                entry_ids=np.array([v for each in lists for v in each], np.uint32),
                entry_logprobs=np.log([q for each in said for q in each]).astype(np.float32),
                tail_logmass=np.log([max(0.0, 1 - sum(each)) for each in said]).astype(np.float32),
                entropy=np.zeros(len(ids), np.float32),
            )


class SomeEndings(Endings):
    """Those of a teacher without a tokenizer: it writes a token for its bytes, or never."""

    def __init__(self, teacher: Teacher) -> None:
        self._order, self._tokens, self._goes_on = ORDER, {}, {}
        self._writer: Any = self
        self._never = teacher.unwritten

    def all(self, strings: Sequence[bytes]) -> list[list[int]]:
        return [[WRITTEN.index(b)] if self.has(b) else [0, 0] for b in strings]

    def has(self, written: bytes) -> bool:
        return written in WRITTEN and written not in self._never


def letters_map() -> EventMap:
    """Send each of the teacher's tokens, and what is left of it, to its first letter."""
    behind = np.maximum([len(each) - 1 for each in WRITTEN], 0)
    remainder = SPACES * len(WRITTEN) + np.concatenate([[0], np.cumsum(behind)])
    whole = [LETTERS.index(each[:1]) for each in WRITTEN]
    rests = [LETTERS.index(each[i : i + 1]) for each in WRITTEN for i in range(1, len(each))]
    return EventMap(np.array(whole * SPACES + rests, np.int32), remainder)


def bytes_of(path: Path) -> bytes:
    return b"".join(WRITTEN[v] for v in path)


def targets(teacher: Teacher, path: Path) -> dict[int, tuple[Chances, float]]:
    """What each label is compared with, by its byte: the letters' chances, and that of the rest."""
    text, widths = bytes_of(path), np.array([len(WRITTEN[v]) for v in path], np.int64)
    starts, is_end = np.cumsum(widths) - widths, np.array(path) == END
    records = teacher.records([path[:i] for i in range(len(path))], path, (starts, widths))
    # The student has each letter as a token, and the end, if it came.
    places = np.arange(len(text) + int(is_end.any()))
    one = np.where(places < len(text), 1, 0)
    student = Spans(places, one, places == len(text))
    asked = [i for i in range(len(text)) if i not in starts]
    behind = []
    for i in asked:
        j = int(np.searchsorted(starts, i)) - 1
        begun = text[int(starts[j]) : i]
        # Where the bytes are no token, the teacher has read them as some others.
        read = (WRITTEN.index(begun),) if SomeEndings(teacher).has(begun) else (0, 0)
        behind.append((*path[:j], *read))
    answers = teacher.records(behind, [0] * len(asked), (asked, [1] * len(asked)))
    spans, made = Spans(starts, widths, is_end), letters_map()
    answer = answers_of(student, answers.byte_starts, answers.byte_lengths)
    both = with_answers(records, answers)
    number = np.where(answer >= 0, answer + len(records), -1)
    known = Known(spans, student, both, number, made, ORDER, SomeEndings(teacher))
    pairs = aligned_pairs(Pairing("starts", "canonical"), align(spans, student), spans, student)
    pairs = with_answers_at_labels(pairs, known, np.zeros(1, np.int64))
    aligned = Aligned(
        both, pairs.table, VocabularyMap(made), written=pairs.written, space=pairs.space,
        order=ORDER, label_ids=np.array([LETTERS.index(text[i : i + 1]) for i in places]),
        ways=pairs.ways,
    )  # fmt: skip
    arrays, found = aligned.mapped_entries(), {}
    stop = np.cumsum(arrays["entry_count"])
    for p, label in enumerate(aligned.last_label.tolist()):
        at = slice(int(stop[p] - arrays["entry_count"][p]), int(stop[p]))
        mass = np.exp(arrays["entry_logmass"][at].astype(float)).tolist()
        sent = dict(zip(arrays["entry_ids"][at].tolist(), mass, strict=True))
        chances = {letter: sent.get(i, 0.0) for i, letter in enumerate(LETTERS)}
        found[label] = chances, math.exp(arrays["rest_logmass"][p])
    return found


def paths_that_reach(begun: Path, text: bytes, size: int) -> Iterator[Path]:
    """List all ways to go on behind some tokens, until `size` bytes or the end are written.

    Those are left out that write something else than `text`, as far as that goes.
    """
    written = bytes_of(begun)
    if len(written) >= size or END in begun:
        yield begun
        return
    for v, each in enumerate(WRITTEN):
        if text.startswith((written + each)[: len(text)]) or (written + each).startswith(text):
            yield from paths_that_reach((*begun, v), text, size)


def follows(path: Path, byte: int) -> bytes:
    return bytes_of(path)[byte : byte + 1]


def by_definition(
    teacher: Teacher, path: Path, byte: int, *, only: Callable[[Path], bool] = lambda _: True
) -> Chances:
    """The chances of the next letter, given the tokens that ended before the last one here.

    All sequences of tokens from there on are listed that write the bytes up to here, and of which
    no token begins in between.
    """
    text = bytes_of(path)[:byte]
    before = max(n for n in range(len(path) + 1) if len(bytes_of(path[:n])) < max(byte, 1))
    weights = dict.fromkeys(LETTERS, 0.0)
    for each in paths_that_reach(path[:before], text, byte + 1):
        reaches = len(bytes_of(each[: before + 1])) >= byte and END not in each[: before + 1]
        if (reaches or not byte) and only(each[before:]):
            weights[follows(each, byte)] += teacher.chance(each) / teacher.chance(path[:before])
    total = sum(weights.values())
    return {letter: weight / total for letter, weight in weights.items()}


def a_path(seed: int, size: int) -> Path:
    """Tokens of a text by chance; in half of the texts it ends."""
    rng = np.random.default_rng([seed, 77])
    path = tuple(int(v) for v in rng.integers(0, END, size))
    return (*path, END) if rng.random() < 0.5 else path


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_with_all_entries_the_target_is_what_the_teachers_tokens_can_write(
    seed: int, size: int
) -> None:
    teacher, path = Teacher(seed), a_path(seed, size)
    found = targets(teacher, path)
    assert sorted(found) == list(range(len(bytes_of(path)) + (END in path)))
    for byte, (chances, rest) in found.items():
        assert chances == pytest.approx(by_definition(teacher, path, byte), abs=3e-6)
        assert rest < 1e-6


@given(st.integers(0, 10_000), st.integers(1, 4), st.sets(st.sampled_from(WRITTEN[:-1])))
def test_with_some_entries_it_is_that_given_whether_the_token_is_one_of_them(
    seed: int, size: int, unwritten: set[bytes]
) -> None:
    """And given whether it ended, where the teacher was not asked what would follow its bytes.

    What is beyond the entries of the record behind a token that ended is the rest.
    """
    teacher, path = Teacher(seed, 0.6, sorted(unwritten)), a_path(seed, size)
    found = targets(teacher, path)
    for byte in range(1, len(bytes_of(path))):
        before = max(n for n in range(len(path)) if len(bytes_of(path[:n])) < byte)
        prefix, own = path[:before], path[before]
        begun = bytes_of(path)[len(bytes_of(prefix)) : byte]
        listed, longer = teacher.listed(prefix), [w for w in WRITTEN if len(w) > len(begun)]
        is_asked = begun in WRITTEN and begun not in unwritten
        has_ended = WRITTEN[own] == begun
        if has_ended and not (is_asked and any(w.startswith(begun) for w in longer)):
            given = lambda tail, own=own: tail[0] == own  # noqa: E731
        elif own not in listed:
            assert byte not in found
            continue
        else:
            given = lambda tail, b=begun, a=is_asked, q=listed: (  # noqa: E731
                tail[0] in q and (a or WRITTEN[tail[0]] != b)
            )
        exact = by_definition(teacher, path, byte, only=given)
        assert completed(teacher, path, byte) == pytest.approx(exact, abs=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([0.4, 0.7]))
def test_what_entries_beyond_the_record_can_change_is_bounded_by_its_tail(
    seed: int, size: int, kept: float
) -> None:
    teacher, path = Teacher(seed, kept), a_path(seed, size)
    for byte, (chances, rest) in targets(teacher, path).items():
        if not 0 < byte < len(bytes_of(path)):
            continue
        before = max(n for n in range(len(path)) if len(bytes_of(path[:n])) < byte)
        begun = bytes_of(path)[len(bytes_of(path[:before])) : byte]
        q, listed = teacher.q(path[:before]), teacher.listed(path[:before])
        reach = sum(q[v] for v in listed if WRITTEN[v].startswith(begun))
        tail = sum(q[v] for v in range(len(WRITTEN)) if v not in listed)
        missing = tail / (tail + reach) + 1e-5
        for letter, exact in by_definition(teacher, path, byte).items():
            if WRITTEN[path[before]] != begun or path[before] in listed:
                assert (1 - missing) * chances[letter] <= exact + 1e-5
                assert exact <= (1 - missing) * (chances[letter] + rest) + missing + 1e-5


@pytest.mark.parametrize(("kept", "unwritten"), [(1.0, []), (0.6, [b"ab"]), (0.5, [])])
@pytest.mark.parametrize("seed", range(3))
def test_over_all_that_the_teacher_may_have_written_it_is_the_chance_of_the_next_byte(
    kept: float, unwritten: list[bytes], seed: int
) -> None:
    """The law that makes it exact: nothing is counted twice, and nothing is forgotten.

    The teacher may have written the bytes in any tokens. Each of these texts has its target, or the
    hard label where nothing is known; weighed by how probable the texts are, these are the next
    byte's chances given the bytes, no matter which tokens were entries.
    """
    teacher, text = Teacher(seed, kept, unwritten), b"abba"
    asked_alone = 0.0
    for byte in range(1, len(text)):
        weights = dict.fromkeys(LETTERS, 0.0)
        means = dict.fromkeys(LETTERS, 0.0)
        alone = dict.fromkeys(LETTERS, 0.0)
        for path in paths_that_reach((), text[:byte], byte + 1):
            if len(bytes_of(path)) < byte:
                continue  # the text ended before
            chance = teacher.chance(path)
            weights[follows(path, byte)] += chance
            for letter, share in completed(teacher, path, byte).items():
                means[letter] += chance * share
            for letter, share in at_the_boundary(teacher, path, byte).items():
                alone[letter] += chance * share
        assert means == pytest.approx(weights, abs=1e-6)
        asked_alone += sum(abs(alone[letter] - weights[letter]) for letter in LETTERS)
    assert asked_alone > 0.01  # the record at the boundary alone is another answer


def completed(teacher: Teacher, path: Path, byte: int) -> Chances:
    """A text's target, with the rest as the teacher's tokens beyond its entries are; or its label.

    Only a token that ended has a rest, so these follow it.
    """
    found = targets(teacher, path).get(byte)
    if found is None:
        return {follows(path, byte): 1.0}
    chances, rest = found
    before = max(n for n in range(len(path)) if len(bytes_of(path[:n])) < byte)
    begun = bytes_of(path)[len(bytes_of(path[:before])) : byte]
    if rest < 1e-6:
        return chances
    behind = (*path[:before], WRITTEN.index(begun))
    hidden = [v for v in range(len(WRITTEN)) if v not in teacher.listed(behind)]
    of_rest = first_letters(teacher, behind, hidden)
    total = sum(of_rest.values())
    return {letter: chances[letter] + rest * of_rest[letter] / total for letter in LETTERS}


def first_letters(teacher: Teacher, behind: Path, tokens: Sequence[int]) -> Chances:
    """How probable it is that one of some tokens comes that begins with each letter."""
    return {
        letter: sum(float(teacher.q(behind)[v]) for v in tokens if WRITTEN[v][:1] == letter)
        for letter in LETTERS
    }


def at_the_boundary(teacher: Teacher, path: Path, byte: int) -> Chances:
    """What the teacher says if a token is taken to have ended there, as it was asked once."""
    before = max(n for n in range(len(path)) if len(bytes_of(path[:n])) < byte)
    begun = bytes_of(path)[len(bytes_of(path[:before])) : byte]
    if begun not in WRITTEN:
        return {follows(path, byte): 1.0}
    return first_letters(teacher, (*path[:before], WRITTEN.index(begun)), range(len(WRITTEN)))


def test_a_token_behind_an_end_and_what_is_left_of_another_meet_at_their_event() -> None:
    """Though no two whole tokens have one event, nor what is left of any two."""
    remainder = np.array([3 * SPACES, 3 * SPACES, 3 * SPACES, 3 * SPACES + 1])  # of the last one
    sent = VocabularyMap(EventMap(np.array([0, 1, 2] * SPACES + [1], np.int32), remainder)).send(
        np.array([2]), np.array([1, 3 * SPACES]), np.log([0.3, 0.6]).astype(np.float32),
        is_mixed=True,
    )  # fmt: skip
    assert sent.ids.tolist() == [1]
    assert np.exp(sent.logmass) == pytest.approx([0.9])
