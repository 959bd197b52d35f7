"""Read tokenizers as programs that write bytes: the bytes of each token, and where they lie.

Teacher and student are compared by bytes, so everything here counts in the UTF-8 bytes of a row's
supervised text. A token finds its place in one of two ways:

1. The bytes of all tokens, one after the other, are the text (less one space that some tokenizers
   put in front). Then places are sums of lengths; offsets are not used.
2. Otherwise a normaliser has changed the text, and the tokenizer's own offsets decide, which count
   in characters of the original: :mod:`logitstore.text.token_spans`.

Spans are monotone and never overlap. Text that no token writes is a hole between two spans.

Shape legend: T = tokens of a sequence, V = ids.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import I64
from logitstore.models.loading import load_tokenizer
from logitstore.records import Segment
from logitstore.text.ends import named_ends, turn_ends, turn_events
from logitstore.text.fingerprint import fingerprint_of
from logitstore.text.supervised_bytes import SupervisedBytes
from logitstore.text.token_bytes import standins, written_bytes
from logitstore.text.token_spans import Spelling, spans_from_offsets, spelling
from logitstore.text.tokenized_text import TokenizedText, Tokens, nothing, without_records, wrapped
from logitstore.text.utf8 import utf8
from logitstore.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


class ByteTokenizer:
    """A fast `transformers` tokenizer that knows the bytes of its tokens. Can be pickled.

    It works on a copy: later changes to the tokenizer (truncation, padding, added tokens) have no
    effect on it.

    Attributes:
        fingerprint: SHA-256 of what decides how text becomes tokens; see :func:`fingerprint`.
        size: Every id is below it.
        eos_ids: The tokenizer's EOS, then the other tokens that end a turn or a text: see
            :mod:`logitstore.text.ends`.
        eos_token_id: The id that :meth:`encode` appends, or None.
        bos_token_id: The id that begins a text, or None; whether it is put there is `prefix`.
        unk_token_id: The id that stands for what has no token, or None.
        prefix: The ids that it puts in front of every text: BOS, or nothing.
        pad_id: The padding token, else EOS, else 0. Padding is masked anyway.
        adds_space: Whether it writes a space in front of a text that has none.
        adds_space_after_special: Whether it does so after a special token too.
        joins_spaces: Whether it writes any white space between words as one space (T5, WordPiece),
            or as none.
        marks_spaces: Whether it writes a space for white space before whatever word.
        token_bytes: V items: the bytes that a token writes; None for special tokens and for ids
            without a token.
        is_text: (V,) False where `token_bytes` has None.
        is_standin: (V,) True for a token that it writes only where no other has the same bytes,
            such as `<0x2C>`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read everything from `tokenizer` once (a second or two for 150,000 tokens).

        Raises:
            InputError: It is not a fast tokenizer.
        """
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise InputError(_not_fast(tokenizer))
        as_json = backend.to_str()
        content = json.loads(as_json)
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        special = {t["id"] for t in content["added_tokens"] if t["special"]}
        special.update(tokenizer.all_special_ids)

        self.name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        self.fingerprint = fingerprint_of(content, tokenizer)
        self.size = max(vocabulary.values(), default=-1) + 1
        self.eos_token_id: int | None = tokenizer.eos_token_id
        self.bos_token_id: int | None = tokenizer.bos_token_id
        self.unk_token_id: int | None = tokenizer.unk_token_id
        self.eos_ids = named_ends(self.eos_token_id, vocabulary, special)
        self.pad_id = _first_known(tokenizer.pad_token_id, self.eos_token_id, 0)

        written = written_bytes(content, vocabulary, self.size)
        self.token_bytes = [None if i in special else text for i, text in enumerate(written)]
        self.is_text = np.array([text is not None for text in self.token_bytes], np.bool_)
        self.is_standin = np.array(standins(content, vocabulary, self.size), np.bool_)
        self._written = [text or b"" for text in written]
        self._lengths = np.fromiter(map(len, self._written), np.int64, self.size)
        self._backend = Tokenizer.from_str(as_json)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.post_processor = None  # it adds BOS, and trims the spaces off some offsets
        self._backend.encode_special_tokens = backend.encode_special_tokens
        self.prefix = _prefix_ids(self._backend, backend.post_processor)
        self._special = {token: i for token, i in vocabulary.items() if i in special}
        added = special | {t["id"] for t in content["added_tokens"]}
        self._marks = frozenset(i for i in added if self._written[i].strip())
        self.adds_space = self.rewritten("a") == b" a"
        mark = min(self._special, key=len, default="")
        self.adds_space_after_special = self.rewritten(f"{mark}a") == f"{mark} a".encode()
        self.marks_spaces = self.rewritten("a ,").removeprefix(b" ").startswith(b"a ")
        self.joins_spaces = self.rewritten("a \n a").removeprefix(b" ") in (b"a a", b"aa")

    @property
    def bos_token(self) -> str | None:
        """The spelling of the token that begins a text."""
        return self.spelt(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        """The spelling of the token that ends a text."""
        return self.spelt(self.eos_token_id)

    def is_special(self, text: str) -> bool:
        """Tell whether `text` is the name of a special token."""
        return text in self._special

    def with_ends(self, ids: Iterable[int]) -> Self:
        """Return the same tokenizer, for which these ids end a turn, too.

        Ids of ordinary text are left out: they say the same wherever they stand.
        """
        marks = [int(i) for i in ids if i in self._marks]
        if set(marks) <= set(self.eos_ids):
            return self
        other = copy.copy(self)
        other.eos_ids = tuple(dict.fromkeys([*self.eos_ids, *marks]))
        return other

    def named(self, name: str) -> Self:
        """Return the same tokenizer under another name in messages."""
        if name == self.name:
            return self
        other = copy.copy(self)
        other.name = name
        return other

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What its ids mean, and how text becomes ids, whatever roles some of them have."""
        backend = self._backend
        return Vocabulary.of(json.loads(backend.to_str()), backend.encode_special_tokens)

    def is_one_with(self, other: ByteTokenizer) -> bool:
        """Tell whether both give equal tokens equal ids; roles, such as EOS, may differ.

        A base model and its fine-tune for chats have one tokenizer in this sense. The fingerprints
        tell more: whether one is exactly the other.
        """
        is_equal = self.fingerprint == other.fingerprint
        return is_equal or self.vocabulary.is_one_with(other.vocabulary)

    def first_mark(self, text: str) -> int | None:
        """Find the special or added token that a text begins with; None if it begins otherwise."""
        for i in self._backend.encode(text.lstrip(), add_special_tokens=False).ids:
            if i in self._marks:
                return int(i)
            if self._written[i].strip():
                return None
        return None

    def to_json(self) -> str:
        """Write the tokenizer as a `tokenizer.json`, without its post-processor."""
        return str(self._backend.to_str())

    def written(self, ids: I64) -> list[bytes]:
        """List the bytes that each token writes; a special token writes its name."""
        return [self._written[i] for i in ids.tolist()]

    def written_lengths(self, ids: I64) -> I64:
        """Count the bytes that each token writes."""
        return self._lengths[ids]

    def spelt(self, token_id: int | None) -> str | None:
        """Return the name of a special token; None for none."""
        return None if token_id is None else self._written[token_id].decode()

    def rewritten(self, text: str) -> bytes:
        """Encode a text, and return the bytes that its tokens write."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return b"".join(self._written[i] for i in ids)

    @property
    def prefix_length(self) -> int:
        """The number of tokens that it puts in front of every text: BOS or none, rarely more."""
        return len(self.prefix)

    @classmethod
    def from_folder(cls, path: str | Path) -> Self:
        """Load the tokenizer in a local folder; no hub is asked, no code from it is run.

        Raises:
            InputError: There is no such folder, or no tokenizer that can be read in it.
        """
        if not Path(path).is_dir():
            raise InputError(f"{path}: no such folder. Give a folder with a tokenizer.json in it.")
        advice = "Save one with AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)."
        return cls(load_tokenizer(path, local_files_only=True, advice=advice))

    def encode(
        self,
        segments: Sequence[Segment],
        *,
        max_length: int | None = None,
        add_eos: bool = True,
        add_prefix: bool = True,
        end_id: int | None = None,
    ) -> TokenizedText:
        """Tokenise segments as one text, and find where its tokens lie.

        A token that crosses from context into supervised text is supervised, with only its
        supervised bytes as its span. A token that ends a turn, right behind supervised text or
        behind white space that follows it, is supervised too: an event without bytes.

        Args:
            segments: The text, in order. An empty supervised one is an empty turn.
            max_length: Most tokens of the result, with BOS and EOS; the rest is cut.
            add_eos: Whether EOS follows the text, if the tokenizer has one.
            add_prefix: Whether the tokenizer's own prefix (BOS) comes first. A chat template
                writes its own.
            end_id: The token that follows the text instead of EOS, if one does.

        Raises:
            InputError: The text cannot be written as UTF-8, or `max_length` is below 1.
        """
        if max_length is not None and max_length < 1:
            raise InputError(f"max_length {max_length}: no token fits. Give 1 or more.")
        written = "".join(segment.text for segment in segments)
        data = utf8(written, "text")
        if not data:
            return nothing("empty")
        encoding = self._backend.encode(written, add_special_tokens=False)
        id_list: list[int] = encoding.ids  # a new list each time
        ids = np.array(id_list, np.int64)
        found = self._spans(data, ids, id_list, encoding)
        prefix = self.prefix if add_prefix else self.prefix[:0]
        if found is None:
            whole = np.concatenate([prefix, ids])
            return without_records(whole, "spans_unknown").cut(max_length)
        spans, spelt = found
        supervised = SupervisedBytes(segments)
        starts, lengths, is_supervised = supervised.project(*spans)
        heads, tails = supervised.crossings(*spans, starts, lengths)
        eos_ids = np.array(self.eos_ids, np.int64)
        events, at = turn_events(data, ids, spans, lengths, eos_ids, turn_ends(segments))
        starts[events], lengths[events] = supervised.before_place(at), 0
        heads[events] = tails[events] = 0
        is_supervised[events] = True
        is_eos = np.zeros(len(ids), np.bool_)
        is_eos[events] = True
        text = Tokens(
            ids=ids,
            is_supervised=is_supervised,
            starts=starts,
            lengths=lengths,
            is_eos=is_eos,
            spans=spans,
            heads=heads,
            tails=tails,
            has_added_space=spelt.has_added_space & ~is_eos,
            is_verbatim=spelt.is_verbatim | is_eos,
        )
        end_id = self.eos_token_id if end_id is None else end_id
        ends = [end_id] if add_eos and end_id is not None else []
        return wrapped(text, prefix, supervised, ends).cut(max_length)

    def _spans(
        self, data: bytes, ids: I64, id_list: list[int], encoding: Any
    ) -> tuple[tuple[I64, I64], Spelling] | None:
        """Find each token's first byte in `data`, the byte after its last, and its spelling.

        Returns:
            None where that is not known.
        """
        pieces = [self._written[i] for i in id_list]
        written, lengths = b"".join(pieces), self._lengths[ids]
        extra = len(written) - len(data)
        if (extra == 0 and written == data) or (extra == 1 and written == b" " + data):
            ends = np.cumsum(lengths) - extra
            has_added_space = np.zeros(len(ids), np.bool_)
            has_added_space[:1] = extra == 1
            spelt = Spelling(np.ones(len(ids), np.bool_), has_added_space)
            return (np.maximum(ends - lengths, 0), ends), spelt
        flat = itertools.chain.from_iterable(encoding.offsets)
        offsets = np.fromiter(flat, np.int64, 2 * len(ids)).reshape(-1, 2)
        owns_space = self.is_text[ids] | (ids == self.unk_token_id)
        spans = spans_from_offsets(data, offsets, written, lengths, owns_space)
        return None if spans is None else (spans, spelling(data, *spans, written, lengths))


def _prefix_ids(backend: Tokenizer, post_processor: Any) -> I64:
    """Find the ids that the tokenizer puts in front of every text: BOS or none, rarely more."""
    if post_processor is None:
        return np.zeros(0, np.int64)
    # The post-processor alone, on a probe: padding on the left would look like a prefix.
    probe = post_processor.process(backend.encode("a", add_special_tokens=False), None, True)
    sequence = [i is not None for i in probe.sequence_ids]
    return np.array(probe.ids[: sequence.index(True)] if any(sequence) else [], np.int64)


def _first_known(*ids: int | None) -> int:
    return next(i for i in ids if i is not None)


def _not_fast(tokenizer: object) -> str:
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    return (
        f"{name}: {type(tokenizer).__name__} is not a fast tokenizer, and only those know where "
        "their tokens lie in a text. Give what AutoTokenizer.from_pretrained(MODEL) loads from a "
        "folder with a tokenizer.json."
    )
