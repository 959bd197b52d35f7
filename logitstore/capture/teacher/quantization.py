"""Quantised teachers: what `--quantization` may be, as `transformers` wants it.

It changes the distribution, so it is part of what a store is: the spec records it as
`teacher.quantization`, and a store cannot be resumed with another. A checkpoint that is quantised
already needs no flag: its own configuration is honoured, and is part of its fingerprint.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.auto import AutoQuantizationConfig

from logitstore.errors import InputError, in_a_line
from logitstore.format.canonical_json import parse_json

if TYPE_CHECKING:
    pass

NAMES = ("bitsandbytes-4bit", "bitsandbytes-8bit")


def quantization_config(asked: str | Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A `quantization_config` of `transformers`, as a JSON object.

    Args:
        asked: One of `NAMES`, or the object itself, also as JSON.
        dtype: What 4-bit weights are multiplied in, unless the object says.

    Raises:
        InputError: Neither.
    """
    if asked == "bitsandbytes-8bit":
        return {"quant_method": "bitsandbytes", "load_in_8bit": True}
    if asked == "bitsandbytes-4bit":  # as QLoRA has it; the library's own default is fp4 in float32
        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        return {"quant_method": "bitsandbytes", "load_in_4bit": True, **nf4}
    try:  # what is recorded is JSON, whatever it was given as
        found: Any = parse_json((asked if isinstance(asked, str) else json.dumps(asked)).encode())
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"--quantization is {asked}, expected {', '.join(NAMES)}, or a quantization_config of "
            """transformers as JSON, such as '{"quant_method": "hqq", "nbits": 4}'."""
        )
    return found


def transformers_config(config: Mapping[str, Any]) -> Any:
    """The object that `from_pretrained` takes.

    Raises:
        InputError: `transformers` does not know the method, or not these settings of it.
    """
    try:
        return AutoQuantizationConfig.from_dict(dict(config))
    except ImportError as e:
        raise InputError(
            f"--quantization {_method(config)}: a package is not installed that it needs "
            f"({in_a_line(e)}). Install it with pip, or leave --quantization out."
        ) from e
    except Exception as e:  # every method checks its settings in its own way
        raise InputError(
            f"--quantization {json.dumps(config)}: transformers does not know it ({in_a_line(e)}). "
            f"Use {' or '.join(NAMES)}, or mend the JSON."
        ) from e


def _method(config: Mapping[str, Any]) -> str:
    return str(config.get("quant_method", "bitsandbytes"))


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def checkpoint_quantization(config: Any) -> str | None:
    """How a checkpoint was quantised when it was saved, in a word."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    as_dict = found if isinstance(found, Mapping) else found.to_dict()
    return str(as_dict.get("quant_method", "unknown"))


def device_map_of(asked: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """A `device_map` of `transformers`.

    Raises:
        InputError: It is neither a strategy nor an object of modules and devices.
    """
    if asked in DEVICE_MAPS:
        return str(asked)
    try:
        found = json.loads(asked) if isinstance(asked, str) else dict(asked)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"--device-map is {asked}, expected {', '.join(DEVICE_MAPS)}, or modules and their "
            """devices as JSON, such as '{"": 0}'."""
        )
    return found
