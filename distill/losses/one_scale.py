"""A teacher's distributions with its logits at one scale, z / (sigma + 1e-4).

A store with `--logit-std` has sigma of each record, and the log-normaliser at it.

Shape legend: n = records, M = entries of all records.
"""

import numpy as np
import numpy.typing as npt

from logitstore.records import STD_FLOOR as STD_FLOOR
from logitstore.records import TokenRecords


def entries_at_one_scale(records: TokenRecords) -> npt.NDArray[np.float64]:
    """Compute (M,) log Q of every entry, over the full vocabulary; their order stays."""
    assert records.logit_std is not None
    assert records.lognorm_std is not None
    owner = np.repeat(np.arange(len(records)), records.entry_count)
    scale = records.logit_std.astype(np.float64) + STD_FLOOR
    scaled: npt.NDArray[np.float64] = (
        records.entry_logprobs / scale[owner] - records.lognorm_std[owner]
    )
    return scaled


def at_columns(records: TokenRecords, columns: int) -> npt.NDArray[np.float32]:
    """Compute (n, columns) log Q at the ids with most of Q over the sequence; -inf if no entry."""
    assert records.entry_ids is not None
    owner = np.repeat(np.arange(len(records)), records.entry_count)
    scaled = entries_at_one_scale(records)
    ids, which = np.unique(records.entry_ids, return_inverse=True)
    mass = np.bincount(which, np.exp(scaled), len(ids))
    order = np.argsort(-mass, kind="stable")[:columns]
    place = np.full(len(ids), -1)
    place[order] = np.arange(len(order))
    column = place[which]
    is_chosen = column >= 0
    table = np.full((len(records), columns), -np.inf, np.float32)
    table[owner[is_chosen], column[is_chosen]] = scaled[is_chosen]
    return table
