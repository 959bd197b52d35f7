"""Runs compared step by step. What is compared is also a line of `python -m tools.exactness`."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.training.trainer import CachedTeacherTrainer
from tests.kit.students import logged

#: What `record_property` takes.
Record = Callable[[str, object], None]
KEYS = ("loss", "grad_norm", "ce_loss", "kd_loss")
#: Of a run that is compared step by step; `tools.exactness` asks for twice as many.
STEPS = int(os.environ.get("EXACTNESS_STEPS", "12"))


def curve(
    trainer: CachedTeacherTrainer, checkpoint: str | None = None, keys: Sequence[str] = KEYS
) -> Tensor:
    """(steps, keys) of what a run logs; of one that goes on, also what was logged before."""
    trainer.train(resume_from_checkpoint=checkpoint)
    return of_log(logged(trainer), keys)


def of_log(entries: Sequence[dict[str, Any]], keys: Sequence[str] = KEYS) -> Tensor:
    """(steps, keys) of the entries of a log."""
    return torch.tensor([[entry[key] for key in keys] for entry in entries], dtype=torch.float64)


def assert_same(
    record: Record, what: str, got: Tensor, want: Tensor, tolerance: float = 2e-6
) -> None:
    """Largest and mean difference of loss, gradient norm and the like, as parts of their size."""
    assert got.shape == want.shape
    apart = (got - want).abs() / want.abs().clamp(min=1e-3)
    note(record, what, apart, f"{tolerance:g} of it" if tolerance else "bit for bit")
    assert apart.max() <= tolerance
    assert apart.mean() <= tolerance / 4 + 1e-12


def note(record: Record, what: str, apart: Tensor, tolerance: str) -> None:
    """A line of the table; the first two columns are loss and gradient norm, one line a step."""
    assert len(apart) >= min(STEPS, 20)
    record(
        "exactness",
        {
            "comparison": what,
            "steps": len(apart),
            **{
                key: {"max": float(apart[:, i].max()), "mean": float(apart[:, i].mean())}
                for i, key in enumerate(KEYS[:2])
            },
            "tolerance": tolerance,
        },
    )
