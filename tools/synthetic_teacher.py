"""Make next-token distributions from formulas, with the statistics of a language model's.

    from tools.synthetic_teacher import cached_topk
    records = cached_topk()  # at its defaults a minute or two of work; kept under build/

For measuring stores at vocabulary sizes no small model has. logits = sharpness * h W + Zipf bias,
with h an AR(1) walk (so neighbouring tokens resemble each other) and ids in rough order of
frequency, as BPE makes them. Mean entropy is about 2 nats and the top 64 hold about 0.92 of the
mass. Real ids are more skewed and repeat more from token to token, so sizes measured here are on
the high side; ratios between encodings carry over better than absolute sizes.

Shape legend: n = tokens, V = vocabulary, k = entries, b = tokens of a block.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

CACHE = Path(__file__).resolve().parent.parent / "build" / "synthetic_teacher"
DEFAULTS: dict[str, Any] = {
    "n_tokens": 16_384,
    "vocab_size": 128_256,
    "k": 256,
    "seed": 0,
    "draws": 50,
    "bf16": False,
}
_WIDTH, _PERSISTENCE, _BLOCK = 128, 0.6, 256

Arrays = dict[str, npt.NDArray[Any]]


def cached_topk(settings: Mapping[str, Any] | None = None, folder: Path = CACHE) -> Arrays:
    """Return `synthetic_topk`, computed once for the same settings and version of torch."""
    settings = DEFAULTS | dict(settings or {})
    name = json.dumps([settings, torch.__version__], sort_keys=True)
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        arrays: dict[str, Any] = synthetic_topk(**settings)
        np.savez(part, **arrays)
        part.replace(path)
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


def synthetic_topk(
    n_tokens: int, vocab_size: int, k: int, seed: int, draws: int, bf16: bool
) -> Arrays:
    """Compute the k most probable tokens of n_tokens consecutive positions.

    Returns:
        top_ids (n, k) uint32 and top_logprobs (n, k) float32, most probable first, over the full
        vocabulary; tail_logmass (n,), token_ids (n,), token_logprob (n,), entropy (n,) float32
        (nats). token_ids are drawn from the distribution; so are draw_ids (n, draws), with
        replacement, sorted. byte_lengths (n,) belong to token_ids (rarer tokens are longer).
    """
    gen = torch.Generator().manual_seed(seed)
    blocks = [_block(logits, k, draws, gen) for logits in _logits(n_tokens, vocab_size, gen, bf16)]
    arrays = {name: torch.cat([b[name] for b in blocks]).numpy() for name in blocks[0]}
    rate = 1.5 + 0.35 * np.log1p(np.arange(vocab_size))
    length_of = 1 + np.random.default_rng(seed).poisson(rate)
    arrays["byte_lengths"] = length_of[arrays["token_ids"]]
    return {
        name: a.astype(np.float32 if a.dtype.kind == "f" else np.uint32)
        for name, a in arrays.items()
    }


def _logits(
    n_tokens: int, vocab_size: int, gen: torch.Generator, bf16: bool
) -> Iterator[torch.Tensor]:
    """Yield the logits in blocks of (b, V)."""
    weight_VH = torch.randn(vocab_size, _WIDTH, generator=gen) / _WIDTH**0.5
    jitter_V = torch.exp(0.8 * torch.randn(vocab_size, generator=gen))
    rank_V = ((torch.arange(vocab_size) + 10) * jitter_V).argsort().argsort()
    bias_V = -1.05 * torch.log(rank_V + 2.7)
    h = torch.randn(_WIDTH, generator=gen)
    for start in range(0, n_tokens, _BLOCK):
        n = min(_BLOCK, n_tokens - start)
        noise = torch.randn(n, _WIDTH, generator=gen)
        states = torch.empty(n, _WIDTH)
        for i in range(n):
            h = _PERSISTENCE * h + (1 - _PERSISTENCE**2) ** 0.5 * noise[i]
            states[i] = h
        sharpness = 7.0 * torch.exp(0.6 * torch.randn(n, 1, generator=gen))
        logits = torch.addmm(bias_V, states * sharpness, weight_VH.T)
        yield logits.bfloat16().float() if bf16 else logits


def _block(
    logits_bV: torch.Tensor, k: int, draws: int, gen: torch.Generator
) -> dict[str, torch.Tensor]:
    logp = logits_bV.log_softmax(-1)
    top, ids = logp.topk(k, -1)
    p = logp.exp()
    cdf = p.cumsum(-1)
    u = torch.rand(len(logp), 1 + draws, generator=gen) * cdf[:, -1:]
    drawn = torch.searchsorted(cdf, u).clamp(max=logp.shape[-1] - 1)
    return {
        "top_ids": ids,
        "top_logprobs": top,
        "tail_logmass": logp.scatter(1, ids, -torch.inf).logsumexp(-1),
        "token_ids": drawn[:, 0],
        "draw_ids": drawn[:, 1:].sort(-1).values,
        "token_logprob": logp.gather(1, drawn[:, :1])[:, 0],
        "entropy": -(p * logp).sum(-1),
    }
