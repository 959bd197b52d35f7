"""Where tokens truly begin and end: what the tokenizer knows, and what a store lets one derive."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.text.crossings import Crossings, find_crossings
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.kinds import CHANGING, EXACT, SEGMENTS, TOKENIZERS

LAW = settings(max_examples=60, deadline=None)
#: Prompts that end within a word or in white space, and answers that go on from there.
PROMPTS = st.sampled_from(["A:", "A: ", "A:  ", "A:\n", "the tea", "the ", "學", "", "a\u00e9"])
ANSWERS = st.sampled_from(
    ["the", "cher reads.", " the", "\nthe", "  x", "é", "e\u0301", "ﬁ", "1 2"]
)
TURNS = st.lists(st.tuples(PROMPTS, ANSWERS), min_size=1, max_size=3).map(
    lambda turns: [Segment(text, i == 1) for turn in turns for i, text in enumerate(turn)]
)


def derived(tokenizer: ByteTokenizer, segments: list[Segment], tokens: TokenizedText) -> Crossings:
    """What a store of these tokens lets one derive."""
    kept = tokens.has_record
    columns = (tokens.token_ids, tokens.byte_starts, tokens.byte_lengths, tokens.is_eos)
    return find_crossings(segments, tokenizer, *(column[kept] for column in columns))


def truth(tokens: TokenizedText) -> dict[str, Any]:
    """What the tokenizer knows of the same tokens."""
    kept = tokens.has_record
    names = ("heads", "tails", "has_added_space", "is_verbatim")
    return {name: getattr(tokens, name)[kept].tolist() for name in names}


def listed(found: Crossings) -> dict[str, Any]:
    return {name: column.tolist() for name, column in found._asdict().items() if name != "lengths"}


@pytest.mark.parametrize("kind", EXACT)
@LAW
@given(st.one_of(TURNS, SEGMENTS))
def test_what_a_store_lets_one_derive_is_what_the_tokenizer_knows(
    kind: str, segments: list[Segment]
) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(segments)
    if tokens.has_record.any():
        assert listed(derived(tokenizer, segments, tokens)) == truth(tokens)


@pytest.mark.parametrize("kind", CHANGING)
@LAW
@given(st.one_of(TURNS, SEGMENTS))
def test_of_a_changed_text_nothing_is_claimed_that_is_not_so(
    kind: str, segments: list[Segment]
) -> None:
    """A normaliser has changed letters: a token that fits nowhere claims no head."""
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(segments)
    if not tokens.has_record.any():
        return
    found, known = listed(derived(tokenizer, segments, tokens)), truth(tokens)
    for i, is_verbatim in enumerate(known["is_verbatim"]):
        assert found["is_verbatim"][i] == is_verbatim
        if is_verbatim:
            assert {k: v[i] for k, v in found.items()} == {k: v[i] for k, v in known.items()}
        else:
            assert found["heads"][i] in (0, known["heads"][i])


@pytest.mark.parametrize("kind", EXACT + CHANGING)
@LAW
@given(st.one_of(TURNS, SEGMENTS))
def test_head_stretch_and_tail_are_the_whole_token(kind: str, segments: list[Segment]) -> None:
    """And they are context, supervised text of one stretch, and whatever lies behind that."""
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(segments)
    is_supervised = [s.supervised for s in segments for _ in s.text.encode()]
    for t in np.flatnonzero(tokens.has_record & (tokens.byte_lengths > 0)):
        place = range(tokens.text_starts[t], tokens.text_ends[t])
        first = tokens.text_starts[t] + tokens.heads[t]
        stop = tokens.text_ends[t] - tokens.tails[t]
        assert place.start <= first < stop <= place.stop
        assert not any(is_supervised[place.start : first])
        assert all(is_supervised[first:stop])
        assert stop == place.stop or not is_supervised[stop]


@pytest.mark.parametrize("kind", EXACT)
@LAW
@given(SEGMENTS)
def test_verbatim_tokens_write_the_text_that_they_cover(kind: str, segments: list[Segment]) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(segments, add_eos=False, add_prefix=False)
    data = "".join(s.text for s in segments).encode()
    written = tokenizer.written(tokens.token_ids)
    for t in np.flatnonzero(tokens.is_verbatim & ~tokens.is_eos):
        covered = data[tokens.text_starts[t] : tokens.text_ends[t]]
        assert written[t] == b" " * int(tokens.has_added_space[t]) + covered


def test_a_token_over_a_whole_stretch_of_context_counts_in_the_first_stretch() -> None:
    """` the` over a supervised space, a `t` of context, and supervised `he`."""
    tokenizer = TOKENIZERS["byte_bpe"]
    segments = [Segment("a", False), Segment(" ", True), Segment("t", False), Segment("he", True)]
    tokens = tokenizer.encode(segments, add_eos=False)
    assert truth(tokens) == listed(derived(tokenizer, segments, tokens))
    assert (tokens.heads[1], tokens.tails[1]) == (0, 3)
    assert derived(tokenizer, segments, tokens).lengths.tolist() == [1]


def test_white_space_before_an_answer_is_read_by_the_word_behind_it() -> None:
    """WordPiece has one ` the` for any white space before it, in the prompt or not."""
    tokenizer = ByteTokenizer(tiny.wordpiece())
    for prompt, answer, head, is_verbatim in (
        ("a", " the", 0, True),
        ("a ", "the", 1, True),
        ("a \n", "the", 2, False),
        ("a\n", "\nthe", 1, False),
    ):
        segments = [Segment(prompt, False), Segment(answer, True)]
        tokens = tokenizer.encode(segments, add_eos=False)
        first = int(np.flatnonzero(tokens.has_record)[0])
        assert (tokens.heads[first], tokens.is_verbatim[first]) == (head, is_verbatim)
        assert truth(tokens) == listed(derived(tokenizer, segments, tokens))


def test_a_token_id_that_no_token_has_fits_nowhere() -> None:
    one, nothing = np.ones(1, np.int64), np.zeros(1, np.int64)
    tokenizer = TOKENIZERS["byte_bpe"]
    segments = [Segment("a", True)]
    found = find_crossings(segments, tokenizer, one * 10**6, nothing, one, nothing > 0)
    assert listed(found) == {
        "heads": [0],
        "tails": [0],
        "has_added_space": [False],
        "is_verbatim": [False],
    }
