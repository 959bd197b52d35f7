"""A tokenizer of every kind, and texts that they write differently."""

from typing import Any

from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer

FAMILY = "👩‍👩‍👧‍👦"  # four people and three joiners: 25 bytes
FRAGMENTS = (
    FAMILY, "🏳️‍🌈", "👍🏽", "🇫🇷", "e\u0301", "ộ", "学生", "선생", "नि", "\r\n", "\t", "  ", " ",
    "\u3000", "\u00a0", "\u200d", "½", "ﬁ", "İ", "the teacher", "…", "\0",
)  # fmt: skip
TEXT = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=8).map("".join)
SEGMENTS = st.lists(st.builds(Segment, TEXT, st.booleans()), min_size=1, max_size=4)

EXACT = (
    "byte_bpe", "byte_bpe_bos", "byte_bpe_space", "pure_byte", "tiktoken", "unigram", "sp_bpe",
)  # fmt: skip
CHANGING = (
    "byte_bpe_nfc",
    "byte_bpe_nfkc_lower",
    "unigram_nfkc",
    "t5",
    "wordpiece",
    "wordpiece_cased",
)


def with_normalizer(tokenizer: PreTrainedTokenizerFast, *added: Any) -> PreTrainedTokenizerFast:
    backend = tokenizer.backend_tokenizer
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([*added, *own])
    return tokenizer


def tiktoken_style() -> PreTrainedTokenizerFast:
    """As `transformers` converts GPT-4's: its own splits, then bytes without GPT-2's."""
    tokenizer = tiny.byte_bpe(500, bos=True)
    splits = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(splits, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def t5_style() -> PreTrainedTokenizerFast:
    """As T5 and XLM-R: NFKC, then words without the white space that was between them."""
    tokenizer = with_normalizer(tiny.unigram(bos=False), normalizers.NFKC())
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    return tokenizer


def build(kind: str) -> PreTrainedTokenizerFast:
    made = {
        "byte_bpe_bos": lambda: tiny.byte_bpe(bos=True),
        "pure_byte": lambda: tiny.byte_bpe(258, bos=True),  # nothing merged
        "tiktoken": tiktoken_style,
        "byte_bpe_nfc": lambda: with_normalizer(tiny.byte_bpe(), normalizers.NFC()),
        "byte_bpe_nfkc_lower": lambda: with_normalizer(
            tiny.byte_bpe(), normalizers.NFKC(), normalizers.Lowercase()
        ),
        "unigram_nfkc": lambda: with_normalizer(tiny.unigram(), normalizers.NFKC()),
        "t5": t5_style,
        "wordpiece_cased": lambda: tiny.wordpiece(lowercase=False),
    }
    if kind == "byte_bpe_space":
        tokenizer = tiny.byte_bpe()
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        return tokenizer
    return made.get(kind, lambda: getattr(tiny, kind)())()


TOKENIZERS = {kind: ByteTokenizer(build(kind)) for kind in EXACT + CHANGING}
