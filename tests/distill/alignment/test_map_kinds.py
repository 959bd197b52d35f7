"""Every kind of map against its definition, on tiny tokenizers that disagree as real ones do.

The definitions are plain code that shares nothing with the maps; only the tokenizers are the same.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from distill.alignment.event_map import LESS_SPACE, MORE_SPACE, NEVER, PLAIN, SPACES, EventMap
from distill.alignment.make_map import DIVIDED, KINDS, Seen, make_map
from distill.alignment.written import Writer
from logitstore.records import Segment
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import tokenizers
from tests.kit.pairs_seen import pairs_seen

#: What may stand before bytes in the middle of a text.
BEFORE = ("x y", "x.", "x\n", "7", "é", "x y ")
#: Teacher and student: each way to disagree, on either side.
PAIRS = (
    ("gpt2", "digits apart"),
    ("spaces apart", "digits joined"),
    ("digits joined", "dummy always"),
    ("dummy space", "gpt2"),
    ("digits apart", "word cuts"),
    ("wordpiece", "dummy space"),
)

#: A canonical map, and the teacher and student that it is between.
Canonical = tuple[EventMap, ByteTokenizer, ByteTokenizer]


@cache
def tokenizer(kind: str) -> ByteTokenizer:
    return ByteTokenizer(tokenizers.build(kind))


@cache
def writer(kind: str) -> Writer:
    return Writer(tokenizer(kind))


@cache
def map_of(kind: str, teacher: str, student: str) -> EventMap:
    seen = seen_of(teacher, student) if kind in ("counted", "events") else None
    return make_map(kind, tokenizer(teacher), tokenizer(student), seen)


@cache
def seen_of(teacher: str, student: str) -> Seen:
    count = pairs_seen(tokenizer(teacher), tokenizer(student), tokenizers.texts())
    table = np.array([[PLAIN, v, u, n] for (v, u), n in count.items()], np.int64).reshape(-1, 4)
    return Seen(*table.T)


def written_in_the_middle(reader: ByteTokenizer, written: bytes) -> set[int]:
    """Encode it behind other text; list its first token, wherever a token begins there at all."""
    found = set()
    for before in BEFORE:
        tokens = reader.encode([Segment(before, False), Segment(written.decode(), True)])
        place = len(before.encode())
        for i, start, stop in zip(
            tokens.token_ids.tolist(), tokens.text_starts, tokens.text_ends, strict=True
        ):
            if start == place < stop:
                if written.startswith(reader.token_bytes[i] or b"-"):
                    found.add(i)
                break
    return found


def spelt(reader: ByteTokenizer) -> Iterator[tuple[int, bytes]]:
    """List the tokens that write something."""
    yield from ((i, each) for i, each in enumerate(reader.token_bytes) if each)


def is_part(reader: ByteTokenizer, i: int) -> bool:
    """Tell whether a token stands for a byte that is only a part of a character."""
    return bool(reader.is_standin[i]) and (reader.token_bytes[i] or b"") >= b"\x80"


# ---- canonical ----


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_the_first_token_of_bytes_is_the_one_that_is_written_in_the_middle_of_a_text(
    kind: str,
) -> None:
    reader = tokenizer(kind)
    every = {each for other in tokenizers.KINDS for _, each in spelt(tokenizer(other))}
    strings = sorted(s for s in every if s.decode("utf-8", "replace").encode() == s)[::5]
    answered = 0
    for written, found in zip(strings, Writer(reader).first(strings).tolist(), strict=True):
        expected = written_in_the_middle(reader, written)
        answered += bool(expected)
        assert not expected or found in expected, (written, found, expected)
    assert answered > 0.8 * len(strings)


@pytest.mark.parametrize("kind", ["gpt2", "spaces apart", "dummy always"])
def test_bytes_cut_inside_a_character_are_begun_alike_whatever_the_character_is(kind: str) -> None:
    answered = 0
    for begin in ("an", " two ", "x = ", "über den Fl"):
        for part in (b"\xc3", b"\xe2\x80", b"\xf0\x9f\x99"):
            (found,) = writer(kind).all([begin.encode() + part])
            answered += bool(found)
            for last in range(0x80, 0xC0):
                text = (begin.encode() + part + bytes([last])).decode()
                (whole,) = writer(kind).all([text.encode()])
                assert whole[: len(found)] == found, text
    assert answered >= 6


@pytest.fixture(params=PAIRS, ids="-".join)
def canonical(request: pytest.FixtureRequest) -> Canonical:
    teacher, student = request.param
    return map_of("canonical", teacher, student), tokenizer(teacher), tokenizer(student)


def test_canonical_sends_each_token_to_the_students_first_of_its_bytes(
    canonical: Canonical,
) -> None:
    made, t, s = canonical
    strings = [written for _, written in spelt(t)]
    first = dict(zip(strings, Writer(s).first(strings).tolist(), strict=True))
    parts = {s.token_bytes[i]: i for i in range(s.size) if is_part(s, i)}
    for v, written in spelt(t):
        expected = first[written]
        if is_part(t, v) and len(written) == 1:
            expected = parts.get(written, expected)
        assert made.event[v] == expected, written


def test_a_remainder_goes_to_the_students_next_token_where_one_of_its_own_ends(
    canonical: Canonical,
) -> None:
    made, t, s = canonical
    inside, sources = 0, SPACES * t.size
    for (v, written), tokens in zip(spelt(t), Writer(s).all([w for _, w in spelt(t)]), strict=True):
        text, following = b"", {}
        for u, then in itertools.pairwise(tokens):
            text += s.token_bytes[u] or b""
            following[len(text)] = then
        behind = np.arange(1, len(written))
        found = made.event[made.source_behind(np.full_like(behind, v), behind)]
        assert found.tolist() == [following.get(i, NEVER) for i in behind.tolist()]
        inside, sources = inside + len(following), sources + len(behind)
    assert inside > 20
    assert made.sources == sources


def test_a_token_without_the_added_space_goes_to_what_begins_a_students_text() -> None:
    """Of a text that is one token, with a space that only the teacher has added."""
    t, s = tokenizer("dummy space"), tokenizer("gpt2")
    made, tried = map_of("canonical", "dummy space", "gpt2"), 0
    for v, written in spelt(t):
        text = written[1:].decode("utf-8", "replace")
        if written[:1] != b" " or not text.encode() == written[1:] != b"":
            continue
        tokens = s.encode([Segment(text, True)])
        source = made.source_of_token(np.array([v]), LESS_SPACE)
        assert made.event[source] == tokens.token_ids[0]
        tried += 1
    assert tried > 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_with_a_space_that_only_the_student_adds_goes_nowhere(kind: str) -> None:
    if kind == "mined":
        pytest.importorskip("rapidfuzz")
    made, t = map_of(kind, "gpt2", "dummy space"), tokenizer("gpt2")
    texts = np.array([v for v, _ in spelt(t)])
    source = made.source_of_token(texts, MORE_SPACE)
    pair = source if made.first is None else made.first[source]
    assert (made.event[pair] == -1).all()
    if made.first is not None:
        assert (made.first[source + 1] == pair + 1).all()


@pytest.mark.parametrize("kind", ["prefix", "strict", "mined"])
def test_nothing_goes_to_a_standin_for_part_of_a_character_but_the_same_standin(kind: str) -> None:
    for teacher, student in (("gpt2", "dummy space"), ("dummy always", "dummy space")):
        made, t, s = map_of(kind, teacher, student), tokenizer(teacher), tokenizer(student)
        parts, sent = [i for i in range(s.size) if is_part(s, i)], set()
        whole = made.event[: SPACES * t.size]
        for source in np.flatnonzero(np.isin(whole, parts)).tolist():
            assert source < t.size
            assert is_part(t, source)
            assert t.token_bytes[source] == s.token_bytes[made.event[source]]
            sent.add(source)
        assert len(sent) == (128 if teacher == "dummy always" else 0)


# ---- maps that learn ----


@pytest.mark.parametrize(("teacher", "student"), PAIRS[:3])
def test_counted_shares_are_what_was_seen_and_the_canonical_token_once_more(
    teacher: str, student: str
) -> None:
    made, canonical = (map_of(k, teacher, student) for k in ("counted", "canonical"))
    seen = pairs_seen(tokenizer(teacher), tokenizer(student), tokenizers.texts())
    assert len(seen) > 200
    counts = [Counter({int(e): 1}) for e in canonical.event]
    for (v, u), n in seen.items():
        counts[v][u] += n
    assert made.first is not None
    assert made.share is not None
    for source, count in enumerate(counts):
        at = slice(made.first[source], made.first[source + 1])
        found = dict(zip(made.event[at].tolist(), made.share[at].tolist(), strict=True))
        expected = {event: n / count.total() for event, n in count.items()}
        assert found == pytest.approx(expected, rel=1e-6)
    sums = np.add.reduceat(made.share, made.first[:-1])
    np.testing.assert_allclose(sums, 1, rtol=1e-6)


def joined(pairs: list[tuple[int, int]], nodes: int) -> list[int]:
    """Join nodes by union-find, in its plainest form."""
    parent = list(range(nodes))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in pairs:
        parent[root(a)] = root(b)
    return [root(i) for i in range(nodes)]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_events_are_the_components_of_first_tokens_and_of_pairs_seen_often(
    teacher: str, student: str
) -> None:
    made, canonical = (map_of(k, teacher, student) for k in ("events", "canonical"))
    t, s = tokenizer(teacher), tokenizer(student)
    links = [(v, int(canonical.event[v])) for v in range(t.size) if canonical.event[v] >= 0]
    psi = Writer(t).first([w for _, w in spelt(s)]).tolist()
    links += [(v, u) for v, (u, _) in zip(psi, spelt(s), strict=True) if v >= 0]
    seen = pairs_seen(t, s, tokenizers.texts())
    of_v, of_u = Counter[int](), Counter[int]()
    for (v, u), n in seen.items():
        of_v[v] += n
        of_u[u] += n
    often = [
        (v, u) for (v, u), n in seen.items() if n >= 3 and (10 * n >= of_v[v] or 10 * n >= of_u[u])
    ]
    assert 0 < len(often) < len(seen)
    assert s.eos_token_id is not None
    links += [*often, (t.eos_ids[0], s.eos_token_id)]
    root = joined([(v, t.size + u) for v, u in links], t.size + s.size)
    assert made.of_token is not None
    event_of_root: dict[int, int] = {}
    for u in range(s.size):
        assert event_of_root.setdefault(root[t.size + u], int(made.of_token[u])) == made.of_token[u]
    assert len(set(event_of_root.values())) == len(event_of_root) == made.events
    for v, _ in spelt(t):
        assert made.event[v] == event_of_root.get(root[v], -1)
    assert set(made.of_token.tolist()) == set(range(made.events)), "each has a student token"


# ---- maps to the teacher's tokens ----


def test_p_kl_gives_each_students_token_to_the_teachers_that_begins_it() -> None:
    for teacher, student in PAIRS:
        made, t, s = map_of("p_kl", teacher, student), tokenizer(teacher), tokenizer(student)
        assert made.of_token is not None
        ids, psi = ids_of(t), Writer(t).first([w for _, w in spelt(s)]).tolist()
        event_of: dict[int, int] = {}
        for (u, written), first in zip(spelt(s), psi, strict=True):
            begins = ids.get(written, first)
            if begins < 0:
                assert (made.of_token == made.of_token[u]).sum() == 1, "alone in its event"
            else:
                assert event_of.setdefault(begins, int(made.of_token[u])) == made.of_token[u]
        assert len(set(event_of.values())) == len(event_of)
        for v, _ in spelt(t):
            assert made.event[v] == event_of.get(v, -1)


def ids_of(reader: ByteTokenizer) -> dict[bytes, int]:
    """Map bytes to the id that the tokenizer writes them with: no stand-in, if there is another."""
    ids: dict[bytes, int] = {}
    for is_standin in (False, True):
        for i, written in spelt(reader):
            if bool(reader.is_standin[i]) == is_standin:
                ids.setdefault(written, i)
    return ids


def test_the_weighted_projection_is_the_published_matrix() -> None:
    """The rows of W sum to one; a student's p becomes the events' masses as W^T p."""
    for teacher, student in PAIRS:
        made, t, s = map_of("p_kl_weighted", teacher, student), *map(tokenizer, (teacher, student))
        assert made.of_token is not None
        assert made.divided is not None
        np.testing.assert_allclose(made.divided.sum(0), 1, rtol=1e-6)
        ours = np.zeros((s.size, made.events))
        for of_token, share in zip(made.of_token, made.divided, strict=True):
            np.add.at(ours, (np.arange(s.size), of_token), share)
        ids, published = ids_of(t), np.zeros((s.size, t.size))
        for (u, written), found in zip(
            spelt(s), Writer(t).all([w for _, w in spelt(s)]), strict=True
        ):
            twin = ids.get(written)
            tokens = [twin] if twin is not None else found[:4]
            weights = np.array([0.9 * 0.1**i for i in range(len(tokens))])
            np.add.at(published[u], tokens, weights / weights.sum())
        p = np.random.default_rng(0).dirichlet(np.ones(s.size))
        grouped, expected = p @ ours, p @ published
        for v, _ in spelt(t):
            got = grouped[made.event[v]] if made.event[v] >= 0 else 0.0
            assert got == pytest.approx(expected[v], rel=1e-6)
    np.testing.assert_allclose(DIVIDED, [0.9, 0.09, 0.009, 0.0009])


# ---- mined ----


def edits(a: bytes, b: bytes) -> int:
    """Count the least insertions, deletions and replacements."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@pytest.mark.parametrize(("teacher", "student"), [("gpt2", "dummy space"), ("word cuts", "bytes")])
def test_mined_is_the_token_of_the_least_edit_distance(teacher: str, student: str) -> None:
    pytest.importorskip("rapidfuzz")
    made, t, s = map_of("mined", teacher, student), tokenizer(teacher), tokenizer(student)
    tokens = [(u, w) for w, u in ids_of(s).items() if not is_part(s, u)]
    for v, written in list(spelt(t))[::7]:
        if is_part(t, v):
            continue
        least = min(edits(written, w) for _, w in tokens)
        found = s.token_bytes[made.event[v]]
        assert found is not None
        assert edits(written, found) == least, (written, found)


# ---- all kinds ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_ends_meet_and_other_special_tokens_go_nowhere(
    kind: str, teacher: str, student: str
) -> None:
    if kind == "mined":
        pytest.importorskip("rapidfuzz")
    made, t, s = map_of(kind, teacher, student), tokenizer(teacher), tokenizer(student)
    assert s.eos_token_id is not None
    end = made.event_of(np.array([s.eos_token_id]))[0]
    for space in range(SPACES):
        for v in range(t.size):
            source = int(made.source_of_token(np.array([v]), space)[0])
            pairs = slice(source, source + 1)
            if made.first is not None:
                pairs = slice(made.first[source], made.first[source + 1])
            if v in t.eos_ids:
                assert made.event[pairs].tolist() == [end]
            elif not t.token_bytes[v]:
                assert made.event[pairs].tolist() == [-1]
            elif kind == "p_kl" and made.event[source] >= 0:
                assert made.event[source] != end


# ---- other ids, other ends ----


def sent_to(made: EventMap, source: int) -> dict[int, float]:
    pairs = slice(source, source + 1)
    if made.first is not None:
        pairs = slice(made.first[source], made.first[source + 1])
    shares = [1.0] if made.share is None else made.share[pairs].tolist()
    return dict(zip(made.event[pairs].tolist(), shares, strict=True))


@pytest.mark.parametrize("kind", ["canonical", "counted", "p_kl"])
def test_a_wider_head_changes_nothing_for_the_tokens_and_sends_the_others_nowhere(
    kind: str,
) -> None:
    made, t = map_of(kind, "gpt2", "digits apart"), tokenizer("gpt2")
    wide = made.widened(t.size + 7)
    assert wide.tokens == t.size + 7
    assert wide.sources == made.sources + SPACES * 7
    assert made.widened(t.size - 1) is made
    for v in range(wide.tokens):
        ids = np.array([v])
        for space in range(SPACES):
            expected = {-1: 1.0}
            if v < t.size:
                expected = sent_to(made, int(made.source_of_token(ids, space)[0]))
            assert sent_to(wide, int(wide.source_of_token(ids, space)[0])) == expected
        for i in range(1, len(t.token_bytes[v] or b"") if v < t.size else 0):
            behind = [int(each.source_behind(ids, np.array([i]))[0]) for each in (wide, made)]
            assert sent_to(wide, behind[0]) == sent_to(made, behind[1])


@pytest.mark.parametrize("kind", ["canonical", "counted", "events"])
def test_other_ends_go_to_the_token_that_ends_a_turn_and_nothing_else_changes(kind: str) -> None:
    made, t = map_of(kind, "gpt2", "digits apart"), tokenizer("gpt2")
    ends, student_id = [5, 9], 11
    changed = made.with_ends(ends, student_id)
    event = int(made.event_of(np.array([student_id]))[0])
    of_ends = {v + space * t.size for v in ends for space in range(SPACES)}
    for source in range(made.sources):
        expected = {event: 1.0} if source in of_ends else sent_to(made, source)
        assert sent_to(changed, source) == expected
    assert made.sources == changed.sources


def test_within_one_vocabulary_each_token_is_itself_however_it_is_read() -> None:
    made = EventMap.identity(5)
    for space in range(SPACES):
        found = made.event[made.source_of_token(np.arange(5), space)]
        assert found.tolist() == [0, 1, 2, 3, 4]
    assert made.sources == SPACES * 5
