"""Copy arrays of any library to numpy: of torch, JAX, CuPy, or whatever has `__dlpack__`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from logitstore.errors import InputError, in_a_line
from logitstore.format.numpy_types import F32, F64, I64, Array


def shape_of(values: Any) -> tuple[int, ...] | None:
    """Return the shape of an array of any library; None for what is no array."""
    shape = getattr(values, "shape", None)
    return None if shape is None else tuple(int(n) for n in shape)


def floats(values: Any, where: str) -> F32:
    """Copy to float32 on the host.

    Raises:
        InputError: These are no numbers, or they cannot be copied.
    """
    return np.asarray(_numbers(values, where), np.float32)


def doubles(values: Any, where: str) -> F64:
    """Copy to float64 on the host.

    Raises:
        InputError: These are no numbers, or they cannot be copied.
    """
    return np.asarray(_numbers(values, where), np.float64)


def integers(values: Any, where: str) -> I64:
    """Copy whole numbers to int64 on the host.

    Raises:
        InputError: These are no whole numbers, or they cannot be copied.
    """
    found = _on_host(values, where)
    if found.dtype.kind not in "iub":
        if found.size:
            raise InputError(f"{where}: expected whole numbers, found {found.dtype}. Convert them.")
        return np.zeros(found.shape, np.int64)
    return found.astype(np.int64)


def _numbers(values: Any, where: str) -> Array:
    found = _on_host(values, where)
    if found.dtype.kind in "fiub" or _is_extended(found):
        return found
    raise InputError(f"{where}: expected numbers, found {found.dtype}. Convert them.")


def _is_extended(array: Array) -> bool:
    """Tell whether these are floats that numpy itself does not have, such as bfloat16 of JAX."""
    return "float" in array.dtype.name


def _on_host(values: Any, where: str) -> Array:
    if isinstance(values, np.ndarray):
        return values
    if type(values).__module__.split(".")[0] == "torch":
        return _of_torch(values)
    if hasattr(values, "__dlpack__"):
        ways: tuple[Callable[[], Array], ...] = (
            lambda: np.from_dlpack(values),
            lambda: np.from_dlpack(values, device="cpu"),  # numpy 2.1 copies from a device
        )
        for way in ways:
            try:
                return way()
            except (RuntimeError, TypeError, BufferError, ValueError):  # not on the host; no type
                continue
    try:
        return np.asarray(values)
    except Exception as e:  # whatever the library raises
        raise InputError(
            f"{where}: {type(values).__name__} cannot be copied to numpy ({in_a_line(e)}). Give "
            "arrays of one length a token, in the memory of the host."
        ) from e


def _of_torch(tensor: Any) -> Array:
    """Copy a tensor without importing its library; numpy has no bfloat16."""
    tensor = tensor.detach()
    if tensor.is_floating_point():
        tensor = tensor.float()
    array: Array = tensor.cpu().numpy()
    return array
