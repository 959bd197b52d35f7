"""Where a student would have cut, against its tokenizer's own words."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from distill.alignment import cuts as cuts_module
from distill.alignment.cuts import Cuts
from distill.data.dataset import StoreDataset
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import ragged_rows

TOKENIZERS = {"bpe": tiny.byte_bpe, "unigram": tiny.unigram}


def words_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The pieces of a text that follows a full stop, by the tokenizer's own offsets."""
    start = "a."
    found = tokenizer(start + text, add_special_tokens=False, return_offsets_mapping=True)
    pieces = [(start + text)[a:b] for a, b in found["offset_mapping"]]
    return pieces[2:] if pieces[:2] == list(start) else []


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_continuation_fits_if_the_tokenizer_ends_a_token_where_the_last_one_ends(
    name: str,
) -> None:
    tokenizer = TOKENIZERS[name]()
    student = ByteTokenizer(tokenizer)
    # Letters alone: then a tokenizer's own rules for words and marks have no part in it.
    texts = {i: (b or b"").decode("utf-8", "replace") for i, b in enumerate(student.token_bytes)}
    texts = {i: text for i, text in texts.items() if text.isascii() and text.isalpha()}
    texts = {i: text for i, text in texts.items() if not student.is_standin[i]}
    cuts, ids = Cuts(student, [b or b"" for b in student.token_bytes]), list(texts)
    last = np.repeat(ids, len(ids))
    following = np.tile(ids, len(ids))
    found = cuts.fits(last, following).reshape(len(ids), len(ids))
    compared = 0
    for i, a in enumerate(ids):
        if words_of(tokenizer, texts[a]) != [texts[a]]:
            continue
        for j, b in enumerate(ids):
            pieces = words_of(tokenizer, texts[a] + texts[b])
            if "".join(pieces) == texts[a] + texts[b]:
                ends = np.cumsum(list(map(len, pieces)))
                assert found[i, j] == (len(texts[a]) in ends), (texts[a], texts[b], pieces)
                compared += 1
    assert compared > 500
    assert (~found).any()
    np.testing.assert_array_equal(cuts.fits(last, following), found.ravel())  # from memory


def test_an_answer_that_lost_its_place_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    student = ByteTokenizer(tiny.byte_bpe())
    written = [b or b"" for b in student.token_bytes]
    rng = np.random.default_rng(0)
    last, following = rng.integers(student.size, size=(2, 40, 30))
    roomy = Cuts(student, written)
    monkeypatch.setattr(cuts_module, "_ROW_BITS", 2)
    monkeypatch.setattr(cuts_module, "_MOST_ROW_BITS", 2)
    narrow = Cuts(student, written)
    found = [roomy.fits(*pair) for pair in zip(last, following, strict=True)]
    assert not np.concatenate(found).all()
    for number in rng.integers(40, size=120):
        np.testing.assert_array_equal(narrow.fits(last[number], following[number]), found[number])
    assert np.count_nonzero(narrow._known) == narrow._known.size == 16


def test_a_table_grows_before_many_answers_lose_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = ByteTokenizer(tiny.byte_bpe())
    rng = np.random.default_rng(0)
    last, following = rng.integers(student.size, size=(2, 40, 60))
    monkeypatch.setattr(cuts_module, "_ROW_BITS", 2)
    cuts, asked = Cuts(student, [b or b"" for b in student.token_bytes]), []
    ask = cuts._ask
    monkeypatch.setattr(cuts, "_ask", lambda keys: asked.append(len(keys)) or ask(keys))
    found = [cuts.fits(*pair) for pair in zip(last, following, strict=True)]
    assert len(cuts._known) > 4
    assert sum(asked) > 2000
    asked.clear()
    for pair, before in zip(zip(last, following, strict=True), found, strict=True):
        np.testing.assert_array_equal(cuts.fits(*pair), before)
    assert sum(asked) < 240


def test_a_larger_table_has_every_answer_of_the_smaller_one() -> None:
    rng = np.random.default_rng(0)
    known = np.zeros((4, cuts_module._SLOTS), np.int64)
    questions = np.unique(rng.integers(2**40, size=400))
    for row in range(4):
        own = questions[cuts_module._rows(questions, 4) == row][: cuts_module._SLOTS]
        known[row, : len(own)] = (own + 1) * 2 + rng.integers(2, size=len(own))
    assert known.all()
    larger = cuts_module._larger(known)
    assert sorted(larger[larger != 0]) == sorted(known.ravel())
    for row, answers in enumerate(larger):
        own = (answers[answers != 0] >> 1) - 1
        assert (cuts_module._rows(own, len(larger)) == row).all()


def test_the_token_that_came_nearly_always_fits_and_others_do_not(tmp_path: object) -> None:
    """The claim behind it: it rules out what never comes."""
    tokenizer = tiny.unigram()
    teacher = tiny.llama(len(tokenizer), seed=7)
    store = FakeStore.from_teacher(teacher, tokenizer, ragged_rows(), tmp_path)  # type: ignore[arg-type]
    data = StoreDataset(store, ByteTokenizer(tiny.byte_bpe()), ["mapped_kl"])
    cuts = Cuts(data.reader.tokenizer, [b or b"" for b in data.teacher.token_bytes])
    came, others = [], []
    for i in range(len(data)):
        asked = data.asked(i, "mapped_kl")
        if asked is None:
            continue
        t, s = asked.pairs.table[:, 0], asked.pairs.table[:, 2]
        t, s = t[s > 0], s[s > 0]
        came.append(cuts.fits(asked.label_ids[s - 1], asked.records.token_ids[t].astype(int)))
        every = np.arange(len(cuts._written))
        others += [cuts.fits(np.full(len(every), asked.label_ids[j - 1]), every) for j in s]
    assert np.concatenate(came).mean() > 0.97
    assert np.concatenate(others).mean() < 0.995  # of all tokens: most begin a word
