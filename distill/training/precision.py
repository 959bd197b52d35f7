"""Reject a number format that this machine does not compute in, before Trainer says it otherwise.

`--bf16` on a processor is possible with --use_cpu: weights stay in --dtype, and the forward pass is
computed in bfloat16, which most processors do slower than float32. `--fp16` there does nothing, and
nobody says so.
"""

from typing import Any

import torch
from transformers.utils.import_utils import is_torch_bf16_gpu_available, is_torch_xla_available

from logitstore.errors import InputError


def check_precision(config: Any) -> None:
    """Reject `--bf16` and `--fp16` where they cannot be had, or would do nothing.

    Args:
        config: The settings of a run, as TrainingArguments name them.

    Raises:
        InputError: Says what this machine lacks, and what to give instead.
    """
    has_device = torch.accelerator.is_available() and not config.use_cpu
    for flag in ("bf16", "bf16_full_eval"):
        if getattr(config, flag) and not config.use_cpu and not _computes_in_bf16():
            found = (
                "an accelerator without it" if has_device else "no accelerator that torch can use"
            )
            raise InputError(
                f"--{flag} computes in bfloat16 on an accelerator, and here is {found}. Leave "
                f"--{flag} out to compute in float32, or add --use_cpu to compute in bfloat16 on "
                "the processor, which is slower on most."
            )
    for flag in ("fp16", "fp16_full_eval"):
        if getattr(config, flag) and not has_device:
            raise InputError(
                f"--{flag} would have no effect: float16 is computed on an accelerator alone, and "
                f"this run is on a processor. Leave --{flag} out."
            )


def _computes_in_bf16() -> bool:
    return bool(is_torch_bf16_gpu_available()) or bool(is_torch_xla_available())
