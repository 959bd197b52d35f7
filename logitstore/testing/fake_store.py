"""A store in memory, made from a tiny teacher's logits: what the student side is tested on.

It holds what a captured store would hold, computed here in the plainest way: dense logits, one row
at a time, float64. `rounded` records lose as much as a codec's would; `shifted` ones have the error
that self-distillation must find.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from logitstore.records import Segment, SequenceText, TokenRecords
from logitstore.text.tokenizer import ByteTokenizer, TokenizedText

Row = tuple[Segment, ...]


@dataclass
class FakeStore:
    """The part of LogitStore's interface that training reads."""

    records: list[TokenRecords]
    texts: list[SequenceText]
    spec: SimpleNamespace
    tokenizer_path: Path
    fidelity: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(l1_max=0.0))
    digest: str = "fake-digest"
    path: Path = Path("fake-store")
    provenance: dict[str, Any] = field(default_factory=lambda: {"teacher": "tiny-teacher"})

    def __len__(self) -> int:
        return len(self.records)

    def read_many(self, indices: Iterable[int]) -> list[TokenRecords]:
        return [self.records[i] for i in indices]

    def text(self, i: int) -> SequenceText:
        return self.texts[i]

    @property
    def token_counts(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array([len(r) for r in self.records], np.int64)


def taught(
    model: PreTrainedModel,
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
) -> FakeStore:
    """What the teacher thinks of every row."""
    tokenizer.save_pretrained(folder)
    reader = ByteTokenizer(tokenizer)
    spec = SimpleNamespace(
        top_k=top_k,
        teacher={"fingerprint": "fake-teacher"},
        rendering={"kind": "text"},
        has_ids=has_ids,
        vocab_size=model.config.vocab_size,
        eos_ids=reader.eos_ids,
        tokenizer_fingerprint=reader.fingerprint,
        temperatures=temperatures,
        has_logit_std=logit_std,
        draws=draws,
        missing=(),
    )
    store = FakeStore([], [], spec, folder)
    for number, segments in enumerate(rows):
        tokens = reader.encode(segments)
        records, l1 = _records(model, tokens, top_k, has_ids, rounded, shifted)
        store.records.append(_with_optional(model, tokens, records, spec))
        store.texts.append(SequenceText(number, 0, tokens.status, segments))
        store.fidelity.l1_max = max(store.fidelity.l1_max, l1)
    return store


def dense(model: PreTrainedModel, token_ids: np.ndarray[Any, Any]) -> torch.Tensor:
    """(T, V) float64 log-probabilities; row t is what predicts token t + 1."""
    with torch.no_grad():
        logits = model(torch.from_numpy(token_ids)[None]).logits[0]
    return logits.double().log_softmax(-1)


def _records(
    model: PreTrainedModel,
    tokens: TokenizedText,
    top_k: int,
    has_ids: bool,
    rounded: bool,
    shifted: bool,
) -> tuple[TokenRecords, float]:
    places = np.flatnonzero(tokens.has_record)
    n = len(places)
    if n == 0:
        return _nothing(), 0.0
    logprobs = dense(model, tokens.token_ids)[places - (0 if shifted else 1)]
    own = logprobs[np.arange(n), tokens.token_ids[places]].numpy()
    top, ids = logprobs.topk(min(top_k, logprobs.shape[1]))
    tail = np.log(np.maximum(1 - top.exp().sum(-1).numpy(), 0) + 1e-300)
    kept = top.numpy()
    if rounded:
        kept, tail, own = (
            np.round(kept * 64) / 64,
            np.round(tail * 256) / 256,
            np.round(own * 512) / 512,
        )
        kept += np.log(-np.expm1(np.minimum(tail, -1e-9)) / np.exp(kept).sum(1))[:, None]
    l1 = np.abs(np.exp(kept) - top.exp().numpy()).sum(1)
    l1 += np.abs(np.exp(tail) - (1 - top.exp().sum(-1).numpy()))
    return TokenRecords(
        token_ids=tokens.token_ids[places].astype(np.uint32),
        byte_starts=tokens.byte_starts[places],
        byte_lengths=tokens.byte_lengths[places],
        token_logprob=own.astype(np.float32),
        entry_count=np.full(n, kept.shape[1]),
        entry_ids=ids.numpy().astype(np.uint32).ravel() if has_ids else None,
        entry_logprobs=kept.astype(np.float32).ravel(),
        tail_logmass=tail.astype(np.float32),
        entropy=-(logprobs.exp() * logprobs).sum(-1).numpy().astype(np.float32),
    ), float(l1.max())


def _with_optional(
    model: PreTrainedModel, tokens: TokenizedText, records: TokenRecords, spec: SimpleNamespace
) -> TokenRecords:
    """The arrays that only some stores have; draws are those of a seed, from beyond the entries."""
    places = np.flatnonzero(tokens.has_record)
    if not len(places):
        return records
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens.token_ids)[None]).logits[0, places - 1].double()
    logprobs, more = logits.log_softmax(-1), {}
    if spec.temperatures:
        norms = [(logprobs / t).logsumexp(-1) for t in spec.temperatures]
        more["lognorm"] = torch.stack(norms, 1).numpy().astype(np.float32)
    if spec.has_logit_std:
        std = logits.std(-1)
        lognorm_std = (logprobs / (std + 1e-4)[:, None]).logsumexp(-1)
        more["logit_std"] = std.numpy().astype(np.float32)
        more["lognorm_std"] = lognorm_std.numpy().astype(np.float32)
    if spec.draws:
        more |= _drawn(logprobs.exp(), records, spec.draws)
    return replace(records, **more)


def _drawn(probs: torch.Tensor, records: TokenRecords, draws: int) -> dict[str, Any]:
    """Distinct ids, ascending, how often each was drawn, and how many a record has."""
    assert records.entry_ids is not None
    heads = torch.from_numpy(records.entry_ids.reshape(len(records), -1).astype(np.int64))
    others, generator = probs.scatter(1, heads, 0), torch.Generator().manual_seed(len(records))
    if heads.shape[1] == probs.shape[1]:  # nothing is left to draw from
        empty = np.zeros(0, np.uint32)
        none = np.zeros(len(records), np.int64)
        return {"sample_ids": empty, "sample_counts": empty.astype(np.uint8), "draw_count": none}
    picked = torch.multinomial(others, draws, replacement=True, generator=generator)
    counts = torch.zeros_like(probs).scatter_add(1, picked, torch.ones_like(picked).double())
    row, column = counts.nonzero(as_tuple=True)
    return {
        "sample_ids": column.numpy().astype(np.uint32),
        "sample_counts": counts[row, column].numpy().astype(np.uint8),
        "draw_count": np.bincount(row.numpy(), minlength=len(records)),
    }


def _nothing() -> TokenRecords:
    ints, floats = np.zeros(0, np.int64), np.zeros(0, np.float32)
    ids = np.zeros(0, np.uint32)
    return TokenRecords(ids, ints, ints, floats, ints, ids, floats, floats, floats)
