"""Made-up arrays of a store, of any size, for each loss: what benchmarks of losses read.

Shape legend: N = labels, V = vocabulary, K = entries.
"""

from types import SimpleNamespace

import numpy as np
import torch

from logitstore.format.lm_head import LmHead

K, DRAWS, MERGED = 64, 16, 0.2  # entries; draws; labels that a group with the next one
BOTH_SPACES = "dskd in both spaces"
#: Of these, the losses that read hidden states; their weights and states are theirs alone.
SIDECAR = ("dskd", BOTH_SPACES, "cot2align")
TEACHER_WIDTH = 512


class Sizes(SimpleNamespace):
    """The sizes N, D, V and B, and the device that holds the tensors."""

    N: int
    D: int
    V: int
    B: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


def lm_head_of(sizes: Sizes) -> LmHead:
    """Make the output embedding of a teacher with a vocabulary as large as the student's."""
    rng = np.random.default_rng(0)
    return LmHead(rng.standard_normal((sizes.V, TEACHER_WIDTH), np.float32) / TEACHER_WIDTH**0.5)


def teacher_arrays(name: str, sizes: Sizes) -> dict[str, np.ndarray]:
    """Make the arrays that losses read from a store, with 92 % of the mass in the entries."""
    rng = np.random.default_rng(2)
    stop = np.flatnonzero(rng.random(sizes.N) >= MERGED) + 1  # groups of one label or more
    stop = np.union1d(stop, np.arange(sizes.N // sizes.B, sizes.N + 1, sizes.N // sizes.B))
    first = np.concatenate([[0], stop[:-1]])
    every = np.arange(sizes.N)
    owner = np.repeat(np.arange(len(stop)), stop - first)
    by_group = name in ("uld", "alm", "gold")
    count = len(stop) if by_group else sizes.N
    head = np.sort(rng.exponential(size=(count, K)) ** 3, 1)[:, ::-1] + 1e-3
    logprobs = np.log(0.92 * head / head.sum(1, keepdims=True)).astype(np.float32)
    tail = np.full(count, np.log(0.08), np.float32)
    some = rng.choice(sizes.V, K + DRAWS, replace=False)
    ids = (some + rng.integers(sizes.V, size=(count, 1))) % sizes.V
    index = stop - 1 if by_group else every
    if name == "uld":
        is_earlier = every != stop[owner] - 1
        return {
            "index": index,
            "entry_logprobs": logprobs,
            "tail_logmass": tail,
            "log_scale": np.zeros(count, np.float32),
            "codec_bound": np.zeros(count, np.float32),
            "earlier_index": every[is_earlier],
            "earlier_pair": owner[is_earlier],
        }
    if name == "gold":
        is_earlier, events = every != stop[owner] - 1, sizes.V - sizes.V // 2 - 1
        few = rng.choice(events, K // 2, replace=False)
        return {
            "index": index,
            "entry_ids": 1 + (few + rng.integers(events, size=(count, 1))) % events,
            "entry_logmass": logprobs[:, ::2],
            "other_logprobs": logprobs[:, 1::2],
            "tail_logmass": tail,
            "apart_event": np.zeros(count, np.int64),
            "share": np.full(count, 0.5, np.float32),
            "log_scale": np.zeros(count, np.float32),
            "earlier_index": every[is_earlier],
            "earlier_pair": owner[is_earlier],
        }
    if name == "cdm":  # half of the entries have a token of their own, the others three alike
        entry = np.concatenate([np.arange(K), np.repeat(np.arange(K // 2, K), 2)])
        edges = rng.choice(sizes.V, len(entry), replace=False)
        return {
            "index": index,
            "entry_logprobs": logprobs,
            "tail_logmass": tail,
            "edge_ids": (edges + rng.integers(sizes.V, size=(count, 1))) % sizes.V,
            "edge_entry": np.tile(entry, (count, 1)),
            "edge_first": np.tile(np.arange(len(entry)), (count, 1)),
            "edge_alike": np.tile(np.where(entry < K // 2, 1, 0.95).astype(np.float32), (count, 1)),
            "edge_is_label": np.zeros((count, len(entry)), np.int64),
        }
    if name == "infifusion":
        return {"index": index, "entry_logprobs": logprobs}
    if name in SIDECAR:
        shape, tokens = (sizes.N, TEACHER_WIDTH), np.arange(sizes.N)
        codes, scale = rng.integers(1, 126, shape, np.uint8), np.ones(sizes.N, np.float32)
        return {
            "index": index,
            "label": rng.integers(sizes.V, size=sizes.N),
            "whole_ids": tokens,
            "whole_read": tokens,
            "whole_sequence": tokens // (sizes.N // sizes.B),
            "whole_codes": codes,
            "whole_scale": scale,
            "whole_embedding_ids": tokens,
            "whole_embedding_codes": codes,
            "whole_embedding_scale": scale,
        }
    if name == "alm":
        logprob = np.full(count, -2, np.float32)
        return {"index": index, "logprob": logprob, "token_index": every, "token_pair": owner}
    if name in ("multilevel_ot", "clkd"):
        length = sizes.N // sizes.B
        return {
            "index": every[::length],
            "token_index": every,
            "token_pair": every // length,
            "token_logprobs": logprobs[:, :50],
        }
    if name == "sampled_kl":
        counts = np.ones((count, DRAWS), np.int64)
        return {
            "index": index,
            "entry_ids": ids[:, :K],
            "entry_logprobs": logprobs,
            "tail_logmass": tail,
            "draw_ids": ids[:, K:],
            "draw_times": counts,
        }
    return {
        "index": index,
        "entry_ids": ids[:, :K],
        "entry_logmass": logprobs,
        "rest_logmass": tail,
        "cell": np.arange(count)[:, None] % (K + 1) - 1,  # a label is any entry, or in the rest
    }


def events_of(vocabulary: int) -> np.ndarray:
    """Return (V,) an event for each token: many of one token, a few of thousands."""
    rng = np.random.default_rng(3)
    count = round(vocabulary * 50_000 / 128_256)
    large = count // 3
    weight = np.arange(1, large + 1) ** -1.1
    size = np.ones(count, np.int64)
    size[:large] = 2
    free = vocabulary - size.sum()
    size[:large] += (free * weight / weight.sum()).astype(np.int64)
    size[1 : 1 + vocabulary - size.sum()] += 1  # what rounding down left over
    of_V = np.repeat(np.arange(count, dtype=np.int32), size)
    return rng.permutation(of_V)


def listed_events(of_V: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Draw (N, K) distinct events a row, the first half by their number of tokens."""
    rng = np.random.default_rng(4)
    by_size = of_V[rng.integers(len(of_V), size=(sizes.N, K // 2))]
    alike = rng.integers(of_V.max() + 1, size=(sizes.N, 2 * K))
    drawn = np.concatenate([by_size, alike], 1)
    return np.stack([list(dict.fromkeys(row.tolist()))[:K] for row in drawn]).astype(np.int64)
