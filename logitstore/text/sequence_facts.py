"""Collect what a store says of one sequence: its text, each token, and the teacher's predictions.

The surprise of a token is -log p, in nats: 0 where the teacher was certain of it.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from logitstore.console.terminal import marked_spaces
from logitstore.format.spec import StoreSpec
from logitstore.models.loading import check_vocabulary
from logitstore.records import SequenceText, TokenRecords
from logitstore.text.strict_json import decode
from logitstore.text.token_bytes import written_bytes

Facts = dict[str, Any]

SHOWN_ENTRIES = 10
_FILE = "tokenizer.json"
#: The names of ids, by the digest of the file that has them: a page asks for every sequence, and a
#: vocabulary takes a second to read.
_names: dict[str | None, Sequence[str] | None] = {}
_MOST_NAMED = 2


class Sequences(Protocol):
    """The part of a `LogitStore` that this needs."""

    spec: StoreSpec

    @property
    def tokenizer_path(self) -> Path: ...
    def __getitem__(self, i: int, /) -> TokenRecords: ...
    def text(self, i: int, /) -> SequenceText: ...


def sequence_facts(store: Sequences, i: int) -> Facts:
    """Return the facts of sequence i that `logitstore show --json` prints."""
    line, records = store.text(i), store[i]
    text, names = line.supervised_bytes, token_names(store)
    stops = np.cumsum(records.entry_count).tolist()
    ends, tokens = frozenset(store.spec.eos_ids), []
    for t in range(len(records)):
        start = int(records.byte_starts[t]) - line.supervised_start
        piece = text[start : start + int(records.byte_lengths[t])]
        entries = range(stops[t] - int(records.entry_count[t]), stops[t])
        tokens.append(
            {
                "token_id": int(records.token_ids[t]),
                "text": piece.decode(errors="backslashreplace"),
                "byte_start": int(records.byte_starts[t]),
                "byte_length": int(records.byte_lengths[t]),
                "is_end": not records.byte_lengths[t] and int(records.token_ids[t]) in ends,
                "logprob": _known(records.token_logprob[t]),
                "entropy": _known(records.entropy[t]),
                "tail": _known(np.exp(records.tail_logmass[t])),
                "entries": [_entry(records, j, names) for j in entries],
            }
        )
    return {
        "sequence": i,
        "row": line.row,
        "part": line.part,
        "status": line.status,
        "segments": [s._asdict() for s in line.segments],
        "supervised_start": line.supervised_start,
        **_own(line.messages if "private" in store.spec.rendering else None),
        "tokens": tokens,
    }


def _own(messages: str | None) -> Facts:
    """Return what the student sees, where the teacher saw another prompt: messages, or texts."""
    if messages is None:
        return {}
    whole = decode(messages, "the row")
    whole = whole if isinstance(whole, dict) else {}
    texts = [segment[1] for segment in whole.get("segments", ())]
    return {"student_sees": whole.get("messages") or texts}


def _entry(records: TokenRecords, j: int, names: Sequence[str] | None) -> Facts:
    token_id = None if records.entry_ids is None else int(records.entry_ids[j])
    known = names is not None and token_id is not None and token_id < len(names)
    return {
        "id": token_id,
        "token": names[token_id] if known and names and token_id is not None else None,
        "p": float(np.exp(records.entry_logprobs[j])),
    }


def token_names(store: Sequences) -> Sequence[str] | None:
    """Return the text of each id, outer spaces marked; None without the tokenizers library.

    Raises:
        CorruptStoreError: The tokenizer is not the one that the store describes.
        StorageError: The object store, or the disk, fails.
    """
    wanted: dict[str, str] = store.spec.tokenizer["files"]
    digest = wanted.get(_FILE)
    if digest not in _names:
        path = store.tokenizer_path  # which holds its files to their digests
        while len(_names) >= _MOST_NAMED:
            del _names[next(iter(_names))]
        _names[digest] = _names_in(path / _FILE)
    return _names[digest]


def _names_in(path: Path) -> Sequence[str] | None:
    try:
        from tokenizers import Tokenizer

        check_vocabulary(path.parent)
        tokenizer = Tokenizer.from_file(str(path))
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values(), default=-1) + 1
        written = written_bytes(json.loads(tokenizer.to_str()), vocabulary, size)
    except Exception:  # the library raises the bare class; ids are shown instead of names
        return None
    return [marked_spaces((b or b"").decode(errors="backslashreplace")) for b in written]


def _known(value: float) -> float | None:
    """Replace NaN, which stands for what an import lacks, by None."""
    return None if math.isnan(value) else float(value)
