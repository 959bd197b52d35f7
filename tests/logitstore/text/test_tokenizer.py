"""Tokens know their bytes: what they write, and where that lies in the supervised text."""

import itertools
import pickle
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from transformers import PreTrainedTokenizerFast

from logitstore.errors import InputError
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.text import token_spans
from logitstore.text.token_spans import spans_from_offsets
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.kinds import (
    CHANGING,
    EXACT,
    FAMILY,
    SEGMENTS,
    TEXT,
    TOKENIZERS,
    build,
)

LAW = settings(max_examples=30, deadline=None)


def spans(found: TokenizedText) -> list[tuple[int, int]]:
    """(first byte, byte after the last) of every token with a record."""
    starts = found.byte_starts[found.has_record]
    ends = starts + found.byte_lengths[found.has_record]
    return [(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


def whole(tokenizer: ByteTokenizer, text: str, **settings: Any) -> TokenizedText:
    """All of the text supervised."""
    return tokenizer.encode([Segment(text, True)], **settings)


# Laws


@pytest.mark.parametrize("kind", EXACT + CHANGING)
@LAW
@given(SEGMENTS)
def test_spans_are_monotone_and_never_overlap(kind, segments):
    found = TOKENIZERS[kind].encode(segments)
    total = sum(len(s.text.encode()) for s in segments if s.supervised)
    places = [0, *itertools.chain.from_iterable(spans(found)), total]
    assert places == sorted(places)
    assert found.status in ("ok", "empty", "no_supervised_text")
    assert (found.byte_starts[~found.has_record] == 0).all()
    assert (found.byte_lengths[~found.has_record] == 0).all()


@pytest.mark.parametrize("kind", EXACT)
@LAW
@given(TEXT)
@example("<s>\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}")
def test_tokens_write_the_bytes_at_their_span(kind, text):
    assume("▁" not in text)  # the mark itself reads as a space in such a vocabulary
    tokenizer, data = TOKENIZERS[kind], text.encode()
    context = "a" if kind.startswith("byte") else ""  # stands in for a missing BOS
    found = tokenizer.encode([Segment(context, False), Segment(text, True)])
    expected = [tokenizer.token_bytes[i] for i in found.token_ids[found.has_record]]
    written, may_add_a_space = b"", False
    for (start, end), token in zip(spans(found), expected, strict=True):
        if token is not None:
            # shorter only where the token began in the context, or with a space of its own: at the
            # start, and with SentencePiece after a special token that the text spells out
            assert token.endswith(data[start:end])
            assert len(token) == end - start or start == 0 or may_add_a_space
        may_add_a_space = token is None
        written += data[start:end]
    assert written == data


@pytest.mark.parametrize("kind", EXACT)
@LAW
@given(TEXT)
def test_offsets_and_bytes_find_the_same_spans(kind, text):
    """Two ways to the same places."""
    assume(text and "▁" not in text)
    tokenizer, data = TOKENIZERS[kind], text.encode()
    encoding = tokenizer._backend.encode(text, add_special_tokens=False)
    written = [tokenizer._written[i] for i in encoding.ids]
    lengths = np.array([len(token) for token in written], np.int64)
    offsets = np.array(encoding.offsets, np.int64)
    every = np.ones(len(written), bool)
    by_offsets = spans_from_offsets(data, offsets, b"".join(written), lengths, every)
    by_bytes = tokenizer._spans(data, np.array(encoding.ids), encoding.ids, encoding)
    assert by_offsets is not None
    assert by_bytes is not None
    np.testing.assert_array_equal(by_offsets, by_bytes[0])


@pytest.mark.parametrize("kind", EXACT + CHANGING)
@LAW
@given(SEGMENTS)
def test_segments_do_not_change_the_tokens_only_what_is_supervised(kind, segments):
    """The spans are those of the whole text, with the bytes of the context taken out."""
    tokenizer = TOKENIZERS[kind]
    found = tokenizer.encode(segments)
    text = "".join(s.text for s in segments)
    assume(text)
    everything = whole(tokenizer, text)
    np.testing.assert_array_equal(found.token_ids, everything.token_ids)
    counted = [s.supervised for s in segments for _ in s.text.encode()]
    before = np.cumsum([0, *counted])
    for t in np.flatnonzero(everything.has_record & ~everything.is_eos):
        first = everything.byte_starts[t]
        size = everything.byte_lengths[t]
        length = before[first + size] - before[first]
        if size:
            assert found.has_record[t] == (length > 0)
        if found.has_record[t]:
            assert found.byte_lengths[t] == length
            assert found.byte_starts[t] == before[first]


@pytest.mark.parametrize("kind", EXACT + CHANGING)
@LAW
@given(SEGMENTS, st.integers(1, 12))
def test_cut_text_is_the_beginning_of_the_whole(kind, segments, max_length):
    tokenizer = TOKENIZERS[kind]
    full, cut = tokenizer.encode(segments), tokenizer.encode(segments, max_length=max_length)
    if len(full.token_ids) <= max_length:
        assert cut.status == full.status
    else:
        assert cut.status in ("truncated", "no_supervised_text")
        assert not cut.is_eos.any()
    n = min(len(full.token_ids), max_length)
    for name in ("token_ids", "has_record", "byte_starts", "byte_lengths", "is_eos"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(full, name)[:n])


STEPS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=8)


@LAW
@given(STEPS, st.text("aé学🙂 ", min_size=6, max_size=9))
def test_offsets_that_run_forward_give_spans_between_their_ends(steps, text):
    """Whatever the tokens write, and however they overlap."""
    lows, highs = sorted(min(s) for s in steps), sorted(max(s) for s in steps)
    offsets = np.array([lows, highs], np.int64).T
    written, lengths = b"?" * len(steps), np.ones(len(steps), np.int64)
    none = np.zeros(len(steps), bool)
    found = spans_from_offsets(text.encode(), offsets, written, lengths, none)
    wide = [(a, b) for a, b in offsets if a < b]
    assume(found is not None and wide)
    assert found is not None
    starts, ends = found
    places = np.stack([starts, ends], axis=1).ravel()
    assert (np.diff(places) >= 0).all()
    assert starts[ends > starts][0] == len(text[: wide[0][0]].encode())
    assert ends[-1] == len(text[: wide[-1][1]].encode())


def laid_out(text: str, offsets: list[tuple[int, int]], *written: bytes) -> list[tuple[int, int]]:
    lengths = np.array([len(token) for token in written], np.int64)
    none = np.zeros(len(written), bool)
    found = spans_from_offsets(text.encode(), np.array(offsets), b"".join(written), lengths, none)
    assert found is not None
    return list(zip(found[0].tolist(), found[1].tolist(), strict=True))


def test_tokens_that_share_characters_lie_where_their_bytes_are():
    assert laid_out("🙂", [(0, 1), (0, 1)], b"\xf0", b"\x9f\x99\x82") == [(0, 1), (1, 4)]
    assert laid_out("a🙂b", [(0, 2), (1, 3)], b"a\xf0\x9f\x99", b"\x82b") == [(0, 4), (4, 6)]


def test_tokens_that_wrote_something_else_divide_the_characters_they_share():
    assert laid_out("½", [(0, 1)] * 3, b"1", b"/", b"2") == [(0, 1), (1, 1), (1, 2)]
    assert laid_out('"', [(0, 1)] * 2, b"`", b"`") == [(0, 0), (0, 1)]
    # as many bytes as the text, by accident: é is still where the two tokens meet
    assert laid_out("aéñ", [(0, 2), (1, 3)], b"xy\xc3", b"\xa9n") == [(0, 2), (2, 5)]


# Multi-byte text, exactly


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("text", [f"a {FAMILY} b", "龍鳳", "e\u0301a\u0308 ộ", "🇫🇷🏳️‍🌈", "ῶ ꙮ"])
def test_pieces_of_one_character_have_their_own_bytes(kind, text):
    tokenizer, data = TOKENIZERS[kind], text.encode()
    found = tokenizer.encode([Segment("a", False), Segment(text, True)])
    assert b"".join(data[a:b] for a, b in spans(found)) == data
    ends = {end for _, end in spans(found)}
    characters = {len(text[:i].encode()) for i in range(len(text) + 1)}
    assert ends - characters, "no token of this tokenizer ends inside a character: a weak test"


def test_characters_that_a_normaliser_joins_or_splits_keep_their_place():
    tokenizer = TOKENIZERS["byte_bpe_nfkc_lower"]
    text = "A½e\u0301Z"  # one character becomes three, two become one
    found = tokenizer.encode([Segment("x", False), Segment(text, True)])
    written = [tokenizer.token_bytes[i] for i in found.token_ids[found.has_record]]
    by_end: dict[int, bytes] = {}
    for (_, end), token in zip(spans(found), written, strict=True):
        by_end[end] = by_end.get(end, b"") + (token or b"<eos>")
    assert by_end[1] == b"a"
    assert spans(found)[0] == (0, 1)
    assert {3, 6, 7} <= set(by_end), "the half, the accented letter and the Z end where they end"
    assert b"".join(by_end.values()) == "a1\u20442éz".encode() + b"<eos>"


def test_white_space_that_nothing_writes_belongs_to_the_token_behind_it():
    text = "  The  ÉTÉ\n"
    found = whole(TOKENIZERS["wordpiece"], text)
    pieces = [text.encode()[a:b].decode() for a, b in spans(found)]
    assert "".join(pieces) == "  The  ÉTÉ"
    assert any(piece.startswith("  É") for piece in pieces)
    assert spans(found)[0][0] == 0


@pytest.mark.parametrize("sign", ["\ufdfa", "\ufdfb"])
def test_one_character_that_is_normalised_to_several_words_is_divided_in_order(sign: str):
    """U+FDFA is four words of 18 letters after NFKC: more tokens than it has bytes."""
    letters = sorted({c for c in unicodedata.normalize("NFKC", sign) if not c.isspace()})
    pieces = [("<unk>", -20.0), ("▁", -3.0), *((c, -8.0) for c in ["a", *letters])]
    made: Any = PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    found = whole(ByteTokenizer(made(tokenizer_object=tokenizer)), f"a {sign} a", add_eos=False)
    places = list(itertools.chain.from_iterable(spans(found)))
    assert found.status == "ok"
    assert places == sorted(places)
    assert (places[-2:], len(places) > 2 * len(letters)) == ([6, 7], True)


def test_spans_that_would_run_backwards_are_none_at_all(monkeypatch: pytest.MonkeyPatch):
    """Whatever the cause, such a row has no records, and its capture goes on."""
    monkeypatch.setattr(token_spans, "_laid_out", lambda *_: (np.array([1, 0]), np.array([2, 1])))
    found = whole(with_offsets("byte_bpe", [65, 66], [(0, 1), (1, 2)]), "éa")
    assert found.status == "spans_unknown"


def test_space_that_the_tokenizer_adds_has_no_bytes():
    for kind in ("unigram", "sp_bpe"):
        found = whole(TOKENIZERS[kind], "Ω the")
        assert spans(found)[0][0] == 0
        assert spans(found)[-2] == (2, 6)
        text = whole(TOKENIZERS[kind], "a<s>Ω")  # another is added behind a special token
        assert b"".join("a<s>Ω".encode()[a:b] for a, b in spans(text)) == "a<s>Ω".encode()


def test_added_space_is_supervised_only_where_its_text_is():
    tokenizer = TOKENIZERS["unigram"]
    assert tokenizer.token_bytes[whole(tokenizer, "Ωa").token_ids[1]] == b" "
    assert whole(tokenizer, "Ωa").has_record.tolist() == [False, True, True, True, True, True]
    behind = tokenizer.encode([Segment("Ω", False), Segment("a", True)])
    assert behind.has_record.tolist() == [False, False, False, False, True, True]


def test_space_of_another_kind_keeps_its_bytes():
    text = "a\u00a0Ω"
    found = whole(TOKENIZERS["unigram_nfkc"], text)
    pieces = [text.encode()[a:b] for a, b in spans(found)]
    assert "\u00a0".encode() in pieces
    assert b"".join(pieces) == text.encode()


def test_special_tokens_in_a_text_cover_what_they_are_spelt_with():
    tokenizer = TOKENIZERS["byte_bpe"]
    found = tokenizer.encode([Segment("a", False), Segment("b<|endoftext|>é", True)])
    assert spans(found) == [(0, 1), (1, 14), (14, 15), (15, 16), (16, 16)]
    assert found.is_eos.tolist() == [False] * 5 + [True], "one that is spelt is text, not the end"


# Sequences


def test_prefix_stays_suffix_goes_and_one_eos_follows():
    for kind, first, last in (("wordpiece", "[CLS]", "[SEP]"), ("unigram", "<s>", "</s>")):
        tokenizer = build(kind)
        names = tokenizer.convert_ids_to_tokens(whole(TOKENIZERS[kind], "the sea").token_ids)
        assert names[0] == first
        assert names[-1] == last
        assert not set(names[1:-1]) & {first, last}
    assert not whole(TOKENIZERS["unigram"], "the", add_eos=False).is_eos.any()


def test_first_token_has_a_record_only_if_something_is_before_it():
    with_bos, without = TOKENIZERS["byte_bpe_bos"], TOKENIZERS["byte_bpe"]
    assert whole(with_bos, "the").has_record.tolist() == [False, True, True, True]
    assert whole(without, "the").has_record.tolist() == [False, True, True]
    assert spans(whole(with_bos, "the")) == [(0, 1), (1, 3), (3, 3)]
    assert spans(whole(without, "the")) == [(1, 3), (3, 3)]


def test_end_of_text_is_supervised_as_the_last_text_is():
    tokenizer = TOKENIZERS["unigram"]
    a, b, nothing = Segment("the sea", True), Segment(" is old", False), Segment("", False)
    assert tokenizer.encode([a]).has_record[-1]
    assert tokenizer.encode([b, a, nothing]).has_record[-1]
    after_context = tokenizer.encode([a, b])
    assert not after_context.has_record[-1]
    assert after_context.is_eos[-1]
    end = tokenizer.encode([b, a])
    assert (end.byte_starts[-1], end.byte_lengths[-1]) == (7, 0)


def test_token_across_a_border_is_supervised_with_its_supervised_bytes():
    tokenizer = TOKENIZERS["byte_bpe"]
    assert b" the" in tokenizer.token_bytes
    into = tokenizer.encode([Segment("a t", False), Segment("he", True)], add_eos=False)
    assert spans(into) == [(0, 2)]
    out_of = tokenizer.encode([Segment("a", False), Segment(" t", True), Segment("he", False)])
    assert spans(out_of) == [(0, 2)]


def test_status_says_why_there_is_no_record():
    tokenizer = TOKENIZERS["byte_bpe"]
    empty = tokenizer.encode([Segment("", True)])
    assert (empty.status, len(empty.token_ids)) == ("empty", 0)
    assert tokenizer.encode([]).status == "empty"
    for segments in (
        [Segment("abc", False)],
        [Segment("abc", False), Segment("", True)],
    ):
        found = tokenizer.encode(segments)
        assert found.status == "no_supervised_text"
        assert not found.has_record.any()
    late = [Segment("a b c d", False), Segment("e", True)]
    assert tokenizer.encode(late, max_length=3).status == "no_supervised_text"
    length = len(tokenizer.encode(late).token_ids)
    assert tokenizer.encode(late, max_length=length).status == "ok"
    assert tokenizer.encode(late, max_length=length - 1).status == "truncated", "no room for EOS"
    assert whole(tokenizer, "e", add_eos=False).status == "no_supervised_text"


def test_offsets_that_run_backwards_give_no_records():
    for offsets, written in (([[1, 2], [0, 1]], b"xy"), ([[0, 9]], b"x")):
        n = len(written)
        of_each = np.ones(n, int), np.zeros(n, bool)
        assert spans_from_offsets(b"abc", np.array(offsets), written, *of_each) is None

    found = whole(with_offsets("byte_bpe", [65, 66], [(1, 2), (0, 1)]), "éa")
    assert found.status == "spans_unknown"
    assert found.token_ids.tolist() == [65, 66]
    assert not found.has_record.any()


def test_text_that_its_tokens_write_needs_no_offsets():
    ids = whole(TOKENIZERS["unigram"], "Ω the", add_eos=False).token_ids[1:].tolist()
    found = whole(with_offsets("unigram", ids, [(0, 0)] * len(ids)), "Ω the")
    assert spans(found) == spans(whole(TOKENIZERS["unigram"], "Ω the"))


def with_offsets(kind: str, ids: list[int], offsets: list[tuple[int, int]]) -> ByteTokenizer:
    """A tokenizer whose Rust half answers just this."""

    class Backend:
        def encode(self, text: str, add_special_tokens: bool) -> Any:
            return type("Encoding", (), {"ids": ids, "offsets": offsets})

    tokenizer = ByteTokenizer(build(kind))
    tokenizer._backend = Backend()  # type: ignore[assignment]
    return tokenizer


# Vocabularies


def test_every_kind_of_vocabulary_gives_the_bytes_it_writes():
    def written(kind: str, token: str) -> bytes | None:
        return TOKENIZERS[kind].token_bytes[build(kind).convert_tokens_to_ids(token)]

    assert written("byte_bpe", "Ġthe") == b" the"
    assert written("byte_bpe", "ðŁ") == b"\xf0\x9f"
    assert written("byte_bpe", "<|endoftext|>") is None
    assert written("unigram", "▁the") == written("sp_bpe", "▁the") == b" the"
    assert written("unigram", "<0xE2>") == written("sp_bpe", "<0xE2>") == b"\xe2"
    assert written("unigram", "学生") == "学生".encode()
    assert written("unigram", "<s>") is written("unigram", "<unk>") is None
    assert written("wordpiece", "##ea") == b"ea"
    assert written("wordpiece", "the") == b" the", "it begins a word"
    assert written("wordpiece", ",") == b",", "cut off from every word"


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
def test_mark_for_a_space_is_known_from_any_part(part):
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0)], unk_id=0))
    parts = {
        "normalizer": normalizers.Replace(" ", "▁"),
        "pre_tokenizer": pre_tokenizers.Metaspace(),
        "decoder": decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
    }
    setattr(tokenizer, part, parts[part])
    found = ByteTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert found.token_bytes[1] == b" a"


def test_byte_level_vocabulary_writes_every_byte_once():
    singles = [b for b in TOKENIZERS["byte_bpe"].token_bytes if b is not None and len(b) == 1]
    assert sorted(singles) == [bytes([i]) for i in range(256)]


def test_added_words_are_read_as_they_are_spelt():
    tokenizer = tiny.byte_bpe()
    tokenizer.add_tokens([AddedToken("é  x"), AddedToken("<think>")])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    found = ByteTokenizer(tokenizer)
    assert found.token_bytes[-3:] == ["é  x".encode(), b"<think>", None]
    assert found.size == 303
    assert spans(found.encode([Segment("a", False), Segment("é  x<think>b", True)])) == [
        (0, 5),
        (5, 12),
        (12, 13),
        (13, 13),
    ]


def test_suffixes_of_words_and_ids_without_a_token_write_nothing():
    vocabulary = {"a": 0, "b</w>": 1, "[UNK]": 4}
    model = models.BPE(vocab=vocabulary, merges=[], end_of_word_suffix="</w>", unk_token="[UNK]")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    assert ByteTokenizer(tokenizer).token_bytes == [b"a", b"b", None, None, b"[UNK]"]


def test_ends_of_text_and_turn_are_one_event():
    tokenizer = tiny.byte_bpe()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|im_start|>"]})
    tokenizer.add_tokens(["<eos>"])  # a word like any other
    tokenizer.eos_token = "<|im_end|>"
    found = ByteTokenizer(tokenizer)
    assert found.eos_ids == (300, 0)
    assert found.eos_token_id == 300
    assert found.pad_id == 300
    assert whole(found, "the").token_ids[-1] == 300


def test_tokenizer_without_eos_ends_with_its_text():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny.byte_bpe().backend_tokenizer)
    tokenizer.pad_token = "!"
    found = ByteTokenizer(tokenizer)
    assert found.eos_token_id is None
    assert found.eos_ids == (0,), "<|endoftext|> still is one"
    assert found.pad_id == tokenizer.pad_token_id
    assert not whole(found, "the").is_eos.any()


# What a tokenizer is


@pytest.mark.parametrize("kind", ["byte_bpe", "byte_bpe_bos", "unigram", "sp_bpe", "wordpiece"])
def test_a_saved_tokenizer_is_the_same_one(kind, tmp_path):
    original = build(kind)
    original.save_pretrained(tmp_path / "copy")
    loaded, first = ByteTokenizer.from_folder(tmp_path / "copy"), TOKENIZERS[kind]
    assert loaded.fingerprint == first.fingerprint
    assert (loaded.eos_ids, loaded.size) == (first.eos_ids, first.size)
    assert loaded.token_bytes == first.token_bytes


def test_settings_of_the_moment_change_neither_fingerprint_nor_tokens():
    tokenizer = tiny.unigram()
    before = ByteTokenizer(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["the sea", "a"], truncation=True, max_length=2, padding="max_length")
    tokenizer.backend_tokenizer.enable_padding(direction="left", length=8)
    tokenizer.backend_tokenizer.enable_truncation(3)
    after = ByteTokenizer(tokenizer)
    assert after.fingerprint == before.fingerprint
    text = "the old river writes"
    assert whole(after, text).token_ids.tolist() == whole(before, text).token_ids.tolist()


def test_whatever_changes_tokens_changes_the_fingerprint():
    def changed(**roles: str) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(tokenizer_object=tiny.byte_bpe().backend_tokenizer, **roles)

    split_special = tiny.byte_bpe()
    split_special.backend_tokenizer.encode_special_tokens = True
    added = tiny.byte_bpe()
    added.add_tokens(["teacher"])
    found = [
        *(TOKENIZERS[kind] for kind in EXACT + CHANGING),
        ByteTokenizer(tiny.byte_bpe(vocab_size=301)),
        ByteTokenizer(changed()),
        ByteTokenizer(changed(eos_token="<|begin|>")),
        ByteTokenizer(split_special),
        ByteTokenizer(added),
    ]
    assert len({tokenizer.fingerprint for tokenizer in found}) == len(found)


def test_special_tokens_are_text_where_the_tokenizer_says_so():
    tokenizer = tiny.byte_bpe()
    tokenizer.backend_tokenizer.encode_special_tokens = True
    found = whole(ByteTokenizer(tokenizer), "<|endoftext|>")
    assert len(found.token_ids) > 2


def test_pickled_tokenizer_finds_the_same():
    for tokenizer in TOKENIZERS.values():
        copy = pickle.loads(pickle.dumps(tokenizer))
        text = f"the {FAMILY} sea"
        assert copy.fingerprint == tokenizer.fingerprint
        assert whole(copy, text).token_ids.tolist() == whole(tokenizer, text).token_ids.tolist()
        assert spans(whole(copy, text)) == spans(whole(tokenizer, text))


# What cannot be used


def test_text_that_utf8_cannot_hold_is_named():
    with pytest.raises(InputError, match=r"character 2 is U\+D83D, half of a surrogate pair"):
        whole(TOKENIZERS["unigram"], "ab\ud83dc")


def test_unusable_tokenizers_say_what_to_do(tmp_path):
    class Slow:
        name_or_path = "some/model"

    with pytest.raises(InputError, match=r"some/model: Slow is not a fast tokenizer.*AutoToken"):
        ByteTokenizer(Slow())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no such folder"):
        ByteTokenizer.from_folder(tmp_path / "none")
    with pytest.raises(InputError, match=r"AutoTokenizer cannot load it.*save_pretrained"):
        ByteTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"AutoTokenizer cannot load it"):
        ByteTokenizer.from_folder(tmp_path)
    with pytest.raises(InputError, match=r"max_length 0"):
        whole(TOKENIZERS["unigram"], "a", max_length=0)
