"""Make tiny tokenizers, models and texts in milliseconds, without a download.

    tokenizer = tiny.byte_bpe()
    teacher = tiny.llama(len(tokenizer))
    tiny.save(tmp_path / "teacher", teacher, tokenizer)

The same arguments give the same bytes in every process, whatever the hash seed or the number of
threads. The trainers of `tokenizers` do not hold that by themselves: they keep words and characters
in hash maps with a fresh random state in each process.

* Unigram sums float expectations in that order (other last bits, other ties) and hands characters
  that EM has dropped their scores in it. So the pieces are found as the demo finds its own
  (`logitstore.testing.unigram`), from integer counts that no order can change.
* BPE is exact but for `limit_alphabet`, which cuts ties between equally rare characters at random:
  rare characters are taken out of the text instead.
* WordPiece numbers its `##x` characters in that order, and breaks ties by number: they are handed
  to it as special tokens, sorted, and lose that role again after training.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitstore.testing._extras import needed_by
from logitstore.testing.unigram import unigram_pieces

with needed_by(__name__, extra="train"):
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

_SUBJECTS = (
    "the teacher", "a small student", "the old river", "my sister", "every token", "a quiet store",
)  # fmt: skip
_VERBS = ("reads", "writes", "counts", "remembers", "forgets", "measures")
_OBJECTS = (
    "the long page twice.", "what it has seen before", "12 of 345 bytes, then stops!", "nothing",
    "a letter to the sea\nand another one", "the sum of the parts",
)  # fmt: skip
_WORLD = (
    "Größe und Maß: über den Flüssen wird es kühl, sagt der Bär.",
    "L'été dernier, où étiez-vous ? À Montréal, peut-être.",
    "Привет, мир! Учитель читает, ученик пишет.",
    "学生は先生の本を読みます。東京は今日も雨です。",
    "今天天气很好，我们去看书。老师写，学生读。",  # noqa: RUF001
    "안녕하세요, 선생님. 학생이 책을 읽습니다.",
    "مرحبا بالعالم، المعلم يقرأ والطالب يكتب.",
    "नमस्ते दुनिया, शिक्षक पढ़ता है।",
    "emoji: 🙂🙃 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷, then text 🙂",
    "combining: e\u0301 a\u0308 o\u0302\u0323 against é ä ộ",
    "x = [i ** 2 for i in range(10)]\n\tif x:\n\t\treturn  x\n",
    "  two  spaces, a tab\there, and a line\r\nbreak  ",
)


def corpus() -> list[str]:
    """Return 48 short texts: English, other scripts, emoji, combining marks, code, white space."""
    english = [
        f"{subject} {verb} {thing}".capitalize()
        for i, subject in enumerate(_SUBJECTS)
        for verb, thing in zip(_VERBS, _OBJECTS[i:] + _OBJECTS[:i], strict=True)
    ]
    return [*english, *_WORLD]


def byte_bpe(vocab_size: int = 300, bos: bool = False) -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer, as GPT-2 and Llama 3 have it.

    Args:
        vocab_size: Everything, at least 258: the bytes, `<|endoftext|>` and `<|begin|>`.
        bos: Whether every sequence begins with `<|begin|>`.
    """
    return _fresh(_byte_bpe_json(vocab_size, bos), bos="<|begin|>" if bos else None)


def unigram(vocab_size: int = 200, bos: bool = True) -> PreTrainedTokenizerFast:
    """Make a Unigram tokenizer with byte fallback behind a Metaspace, as SentencePiece does.

    Args:
        vocab_size: Learned pieces. `<unk>`, `<s>`, `</s>` and 256 bytes come on top.
        bos: Whether every sequence begins with `<s>`.
    """
    return _fresh(_unigram_json(vocab_size, bos), bos="<s>", eos="</s>", unk="<unk>")


def sp_bpe(vocab_size: int = 600, bos: bool = True) -> PreTrainedTokenizerFast:
    """Make a BPE tokenizer with byte fallback that writes spaces as `▁`, as Llama 2 and Gemma.

    Args:
        vocab_size: Everything: the bytes and three special tokens take 259.
        bos: Whether every sequence begins with `<s>`.
    """
    return _fresh(_sp_bpe_json(vocab_size, bos), bos="<s>", eos="</s>", unk="<unk>")


def wordpiece(vocab_size: int = 400, lowercase: bool = True) -> PreTrainedTokenizerFast:
    """Make a WordPiece tokenizer, as BERT has it: `[CLS] … [SEP]` around the text, no white space.

    Args:
        vocab_size: Everything, with the five special tokens.
        lowercase: Whether the normaliser lower-cases and strips accents.
    """
    return _fresh(
        _wordpiece_json(vocab_size, lowercase), eos="[SEP]", unk="[UNK]", pad="[PAD]", cls="[CLS]"
    )


def llama(vocab_size: int, seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """Make a Llama of width 32 with 2 layers, in float32 and evaluation mode.

    The weights are ten times as large as usual, so that its distributions are far from uniform and
    differ from position to position: an untrained model hides errors of place.

    Args:
        vocab_size: Rows of the embeddings.
        seed: Of the random weights. The global generator is left as it was.
        **overrides: Any other field of `LlamaConfig`.
    """
    with needed_by(__name__, extra="train"):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **(settings | overrides)))
    model.train(mode=False)
    return model


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Save what `AutoModelForCausalLM` and `AutoTokenizer` load; return `folder`."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _fresh(serialised: str, **roles: str | None) -> PreTrainedTokenizerFast:
    """Make a new object every time (tokenizers are mutable), from what was trained once."""
    names = {f"{role}_token": token for role, token in roles.items() if token is not None}
    names.setdefault("eos_token", "<|endoftext|>")
    make: Any = PreTrainedTokenizerFast  # its signature has no types
    fresh: PreTrainedTokenizerFast = make(tokenizer_object=Tokenizer.from_str(serialised), **names)
    return fresh


@cache
def _byte_bpe_json(vocab_size: int, bos: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|begin|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = _prefix("<|begin|>", 1) if bos else processors.ByteLevel()
    return tokenizer.to_str()


@cache
def _unigram_json(vocab_size: int, bos: bool) -> str:
    metaspace = pre_tokenizers.Metaspace()
    words = Counter(word for text in corpus() for word, _ in metaspace.pre_tokenize_str(text))
    special = [(token, 0.0) for token in ("<unk>", "<s>", "</s>")]
    pieces = [*special, *_byte_pieces(), *unigram_pieces(words, vocab_size)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = metaspace
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([token for token, _ in special])
    if bos:
        tokenizer.post_processor = _prefix("<s>", 1)
    return tokenizer.to_str()


@cache
def _sp_bpe_json(vocab_size: int, bos: bool) -> str:
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # while it learns: no piece spans words
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special + [token for token, _ in _byte_pieces()],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without_rare_characters(corpus()), trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    if bos:
        tokenizer.post_processor = _prefix("<s>", 1)
    return _with_special_only(tokenizer, special)


@cache
def _wordpiece_json(vocab_size: int, lowercase: bool) -> str:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    characters = sorted({c for text in corpus() for c in tokenizer.normalizer.normalize_str(text)})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=special + [f"##{c}" for c in characters if not c.isspace()],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return _with_special_only(tokenizer, special)


def _prefix(token: str, token_id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, token_id)])


def _byte_pieces() -> list[tuple[str, float]]:
    """`<0x00>` … `<0xFF>`; a fallback is never part of a segmentation, so its score is idle."""
    return [(f"<0x{byte:02X}>", -100.0) for byte in range(256)]


def _with_special_only(tokenizer: Tokenizer, special: list[str]) -> str:
    """Serialise with only `special` as added tokens: others are pieces, not matched in text."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in special]
    return json.dumps(content)


def _without_rare_characters(texts: list[str]) -> list[str]:
    """Remove characters that occur once from the texts: those are left to byte fallback."""
    counts = Counter(c for text in texts for c in text)
    return ["".join(c for c in text if counts[c] > 1) for text in texts]
