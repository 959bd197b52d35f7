"""Cut a real BPE tokenizer down to the tokens that given texts use.

A vocabulary of 128,000 tokens would be nearly all of a student of two million weights. Cut down, it
still cuts these texts as the whole one does, which is what an experiment on them needs:

* Kept are the tokens that the texts use, what merging makes on the way to them, the tokens of
  single bytes, and the special tokens with a role.
* BPE takes, of the merges that are possible, the first; and it takes nothing apart again. So all
  that it does in these texts ends in a token that they use, and within one token it does what it
  does with that token alone. All of those merges are left, and each is still the first possible.

Pre-tokenizer, normalizer, decoder and the tokens around a text stay as they are; ids are new, in
the order of the old ones.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

#: The roles whose tokens are kept although no text uses them.
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
Json = dict[str, Any]


class TrimError(Exception):
    """A tokenizer that cannot be trimmed, or cuts some text in another way once it is."""


def trimmed(folder: Path, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer with the tokens that `texts` use.

    Args:
        folder: Of the whole tokenizer, a BPE.
        texts: What it must cut as before.

    Raises:
        TrimError: It is no BPE, or a text is cut in another way.
    """
    whole = AutoTokenizer.from_pretrained(folder)
    content = json.loads(whole.backend_tokenizer.to_str())
    if content["model"]["type"] != "BPE":
        raise TrimError(f"{folder}: a {content['model']['type']}, expected a BPE.")
    roles = {role: str(token) for role in ROLES if (token := getattr(whole, role)) is not None}
    pieces = cuts(whole.backend_tokenizer, texts)
    kept = _closed(content["model"], {piece for cut in pieces for piece in cut})
    kept |= set(roles.values()) | _around(content["post_processor"])
    small = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(json.dumps(_cut_down(content, kept))), **roles
    )
    for text, old, new in zip(texts, pieces, cuts(small.backend_tokenizer, texts), strict=True):
        if old != new:
            raise TrimError(f"{folder}: trimmed, it cuts {text[:60]!r} in another way.")
    return small


def cuts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[str]]:
    """Return the tokens of each text, as their strings, without those around it."""
    return [each.tokens for each in tokenizer.encode_batch(texts, add_special_tokens=False)]


def _closed(model: Json, used: set[str]) -> set[str]:
    """Add the tokens of single bytes, and what merging makes on the way to a used token."""
    ranks = {_pair(merge): rank for rank, merge in enumerate(model["merges"])}
    alone = {token for token in model["vocab"] if len(token) == 1 and ord(token) < 0x180}
    alone |= {f"<0x{byte:02X}>" for byte in range(256)}
    made = {part for token in used for part in _steps(token, ranks)}
    return {token for token in used | alone | made if token in model["vocab"] or token in used}


def _steps(token: str, ranks: dict[tuple[str, str], int]) -> Iterator[str]:
    """Yield the characters of a token, and everything that is merged until it is whole."""
    parts = list(token)
    yield from parts
    never = len(ranks)
    while len(parts) > 1:
        rank, at = min((ranks.get(pair, never), i) for i, pair in enumerate(pairwise(parts)))
        if rank == never:
            return
        parts[at : at + 2] = ["".join(parts[at : at + 2])]
        yield parts[at]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _around(post_processor: Json | None) -> set[str]:
    """List the tokens that are put around a text."""
    return {
        token
        for each in _processors(post_processor)
        for special in each.get("special_tokens", {}).values()
        for token in special["tokens"]
    }


def _processors(post_processor: Json | None) -> list[Json]:
    if post_processor is None:
        return []
    return [post_processor, *post_processor.get("processors", ())]


def _cut_down(content: Json, kept: set[str]) -> Json:
    """Leave the kept tokens alone in a tokenizer's file, with new ids."""
    model, added = content["model"], content["added_tokens"]
    old = {**model["vocab"], **{each["content"]: each["id"] for each in added}}
    new = {token: i for i, token in enumerate(sorted(kept & old.keys(), key=old.__getitem__))}
    model["vocab"] = _renumbered(model["vocab"], new)
    model["merges"] = [
        pair
        for pair in map(_pair, model["merges"])
        if {*pair, "".join(pair)} <= model["vocab"].keys()
    ]
    content["added_tokens"] = [
        {**each, "id": new[each["content"]]} for each in added if each["content"] in new
    ]
    for each in _processors(content["post_processor"]):
        for special in each.get("special_tokens", {}).values():
            special["ids"] = [new[token] for token in special["tokens"]]
    return content


def _renumbered(tokens: Iterable[str], new: dict[str, int]) -> dict[str, int]:
    return {token: new[token] for token in tokens if token in new}
