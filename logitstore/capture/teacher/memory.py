"""When a device has no room left: telling it from other failures, and what to do about it."""

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work at a time might have gone through.

    `torch` has a class for it on accelerators; on a CPU, and in libraries below `torch`, it is a
    RuntimeError that says so.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(should_reduce_batch_size(error))


def free_memory() -> None:
    """Give back what the device keeps for later.

    Call it outside of the `except` block: the error holds on to the tensors of what failed.
    """
    clear_device_cache(garbage_collection=True)
