"""Time and memory of work on a device: medians of repeats, with the device waited for."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


class Device:
    """Where a stage runs, and how its work is timed there."""

    def __init__(self, *, cpu: bool) -> None:
        self.is_cpu = cpu
        self.name = "cpu" if cpu else "cuda"
        self.dtype = torch.float32 if cpu else torch.bfloat16

    def wait(self) -> None:
        """Return once all work that was asked for is done."""
        if not self.is_cpu:
            torch.cuda.synchronize()

    def facts(self) -> dict[str, Any]:
        """Say which device it is, with its memory in bytes."""
        if self.is_cpu:
            return {"name": "cpu"}
        properties = torch.cuda.get_device_properties(0)
        return {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }

    def start_peak(self) -> None:
        """Forget the most memory held so far."""
        self.wait()
        if not self.is_cpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()

    def peak_bytes(self) -> int:
        """Return the most held beyond what `start_peak` found; 1 where that is not counted."""
        return 1 if self.is_cpu else max(1, torch.cuda.max_memory_allocated() - self._before)

    def measure(self, step: Callable[[], object], *, repeats: int) -> dict[str, float]:
        """Run a step once to warm up, then `repeats` times: median seconds, and peak memory."""
        step()
        self.start_peak()
        times = []
        for _ in range(repeats):
            self.wait()
            began = time.perf_counter()
            step()
            self.wait()
            times.append(time.perf_counter() - began)
        return {
            "seconds": statistics.median(times),
            "least_seconds": min(times),
            "peak_bytes": float(self.peak_bytes()),
        }
