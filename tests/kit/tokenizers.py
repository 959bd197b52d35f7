"""Tiny tokenizers that disagree in every way in which real ones do.

digits apart     numerals one digit a token, as Qwen; a space before them is a token
digits joined    up to three digits a token, white space cut as tiktoken does, line breaks joined
                 with the signs before them: as Llama 3, gpt-oss
gpt2             a space belongs to any word behind it, numerals too, and runs are cut otherwise
spaces apart     runs of spaces are tokens, and a word has one only if it is alone: as Gemma
dummy space      a space in front of each text, bytes for rare characters: as Llama 2
dummy always     one after a special token too, Unigram: as many SentencePiece models
bytes            no merges at all
nfc, nfkc        text is normalised first: as Qwen, as Claude
word cuts        white space is dropped, `▁` in front of each word: as T5
wordpiece        the same with `##` on what continues a word, and signs apart: as BERT
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from logitstore.testing import tiny

END = "<|endoftext|>"
_TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CODE = (
    "def area(width, height):\n    total = 0\n    for n in range(1, 1024):\n        total += n\n",
    "    if total > 100:\n        return {'sum': total, 'of': 365};\n\n\n\t# in 2024, 12.5 %\n",
    "class At:\n\n    x: int = 10\n    y: int = 10000\n\n    def move(self):\n        self.x += 1",
    "## 3. Results (2023)\n\n- **first**: 12,345 rows...\n- second: 678 rows!\n\n> a quote;  two\n",
    "ﬁve ofﬁces at 20 ℃: ½ of ² … Ａ Ｂ, ﷺ and e\u0301te\u0301",  # noqa: RUF001
)


def texts() -> list[str]:
    """Return what they learn from: words of many scripts, code, numerals and white space."""
    return [*tiny.corpus(), *_CODE]


def build(kind: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer of one of `KINDS`."""
    return KINDS[kind]()


def _byte_level(pattern: str | None, size: int, normalizer: Any = None) -> PreTrainedTokenizerFast:
    made: Any = PreTrainedTokenizerFast
    fresh: PreTrainedTokenizerFast = made(
        tokenizer_object=Tokenizer.from_str(_byte_level_json(pattern, size)), eos_token=END
    )
    if normalizer is not None:
        fresh.backend_tokenizer.normalizer = normalizer
    return fresh


@cache
def _byte_level_json(pattern: str | None, size: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        level = pre_tokenizers.Sequence([split, level])
    tokenizer.pre_tokenizer = level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer.to_str()


def _spaces_apart() -> PreTrainedTokenizerFast:
    """Learn runs of spaces, and words with one space; no dummy space in front."""
    tokenizer = tiny.sp_bpe(800)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def _dummy_always() -> PreTrainedTokenizerFast:
    tokenizer = tiny.unigram(400)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer


def _word_cuts() -> PreTrainedTokenizerFast:
    tokenizer = tiny.unigram(400, bos=False)
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return tokenizer


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "digits apart": lambda: _byte_level(_TIKTOKEN.replace("{1,3}", ""), 700),
    "digits joined": lambda: _byte_level(_TIKTOKEN, 900),
    "gpt2": lambda: _byte_level(None, 600),
    "spaces apart": _spaces_apart,
    "dummy space": lambda: tiny.sp_bpe(600),
    "dummy always": _dummy_always,
    "bytes": lambda: _byte_level(None, 257),
    "nfc": lambda: _byte_level(_TIKTOKEN, 500, normalizers.NFC()),
    "nfkc": lambda: _byte_level(None, 800, normalizers.NFKC()),
    "word cuts": _word_cuts,
    "wordpiece": lambda: tiny.wordpiece(600, lowercase=False),
}
