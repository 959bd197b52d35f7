"""Hold a store in memory, made from a tiny teacher's logits: what a student is trained on in tests.

It has what a captured store would have, computed in the plainest way: dense logits, one row at a
time, in float64. `rounded` records lose as much as a codec's would; `shifted` ones hold the
distribution of the next token, the mistake that training a teacher on its own records must reveal.

    from logitstore.records import Segment
    from logitstore.testing import tiny
    from logitstore.testing.fake_store import FakeStore

    tokenizer = tiny.byte_bpe()
    teacher = tiny.llama(len(tokenizer))
    rows = [(Segment(text, supervised=True),) for text in tiny.corpus()]
    store = FakeStore.from_teacher(teacher, tokenizer, rows, tmp_path / "tokenizer")

Shapes: n records, V tokens of the vocabulary, k entries.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

from logitstore.errors import MismatchError
from logitstore.records import Segment, SequenceText, TokenRecords
from logitstore.testing._extras import needed_by
from logitstore.text.tokenized_text import TokenizedText
from logitstore.text.tokenizer import ByteTokenizer

with needed_by(__name__, extra="train"):
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = tuple[Segment, ...]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class FakeSpec:
    """The part of `StoreSpec` that training reads."""

    vocab_size: int
    eos_ids: tuple[int, ...]
    tokenizer_fingerprint: str
    top_k: int = 8
    has_ids: bool = True
    temperatures: tuple[float, ...] = ()
    has_logit_std: bool = False
    draws: int = 0
    missing: tuple[str, ...] = ()
    teacher: dict[str, Any] = field(default_factory=lambda: {"fingerprint": "fake-teacher"})
    rendering: dict[str, Any] = field(default_factory=lambda: {"kind": "text"})
    boundaries_of: None = None
    hidden: None = None


@dataclass
class FakeFidelity:
    """How exact the records are: as those of a store that was rounded by nothing.

    Attributes:
        l1_max: The largest L1 distance of a record from the distribution that it was made from.
        tail_mean: The mean tail, for a student's card.
    """

    l1_max: float = 0.0
    tail_mean: float = 0.0


@dataclass
class FakeStore:
    """The part of `LogitStore` that training reads."""

    records: list[TokenRecords]
    texts: list[SequenceText]
    spec: FakeSpec
    tokenizer_path: Path
    fidelity: FakeFidelity = field(default_factory=FakeFidelity)
    digest: str = "fake-digest"
    path: Path = Path("fake-store")
    provenance: dict[str, Any] = field(default_factory=lambda: {"teacher": "tiny-teacher"})

    def __len__(self) -> int:
        return len(self.records)

    def read_many(self, indices: Iterable[int]) -> list[TokenRecords]:
        """Return the records of the given sequences."""
        return [self.records[i] for i in indices]

    def text(self, i: int) -> SequenceText:
        """Return the text of sequence `i`."""
        return self.texts[i]

    def boundaries_of(self, fingerprint: str, name: str) -> "FakeStore":
        """Reject what it has none of: records at the boundaries of a student."""
        raise MismatchError(f"{self.path}: has no records at the boundaries of {name}.")

    def lm_head(self) -> Any:
        """Reject what it has none of: the teacher's output embedding."""
        raise MismatchError(f"{self.path}: captured without --with-lm-head.")

    @property
    def statuses(self) -> dict[str, int]:
        """The number of sequences by status."""
        return dict(Counter(text.status for text in self.texts))

    def first_rows(self) -> dict[str, int]:
        """Return the first dataset row of every status."""
        return {text.status: text.row for text in reversed(self.texts)}

    @property
    def plan(self) -> SimpleNamespace:
        """How many rows there are."""
        return SimpleNamespace(rows=max((text.row for text in self.texts), default=-1) + 1)

    @property
    def sequence_rows(self) -> Ints:
        """The dataset row of each sequence."""
        return np.array([text.row for text in self.texts], np.int64)

    @property
    def token_counts(self) -> Ints:
        """The number of records of each sequence."""
        return np.array([len(r) for r in self.records], np.int64)

    @classmethod
    def from_teacher(
        cls,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        folder: Path,
        *,
        top_k: int = 8,
        has_ids: bool = True,
        rounded: bool = False,
        shifted: bool = False,
        temperatures: tuple[float, ...] = (),
        logit_std: bool = False,
        draws: int = 0,
    ) -> Self:
        """Keep what the teacher predicts for every supervised token of every row.

        Args:
            teacher: A causal model.
            tokenizer: The teacher's.
            rows: A sequence each.
            folder: Where to save the tokenizer, for the student to read.
            top_k: Entries of a record.
            has_ids: Whether entries have ids; without, they are values only.
            rounded: Whether to round log-probabilities as coarsely as a codec would.
            shifted: Whether each record has the distribution of the next token: a mistake.
            temperatures: Whose log-normalisers are kept too.
            logit_std: Whether the standard deviations of logits are kept too.
            draws: How many tokens to draw from beyond the entries; needs ids.
        """
        tokenizer.save_pretrained(folder)
        reader = ByteTokenizer(tokenizer)
        spec = FakeSpec(
            vocab_size=teacher.config.vocab_size,
            eos_ids=reader.eos_ids,
            tokenizer_fingerprint=reader.fingerprint,
            top_k=top_k,
            has_ids=has_ids,
            temperatures=temperatures,
            has_logit_std=logit_std,
            draws=draws,
        )
        store = cls([], [], spec, folder)
        for number, segments in enumerate(rows):
            tokens = reader.encode(segments)
            records, l1 = _no_records(), 0.0
            if tokens.has_record.any():
                logits = _logits(teacher, tokens.token_ids)
                records, l1 = _records(logits, tokens, spec, rounded, shifted)
                records = _with_optional(logits, tokens, records, spec)
            store.records.append(records)
            store.texts.append(SequenceText(number, 0, tokens.status, segments))
            store.fidelity.l1_max = max(store.fidelity.l1_max, l1)
        store.digest = f"fake-{hashlib.sha256(repr(rows).encode()).hexdigest()}"
        return store


def dense_logprobs(model: PreTrainedModel, token_ids: np.ndarray[Any, Any]) -> torch.Tensor:
    """Compute all log-probabilities of a sequence.

    Args:
        model: A causal model.
        token_ids: [T]

    Returns:
        [T, V] float64; row t is what predicts token t + 1.
    """
    return _logits(model, token_ids).double().log_softmax(-1)


def _logits(model: PreTrainedModel, token_ids: np.ndarray[Any, Any]) -> torch.Tensor:
    """[T, V] in the model's dtype."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.from_numpy(token_ids)[None]).logits[0]
    return logits


def _records(
    logits: torch.Tensor, tokens: TokenizedText, spec: FakeSpec, rounded: bool, shifted: bool
) -> tuple[TokenRecords, float]:
    """Return the records of a sequence without optional arrays, and their largest L1 distance."""
    places = np.flatnonzero(tokens.has_record)
    n = len(places)
    logprobs = logits.double().log_softmax(-1)[places - (0 if shifted else 1)]
    own = logprobs[np.arange(n), tokens.token_ids[places]].numpy()
    top, ids = logprobs.topk(min(spec.top_k, logprobs.shape[1]))
    tail = np.log(np.maximum(1 - top.exp().sum(-1).numpy(), 0) + 1e-300)
    kept = top.numpy()
    if rounded:
        kept, tail, own = _rounded(kept, tail, own)
    l1 = np.abs(np.exp(kept) - top.exp().numpy()).sum(1)
    l1 += np.abs(np.exp(tail) - (1 - top.exp().sum(-1).numpy()))
    return TokenRecords(
        token_ids=tokens.token_ids[places].astype(np.uint32),
        byte_starts=tokens.byte_starts[places],
        byte_lengths=tokens.byte_lengths[places],
        token_logprob=own.astype(np.float32),
        entry_count=np.full(n, kept.shape[1]),
        entry_ids=ids.numpy().astype(np.uint32).ravel() if spec.has_ids else None,
        entry_logprobs=kept.astype(np.float32).ravel(),
        tail_logmass=tail.astype(np.float32),
        entropy=-(logprobs.exp() * logprobs).sum(-1).numpy().astype(np.float32),
    ), float(l1.max())


def _rounded(*columns: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """Entries, tail and own log-probability as a codec rounds them; entries and tail sum to 1."""
    steps_per_nat = (64, 256, 512)
    kept, tail, own = (np.round(x * s) / s for x, s in zip(columns, steps_per_nat, strict=True))
    kept += np.log(-np.expm1(np.minimum(tail, -1e-9)) / np.exp(kept).sum(1))[:, None]
    return kept, tail, own


def _with_optional(
    logits: torch.Tensor, tokens: TokenizedText, records: TokenRecords, spec: FakeSpec
) -> TokenRecords:
    """Add the arrays that only some stores have."""
    logits = logits[np.flatnonzero(tokens.has_record) - 1].double()
    logprobs = logits.log_softmax(-1)
    if spec.temperatures:
        norms = torch.stack([(logprobs / t).logsumexp(-1) for t in spec.temperatures], 1)
        records = replace(records, lognorm=norms.numpy().astype(np.float32))
    if spec.has_logit_std:
        std = logits.std(-1)
        lognorm_std = (logprobs / (std + 1e-4)[:, None]).logsumexp(-1)
        records = replace(
            records,
            logit_std=std.numpy().astype(np.float32),
            lognorm_std=lognorm_std.numpy().astype(np.float32),
        )
    return _with_draws(logprobs.exp(), records, spec.draws) if spec.draws else records


def _with_draws(probs: torch.Tensor, records: TokenRecords, draws: int) -> TokenRecords:
    """Add draws from beyond the entries, the same ones every time: distinct ids, ascending."""
    assert records.entry_ids is not None
    heads = torch.from_numpy(records.entry_ids.reshape(len(records), -1).astype(np.int64))
    if heads.shape[1] == probs.shape[1]:  # nothing is left to draw from
        nothing = np.zeros(0, np.uint32)
        none = np.zeros(len(records), np.int64)
        return replace(
            records,
            sample_ids=nothing,
            sample_counts=nothing.astype(np.uint8),
            draw_count=none,
        )
    others, generator = probs.scatter(1, heads, 0), torch.Generator().manual_seed(len(records))
    picked = torch.multinomial(others, draws, replacement=True, generator=generator)
    counts = torch.zeros_like(probs).scatter_add(1, picked, torch.ones_like(picked).double())
    row, column = counts.nonzero(as_tuple=True)
    return replace(
        records,
        sample_ids=column.numpy().astype(np.uint32),
        sample_counts=counts[row, column].numpy().astype(np.uint8),
        draw_count=np.bincount(row.numpy(), minlength=len(records)),
    )


def _no_records() -> TokenRecords:
    ints, floats = np.zeros(0, np.int64), np.zeros(0, np.float32)
    ids = np.zeros(0, np.uint32)
    return TokenRecords(ids, ints, ints, floats, ints, ids, floats, floats, floats)
