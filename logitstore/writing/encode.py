"""Encode what a teacher pass computed as a shard stores it.

Shape legend: n = records, K = entries asked for, T = extra temperatures, D = distinct draws.
"""

from dataclasses import dataclass

import numpy as np

from logitstore.errors import InputError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.fields import FIELDS, RECORDS
from logitstore.format.logprob_codec import encode_entries
from logitstore.format.numpy_types import Array
from logitstore.format.spec import StoreSpec

_ONE_TOLERANCE = 1e-3  # what float32 sums over 262,144 tokens stay well within
_MAX_U8 = 0xFF
_MAX_U16 = 0xFFFF
_MAX_U32 = 0xFFFF_FFFF


@dataclass(frozen=True)
class RawRecords:
    """Records as the teacher pass computes them: exact float32 log-probabilities in nats.

    Attributes:
        token_ids: (n,)
        byte_starts: (n,) bytes of the row's supervised text before the token.
        byte_lengths: (n,)
        token_logprob: (n,)
        entry_logprobs: (n, K) most probable first; slots from `entry_count` on are ignored.
        entry_ids: (n, K), or None.
        entry_count: (n,)
        tail_logmass: (n,)
        entropy: (n,)
        lognorm: (n, T), or None.
        logit_std: (n,), or None.
        lognorm_std: (n,), or None.
        sample_ids: (n, D) distinct draws, ascending, or None.
        sample_counts: (n, D) how often each was drawn, or None.
        draw_count: (n,) distinct draws of each record, or None.
    """

    token_ids: Array
    byte_starts: Array
    byte_lengths: Array
    token_logprob: Array
    entry_logprobs: Array
    entry_count: Array
    tail_logmass: Array
    entropy: Array
    entry_ids: Array | None = None
    lognorm: Array | None = None
    logit_std: Array | None = None
    lognorm_std: Array | None = None
    sample_ids: Array | None = None
    sample_counts: Array | None = None
    draw_count: Array | None = None


def encode_records(raw: RawRecords, spec: StoreSpec) -> EncodedRecords:
    """Quantise and flatten records.

    Raises:
        InputError: An id, position or length that the format cannot hold, or a token that the
            teacher gives a log-probability that is not a number.
    """
    _check(raw, spec)
    entries = encode_entries(
        np.asarray(raw.entry_logprobs, np.float32),
        None if raw.entry_ids is None else np.asarray(raw.entry_ids).astype(np.uint32),
        np.asarray(raw.entry_count, np.int64),
        np.asarray(raw.tail_logmass, np.float32),
    )
    fields: dict[str, Array] = {
        "entry_count": entries.count,
        "entry_logprobs": entries.deltas,
        "tail_logmass": entries.tail_codes,
    }
    if entries.ids is not None:
        fields["entry_ids"] = entries.ids
    fields |= _draws(raw, spec)
    for field in FIELDS:  # the others are encoded each by itself
        values = getattr(raw, field.name)
        if field.axis == RECORDS and field.name not in fields and values is not None:
            fields[field.name] = field.encode(values)
    return EncodedRecords(fields, entries.kl, entries.l1, entries.dropped)


def _draws(raw: RawRecords, spec: StoreSpec) -> dict[str, Array]:
    """Encode the draws of each record, flat; nothing where there are none to keep."""
    if raw.draw_count is None or raw.sample_ids is None or raw.sample_counts is None:
        if any(part is not None for part in (raw.draw_count, raw.sample_ids, raw.sample_counts)):
            raise InputError("draws are sample_ids, sample_counts and draw_count: give all three.")
        return {}
    drawn = np.arange(raw.sample_ids.shape[1]) < raw.draw_count[:, None]
    times = np.where(drawn, raw.sample_counts, 0).astype(np.int64)
    if (times[drawn] < 1).any():
        raise InputError("sample_counts holds a count below 1. Leave out what was not drawn.")
    slots = -(-times // _MAX_U8)  # a count beyond a byte is divided among several draws of one id
    draw_count = slots.sum(1)
    if int(draw_count.max(initial=0)) > spec.draws:
        raise InputError(
            f"a record has {draw_count.max()} distinct draws, the spec allows {spec.draws}."
        )
    ids = np.asarray(raw.sample_ids).astype(np.uint32)
    return {
        "draw_count": draw_count.astype(np.uint16),
        "sample_ids": np.repeat(ids.ravel(), slots.ravel()),
        "sample_counts": _counts(times[drawn], slots[drawn]),
    }


def _counts(times: Array, slots: Array) -> Array:
    """Divide how often each id was drawn among its slots, full ones first, none above 255."""
    counts = np.full(int(slots.sum()), _MAX_U8, np.uint8)
    counts[np.cumsum(slots) - 1] = times - _MAX_U8 * (slots - 1)
    return counts


def _check(raw: RawRecords, spec: StoreSpec) -> None:
    limits = (
        ("byte_starts", raw.byte_starts, _MAX_U32),
        ("byte_lengths", raw.byte_lengths, _MAX_U16),
        ("token_ids", raw.token_ids, spec.vocab_size - 1),
    )
    for name, values, limit in limits:
        if len(values) and not 0 <= int(np.min(values)) <= int(np.max(values)) <= limit:
            raise InputError(
                f"{name} reaches from {np.min(values)} to {np.max(values)}, but the store holds "
                f"0 to {limit}. Check that the tokenizer belongs to this teacher, and split rows "
                "of more than 4 GiB of text."
            )
    for name in ("token_logprob", "tail_logmass", "entropy"):
        if np.isnan(getattr(raw, name)).any():
            raise InputError(f"{name} holds a value that is not a number. Check the teacher.")
    kept = np.arange(raw.entry_logprobs.shape[1]) < np.asarray(raw.entry_count)[:, None]
    head = np.where(kept, np.exp(raw.entry_logprobs, dtype=np.float64), 0.0).sum(1)
    total = head + np.exp(np.asarray(raw.tail_logmass, np.float64))
    if not (np.abs(total - 1) <= _ONE_TOLERANCE).all():
        worst = int(np.argmax(np.abs(total - 1)))
        raise InputError(
            f"record {worst}: its entries and tail add up to {total[worst]:.6f}, expected 1: "
            "probabilities over the full vocabulary, never renormalised, and the tail beyond them."
        )
