"""What a text shows of its labels, against the definition, one pair and one byte at a time."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.alignment.align import Spans
from distill.alignment.beginnings import Beginnings
from distill.alignment.cuts import Cuts
from distill.alignment.entries_at import LEAST_LEFT, Texts
from distill.alignment.event_map import NEVER, SPACES, EventMap
from distill.alignment.map_entries import VocabularyMap
from distill.alignment.realised import label_share, labels_between
from distill.data.targets import plain_pairs, with_labels_between
from distill.losses.aligned import Aligned
from logitstore.records import TokenRecords

#: A vocabulary of the teacher's: every string of a and b of up to three letters, the end, nothing.
WRITTEN = [
    bytes(ord("ab"[int(c)]) for c in format(i, f"0{n}b")) for n in (1, 2, 3) for i in range(2**n)
] + [b""]
END = len(WRITTEN) - 1
ORDER = Beginnings(WRITTEN)

Distribution = dict[int, float]


def records_of(ids: list[int], entries: list[Distribution]) -> TokenRecords:
    """Make records of a text that the teacher has cut into these tokens."""
    lengths = np.array([len(WRITTEN[i]) for i in ids], np.int64)
    listed = [sorted(each.items(), key=lambda item: -item[1]) for each in entries]
    tail = np.array([1 - sum(each.values()) for each in entries])
    own = [each.get(i, t / 2) for i, each, t in zip(ids, entries, tail, strict=True)]
    with np.errstate(divide="ignore"):
        return TokenRecords(
            token_ids=np.array(ids, np.uint32),
            byte_starts=np.cumsum(lengths) - lengths,
            byte_lengths=lengths,
            token_logprob=np.log(own).astype(np.float32),
            entry_count=np.array([len(each) for each in listed], np.int64),
            entry_ids=np.array([i for each in listed for i, _ in each], np.uint32),
            entry_logprobs=np.log([q for each in listed for _, q in each]).astype(np.float32),
            tail_logmass=np.log(np.maximum(tail, 0)).astype(np.float32),
            entropy=np.zeros(len(ids), np.float32),
        )


def spans_of(lengths: list[int], *, ends: bool) -> Spans:
    widths = np.array(lengths, np.int64)
    is_eos = np.zeros(len(widths), bool)
    is_eos[-1:] = ends
    return Spans(np.cumsum(widths) - widths, widths, is_eos)


@st.composite
def texts(draw: Any) -> tuple[list[int], list[Distribution], list[int]]:
    """A text as the teacher's tokens, their distributions, and the student's cut of it."""
    ids = draw(st.lists(st.integers(0, END - 1), min_size=1, max_size=6))
    entries = []
    for i in ids:
        weights = draw(st.dictionaries(st.integers(0, END - 1), st.integers(1, 9), max_size=8))
        if draw(st.booleans()):
            weights[i] = 5
        weights = weights or {i: 1}
        beyond = draw(st.sampled_from([1, 4]))
        total = sum(weights.values()) + beyond
        entries.append({v: w / total for v, w in weights.items()})
    size = sum(len(WRITTEN[i]) for i in ids)
    cuts = draw(st.sets(st.integers(1, max(1, size - 1)))) if size > 1 else set()
    edges = [0, *sorted(cuts), size]
    return ids, entries, list(np.diff(edges))


def share_by_definition(
    ids: list[int], records: TokenRecords, entries: list[Distribution], start: int, stop: int
) -> float:
    """Follow the label's bytes through the teacher's tokens."""
    own = np.exp(records.token_logprob.astype(np.float64))
    place, chance = 0, 1.0
    for j, token in enumerate(ids):
        end = place + len(WRITTEN[token])
        if end <= start:  # before the label
            place = end
            continue
        if place <= start:  # the token in which the label begins
            if stop <= end:
                return 1.0
        elif stop >= end:
            chance *= own[j]
        else:
            wanted = WRITTEN[token][: stop - place]
            listed = dict(entries[j])
            listed.setdefault(token, own[j])
            chance *= sum(q for v, q in listed.items() if WRITTEN[v].startswith(wanted))
        place = end
        if place >= stop:
            return chance
    raise AssertionError("the label ends behind the text")


@given(texts())
def test_a_longer_label_is_as_probable_as_the_tokens_that_it_goes_on_into(
    text: tuple[list[int], list[Distribution], list[int]],
) -> None:
    ids, entries, lengths = text
    records = records_of(ids, entries)
    teacher, student = (
        spans_of([len(WRITTEN[i]) for i in ids], ends=False),
        spans_of(lengths, ends=False),
    )
    record = np.searchsorted(teacher.starts, student.starts, side="right") - 1
    pairs = np.stack([record, np.arange(len(lengths))], 1)
    found = label_share(pairs, teacher, student, records, ORDER)
    expected = [
        share_by_definition(ids, records, entries, int(start), int(start + length))
        for start, length in zip(student.starts, student.lengths, strict=True)
    ]
    np.testing.assert_allclose(np.exp(found), np.minimum(expected, 1), rtol=1e-5)


def test_nothing_is_said_of_a_label_whose_tokens_have_no_probability() -> None:
    """`aba`, as the teacher's `a`, `ba`: a label `ab` is begun by a token that is not an entry."""
    ids = [WRITTEN.index(b"a"), WRITTEN.index(b"ba")]
    records = records_of(ids, [{ids[0]: 0.5}, {WRITTEN.index(b"b"): 0.5}])
    teacher, student = spans_of([1, 2], ends=False), spans_of([2, 1], ends=False)
    pairs = np.array([[0, 0]])
    assert np.exp(label_share(pairs, teacher, student, records, ORDER)) == pytest.approx(0.75)
    unsaid = replace(records, token_logprob=np.full(2, np.nan, np.float32))
    assert np.isnan(label_share(pairs, teacher, student, unsaid, ORDER)).all()


@given(texts(), st.integers(0, 99), st.booleans())
def test_a_label_between_two_starts_is_answered_by_what_the_student_would_write_there(
    text: tuple[list[int], list[Distribution], list[int]], seed: int, is_said: bool
) -> None:
    """Of a token that is no entry nothing is known, whether an import says its probability or not.

    Fault: its own probability was counted, but not that of the other tokens beyond the entries.
    """
    ids, entries, lengths = text
    records = records_of(ids, entries)
    if not is_said:
        records = replace(records, token_logprob=np.full(len(ids), np.nan, np.float32))
    teacher, student = (
        spans_of([len(WRITTEN[i]) for i in ids], ends=False),
        spans_of(lengths, ends=False),
    )
    made = a_map(seed, 5, is_spread=False)
    found = labels_between(teacher, student, records, made, ORDER)
    expected = []
    for label, start in enumerate(student.starts.tolist()):
        for j, begin in enumerate(teacher.starts.tolist()):
            if begin < start < begin + teacher.lengths[j]:
                listed = entries[j] if ids[j] in entries[j] else {}
                bytes_there = WRITTEN[ids[j]][: start - begin]
                longer = [
                    q
                    for v, q in listed.items()
                    if is_longer(v, bytes_there) and (v == ids[j] or fits(made, v, bytes_there))
                ]
                expected.append((j, label, start - begin, sum(longer)))
    assert found.pairs.tolist() == [[j, label] for j, label, _, _ in expected]
    assert found.written.tolist() == [n for _, _, n, _ in expected]
    np.testing.assert_allclose(found.mass, [mass for *_, mass in expected], rtol=1e-5)


@pytest.mark.parametrize(("mass", "has_target"), [(0.5, True), (1e-4, True), (None, False)])
def test_a_label_inside_a_token_has_a_target_wherever_that_token_is_an_entry(
    mass: float | None, has_target: bool
) -> None:
    """Given that the teacher's token came, little of its mass says as much as more of it does."""
    own, other = WRITTEN.index(b"ab"), WRITTEN.index(b"b")
    records = records_of([own], [{other: 0.4} | ({} if mass is None else {own: mass})])
    teacher, student = spans_of([2], ends=False), spans_of([1, 1], ends=False)
    start = plain_pairs(np.array([[0, 1, 0, 1]]))
    made = a_map(0, 5, is_spread=False)
    found = with_labels_between(start, teacher, student, records, made, ORDER)
    assert found.table[:, 2].tolist() == ([0, 1] if has_target else [0])
    assert found.written.tolist() == ([0, 1] if has_target else [0])


def is_longer(v: int, begin: bytes) -> bool:
    return WRITTEN[v].startswith(begin) and len(WRITTEN[v]) > len(begin)


def fits(made: EventMap, v: int, begin: bytes) -> bool:
    """Tell whether the student, writing v, ends a token where these bytes end."""
    return NEVER not in goes_to(made, int(made.remainder[v]) + len(begin) - 1)


def a_map(seed: int, events: int, *, is_spread: bool) -> EventMap:
    """Make a map of any source to some events, the rest among them."""
    rng = np.random.default_rng(seed)
    behind = np.maximum([len(each) - 1 for each in WRITTEN], 0)
    remainder = SPACES * len(WRITTEN) + np.concatenate([[0], np.cumsum(behind)])
    if not is_spread:
        event = rng.integers(-1, events, remainder[-1])
        whole = remainder[0]
        event[whole:][rng.random(len(event) - whole) < 0.3] = NEVER
        return EventMap(event.astype(np.int32), remainder)
    count = rng.integers(1, 4, remainder[-1])
    first = np.concatenate([[0], np.cumsum(count)])
    event = np.concatenate([rng.permutation(np.arange(-1, events))[:n] for n in count])
    share = np.concatenate([rng.dirichlet(np.ones(n)) for n in count]).astype(np.float32)
    return EventMap(event.astype(np.int32), remainder, first=first, share=share)


def goes_to(made: EventMap, source: int) -> dict[int, float]:
    if made.first is None:
        return {int(made.event[source]): 1.0}
    assert made.share is not None
    pairs = range(int(made.first[source]), int(made.first[source + 1]))
    return {int(made.event[i]): float(made.share[i]) for i in pairs}


def target_by_definition(
    made: EventMap,
    own: int,
    entries: Distribution,
    written: int,
    label: int,
    share: float,
    fitting: Callable[[int], bool],
) -> dict[int, float]:
    """Send one record's mass: {event: mass}, the rest as -1."""
    listed = dict(entries)
    rest = 1 - sum(entries.values())
    if written and own not in listed:
        return {-1: 1.0}
    if written:
        begin = WRITTEN[own][:written]
        listed = {v: q for v, q in listed.items() if is_longer(v, begin)}
        listed = {v: q for v, q in listed.items() if v == own or fits(made, v, begin)}
        total = sum(listed.values())
        listed, rest = {v: q / total for v, q in listed.items()}, 0.0
    else:
        listed = {v: q for v, q in listed.items() if v == own or q < 0.01 or fitting(v)}
        left = rest + sum(listed.values())
        if left < LEAST_LEFT:
            return {-1: 1.0}
        listed, rest = {v: q / left for v, q in listed.items()}, rest / left
    target = {-1: rest}
    for v, q in listed.items():
        source = int(made.remainder[v]) + written - 1 if written else v
        to = goes_to(made, source)
        if v == own:
            target[label] = target.get(label, 0) + q * share
            q *= 1 - share
            if made.first is not None:
                others = {e: s for e, s in to.items() if e != label}
                to = {e: s / sum(others.values()) for e, s in others.items()} if others else to
        for event, part in to.items():
            event = max(event, -1)
            target[event] = target.get(event, 0) + q * part
    return target


class SomeCuts(Cuts):
    """A student that would have cut elsewhere behind some tokens, by chance."""

    def __init__(self, seed: int) -> None:
        self.chosen = np.random.default_rng(seed).random((5, len(WRITTEN))) < 0.5

    def fits(self, last: Any, teacher_ids: Any) -> Any:
        return self.chosen[last, teacher_ids]


@given(texts(), st.integers(0, 99), st.booleans(), st.booleans())
def test_a_target_is_the_entries_as_sent_with_the_token_that_came_at_its_label(
    text: tuple[list[int], list[Distribution], list[int]], seed: int, is_spread: bool, is_cut: bool
) -> None:
    ids, entries, lengths = text
    records, made = records_of(ids, entries), a_map(seed, 5, is_spread=is_spread)
    teacher, student = (
        spans_of([len(WRITTEN[i]) for i in ids], ends=False),
        spans_of(lengths, ends=False),
    )
    label_ids = np.random.default_rng(seed).integers(0, 5, len(lengths))
    cuts = SomeCuts(seed)
    t = np.searchsorted(teacher.starts, student.starts, side="right") - 1
    s = np.arange(len(lengths))
    written = student.starts - teacher.starts[t]
    aligned = Aligned(
        records,
        np.stack([t, t + 1, s, s + 1], 1),
        VocabularyMap(made),
        written=written,
        order=ORDER,
        texts=Texts(teacher, student, ORDER, cuts if is_cut else None),
        label_ids=label_ids,
    )
    arrays = aligned.mapped_entries()
    stop = np.cumsum(arrays["entry_count"])
    for p in range(len(s)):
        at = slice(int(stop[p] - arrays["entry_count"][p]), int(stop[p]))
        found = dict(
            zip(
                arrays["entry_ids"][at].tolist(),
                np.exp(arrays["entry_logmass"][at].astype(float)),
                strict=True,
            )
        )
        found[-1] = math.exp(arrays["rest_logmass"][p])
        own = int(ids[t[p]])
        share = share_by_definition(
            ids, records, entries, int(student.starts[p]), int(student.starts[p] + lengths[p])
        )
        expected = target_by_definition(
            made,
            own,
            entries[t[p]],
            int(written[p]),
            int(label_ids[p]),
            min(share, 1.0),
            lambda v, p=p: not is_cut or p == 0 or bool(cuts.chosen[label_ids[p - 1], v]),  # type: ignore[misc]
        )
        expected = {event: mass for event, mass in expected.items() if mass > 1e-9}
        found = {event: mass for event, mass in found.items() if mass > 1e-9}
        assert found == pytest.approx(expected, abs=2e-6)
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)
        event = int(made.event_of(label_ids[p : p + 1])[0])
        cell = int(arrays["cell"][p, 0])
        listed = arrays["entry_ids"][at].tolist()
        assert listed[cell] == event if cell >= 0 else event not in listed
