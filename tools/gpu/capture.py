"""Time a capture beside the bare forward pass of its teacher, and profile what it adds.

The teacher is a random Llama of 1.2B parameters in bfloat16 with V = 128,256; batches have 4,096
tokens. Both contenders take turns in one process, on the same loaded weights:

* bare: `model(...).logits` in inference mode of the very batches of the capture;
* ours: `logitstore.capture` of the rows, from their text to a finished store, then verified.

Text is read and tokenised, records are encoded and committed on other threads: what of it the
device had to wait for is the difference between `ours` and the sum of its passes.

Shape legend: V = vocabulary, K = entries.
"""

import logging
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tools.bench_capture import QUICK, K, Sizes, _llama, batches_of, make, task_of, timed_stages
from tools.benchmark import goal
from tools.gpu import stage
from tools.gpu.timing import Device

LARGE = Sizes("cuda", "bfloat16", 160, 1024, 4096, _llama(128_256, 2048, 8192, 16, 32, 8))
TURNS = 3
#: What is stood in for, so that loading is nobody's time.
_LOADS = "logitstore.capture.passes.teacher_pass.load_model"


def measure(device: Device, partial: stage.Partial) -> dict[str, Any]:
    logging.disable(logging.WARNING)
    sizes = QUICK if device.is_cpu else LARGE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(sizes, folder)
        return contend(sizes, folder, device, partial)


def contend(sizes: Sizes, folder: Path, device: Device, partial: stage.Partial) -> dict[str, Any]:
    from logitstore.capture.teacher.weights import load_model

    task = task_of(sizes, folder)
    model = load_model(task.teacher, torch.device(device.name))
    batches = batches_of(sizes, task)
    spent = timed_stages()
    turns: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
    with mock.patch(_LOADS, return_value=model):
        for turn in range(2 if device.is_cpu else TURNS + 1):  # a CPU shows only that it runs
            found = {
                "bare": timed(device, lambda: bare(model, batches)),
                "ours": timed(device, lambda turn=turn: ours(sizes, folder, turn, spent)),
            }
            for name, took in found.items():
                if turn:  # the first warms up
                    turns[name].append(took)
    medians = {
        name: {key: statistics.median(t[key] for t in each) for key in each[0]}
        for name, each in turns.items()
    }
    results = {
        "tokens": sizes.tokens,
        "tokens_per_batch": sizes.tokens_per_batch,
        "vocabulary": sizes.model["vocab_size"],
        "entries": K,
        "contenders": medians,
        "goals": {
            "wall time of the bare forward": goal(
                medians["ours"]["seconds"] / medians["bare"]["seconds"], at_most=1.05
            ),
            "time of its passes, of the bare forward": goal(
                medians["ours"]["device"] / medians["bare"]["seconds"], at_most=1.05
            ),
            "memory of the bare forward": goal(
                medians["ours"]["peak_bytes"] / medians["bare"]["peak_bytes"], at_most=1.0
            ),
        },
    }
    partial.write(results)
    return results | {"profile": profiled(sizes, task, model, device)}


def timed(device: Device, turn: Any) -> dict[str, float]:
    device.start_peak()
    began = time.perf_counter()
    parts: dict[str, float] = turn()
    device.wait()
    took = time.perf_counter() - began - parts.get("verifying", 0.0)
    return {"seconds": took, "peak_bytes": float(device.peak_bytes()), **parts}


@torch.inference_mode()
def bare(model: Any, batches: list[torch.Tensor]) -> dict[str, float]:
    for ids in batches:
        _ = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return {}


def ours(sizes: Sizes, folder: Path, turn: int, spent: dict[str, float]) -> dict[str, float]:
    import logitstore
    from logitstore.checking.verify import verify_store

    spent.clear()
    out = folder / f"store-{turn}"
    store = logitstore.capture(
        folder / "teacher",
        folder / "rows.jsonl",
        out=out,
        top_k=K,
        device=sizes.device,
        tokens_per_batch=sizes.tokens_per_batch,
        shard_text_bytes=sizes.shard_text_bytes,
    )
    done = time.perf_counter()
    assert verify_store(store.path).damaged == []
    verifying = time.perf_counter() - done
    shutil.rmtree(out)
    names = ("device", "host transfer", "encoding", "committing")
    return {name: spent.get(name, 0.0) for name in names} | {"verifying": verifying}


def profiled(sizes: Sizes, task: Any, model: Any, device: Device) -> list[dict[str, Any]]:
    """List the operations that took most of the device's time in four batches of a capture."""
    from logitstore.capture.passes.teacher_pass import TeacherPass

    with mock.patch(_LOADS, return_value=model):
        teacher = TeacherPass(task.teacher, task.spec, torch.device(device.name))
    sequences = [s for row in range(min(sizes.rows, 16)) for s in task.reader.sequences(row)]
    per_batch = max(1, sizes.tokens_per_batch // sizes.length)
    chosen = [sequences[i : i + per_batch] for i in range(0, len(sequences), per_batch)]
    teacher.forward(chosen[0])
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if not device.is_cpu:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        for batch in chosen:
            teacher.forward(batch)
        device.wait()
    return top_operations(profile, device)


def top_operations(profile: Any, device: Device, count: int = 16) -> list[dict[str, Any]]:
    field = "self_cpu_time_total" if device.is_cpu else "self_device_time_total"
    events = sorted(profile.key_averages(), key=lambda e: -getattr(e, field))
    total = sum(getattr(e, field) for e in events) or 1
    return [
        {
            "operation": event.key[:90],
            "calls": event.count,
            "milliseconds": round(getattr(event, field) / 1000, 3),
            "share": round(getattr(event, field) / total, 4),
        }
        for event in events[:count]
    ]


if __name__ == "__main__":
    stage.main(measure)
