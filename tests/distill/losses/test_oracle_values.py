"""Numbers computed elsewhere, from inputs that any language can rebuild: `oracle/losses.json`.

float32 agrees to 1e-5, float64 to 1e-10. As in the papers' code, a value over several rows is the
mean over rows of each row's mean over positions. Values in the file of which nothing is checked
here belong to variants that this version does not have.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.alignment.align import Spans, align
from distill.losses.alm import alm
from distill.losses.mapped_kl import mapped_kl
from distill.losses.multilevel_ot import COLUMNS, multilevel_ot
from distill.losses.tail_kl import Kind, tail_kl
from distill.losses.uld import uld
from tests.kit.paths import ORACLE as ORACLE_FILES

ORACLE = json.loads((ORACLE_FILES / "losses.json").read_text())
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)]
)
EVERY_K = [(size, int(k)) for size in ("small", "large") for k in ORACLE[size]["uld_truncated"]]

ROWS = 2
POSITIONS = 8


def student_logits(width: int) -> Tensor:
    amplitude, *waves, phase = ORACLE["inputs"]["s"]
    b, t, v = np.ogrid[:ROWS, :POSITIONS, :width]
    angle = waves[0] * b + waves[1] * t + waves[2] * v + phase
    return torch.from_numpy(amplitude * np.sin(angle))


def teacher_logits(width: int) -> Tensor:
    amplitude, *waves = ORACLE["inputs"]["t"]
    b, t, v = np.ogrid[:ROWS, :POSITIONS, :width]
    return torch.from_numpy(amplitude * np.cos(waves[0] * b + waves[1] * t + waves[2] * v * v))


def mean_of_row_means(size: str, per_position: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The k-th position of a student's row with the teacher's k-th; the longer row is cut."""
    given, inputs = ORACLE[size], ORACLE["inputs"]
    student, teacher = (
        student_logits(given["student_vocab"]),
        teacher_logits(given["teacher_vocab"]),
    )
    means = []
    for b in range(ROWS):
        n, m, a, c = (inputs[name][b] for name in "nmac")
        paired = min(n, m)
        means.append(per_position(student[b, a : a + paired], teacher[b, c : c + paired]).mean())
    return float(torch.stack(means).mean())


def sorted_logprobs(logits_NV: Tensor, width: int | None = None) -> Tensor:
    logprobs_NV = logits_NV.log_softmax(-1).sort(descending=True).values
    missing = max(0, (width or 0) - logprobs_NV.shape[1])
    return torch.nn.functional.pad(logprobs_NV, (0, missing), value=-torch.inf)[:, :width]


def truncated(student_NV: Tensor, teacher_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    teacher = sorted_logprobs(teacher_NV)
    return uld(sorted_logprobs(student_NV, k), teacher[:, :k], teacher[:, k:].logsumexp(-1))


@PRECISIONS
@pytest.mark.parametrize(("size", "k"), EVERY_K)
def test_truncated_uld(size: str, k: int, dtype: torch.dtype, atol: float) -> None:
    want = ORACLE[size]["uld_truncated"][str(k)]
    loss = mean_of_row_means(size, lambda s, t: truncated(s.to(dtype), t.to(dtype), k)[0])
    assert loss == pytest.approx(want["tail_bucket"], abs=atol, rel=0)


@PRECISIONS
@pytest.mark.parametrize(("size", "k"), EVERY_K)
def test_certified_gap(size: str, k: int, dtype: torch.dtype, atol: float) -> None:
    want = ORACLE[size]["uld_truncated"][str(k)]
    gap = mean_of_row_means(size, lambda s, t: truncated(s.to(dtype), t.to(dtype), k)[1])
    assert gap == pytest.approx(want["bound_gap"], abs=atol, rel=0)
    assert want["tail_bucket"] <= ORACLE[size]["uld"] <= want["tail_bucket"] + gap + atol


@PRECISIONS
@pytest.mark.parametrize("size", ["small", "large"])
def test_uld_of_a_store_that_holds_every_entry(size: str, dtype: torch.dtype, atol: float) -> None:
    k = ORACLE[size]["teacher_vocab"]
    loss = mean_of_row_means(size, lambda s, t: truncated(s.to(dtype), t.to(dtype), k)[0])
    assert loss == pytest.approx(ORACLE[size]["uld"], abs=atol, rel=0)


def spans(ends: list[int]) -> Spans:
    edges = np.array([0, *ends], np.int64)
    return Spans(edges[:-1], np.diff(edges), np.zeros(len(ends), np.bool_))


def listed(alignment: dict[str, Any]) -> dict[str, Any]:
    """Our alignment as the file writes it: student before teacher, groups as lists of indices."""
    found = align(spans(alignment["teacher_ends"]), spans(alignment["student_ends"]))
    return {
        "student_ends": alignment["student_ends"],
        "teacher_ends": alignment["teacher_ends"],
        "groups": [[list(range(c, d)), list(range(a, b))] for a, b, c, d in found.groups.tolist()],
        "shared_starts": found.shared_starts[:, ::-1].tolist(),
        "strict": found.strict[:, ::-1].tolist(),
    }


@pytest.mark.parametrize("case", [*ORACLE["alignment"], ORACLE["grouped_uld"]["alignment"]])
def test_alignment(case: dict[str, Any]) -> None:
    assert listed(case) == case


@PRECISIONS
def test_grouped_uld(dtype: torch.dtype, atol: float) -> None:
    """A group is its last position, times the probability of its earlier tokens, on each side."""
    case = ORACLE["grouped_uld"]
    student = student_logits(4)[0, 1:4].to(dtype).log_softmax(-1)
    teacher = teacher_logits(6)[0, 1:4].to(dtype).log_softmax(-1)
    student_tokens = student[range(3), case["student_ids"]]
    teacher_tokens = teacher[range(3), case["teacher_ids"]]
    ends = case["alignment"]
    groups = align(spans(ends["teacher_ends"]), spans(ends["student_ends"])).groups.tolist()
    loss, _ = uld(
        sorted_logprobs(student[[d - 1 for *_, d in groups]], 6),
        sorted_logprobs(teacher[[b - 1 for _, b, *_ in groups]]),
        torch.full((len(groups),), -torch.inf, dtype=dtype),
        student_log_scale_N=torch.stack([student_tokens[c : d - 1].sum() for *_, c, d in groups]),
        teacher_log_scale_N=torch.stack([teacher_tokens[a : b - 1].sum() for a, b, *_ in groups]),
    )
    assert float(loss.mean()) == pytest.approx(case["value"], abs=atol, rel=0)


@PRECISIONS
def test_mapped_kl(dtype: torch.dtype, atol: float) -> None:
    """The student's listed tokens hold 0.85 of its mass; the rest is some token of no teacher's."""
    case = ORACLE["mapped_kl"]
    student = torch.tensor(case["student_probs"], dtype=dtype)
    teacher = torch.tensor(case["teacher_probs"], dtype=dtype)
    target = torch.zeros_like(student).index_add(0, torch.tensor(case["prefix_map"]), teacher)
    ids = target.nonzero().squeeze(1)
    loss = mapped_kl(
        student[ids].log()[None],
        (1 - student[ids].sum()).log()[None],
        target[ids].log()[None],
        (1 - teacher.sum()).clamp(min=0).log()[None],
    )
    assert float(loss) == pytest.approx(case["value"], abs=atol, rel=0)


@PRECISIONS
@pytest.mark.parametrize("kind", ["forward", "reverse"])
@pytest.mark.parametrize("k", [1, 10, 80])
def test_tail_kl(k: int, kind: Kind, dtype: torch.dtype, atol: float) -> None:
    """One vocabulary of 80 on both sides."""
    want = ORACLE["tail_kl_same_vocab"][kind][str(k)]

    def value(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        p, q = (x.to(dtype).log_softmax(-1) for x in (student_NV, teacher_NV))
        order = q.argsort(-1, descending=True)
        p, q = p.gather(1, order), q.gather(1, order)
        return tail_kl(
            p[:, :k], p[:, k:].logsumexp(-1), q[:, :k], q[:, k:].logsumexp(-1), kind=kind
        )

    given, inputs = (student_logits(80), teacher_logits(80)), ORACLE["inputs"]
    means = []
    for b in range(ROWS):
        n, m, a, c = (inputs[name][b] for name in "nmac")
        paired = min(n, m)
        means.append(value(given[0][b, a : a + paired], given[1][b, c : c + paired]).mean())
    # The value is some units: relative, as rounding is.
    assert float(torch.stack(means).mean()) == pytest.approx(want, rel=atol, abs=atol)


@PRECISIONS
@pytest.mark.parametrize("pair", ORACLE["alm"])
def test_alm(pair: str, dtype: torch.dtype, atol: float) -> None:
    teacher, student = (torch.tensor([float(x)], dtype=dtype) for x in pair.split(","))
    for name, temperature in (("bce", 100.0), ("kl_limit", math.inf)):
        want = ORACLE["alm"][pair][name]
        got = float(alm(student, teacher, temperature))
        assert got == pytest.approx(want, rel=atol, abs=atol)


@PRECISIONS
@pytest.mark.parametrize("size", ["small", "large"])
def test_multilevel_had(
    size: str, dtype: torch.dtype, atol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of its three terms; columns are ranked over all of a side's tokens."""
    monkeypatch.setattr("distill.losses.multilevel_ot.SL_WEIGHT", 0)
    monkeypatch.setattr("distill.losses.multilevel_ot.SD_WEIGHT", 0)
    given, inputs = ORACLE[size], ORACLE["inputs"]
    logits = student_logits(given["student_vocab"]), teacher_logits(given["teacher_vocab"])
    losses = []
    for b in range(ROWS):
        n, m, a, c = (inputs[name][b] for name in "nmac")
        p, q = ranked(logits[0][b, a : a + n].to(dtype)), ranked(logits[1][b, c : c + m].to(dtype))
        paired = min(n, m)
        losses.append(multilevel_ot(p[:paired], q[:paired], [paired])[0])
    assert float(torch.stack(losses).mean()) == pytest.approx(
        given["multilevel_had"], abs=atol, rel=0
    )


def ranked(logits_TV: Tensor) -> Tensor:
    scaled_TV = logits_TV / (logits_TV.std(-1, keepdim=True) + 1e-4)
    logprobs_TV = scaled_TV.log_softmax(-1)
    order = logprobs_TV.exp().sum(0).argsort(descending=True)[:COLUMNS]
    pad = (0, COLUMNS - len(order))
    return torch.nn.functional.pad(logprobs_TV[:, order], pad, value=-torch.inf)
