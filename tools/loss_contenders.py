"""Steps of losses that benchmarks compare: from hidden states to gradients, ours and others'.

Shape legend: N = labels, D = hidden width, V = vocabulary, K = entries, B = sequences.
"""

import os
import warnings
from collections.abc import Callable
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
from tools.loss_arrays import (
    BOTH_SPACES,
    TEACHER_WIDTH,
    Sizes,
    events_of,
    listed_events,
    lm_head_of,
    teacher_arrays,
)

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
    BOTH_SPACES,
    "cot2align",
)
RECOMPUTED, IN_FORWARD = "chunked CE, recomputed", "chunked CE, in the forward"
SORTED, TRL = "ULD, both sides sorted", "ULD, TRL"

Step = Callable[[], float]


TINY = Sizes(N=32, D=16, V=512, B=4)


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
    lm_head = (lambda: lm_head_of(sizes)) if name == BOTH_SPACES else None
    name = "dskd" if name == BOTH_SPACES else name
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
        widths = Widths(TEACHER_WIDTH, TEACHER_WIDTH, sizes.D, sizes.D, lm_head)
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
        embed, read, label = weight.detach().__getitem__, ids[rows], ids[rows + 1]
        inside = Inside(hidden_ND, read, label, batch["example"], embed, weight.__getitem__)
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


CONTENDERS: dict[str, Callable[[Sizes], Step]] = {
    "dense CE": dense_ce,
    RECOMPUTED: recomputed_ce,
    IN_FORWARD: in_forward_ce,
    **{name: lambda sizes, name=name: from_a_store(name, sizes) for name in LOSSES},  # type: ignore[misc]
    SORTED: sorted_uld,
    TRL: trl_uld,
}
