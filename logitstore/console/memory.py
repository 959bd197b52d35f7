"""How much memory this process has used at most: of its GPUs, or without any its own."""

import re
import resource
import sys
from pathlib import Path


def peak_memory() -> tuple[str, int]:
    """Return the most bytes that this process has had at once, on its fullest GPU if it has one.

    Returns:
        `GPU` or `RAM`, and the bytes. Of a GPU, what torch has reserved; torch is not imported.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        return "GPU", max(torch.cuda.max_memory_reserved(i) for i in devices)
    return "RAM", peak_rss_bytes()


def peak_rss_bytes() -> int:
    """Measure the most memory that this program ever held, in bytes."""
    # getrusage would also count what the parent held when it started us: Linux carries the peak of
    # a process over an exec. VmHWM is of this program's own memory.
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
