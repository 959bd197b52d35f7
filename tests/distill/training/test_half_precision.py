"""Half precision around the model is half precision in the model alone: losses stay in float32."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.students import logged, ragged_rows, trainer_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """Of a teacher with the student's tokenizer, which serves every loss."""
    tokenizer = tiny.byte_bpe()
    teacher = tiny.llama(len(tokenizer), seed=7)
    folder = tmp_path_factory.mktemp("teacher")
    return FakeStore.from_teacher(
        teacher, tokenizer, ragged_rows(), folder, logit_std=True, draws=4
    )


def first_loss(store: FakeStore, out: Path, loss: str, dtype: torch.dtype | None) -> float:
    student = tiny.llama(len(tiny.byte_bpe()))
    own = student.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype):
            return own(*args, **kwargs)

    if dtype is not None:
        student.forward = forward  # as a device's precision flag wraps it
    trainer = trainer_of(student, store, out, loss=loss, max_steps=1)
    trainer.train()
    return logged(trainer)[0]["loss"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize(
    "loss", ["uld", "mapped_kl", "alm", "multilevel_ot", "tail_kl", "sampled_kl"]
)
def test_a_loss_under_autocast_is_that_of_single_precision(
    store: FakeStore, tmp_path: Path, loss: str, dtype: torch.dtype
) -> None:
    half = first_loss(store, tmp_path / "half", loss, dtype)
    assert math.isfinite(half)
    assert half == pytest.approx(first_loss(store, tmp_path / "single", loss, None), rel=0.03)
