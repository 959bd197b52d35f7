"""Recognise that a device ran out of memory, and free what it caches."""

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an out-of-memory error, after which a smaller batch may fit, from other failures.

    `torch` has a class for it on accelerators; on a CPU, and in libraries below `torch`, it is a
    RuntimeError with a message that says so.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(should_reduce_batch_size(error))


def raises_out_of_memory(device: torch.device) -> bool:
    """Tell whether a device raises an error when its memory runs out; a CPU does not."""
    return device.type != "cpu"


def free_memory() -> None:
    """Release the memory that the device caches.

    Call it outside of the `except` block: the error holds on to the tensors of what failed.
    """
    clear_device_cache(garbage_collection=True)
