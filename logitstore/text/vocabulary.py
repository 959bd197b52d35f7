"""Tell whether two tokenizers give equal tokens equal ids, whatever roles these tokens have.

A base model and its fine-tunes mostly have one vocabulary, and yet not one `tokenizer.json` and
configuration: another token is EOS, BOS is put in front or not, and a few tokens were added behind
the last. None of that changes what an id means. So two vocabularies are one if

    all that turns text into the ids of a model is the same (normaliser, pre-tokenizer, vocabulary,
    merges, decoder, and whether special tokens in a text are recognised)
    no id is two different added tokens, and no added token has two ids

Tokens that only one of the two has are allowed: :meth:`Vocabulary.beyond` lists them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

#: What the roles of tokens decide, or a single call, or what is compared token by token.
_LEFT_OUT = ("version", "truncation", "padding", "post_processor", "added_tokens")
#: What of an added token decides where it is found in a text.
_FOUND_BY = ("content", "single_word", "lstrip", "rstrip", "normalized")


class Added(NamedTuple):
    """A token that is found in a text before the model sees it.

    Attributes:
        content: How it is spelt.
        found_by: What decides where it is found, canonically.
        is_of_model: Whether the model's own vocabulary has it too, with the same id.
    """

    content: str
    found_by: str
    is_of_model: bool


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What ids mean to a tokenizer, and how it turns text into ids.

    Attributes:
        fingerprint: SHA-256 of all but the added tokens, in hex.
        added: The added tokens by id.
    """

    fingerprint: str
    added: Mapping[int, Added]

    @classmethod
    def of(cls, content: Mapping[str, Any], splits_special: bool) -> Self:
        """Describe a parsed `tokenizer.json`.

        Args:
            content: The file.
            splits_special: Whether special tokens in a text are read as any other text.
        """
        lasting = {key: value for key, value in content.items() if key not in _LEFT_OUT}
        model: Any = content["model"]["vocab"]  # (token, score) by id in Unigram, else a mapping
        ids = model if isinstance(model, dict) else {token: i for i, (token, _) in enumerate(model)}
        # A role may make a token special, which matters only where special tokens are split.
        known_by = [*_FOUND_BY, "special"] if splits_special else _FOUND_BY
        return cls(
            hashlib.sha256(_canonical([lasting, splits_special]).encode()).hexdigest(),
            {
                token["id"]: Added(
                    token["content"],
                    _canonical([token[key] for key in known_by]),
                    ids.get(token["content"]) == token["id"],
                )
                for token in content["added_tokens"]
            },
        )

    def is_one_with(self, other: "Vocabulary") -> bool:
        """Tell whether equal tokens have equal ids in both."""
        if self.fingerprint != other.fingerprint:
            return False
        both = self.added.keys() & other.added.keys()
        if any(self.added[i].found_by != other.added[i].found_by for i in both):
            return False
        theirs = {token.content: i for i, token in other.added.items()}
        return all(theirs.get(token.content, i) == i for i, token in self.added.items())

    def beyond(self, other: "Vocabulary") -> list[int]:
        """List the ids of tokens that the other, which is one with it, does not have."""
        return sorted(
            i for i, token in self.added.items() if i not in other.added and not token.is_of_model
        )


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
