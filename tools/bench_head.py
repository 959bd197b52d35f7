"""How the teacher's head is cut: into chunks of tokens, or of the vocabulary.

    python -m tools.bench_head [--json] [--quick]

From hidden states to entries, tail, entropy and the token's own log-probability:

* tokens: some rows of logits at a time over the whole vocabulary, as a capture does it
  (`logitstore.capture.teacher.summary`), in chunks of several sizes;
* vocabulary: all rows at once over some columns. Results are merged from block to block: the sums
  at a running maximum, and the top-k of the entries so far and the block's.
* the matrix product alone, which is the lower bound.

Time is the process's own on all cores.

Shape legend: n = rows, D = width, V = vocabulary, K = entries, c = rows or columns of a chunk.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from logitstore.capture.teacher.summary import HeadSettings, summarise_
from tools.benchmark import goal, run_sizes, said, table

K = 64
FLOOR = "matrix product alone"


class Sizes(NamedTuple):
    """The numbers of rows, columns and tokens of the vocabulary."""

    n: int
    D: int
    V: int


def by_tokens(hidden_nD: Tensor, weight_VD: Tensor, targets_n: Tensor, size: int) -> Tensor:
    """Return (n,) the tails, computed in chunks of rows."""
    work_cV = hidden_nD.new_empty(min(size, len(hidden_nD)), len(weight_VD))
    tails = []
    parts = zip(torch.split(hidden_nD, size), torch.split(targets_n, size), strict=True)
    for hidden, targets in parts:
        logits = F.linear(hidden, weight_VD)
        work = work_cV[: len(logits)]
        tails.append(summarise_(logits, targets, HeadSettings(K), work_nV=work).tail_logmass)
    return torch.cat(tails)


def by_vocabulary(hidden_nD: Tensor, weight_VD: Tensor, targets_n: Tensor, size: int) -> Tensor:
    """Return (n,) the tails, computed in blocks of the vocabulary.

    The log-normaliser, the entropy and the token's own log-probability are computed on the way.
    """
    n = len(hidden_nD)
    top_nK = hidden_nD.new_full((n, K), -torch.inf)
    ids_nK = torch.zeros(n, K, dtype=torch.long)
    largest_n1 = hidden_nD.new_full((n, 1), -torch.inf)
    mass_n1, sum_n1, token_n1 = (hidden_nD.new_zeros(n, 1) for _ in range(3))
    for start in range(0, len(weight_VD), size):
        z_nc = F.linear(hidden_nD, weight_VD[start : start + size])
        at_n1 = (targets_n[:, None] - start).clamp(0, z_nc.shape[1] - 1)
        is_here_n1 = (targets_n[:, None] >= start) & (targets_n[:, None] < start + size)
        token_n1 = torch.where(is_here_n1, z_nc.gather(1, at_n1), token_n1)
        values, columns = z_nc.topk(min(K, z_nc.shape[1]))
        both, all_ids = torch.cat([top_nK, values], 1), torch.cat([ids_nK, columns + start], 1)
        top_nK, chosen = both.topk(K)
        ids_nK = all_ids.gather(1, chosen)
        largest = top_nK[:, :1]
        fade_n1 = (largest_n1 - largest).exp()
        y_nc = z_nc.sub_(largest)
        e_nc = y_nc.exp()
        # sum e y at the new maximum, of what was summed at the old one
        moved_n1 = torch.where(fade_n1 > 0, largest_n1 - largest, 0) * mass_n1
        sum_n1 = (sum_n1 + moved_n1) * fade_n1 + e_nc.mul(y_nc).sum(1, keepdim=True)
        mass_n1 = mass_n1 * fade_n1 + e_nc.sum(1, keepdim=True)
        largest_n1 = largest
    rest_n = (mass_n1 - (top_nK - largest_n1).exp().sum(1, keepdim=True)).squeeze(1)
    return (rest_n / mass_n1.squeeze(1)).log()  # a difference: digits are lost where it is small


def contenders(vocabulary: int) -> dict[str, tuple[Callable[..., Tensor], int]]:
    def sized(rows_bytes: int, rows: int) -> int:
        return max(1, rows_bytes // (4 * rows))

    mib = 2**20
    found = {
        f"tokens, {size} MiB": (by_tokens, sized(size * mib, vocabulary)) for size in (8, 32, 128)
    }
    return found | {f"vocabulary, {size} columns": (by_vocabulary, size) for size in (4096, 16_384)}


def measure(sizes: Sizes, turns: int) -> dict[str, float]:
    """Return the median CPU seconds of each contender; they take turns."""
    n, width, vocabulary = sizes
    gen = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, width, generator=gen)
    weight = torch.randn(vocabulary, width, generator=gen) * 3 / width**0.5
    targets = torch.randint(vocabulary, (n,), generator=gen)
    calls: dict[str, Callable[[], Tensor]] = {FLOOR: lambda: F.linear(hidden, weight)}
    for name, (head, size) in contenders(vocabulary).items():
        calls[name] = lambda head=head, size=size: head(hidden, weight, targets, size)  # type: ignore[misc]
    tails = [call() for name, call in calls.items() if name != FLOOR]
    assert all(torch.allclose(tail, tails[0], atol=1e-3) for tail in tails)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns):
        for name, call in calls.items():
            began = time.process_time()
            call()
            spent[name].append(time.process_time() - began)
        print(f"V = {vocabulary:,}, turn {turn}", file=sys.stderr, flush=True)
    return {name: statistics.median(each) for name, each in spent.items()}


def wanted(quick: bool) -> list[Sizes]:
    return [Sizes(8, 16, 5000)] if quick else [Sizes(1024, 768, 32_000), Sizes(256, 1024, 128_256)]


def part_of_report(sizes: Sizes, quick: bool) -> dict[str, Any]:
    with torch.inference_mode():
        measured = measure(sizes, turns=1 if quick else 5)
    tokens = min(s for name, s in measured.items() if name.startswith("tokens"))
    columns = min(s for name, s in measured.items() if name.startswith("vocabulary"))
    goals = {"tokens, of the time of vocabulary": goal(tokens / columns, at_most=1.0)}
    return sizes._asdict() | {"cpu_s": measured, "goals": goals}


def shown(sizes: Sizes, part: dict[str, Any]) -> str:
    rows = [["", "CPU us a row"]]
    rows += [[name, f"{s / sizes.n * 1e6:.0f}"] for name, s in part["cpu_s"].items()]
    judged = "\n".join(f"  {k}: {said(g, 'at most')}" for k, g in part["goals"].items())
    return f"n = {sizes.n:,}, D = {sizes.D:,}, V = {sizes.V:,}, K = {K}\n{table(rows)}\n{judged}\n"


def main() -> None:
    run_sizes(
        __doc__,
        ["torch"],
        threads=torch.get_num_threads(),
        sizes=wanted,
        measure=part_of_report,
        shown=shown,
    )


if __name__ == "__main__":
    main()
