"""Reject TrainingArguments that this trainer cannot honour: a silent setting is worse than none."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from logitstore.errors import InputError

_NO_PREDICTIONS = "evaluation sums the losses of --eval_store and gathers no predictions"
_COMPILED = "the losses read hidden states inside the forward pass, which a compiled one hides"
_LIGER = "it replaces the forward pass whose hidden states the losses read"

#: Loggers that have the name of the package that they need.
_PACKAGES = ("tensorboard", "trackio", "wandb")

#: TrainingArguments that would silently not work here, each with the reason.
REJECTED = {
    "average_tokens_across_devices": "every term is divided by its count over all devices, always",
    "batch_eval_metrics": _NO_PREDICTIONS,
    "debug": "it reads logits, and none are made here; a loss or gradient that is not finite stops "
    "the run by itself",
    "do_predict": "there is no test set; run `distill evaluate` on the finished student",
    "eval_accumulation_steps": _NO_PREDICTIONS,
    "eval_do_concat_batches": _NO_PREDICTIONS,
    "eval_use_gather_object": _NO_PREDICTIONS,
    "include_for_metrics": _NO_PREDICTIONS,
    "label_names": "labels are the student's tokens of the store's supervised text",
    "label_smoothing_factor": "the cross-entropy is not Trainer's; a soft target is what --loss is",
    "length_column_name": "a store has no columns",
    "liger_kernel_config": _LIGER,
    "prediction_loss_only": _NO_PREDICTIONS,
    "remove_unused_columns": "a store has no columns",
    "torch_compile": _COMPILED,
    "torch_compile_backend": _COMPILED,
    "torch_compile_mode": _COMPILED,
    "use_liger_kernel": _LIGER,
}


def reject_without_effect(config: TrainingArguments) -> None:
    """Reject flags that would do nothing here.

    Raises:
        InputError: Names the flag, and why.
    """
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        # None, "" and the empty list that TrainingArguments makes of them all mean "not given".
        if each.name in REJECTED and (value or None) != (_default(each) or None):
            raise InputError(
                f"--{each.name} {value} would have no effect: {REJECTED[each.name]}. "
                f"Leave --{each.name} out."
            )
    if config.train_sampling_strategy not in ("random", "group_by_length", "sequential"):
        raise InputError(
            f"--train_sampling_strategy {config.train_sampling_strategy} would have no effect: "
            "how long rows are for the student is known only after tokenising. Use `random`, "
            "`group_by_length` or `sequential`."
        )


def check_loggers(config: TrainingArguments) -> None:
    """Reject loggers that are not installed; TrainingArguments has made a list of the names."""
    known = set(INTEGRATION_TO_CALLBACK)
    here: list[str] = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for name in config.report_to or ():
        # Flyte alone is missing from the list of installed integrations even when it is there.
        if name not in known or name not in (*here, "flyte"):
            if name in _PACKAGES:
                raise InputError(
                    f"--report_to {name}: the package {name} is not installed. Run `pip "
                    f"install {name}`, or use --report_to none."
                )
            what = "installed" if name in known else "known"
            raise InputError(
                f"--report_to {name}: no logger that is {what}; found "
                f"{', '.join(here) or 'none'}. Use one of these, or --report_to none."
            )


def reject_accelerate_options(config: TrainingArguments) -> None:
    """Reject options of accelerate that break the counts; TrainingArguments has parsed them."""
    accelerate: Any = config.accelerator_config
    if accelerate.dispatch_batches:
        raise InputError(
            "--accelerator_config dispatch_batches: one process would slice the batch by rows, "
            "but teacher arrays have one line a position. Leave dispatch_batches out."
        )
    if not accelerate.even_batches:
        raise InputError(
            "--accelerator_config even_batches false: ranks with fewer batches would wait "
            "forever in the count of the others. Leave even_batches out."
        )
    for name in ("tp_size", "cp_size", "sp_size"):
        if getattr(config.parallelism_config, name, 1) > 1:
            raise InputError(
                f"--parallelism_config {name}: positions are counted per data-parallel rank, "
                "each with whole rows. Use --fsdp, --deepspeed or plain data parallelism."
            )


_Any = TypeVar("_Any")


def _default(each: "dataclasses.Field[_Any]") -> object:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return each.default


def reject_without_losses(args: Any, weights: Mapping[str, float]) -> None:
    """Reject flags of what is learnt from a teacher where nothing is, with `--loss ce`.

    Args:
        args: The run's settings.
        weights: The weight of each of its losses.

    Raises:
        InputError: Names the flag.
    """
    if args.ce_weight == 0 and not weights:
        raise InputError("--loss ce with --ce_weight 0 leaves nothing to train on.")
    for flag in ("token_filter", "token_weights", "kd_schedule"):
        if getattr(args, flag) is not None and not weights:
            raise InputError(
                f"--{flag} {getattr(args, flag)} would have no effect: --loss ce compares "
                f"nothing with a teacher. Leave --{flag} out."
            )
    if args.teachers != "mean" and not weights:
        raise InputError(
            f"--teachers {args.teachers} would have no effect: --loss ce asks no teacher. Leave "
            "--teachers out."
        )
    if args.balance and not weights:
        raise InputError("--balance: --loss ce has nothing to balance. Leave --balance out.")
    if args.uncovered != "hard" and not weights:
        raise InputError(
            f"--uncovered {args.uncovered} would have no effect: --loss ce has no term that a "
            "teacher's pairs could cover. Leave --uncovered out."
        )
