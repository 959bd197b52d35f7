"""Eight real vocabularies, every ordered pair, against the definition, on four kinds of text.

`python -m tools.real_parts` fetches tokenizers and texts; without them these tests are skipped. The
same laws hold for tiny stand-ins everywhere (tests/distill/alignment/test_disagreements.py).
"""

import hashlib
from functools import cache
from itertools import permutations

import pytest
from transformers import PreTrainedTokenizerBase

from logitstore.models.loading import load_tokenizer
from tests.kit.agreement import Pair, Read, assert_same_pairs, read
from tests.kit.paths import ROOT
from tools.label_counts import Row, rows
from tools.label_texts import KINDS, texts
from tools.real_parts import TOKENIZERS

FOLDER = ROOT / "build" / "real"
MISSING = [
    str(place)
    for place in (
        *(FOLDER / "tokenizers" / name / "tokenizer.json" for name in TOKENIZERS),
        *(FOLDER / "texts" / f"{name}.txt" for name in ("prose", "scripts")),
    )
    if not place.exists()
]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"{''.join(MISSING[:1])} is not there: `python -m tools.real_parts` fetches it",
)


@cache
def loaded(name: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(FOLDER / "tokenizers" / name, local_files_only=True)


@cache
def pair(name: str) -> Pair:
    return Pair.of(loaded(name))


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


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_write_the_bytes_that_the_definition_says(name: str) -> None:
    ours, plain = pair(name)
    special = plain.special
    differs = [i for i, w in plain.written.items() if i not in special and ours.token_bytes[i] != w]
    assert not differs
    assert [i for i in range(ours.size) if ours.token_bytes[i] is None and i in plain.written] == (
        sorted(special)
    )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_label_lies_where_the_definition_has_it(name: str) -> None:
    assert sum(len(each.plain) for each in reads(name)) > 5_000


@pytest.mark.parametrize(("teacher", "student"), list(permutations(TOKENIZERS, 2)))
def test_the_same_labels_are_paired_as_by_the_definition(teacher: str, student: str) -> None:
    both = zip(reads(teacher), reads(student), strict=True)
    assert sum(assert_same_pairs(t, s) for t, s in both) > 3_000
