"""Find what decoded records cannot be, whatever teacher they are of."""

from collections.abc import Iterator

import numpy as np

from logitstore.format.logprob_codec import NEG_INF_CODE
from logitstore.format.spec import StoreSpec
from logitstore.reading.shard import Shard
from logitstore.records import TokenRecords

_SUM_TOLERANCE = 1e-5  # of a float32 sum over thousands of entries


#: What is stored in every record of a field that an import's source does not have.
_UNKNOWN_CODES = {"entropy": 0, "tail_logmass": NEG_INF_CODE}


def known_unknowns(shard: Shard) -> Iterator[str]:
    """Yield the fields that a store says it lacks, and yet has values of.

    Raises:
        CorruptStoreError: Bytes of the shard are damaged.
    """
    step = int(shard.spec.codec["records_per_chunk"])
    for name, code in _UNKNOWN_CODES.items():
        if name in shard.spec.missing:
            starts = range(0, shard.size.records, step)
            stops = (min(start + step, shard.size.records) for start in starts)
            parts = (shard.array(name, *span) for span in zip(starts, stops, strict=True))
            if any((part != code).any() for part in parts):
                yield f"{name} holds values, but the store says that its source had none"


def nonsense(records: TokenRecords, spec: StoreSpec, begin: int, end: int) -> Iterator[str]:
    """Yield the reasons why decoded records cannot be right.

    Args:
        records: The records of one sequence.
        spec: The spec of the store.
        begin: The first byte of the sequence's supervised text, in that of the row.
        end: The byte after the last.
    """
    stops = records.byte_starts + records.byte_lengths
    if len(records) and (records.byte_starts.min() < begin or stops.max() > end):
        yield f"byte spans reach outside the text ({begin} to {end})"
    for name, ids in (
        ("token_ids", records.token_ids),
        ("entry_ids", records.entry_ids),
        ("sample_ids", records.sample_ids),
    ):
        if ids is not None and len(ids) and ids.max() >= spec.vocab_size:
            yield f"{name} holds {ids.max()}, the vocabulary has {spec.vocab_size}"
    if records.entry_count.max(initial=0) > spec.top_k:
        yield f"a record has {records.entry_count.max()} entries, at most {spec.top_k} were kept"
    padded = records.padded()
    if padded.ids is not None:
        ordered = np.sort(np.where(padded.mask, padded.ids, -1 - np.arange(padded.ids.shape[1])))
        if (np.diff(ordered, axis=1) == 0).any():
            yield "a record has an entry twice"
    logprobs = np.where(padded.mask, padded.logprobs.astype(np.float64), -np.inf)
    with np.errstate(invalid="ignore"):
        sorted_down = (np.diff(logprobs, axis=1) <= 0) | ~padded.mask[:, 1:]
    if not sorted_down.all() or (logprobs > 0).any():
        yield "entries are not sorted log-probabilities"
    elif padded.ids is not None:
        ties = (logprobs[:, 1:] == logprobs[:, :-1]) & padded.mask[:, 1:]
        if (ties & (padded.ids[:, 1:] < padded.ids[:, :-1])).any():
            yield "entries of the same log-probability are not in the order of their ids"
    for name in ("lognorm", "logit_std", "lognorm_std"):
        values = getattr(records, name)
        if values is not None and not np.isfinite(values).all():
            yield f"{name} holds a value that is not a number"
    total = np.exp(logprobs).sum(1) + np.exp(records.tail_logmass.astype(np.float64))
    if np.abs(total - 1).max(initial=0) > _SUM_TOLERANCE:
        yield "a record's entries and tail do not sum to 1"
