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
from dataclasses import dataclass, field
from typing import Any, Self, get_args

import torch

from distill.data.records_asked import parse_filter
from distill.losses import all_losses, all_options, option_values
from distill.losses.advice import AUTO, ONE_TOKENIZER, TWO_TOKENIZERS
from distill.losses.loss import Loss
from distill.losses.own import use
from distill.losses.weights import check_effects, check_values, parse_losses
from distill.training.kd_schedule import parse_schedule
from distill.training.loss_flags import LossFlags
from distill.training.loss_terms import Uncovered
from distill.training.named_stores import Teachers, check_teachers, check_unweighed, parse_stores
from distill.training.one_cycle import parse_one_cycle
from distill.training.unusable_flags import (
    check_loggers,
    reject_accelerate_options,
    reject_without_effect,
    reject_without_losses,
)
from logitstore.console.left_out import DEFAULT_MAX_LOST
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
class CachedTeacherConfig(LossFlags):
    """Everything TrainingArguments has, plus where the teacher's store is and what to do with it.

    Defaults that differ: learning_rate 2e-5, logging_steps 10, remove_unused_columns False, and no
    progress bar where stderr is not a terminal.

    Raises:
        InputError: For a missing or impossible value, and for every flag that would do nothing.
    """

    store: list[str] | str = field(
        default="",
        metadata={
            "help": "The store to train from, as `logitstore capture` wrote it. Several, of one "
            "text by several teachers, make one student: --store a --store b:0.5 (a weight; "
            "default 1). Rows are joined by their text; those of one store are used with that one."
        },
    )
    teachers: Teachers = field(
        default="mean",
        metadata={
            "help": "What is learnt of a row of several stores. `mean`: every loss is the mean "
            "over its stores, by their weights. `best`: from the teacher alone that is least "
            "surprised by the row, nats a byte."
        },
    )
    eval_store: list[str] | str | None = field(  # in an order that HfArgumentParser reads
        default=None,
        metadata={
            "help": "A store of held-out text, for --eval_strategy; of several teachers several."
        },
    )
    allow_partial: bool = field(
        default=False, metadata={"help": "Train on what an unfinished store holds so far."}
    )
    boundaries: bool = field(
        default=False,
        metadata={
            "help": "Learn at every boundary of this student's tokens, from the teacher's tokens "
            "that go on there and from what follows one that ended there, which `logitstore "
            "capture --boundaries-of` adds to a store."
        },
    )
    loss: str = field(
        default=AUTO,
        metadata={
            "help": f"`{AUTO}`: {ONE_TOKENIZER} where teacher and student have one tokenizer, else "
            f"{TWO_TOKENIZERS}. Or `ce`, or NAME[:WEIGHT][,NAME[:WEIGHT]...] of: "
            + ", ".join(all_losses())
            + ". Or a function of your own that @distill.loss declares, `my_module:my_loss`: that "
            "imports my_module, which runs it."
        },
    )
    ce_weight: float = field(
        default=1.0, metadata={"help": "Weight of cross-entropy on the store's text."}
    )
    max_lost: float = field(
        default=DEFAULT_MAX_LOST,
        metadata={
            "help": "Largest share of the store's sequences that this student may be unable to "
            "use, 0 to 1. More is an error before the first step, which says why."
        },
    )
    no_self_test: bool = field(
        default=False,
        metadata={
            "help": "Do not check before the first step that records, text and labels belong "
            "together."
        },
    )
    balance: bool = field(
        default=False,
        metadata={"help": "Scale the distillation terms, in every step, to what cross-entropy is."},
    )
    uncovered: Uncovered = field(
        default="hard",
        metadata={
            "help": "What a loss does about labels that no teacher pair covers. `hard`: their "
            "cross-entropy stands in, at the weight of the loss, so that all labels weigh the "
            "same; so does that of a label within a group of tokens, where the loss compares "
            "groups. `none`: nothing, and the loss is a mean over its own pairs, as in papers. "
            "`scale`: nothing, but the others weigh what they weigh with `hard`."
        },
    )
    rows: str | None = field(
        default=None,
        metadata={
            "help": "Train on some rows of the store alone: a file with a row number a line, such "
            "as `distill select` and `logitstore split` write, or a range A:B."
        },
    )
    train_top_k: int | None = field(
        default=None,
        metadata={"help": "Use the K most probable entries of a token; all others join the tail."},
    )
    token_filter: str | None = field(
        default=None,
        metadata={
            "help": "Compare only where this holds of the teacher, in nats: entropy>2, or "
            "surprise>1,entropy<5. Elsewhere it is as if no pair covered a label (--uncovered)."
        },
    )
    kd_schedule: str | None = field(
        default=None,
        metadata={
            "help": "Multiply the distillation terms with a factor that goes from the first step "
            "to the last, linear:0.2..1 or cosine:1..0."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Cut rows at N student tokens. Default: what the student can read."},
    )
    packing: bool = field(
        default=False,
        metadata={
            "help": "Lay the sequences of a batch into as few rows as its longest one allows, each "
            "attending to itself alone: the same loss and gradient with less padding."
        },
    )
    chat_template_path: str | None = field(
        default=None,
        metadata={
            "help": "The student's chat template: a Jinja file, or the folder of a tokenizer. "
            "Default: the student's own."
        },
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Variables of the chat template for every row, as JSON."}
    )
    one_cycle: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Learning rate up and down once, instead of --lr_scheduler_type: JSON of "
            "pct_start, div_factor, final_div_factor and the like; {} for the usual values."
        },
    )
    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    logging_steps: float = field(
        default=10, metadata={"help": "Log every N steps, or a fraction of all steps."}
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "Order of rows. `group_by_length`: as `random`, but those of up to 64 steps "
            "sorted by their records (supervised tokens; prompts do not count) and dealt out "
            "again: less padding.",
            "choices": ["random", "group_by_length", "sequential"],
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Not used: a store has no columns."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.loss, Loss):
            self.loss = use(self.loss)
        if not self.output_dir:
            raise InputError("--output_dir is required: an empty folder for the student.")
        if not self.store:
            raise InputError("--store is required: the store written by `logitstore capture`.")
        self._check_stores()
        self._check_own()
        reject_without_effect(self)
        if self.disable_tqdm is None and not sys.stderr.isatty():
            self.disable_tqdm = True  # a log file gets a plain line every --logging_steps
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
