"""Read `--quantization` and `--device-map` into what `transformers` takes.

Quantisation changes the distribution, so it is part of a store's spec (`teacher.quantization`), and
a store cannot be resumed with another. A checkpoint that is quantised
already needs no flag: its own configuration is honoured, and is part of its fingerprint.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers.quantizers.auto import AutoQuantizationConfig

from logitstore.errors import InputError, in_a_line
from logitstore.format.canonical_json import parse_json

NAMES = ("bitsandbytes-4bit", "bitsandbytes-8bit")


def quantization_config(asked: str | Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Make the `quantization_config` of `transformers` that the user asks for, as a JSON object.

    Args:
        asked: One of `NAMES`, or the object itself, also as JSON.
        dtype: The precision that 4-bit weights are multiplied in, unless the object says.

    Raises:
        InputError: It is neither a name nor an object.
    """
    if asked == "bitsandbytes-8bit":
        return {"quant_method": "bitsandbytes", "load_in_8bit": True}
    if asked == "bitsandbytes-4bit":  # as QLoRA has it; the library's own default is fp4 in float32
        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        return {"quant_method": "bitsandbytes", "load_in_4bit": True, **nf4}
    try:  # what is recorded is JSON, whatever it was given as
        config: Any = parse_json((asked if isinstance(asked, str) else json.dumps(asked)).encode())
    except (TypeError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise InputError(
            f"--quantization is {asked}, expected {', '.join(NAMES)}, or a quantization_config of "
            """transformers as JSON, such as '{"quant_method": "hqq", "nbits": 4}'."""
        )
    return config


def transformers_config(config: Mapping[str, Any]) -> Any:
    """Make the configuration object that `from_pretrained` takes.

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
            f"Use {' or '.join(NAMES)}, or fix the JSON."
        ) from e


def _method(config: Mapping[str, Any]) -> str:
    return str(config.get("quant_method", "bitsandbytes"))


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def checkpoint_quantization(config: Any) -> str | None:
    """Name the method with which a checkpoint was quantised when saved; None if it was not."""
    saved = getattr(config, "quantization_config", None)
    if saved is None:
        return None
    as_dict = saved if isinstance(saved, Mapping) else saved.to_dict()
    return str(as_dict.get("quant_method", "unknown"))


def device_map_of(asked: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """Read a `device_map` of `transformers`.

    Raises:
        InputError: It is neither a strategy nor an object of modules and devices.
    """
    if asked in DEVICE_MAPS:
        return str(asked)
    try:
        device_map = json.loads(asked) if isinstance(asked, str) else dict(asked)
    except (ValueError, RecursionError):
        device_map = None
    if not isinstance(device_map, dict) or not device_map:
        raise InputError(
            f"--device-map is {asked}, expected {', '.join(DEVICE_MAPS)}, or modules and their "
            """devices as JSON, such as '{"": 0}'."""
        )
    return device_map
