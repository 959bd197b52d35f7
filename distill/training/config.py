"""The student run, as flags, as YAML, or as Python. One dataclass over TrainingArguments.

    distill train --model_name_or_path S --store my-store --loss uld:1.5 --output_dir out
    distill train --config run.yaml --learning_rate 1e-4      # flags win over the file

`command_line.py` reads the flags and the file; `unusable_flags.py` has the TrainingArguments that
this trainer could not honour.
"""

import copy
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args

import torch

from distill.data.records_asked import parse_filter
from distill.data.token_weights import check_known
from distill.losses import all_options, option_values
from distill.losses.advice import AUTO, ONE_TOKENIZER, TWO_TOKENIZERS
from distill.losses.loss import Loss
from distill.losses.own import check_declared, use
from distill.losses.weights import check_effects, check_values, parse_losses
from distill.training.arguments import NEEDED, RunArguments, Uncovered
from distill.training.kd_schedule import parse_schedule
from distill.training.loss_flags import LossFlags
from distill.training.named_stores import (
    check_cot_store,
    check_teachers,
    check_unweighed,
    parse_stores,
)
from distill.training.one_cycle import parse_one_cycle
from distill.training.precision import check_precision
from distill.training.unusable_flags import (
    check_loggers,
    reject_accelerate_options,
    reject_without_effect,
    reject_without_losses,
)
from logitstore.console.argument_types import check_fields
from logitstore.errors import InputError
from logitstore.text.chat_template import parse_kwargs

#: Least values; with less, torch would fail in the first step, with a message of its own.
_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
    "weight_decay": 0,
}


@dataclass
class CachedTeacherConfig(RunArguments, LossFlags):
    """Everything TrainingArguments has, plus where the teacher's store is and what to do with it.

    The fields are those of :class:`~distill.training.arguments.RunArguments`, the options of losses
    and TrainingArguments'. Defaults that differ: learning_rate 2e-5, logging_steps 10,
    remove_unused_columns False, and no progress bar where stderr is not a terminal.

    Raises:
        InputError: For a missing or impossible value, and for every flag that would do nothing.
    """

    def __post_init__(self) -> None:
        if isinstance(self.loss, Loss):
            self.loss = use(self.loss)
        check_declared(self.loss)
        check_fields(self)
        for name, message in NEEDED.items():
            if not getattr(self, name):
                raise InputError(message)
        self._check_stores()
        self._check_own()
        reject_without_effect(self)
        if self.disable_tqdm is None and not sys.stderr.isatty():
            self.disable_tqdm = True  # a log file gets a plain line every --logging_steps
        check_precision(self)
        super().__post_init__()  # type: ignore[no-untyped-call]
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch warns of it, and nothing would be pinned
        reject_accelerate_options(self)
        check_loggers(self)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Return the weight of each distillation loss by name; empty for `ce`.

        Raises:
            InputError: The loss is still `auto`, see :meth:`settled`.
        """
        return parse_losses(self.loss)

    def settled(self, *, one_tokenizer: bool) -> Self:
        """Return this configuration, or if its loss is `auto`, a copy with the loss for a pair.

        Args:
            one_tokenizer: Whether teacher and student have one tokenizer.

        Raises:
            InputError: An option was given that this loss does not read.
        """
        if self.loss != AUTO:
            return self
        made = copy.copy(self)
        made.loss = ONE_TOKENIZER if one_tokenizer else TWO_TOKENIZERS
        made._check_effects(made.loss_weights)
        return made

    @property
    def loss_options(self) -> dict[str, Any]:
        """Collect the options of all losses, by the names of their flags."""
        return option_values({name: getattr(self, name) for name in all_options()})

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: Trainer saves its settings in folders that people share."""
        secret = {name for name in self.__dict__ if name.endswith("_token")}
        return self.__dict__ | dict.fromkeys(secret)

    def __copy__(self) -> Self:
        return self._with(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._with(copy.deepcopy(self.__dict__, memo))

    def _with(self, values: Mapping[str, Any]) -> Self:
        """Make a copy in this process, which still knows the secrets."""
        made = type(self).__new__(type(self))
        made.__dict__.update(values)
        return made

    @property
    def checkpoint(self) -> str | bool | None:
        """Return the folder to resume from, True for the last in the output folder, or None."""
        flag = self.resume_from_checkpoint
        if not flag or str(flag).lower() in ("false", "no"):
            return None
        return True if str(flag).lower() in ("true", "yes", "last") else flag

    def _check_own(self) -> None:
        for name, least in _AT_LEAST.items():
            if not getattr(self, name) >= least:  # also NaN
                raise InputError(
                    f"--{name} is {getattr(self, name)}, expected a number >= {least}."
                )
        if not (math.isfinite(self.ce_weight) and self.ce_weight >= 0):
            raise InputError(f"--ce_weight is {self.ce_weight}, expected a number >= 0.")
        if self.learning_rate == 0:
            raise InputError("--learning_rate is 0, which trains nothing; expected more than 0.")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise InputError(
                f"--num_train_epochs is {self.num_train_epochs:g}, which leaves no step; expected "
                "more than 0, or --max_steps."
            )
        if not 0 <= self.max_lost <= 1:
            raise InputError(f"--max_lost is {self.max_lost}, expected 0 to 1, such as 0.05.")
        self._check_losses()
        if self.chat_template_kwargs is not None:
            self.chat_template_kwargs = parse_kwargs(
                self.chat_template_kwargs, "--chat_template_kwargs"
            )
        if self.one_cycle is not None:
            self.one_cycle = parse_one_cycle(self.one_cycle)
            for flag, usual in (("lr_scheduler_type", "linear"), ("warmup_steps", 0)):
                if getattr(self, flag) != usual:
                    raise InputError(
                        f"--{flag} {getattr(self, flag)} would have no effect beside --one_cycle, "
                        f"which is a schedule by itself. Leave one of the two out."
                    )
        if self.token_filter is not None:
            parse_filter(self.token_filter)
        check_known(self.token_weights)
        if self.kd_schedule is not None:
            parse_schedule(self.kd_schedule)
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"--max_length is {self.max_length}, expected at least 2 tokens.")

    def _check_stores(self) -> None:
        """Check how stores are named; a list of one is that one."""
        for flag in ("store", "eval_store"):
            given = getattr(self, flag)
            if isinstance(given, list) and len(given) == 1:
                setattr(self, flag, given[0])
        check_teachers(self.teachers, parse_stores(self.store))
        losses = {} if self.loss == AUTO else self.loss_weights
        check_cot_store(self.cot_store, losses, several=isinstance(self.store, list))
        if self.eval_store:
            check_unweighed(parse_stores(self.eval_store, "--eval_store"), "--eval_store")

    def _check_losses(self) -> None:
        """Check the losses and their options, as far as they do not depend on the pair."""
        check_values(self.loss_options)
        if self.uncovered not in (ways := get_args(Uncovered)):
            raise InputError(f"--uncovered is {self.uncovered}, expected {' or '.join(ways)}.")
        if self.loss != AUTO:  # also when ce_weight is not 0: a wrong name must not wait
            self._check_effects(self.loss_weights)
        if self.balance and self.gradient_accumulation_steps > 1:
            raise InputError(
                f"--balance with --gradient_accumulation_steps {self.gradient_accumulation_steps}: "
                "the ratio of a batch is not known before its last part, when the gradient of the "
                "first is already taken. Raise --per_device_train_batch_size instead."
            )

    def _check_effects(self, weights: Mapping[str, float]) -> None:
        """Reject flags that would do nothing with these losses."""
        check_effects(self.loss_options, self.loss, weights)
        reject_without_losses(self, weights)
