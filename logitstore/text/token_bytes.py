"""Find the bytes that each token of a vocabulary writes.

A vocabulary spells them in one of these ways, told apart by the parts that its `tokenizer.json`
names (only the normaliser, pre-tokenizer, model and decoder; a post-processor changes no text):

    ByteLevel      `Ġthe`       each character is one byte, in GPT-2's printable alphabet
    Metaspace      `▁the`       UTF-8, with a mark (also by Replace, as Gemma has it) for the space
    byte fallback  `<0xE2>`     one byte, beside any of the others
    WordPiece      `##ing`      UTF-8, with a prefix on what continues a word; without it, a token
                                begins one, and so writes the space before it: ` the`
    BPE of words   `the</w>`    UTF-8, with a suffix on what ends a word
"""

import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

#: Pre-tokenizers that cut a text into words, and leave out the white space between them.
_DROP_SPACES = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
#: Those that also cut a word at its punctuation.
_CUT_PUNCTUATION = {"BertPreTokenizer", "Whitespace", "Punctuation"}
_IDEOGRAPHS = ("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH")
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def written_bytes(
    content: Mapping[str, Any], vocabulary: Mapping[str, int], size: int
) -> list[bytes | None]:
    """Find the bytes of each id (a special token writes its name); None for an id without token.

    Args:
        content: A parsed `tokenizer.json`.
        vocabulary: Token -> id, with the added tokens.
        size: Ids are below it.

    Returns:
        `size` items, by id.
    """
    write = _writer(content)
    model: Any = content["model"]["vocab"]  # a list of (token, score) in Unigram, else a mapping
    known = set(model) if isinstance(model, dict) else {token for token, _ in model}
    special = {t["content"] for t in content["added_tokens"] if t["special"]}
    written: list[bytes | None] = [None] * size
    for token, i in vocabulary.items():
        # An added token that the model does not have is found in the text as it is spelt.
        spelt = token in special or token not in known
        written[i] = token.encode() if spelt else write(token)
    return written


def standins(content: Mapping[str, Any], vocabulary: Mapping[str, int], size: int) -> list[bool]:
    """Tell of each id whether the tokenizer only writes it where no other token has its bytes.

    For example `<0x2C>` beside `,`: byte fallback is for characters without a token. Also `, `
    where a space is written with a mark: text that has been normalised does not contain it.

    Args:
        content: A parsed `tokenizer.json`.
        vocabulary: Token -> id, with the added tokens.
        size: Ids are below it.
    """
    is_standin = [False] * size
    if "ByteLevel" in {part["type"] for part in _parts(content)}:
        return is_standin
    added = {t["content"] for t in content["added_tokens"]}
    has_bytes, has_marks = _has_bytes(content), bool(_space_marks(content))
    for token, i in vocabulary.items():
        if token not in added:
            is_standin[i] = bool(has_bytes and _BYTE_PIECE.fullmatch(token)) or (
                has_marks and " " in token
            )
    return is_standin


def _has_bytes(content: Mapping[str, Any]) -> bool:
    kinds = {part["type"] for part in _parts(content)}
    return bool(content["model"].get("byte_fallback") or "ByteFallback" in kinds)


def _writer(content: Mapping[str, Any]) -> Callable[[str], bytes]:
    """Return the function that turns a token of the model's vocabulary into its bytes."""
    kinds = {part["type"] for part in _parts(content)}
    if "ByteLevel" in kinds:
        return _from_byte_alphabet
    marks = _space_marks(content)
    has_bytes = _has_bytes(content)
    prefix = content["model"].get("continuing_subword_prefix") or ""
    suffix = content["model"].get("end_of_word_suffix") or ""
    drops_spaces = content["model"].get("type") == "WordPiece" and bool(kinds & _DROP_SPACES)

    def write(token: str) -> bytes:
        if has_bytes and (byte := _BYTE_PIECE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        text = token.removeprefix(prefix).removesuffix(suffix) or token
        begins_word = not token.startswith(prefix) or text == token
        if drops_spaces and begins_word and not _stands_alone(token, kinds):
            text = " " + text
        for mark in marks:
            text = text.replace(mark, " ")
        return text.encode()

    return write


def _stands_alone(token: str, kinds: set[str]) -> bool:
    """Tell whether a character is cut off from its neighbours, whether or not a space is there."""
    if len(token) != 1:
        return False
    is_punctuation = token in string.punctuation or unicodedata.category(token).startswith("P")
    is_ideograph = unicodedata.name(token, "").startswith(_IDEOGRAPHS)
    return (is_punctuation and bool(kinds & _CUT_PUNCTUATION)) or (
        is_ideograph and "BertNormalizer" in kinds
    )


def _parts(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        yield from _components(content.get(name))


def _components(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the parts of a pipeline, also those inside a Sequence."""
    if not isinstance(part, dict):
        return
    yield part
    for inner in ("normalizers", "pretokenizers", "decoders"):
        for component in part.get(inner, ()):
            yield from _components(component)


def _space_marks(content: Mapping[str, Any]) -> list[str]:
    """List what the vocabulary writes for a space, such as `▁`; empty for the space itself."""
    marks = {part["replacement"] for part in _parts(content) if part["type"] == "Metaspace"}
    for part in _components(content.get("normalizer")):
        if part["type"] == "Replace" and part["pattern"].get("String") == " ":
            marks.add(part["content"])
    for part in _components(content.get("decoder")):
        if part["type"] == "Replace" and part["content"] == " ":
            marks.add(part["pattern"].get("String"))
    return sorted(mark for mark in marks if mark and mark != " ")


def _byte_alphabet() -> dict[int, int]:
    """Map characters of GPT-2's alphabet to bytes, and other characters below U+0100 above it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    table = dict.fromkeys(others, 0xFFFF)
    table.update((0x100 + n, byte) for n, byte in enumerate(others))
    return table


_BYTE_OF = _byte_alphabet()


def _from_byte_alphabet(token: str) -> bytes:
    try:
        return token.translate(_BYTE_OF).encode("latin-1")
    except UnicodeEncodeError:  # not of this alphabet: an added token that the model lists too
        return token.encode()
