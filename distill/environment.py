"""Describe a machine for a bug report, without anything about its owner.

Versions, builds and devices only: no paths, no host or user names, no environment variables.
"""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from logitstore.console.progress import byte_count

#: Libraries that a store or a training run depends on; None where one is not installed.
PACKAGES = (
    "logitstore", "torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors",
    "numpy", "pyarrow", "numcodecs", "google-crc32c", "typer", "tqdm", "zarr",
)  # fmt: skip

Facts = dict[str, Any]


def facts() -> Facts:
    """Collect `python`, `platform`, `packages`, `cpus`, `torch` and `devices`, ready for JSON.

    If torch is missing or cannot be imported, `torch` has only `error`, the class of the exception.
    """
    # Not platform.platform(): people put their names into kernels.
    libc = " ".join(filter(None, platform.libc_ver()))
    machine: Facts = {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": " ".join(filter(None, (platform.system(), platform.machine(), libc))),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpus": {"there": os.cpu_count(), "usable": _usable_cpus()},
    }
    try:
        import torch
    except Exception as error:  # a broken installation raises any class, and should be reported
        return machine | {"torch": {"error": type(error).__name__}, "devices": []}
    return machine | {"torch": _build(torch), "devices": list(_devices(torch))}


def table(machine: Facts) -> str:
    """Format the facts for people, one a line."""
    cpus, build = machine["cpus"], machine["torch"]
    lines = {
        "python": machine["python"],
        "platform": machine["platform"],
        **{name: text or "not installed" for name, text in machine["packages"].items()},
        "torch build": ", ".join(f"{name} {value}" for name, value in build.items() if value),
        "CPUs": f"{cpus['there']}, of which {cpus['usable']} usable",
    }
    for device in machine["devices"] or [{"device": "devices", "name": "none but the CPU"}]:
        size = device.get("memory_bytes")
        memory = f", {byte_count(size)}" if size else ""
        lines[device["device"]] = f"{device['name'] or 'unnamed'}{memory}"
    return "\n".join(f"{name:<14} {value}" for name, value in lines.items())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _usable_cpus() -> int | None:
    """Count the CPUs this process may use: in a container often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _build(torch: Any) -> Facts:
    """Return the version of each accelerator that this torch was built for; None for the others."""
    return {
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "xpu": getattr(torch.version, "xpu", None),
        "threads": torch.get_num_threads(),
    }


def _devices(torch: Any) -> Iterator[Facts]:
    """List the accelerators, with their memory if the backend reports it."""
    if not torch.accelerator.is_available():
        return
    kind = torch.accelerator.current_accelerator().type
    properties = getattr(torch.get_device_module(kind), "get_device_properties", lambda i: None)
    for i in range(torch.accelerator.device_count()):
        about = properties(i)
        capability = [getattr(about, part, None) for part in ("major", "minor")]
        yield {
            "device": f"{kind}:{i}",
            "name": getattr(about, "name", None),
            "memory_bytes": getattr(about, "total_memory", None),
            "capability": None if None in capability else capability,
        }
