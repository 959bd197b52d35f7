"""Eight real vocabularies, every ordered pair, against the definition, on four kinds of text.

`python -m tools.real_parts` fetches tokenizers and texts; without them these tests are skipped. The
same laws hold for tiny stand-ins everywhere (tests/distill/alignment/test_disagreements.py).
"""

import hashlib
from functools import cache
from itertools import permutations
from pathlib import Path

import pytest

from distill.alignment.make_map import make_map
from tests.kit.agreement import Read, assert_same_pairs, read
from tests.real.vocabularies import ALL, FOLDER, file_of, marked, pair
from tools import bench_labels
from tools.label_counts import Counted, Row, Side, counted, judge, rows, side
from tools.label_texts import KINDS, texts
from tools.real_parts import TOKENIZERS

MISSING = [
    place
    for place in (
        *map(file_of, TOKENIZERS),
        *(str(FOLDER / "texts" / f"{name}.txt") for name in ("prose", "scripts")),
    )
    if not Path(place).exists()
]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"{''.join(MISSING[:1])} is not there: `python -m tools.real_parts` fetches it",
)


@cache
def some_rows() -> list[Row]:
    """Texts and prompts cut at any character; supervised text in several stretches."""
    return [
        Row("text", [text]) if row.form == "talk" else row
        for kind in KINDS
        for text, row in _short(kind)
    ]


def _short(kind: str) -> list[tuple[str, Row]]:
    documents = [text[:1500] for text in texts(kind, learnt=0, judged=40_000).judged[:8]]
    return list(zip(documents, rows(documents, seed=3), strict=True))


@cache
def reads(name: str) -> list[Read]:
    """Read the rows, and check where each label lies."""
    found = [read(pair(name), row.pieces(name, pair(name).plain)) for row in some_rows()]
    for n, row in enumerate(some_rows()):
        if row.form == "text":  # once more, every other part of it as context
            text = row.parts[0]
            step = 7 + int(hashlib.sha256(text.encode()).hexdigest(), 16) % 60
            parts = [text[i : i + step] for i in range(0, len(text), step)]
            found.append(read(pair(name), [(p, (i + n) % 2 == 0) for i, p in enumerate(parts)]))
    return found


@pytest.mark.parametrize("name", ALL)
def test_tokens_write_the_bytes_that_the_definition_says(name: str) -> None:
    ours, plain = pair(name)
    special = plain.special
    differs = [i for i, w in plain.written.items() if i not in special and ours.token_bytes[i] != w]
    assert not differs
    assert [i for i in range(ours.size) if ours.token_bytes[i] is None and i in plain.written] == (
        sorted(special)
    )


@pytest.mark.parametrize("name", ALL)
def test_each_label_lies_where_the_definition_has_it(name: str) -> None:
    assert sum(len(each.plain) for each in reads(name)) > 5_000


@pytest.mark.parametrize(
    ("teacher", "student"), [marked(*names) for names in permutations(TOKENIZERS, 2)]
)
def test_the_same_labels_are_paired_as_by_the_definition(teacher: str, student: str) -> None:
    both = zip(reads(teacher), reads(student), strict=True)
    assert sum(assert_same_pairs(t, s) for t, s in both) > 3_000


@pytest.mark.parametrize(("teacher", "student"), [("gpt2", "llama2"), ("llama2", "gpt2")])
def test_events_are_right_where_the_longest_prefix_is_wrong(teacher: str, student: str) -> None:
    """The goals of `tools.bench_labels`, on fewer texts."""
    learnt, judged = pairs_of(teacher, student)
    found = {}
    for kind in ("prefix", "events"):
        made = make_map(kind, pair(teacher).ours, pair(student).ours, bench_labels.seen(learnt))
        ends, end = pair(teacher).ours.eos_ids, pair(student).ours.eos_token_id
        assert end is not None
        found[kind] = judge(made.with_ends(list(ends), end), judged)
    events = found["events"]
    assert events["right"] >= 0.985 > 0.95 > found["prefix"]["right"]
    assert events["total variation"] <= 0.03 < found["prefix"]["total variation"]
    for sort in ("numerals", "white space", "ends"):
        assert events["labels"][sort] > 30
        assert events[sort] >= 0.95
    assert events["bits of events"] > events["bits of tokens"] - 1.5  # it is still a question


def pairs_of(teacher: str, student: str) -> tuple[Counted, Counted]:
    """Count pairs in texts to learn from, and in texts to judge."""
    (learnt_t, judged_t), (learnt_s, judged_s) = (sides(name) for name in (teacher, student))
    return counted(learnt_t, learnt_s), counted(judged_t, judged_s)


@cache
def sides(name: str) -> tuple[Side, Side]:
    halves = [texts(kind, learnt=60_000, judged=15_000) for kind in KINDS]
    learnt = [row for half in halves for row in rows(half.learnt, seed=2)]
    judged = [row for half in halves for row in rows(half.judged, seed=1)]
    return side(name, pair(name).plain, learnt), side(name, pair(name).plain, judged)
