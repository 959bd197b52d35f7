"""What each loss costs beyond cross-entropy: time and memory, forward and backward.

    python -m tools.bench_losses [--json] [--quick]

From hidden states to their gradient and that of the output embedding, in processes of their own:

* cross-entropy with all logits at once; chunk by chunk, recomputing the logits in the backward
  pass; and chunk by chunk with the gradient taken in the forward, as Liger's kernel does;
* cross-entropy plus each loss here, as the trainer takes it, from a store's top 64;
* of losses that read hidden states, beside the student's head the loss's own weights (a teacher of
  width 512): twice the logits, so they have no goal;
* the same with mapped_kl over events: groups of the student's tokens, 50,000 of 128,256 tokens and
  in proportion elsewhere. Two thirds have one token, the largest nearly 10,000, and half of a row's
  64 events are drawn by their number of tokens;
* cross-entropy plus ULD of two full vocabularies, both sorted; and TRL's ULDLoss, set to pair as
  the paper does. Their teacher's logits are made beforehand, and not counted.

Contenders take turns, so that a slow minute of the machine affects all of them. Time is the
process's CPU time on all cores; memory is the most it held beyond what it had before its turn.

Shape legend: N = labels, D = hidden width, V = vocabulary, K = entries, B = sequences.
"""

import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from distill.data.batch_cuts import cut, piece_of
from distill.head.query import Partition
from distill.head.student_head import StudentHead, chunk_tokens_of
from distill.losses import find, option_values
from distill.losses.loss import Inside, Widths
from distill.training.batch_query import query_of
from distill.training.loss_terms import terms_of
from tools.benchmark import PeakMemory, goal, run_sizes, said, table

K, DRAWS, MERGED = 64, 16, 0.2  # entries; draws; labels that a group with the next one
EVENTS = "mapped_kl over events"
LOSSES = (
    "uld",
    "mapped_kl",
    EVENTS,
    "tail_kl",
    "multilevel_ot",
    "alm",
    "sampled_kl",
    "gold",
    "infifusion",
    "cdm",
    "clkd",
    "dskd",
)
#: Of these, the losses that read hidden states; their weights and states are theirs alone.
SIDECAR = ("dskd",)
TEACHER_WIDTH = 512
RECOMPUTED, IN_FORWARD = "chunked CE, recomputed", "chunked CE, in the forward"
SORTED, TRL = "ULD, both sides sorted", "ULD, TRL"

Step = Callable[[], float]


class Sizes(SimpleNamespace):
    """The sizes N, D, V and B, and the device that holds the tensors."""

    N: int
    D: int
    V: int
    B: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


TINY = Sizes(N=32, D=16, V=512, B=4)

# ---- what is measured ----


class HeadOnly(nn.Module):
    """A model that is nothing but its output embedding; its input is hidden states."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        vocabulary, width = weight.shape
        self.lm_head = nn.Linear(width, vocabulary, bias=False, device="meta")
        self.lm_head.weight = weight
        self.config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace())

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, hidden: Tensor) -> Any:
        return SimpleNamespace(logits=self.lm_head(hidden))


def hidden_and_weight(sizes: Sizes) -> tuple[Tensor, nn.Parameter, Tensor]:
    gen = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(sizes.N, sizes.D, generator=gen)
    weight_VD = torch.randn(sizes.V, sizes.D, generator=gen) * 3 / sizes.D**0.5
    labels_N = torch.randint(sizes.V, (sizes.N,), generator=gen).to(sizes.device)
    where: dict[str, Any] = {"device": sizes.device, "dtype": sizes.dtype}
    return hidden_ND.to(**where).requires_grad_(), nn.Parameter(weight_VD.to(**where)), labels_N


def stepped(hidden_ND: Tensor, weight_VD: Tensor, loss: Callable[[], Tensor]) -> Step:
    def step() -> float:
        hidden_ND.grad = weight_VD.grad = None
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    return step


def dense_ce(sizes: Sizes) -> Step:
    hidden, weight, labels = hidden_and_weight(sizes)
    return stepped(hidden, weight, lambda: F.cross_entropy(hidden @ weight.T, labels))


def recomputed_ce(sizes: Sizes) -> Step:
    hidden, weight, labels = hidden_and_weight(sizes)
    size = chunk_tokens_of(sizes.V)

    def chunk(hidden_cD: Tensor, labels_c: Tensor) -> Tensor:
        return F.cross_entropy(hidden_cD @ weight.T, labels_c, reduction="sum")

    def loss() -> Tensor:
        parts = zip(torch.split(hidden, size), torch.split(labels, size), strict=True)
        return (
            torch.stack([checkpoint(chunk, *part, use_reentrant=False) for part in parts]).sum()
            / sizes.N
        )

    return stepped(hidden, weight, loss)


class InForward(torch.autograd.Function):
    """Cross-entropy that computes its gradient in the forward pass, in place."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, size: int) -> Tensor:
        slope_ND, slope_VD = torch.empty_like(hidden), torch.zeros_like(weight)
        total = hidden.new_zeros(())
        for start in range(0, len(hidden), size):
            part, at = hidden[start : start + size], labels[start : start + size, None]
            logits = part @ weight.T
            top = logits.amax(-1, keepdim=True)
            label = logits.gather(1, at) - top
            total_c1 = logits.sub_(top).exp_().sum(-1, keepdim=True)
            total += (total_c1.log() - label).sum()
            logits.div_(total_c1 * len(hidden))
            logits.scatter_add_(1, at, torch.full_like(label, -1 / len(hidden)))
            slope_ND[start : start + size] = logits @ weight
            slope_VD.addmm_(logits.T, part)
        ctx.slopes = slope_ND, slope_VD
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return (*(x.mul_(slope) for x in ctx.slopes), None, None)


def in_forward_ce(sizes: Sizes) -> Step:
    hidden, weight, labels = hidden_and_weight(sizes)
    size = chunk_tokens_of(sizes.V)
    return stepped(
        hidden,
        weight,
        lambda: InForward.apply(hidden, weight, labels, size),  # type: ignore[no-untyped-call]
    )


def from_a_store(name: str, sizes: Sizes) -> Step:
    """Return a step of cross-entropy and a loss, computed as the trainer computes them."""
    partitions: dict[str, Partition] = {}
    arrays = {name: teacher_arrays(name, sizes)}
    if name == EVENTS:
        name, of_V = "mapped_kl", events_of(sizes.V)
        partitions = {name: Partition(torch.from_numpy(of_V), int(of_V.max()) + 1)}
        partitions = {name: each.to(sizes.device) for name, each in partitions.items()}
        arrays = {name: teacher_arrays(name, sizes) | {"entry_ids": listed_events(of_V, sizes)}}
    if name == "gold":  # half of the student's tokens are the teacher's too, each an event
        of_V = np.maximum(np.arange(sizes.V, dtype=np.int32) - sizes.V // 2, 0)
        partitions = {name: Partition(torch.from_numpy(of_V), int(of_V.max()) + 1)}
        partitions = {name: each.to(sizes.device) for name, each in partitions.items()}
    hidden, weight, labels = hidden_and_weight(sizes)
    model, settings = HeadOnly(weight), option_values({})
    head, made = StudentHead(model), find(name).module
    own = None
    if made is not None:
        widths = Widths(TEACHER_WIDTH, TEACHER_WIDTH, sizes.D, sizes.D)
        own = made(widths, settings).to(sizes.device)
    example = np.repeat(np.arange(sizes.B), sizes.N // sizes.B)
    pieces = cut(arrays, example, head.chunk_tokens)
    teacher = {
        name: {key: torch.from_numpy(array).to(sizes.device) for key, array in each.items()}
        for name, each in arrays.items()
    }
    # None where a sequence is longer than a chunk and must stay whole: all at once then.
    starts = {} if pieces is None else {piece.start: piece for piece in pieces.each}
    ranges = None if pieces is None else [(piece.start, piece.stop) for piece in pieces.each]
    rows = torch.arange(sizes.N, device=sizes.device)
    batch: dict[str, Any] = {
        "teacher": teacher,
        "rows": rows,
        "labels": torch.cat([labels[:1], labels])[None],
        "example": torch.from_numpy(example).to(sizes.device),
        "aligned": torch.ones(sizes.B, device=sizes.device),
    }

    def make(hidden_ND: Tensor) -> dict[str, Tensor]:
        assert own is not None
        ids = batch["labels"].flatten()
        inside = Inside(
            hidden_ND, ids[rows], ids[rows + 1], batch["example"], weight.detach().__getitem__
        )
        return {f"{name}.{key}": x for key, x in own(inside, teacher[name], settings).items()}

    def objective(answer: Any, start: int, _stop: int) -> Tensor:
        part = piece_of(teacher, starts[start]) if starts else teacher
        ce, kd = terms_of(part, answer, settings, "hard").values()
        return (ce.values_P.sum() + kd.values_P.sum()) / sizes.N

    def loss() -> Tensor:
        return head.loss(
            model,
            {"hidden": hidden[None]},
            rows,
            query_of(batch, settings, partitions),
            objective,
            ranges,
            None if own is None else make,
        )

    return stepped(hidden, weight, loss)


def dense_teacher(sizes: Sizes) -> Tensor:
    """Return (N, V) logits of a teacher over its whole vocabulary."""
    gen = torch.Generator(sizes.device).manual_seed(1)
    return torch.randn(sizes.N, sizes.V, generator=gen, device=sizes.device) * 3


def sorted_uld(sizes: Sizes) -> Step:
    """Compute ULD by its definition: both sides' probabilities over all tokens, sorted."""
    hidden, weight, labels = hidden_and_weight(sizes)
    teacher = dense_teacher(sizes)

    def loss() -> Tensor:
        logits = hidden @ weight.T
        p = logits.softmax(-1).sort(-1, descending=True).values
        q = teacher.softmax(-1).sort(-1, descending=True).values
        return F.cross_entropy(logits, labels) + (p - q).abs().sum(-1).mean()

    return stepped(hidden, weight, loss)


def trl_uld(sizes: Sizes) -> Step:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gold.gold_trainer import ULDLoss
    hidden, weight, labels = hidden_and_weight(sizes)
    length = sizes.N // sizes.B
    teacher = dense_teacher(sizes).reshape(sizes.B, length, -1)
    theirs = ULDLoss(
        SimpleNamespace(  # type: ignore[arg-type]  # its configuration needs a whole training run
            uld_crossentropy_weight=1.0,
            uld_distillation_weight=1.0,
            uld_student_temperature=1.0,
            uld_teacher_temperature=1.0,
            uld_skip_student_eos=False,
            uld_skip_teacher_eos=False,
            use_extended_uld=False,
            uld_token_merge_strategy="observed",
        )
    )
    ids = labels.reshape(sizes.B, length)

    def loss() -> Tensor:
        logits = (hidden @ weight.T).reshape(sizes.B, length, -1)
        found: Tensor = theirs(logits, teacher, ids, ids, ids, ids).squeeze()
        return found

    return stepped(hidden, weight, loss)


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


CONTENDERS: dict[str, Callable[[Sizes], Step]] = {
    "dense CE": dense_ce,
    RECOMPUTED: recomputed_ce,
    IN_FORWARD: in_forward_ce,
    **{name: lambda sizes, name=name: from_a_store(name, sizes) for name in LOSSES},  # type: ignore[misc]
    SORTED: sorted_uld,
    TRL: trl_uld,
}


# ---- how ----


def contend(name: str, sizes: Sizes, ours: Connection) -> None:
    """Run a contender's process: do a step whenever it is told to, and report the time."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    CONTENDERS[name](TINY)()  # what is imported on first use must not count as the step's memory
    step, memory = CONTENDERS[name](sizes), PeakMemory()
    while ours.recv():
        began, wall = time.process_time(), time.perf_counter()
        value = step()
        spent = time.process_time() - began, time.perf_counter() - wall
        ours.send((*spent, memory.bytes_more(), value))


def measure(sizes: Sizes, turns: int) -> dict[str, dict[str, float]]:
    """Return the medians of each contender; the first turn warms up, except for slow ones."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers"])  # imported once, for all of them
    pipes, processes = {}, []
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=contend, args=(name, sizes, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in CONTENDERS}
    for turn in range(turns):
        for name, pipe in pipes.items():
            is_slow = name in (SORTED, TRL)
            if is_slow and turn % 2:
                continue
            pipe.send(True)
            result = pipe.recv()
            if turn or is_slow:
                found[name].append(result)
            print(f"V = {sizes.V:,}, turn {turn}: {name}", file=sys.stderr, flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    names = ("cpu_s", "wall_s", "peak_bytes", "loss")
    return {
        name: dict(zip(names, map(statistics.median, zip(*each, strict=True)), strict=True))
        for name, each in found.items()
    }


def judged(measured: dict[str, dict[str, float]], vocabulary: int) -> dict[str, dict[str, Any]]:
    """Return every ratio that has a goal."""

    def ratio(what: str, a: str, b: str) -> float:
        return measured[a][what] / measured[b][what]

    faster = 3 if vocabulary > 100_000 else 2.2
    goals: dict[str, dict[str, Any]] = {"uld": {}}
    for other in (SORTED, TRL):
        speed = goal(ratio("cpu_s", other, "uld"), at_least=faster)
        goals["uld"] |= {
            f"times faster than {other}": speed,
            f"memory of {other}": goal(ratio("peak_bytes", "uld", other), at_most=0.1),
        }
    for name in (each for each in LOSSES if each not in SIDECAR):
        goals.setdefault(name, {}).update(
            {
                f"time of {RECOMPUTED}": goal(ratio("cpu_s", name, RECOMPUTED), at_most=1.15),
                f"time of {IN_FORWARD}": goal(ratio("cpu_s", name, IN_FORWARD), at_most=1.2),
                f"memory of {RECOMPUTED}": goal(ratio("peak_bytes", name, RECOMPUTED), at_most=1.1),
            }
        )
    return goals


def shown(sizes: Sizes, part: dict[str, Any]) -> str:
    measured, goals = part["measured"], part["goals"]
    rows = [["", "CPU s", "wall s", "peak MiB"]]
    rows += [
        [name, f"{m['cpu_s']:.2f}", f"{m['wall_s']:.2f}", f"{m['peak_bytes'] / 2**20:.0f}"]
        for name, m in measured.items()
    ]
    lines = [f"N = {sizes.N:,}, D = {sizes.D}, V = {sizes.V:,}, K = {K}", table(rows), ""]
    for name, each in goals.items():
        for what, figure in each.items():
            at = "at least" if what.startswith("times faster") else "at most"
            lines.append(f"  {name}: {what}: {said(figure, at)}")
    return "\n".join(lines)


def wanted(quick: bool) -> list[Sizes]:
    return [TINY] if quick else [Sizes(N=1024, D=512, V=v, B=8) for v in (32_000, 128_256)]


def part_of_report(sizes: Sizes, quick: bool) -> dict[str, Any]:
    measured = measure(sizes, turns=2 if quick else 4)
    return vars(sizes) | {"measured": measured, "goals": judged(measured, sizes.V)}


def main() -> None:
    run_sizes(
        __doc__,
        ["torch", "trl", "transformers"],
        threads=len(os.sched_getaffinity(0)),
        sizes=wanted,
        measure=part_of_report,
        shown=shown,
    )


if __name__ == "__main__":
    main()
