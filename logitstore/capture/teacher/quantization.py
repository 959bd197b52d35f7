"""Quantised teachers: what `--quantization` may be, as `transformers` wants it.

It changes the distribution, so it is part of what a store is: the spec records it as
`teacher.quantization`, and a store cannot be resumed with another. A checkpoint that is quantised
already needs no flag: its own configuration is honoured, and is part of its fingerprint.
"""

import json
from collections.abc import Mapping
from typing import Any

from transformers.quantizers.auto import AutoQuantizationConfig

from logitstore.errors import InputError, in_a_line
from logitstore.format.canonical_json import parse_json

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
