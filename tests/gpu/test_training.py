"""Training on a CUDA device: every loss in half precision, packing, sharding, resuming, memory."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.paths import ROOT
from tests.kit.students import logged, ragged_rows, trainer_of

pytestmark = pytest.mark.gpu

CROSS = ("uld", "mapped_kl", "alm", "multilevel_ot")
SAME = ("tail_kl", "sampled_kl")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FakeStore]:
    """Of a teacher with another tokenizer, and of one with the student's own."""
    made = {}
    for name, tokenizer in (("cross", tiny.unigram()), ("same", tiny.byte_bpe())):
        teacher = tiny.llama(len(tokenizer), seed=7)
        folder = tmp_path_factory.mktemp(name)
        made[name] = FakeStore.from_teacher(
            teacher, tokenizer, ragged_rows(), folder, rounded=True, logit_std=True, draws=4
        )
    return made


def student() -> Any:
    return tiny.llama(len(tiny.byte_bpe()))


def train(
    stores: dict[str, FakeStore], out: Path, device: str, loss: str, **more: Any
) -> list[dict[str, float]]:
    store = stores["same" if loss in SAME else "cross"]
    trainer = trainer_of(
        student(), store, out, loss=loss, **({"use_cpu": device == "cpu", "fp16": False} | more)
    )
    trainer.train()
    weights = torch.cat([p.detach().float().flatten() for p in trainer.model.parameters()])
    assert weights.isfinite().all()
    assert device in str(next(trainer.model.parameters()).device)
    return logged(trainer)


@pytest.mark.parametrize("loss", CROSS + SAME)
def test_every_loss_on_the_device_is_that_of_the_cpu(
    stores: dict[str, FakeStore], device: str, tmp_path: Path, loss: str
) -> None:
    there = train(stores, tmp_path / "device", device, loss)
    here = train(stores, tmp_path / "cpu", "cpu", loss)
    for a, b in zip(there, here, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("loss", CROSS + SAME)
def test_half_precision_learns_what_single_does(
    stores: dict[str, FakeStore], device: str, tmp_path: Path, loss: str, precision: str
) -> None:
    """fp16 goes through the gradient scaler, which the CPU lacks."""
    if (device, precision) == ("cpu", "fp16"):
        pytest.skip("the gradient scaler is CUDA's")
    half = train(stores, tmp_path / "half", device, loss, **{precision: True})
    single = train(stores, tmp_path / "single", device, loss)
    assert half[0]["loss"] == pytest.approx(single[0]["loss"], rel=0.03, abs=0.02)
    assert single[-1]["loss"] < single[0]["loss"]
    assert half[-1]["loss"] < half[0]["loss"]


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_packing_changes_nothing(
    stores: dict[str, FakeStore], device: str, tmp_path: Path, attention: str
) -> None:
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    padded = train(stores, tmp_path / "padded", device, "uld")
    store = stores["cross"]
    model = tiny.llama(len(tiny.byte_bpe()), attn_implementation=attention)
    trainer = trainer_of(
        model, store, tmp_path / "packed", loss="uld", packing=True, use_cpu=device == "cpu"
    )
    trainer.train()
    for a, b in zip(padded, logged(trainer), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)


def test_a_resumed_run_is_the_whole_run(
    stores: dict[str, FakeStore], device: str, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = train(stores, tmp_path / "whole", device, "uld", **how)
    trainer = trainer_of(
        student(), stores["cross"], tmp_path / "on", loss="uld", use_cpu=device == "cpu", **how
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for a, b in zip(whole[3:], logged(trainer)[3:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_auto_find_batch_size_goes_on_after_running_out_of_memory(
    stores: dict[str, FakeStore], device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real error of the allocator, at the first batch of eight rows, and none below."""
    if device == "cpu":
        pytest.skip("a CPU has no limit of its own to run out of")
    trainer = trainer_of(
        student(),
        stores["cross"],
        tmp_path,
        loss="uld",
        use_cpu=False,
        auto_find_batch_size=True,
    )
    step = trainer.training_step

    def hungry(model: Any, inputs: Any, *rest: Any) -> Any:
        if len(inputs["input_ids"]) > 4:
            torch.empty(1 << 60, dtype=torch.uint8, device="cuda")
        return step(model, inputs, *rest)

    monkeypatch.setattr(trainer, "training_step", hungry)
    trainer.train()
    assert trainer.state.train_batch_size <= 4
    assert len(logged(trainer)) == 3


@pytest.mark.parametrize(("processes", "flags"), [(1, ["--shards"]), (2, [])], ids=["fsdp", "ddp"])
def test_wrapped_models_train_as_one_process_does(
    stores: dict[str, FakeStore], device: str, tmp_path: Path, processes: int, flags: list[str]
) -> None:
    """FSDP in one process on one device; DDP in two, where NCCL lets them share it."""
    (tmp_path / "store").write_bytes(pickle.dumps(stores["cross"]))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [
            *launcher,
            f"--nproc-per-node={processes}",
            "-m",
            "tests.gpu.wrapped",
            str(tmp_path),
            device,
            *flags,
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=ROOT,
    )
    if processes > 1 and "Duplicate GPU" in done.stderr:
        pytest.skip("NCCL does not let two processes share one device")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "logged.json").read_text())
    alone = train(stores, tmp_path / "alone", device, "uld", per_device_train_batch_size=4)
    assert [a["loss"] for a in found] == pytest.approx([b["loss"] for b in alone], rel=2e-3)
