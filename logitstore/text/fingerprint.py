"""Tell tokenizers apart by all that decides how they turn text into tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Compute the SHA-256 of all that decides how a fast tokenizer turns text into tokens.

    That is its `tokenizer.json` (vocabulary, merges, normaliser, pre-tokenizer, post-processor,
    decoder, added tokens) written canonically, the roles of BOS, EOS and UNK, and whether special
    tokens in a text are recognised. Truncation and padding are settings of a single call, and the
    padding token is never in a text, so they do not count; nor does the folder it came from.
    """
    return fingerprint_of(json.loads(tokenizer.backend_tokenizer.to_str()), tokenizer)


def fingerprint_of(content: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """Compute it from what is in its `tokenizer.json`, which the caller has read already."""
    lasting = {k: v for k, v in content.items() if k not in ("truncation", "padding")}
    roles = {role: getattr(tokenizer, role) for role in ("bos_token", "eos_token", "unk_token")}
    split_special = bool(tokenizer.backend_tokenizer.encode_special_tokens)
    whole = [lasting, {k: None if v is None else str(v) for k, v in roles.items()}, split_special]
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
