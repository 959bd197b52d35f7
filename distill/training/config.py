"""The student run, as flags, as YAML, or as Python. One dataclass over TrainingArguments.

    distill train --model_name_or_path S --store my-store --loss uld:1.5 --output_dir out
    distill train --config run.yaml --learning_rate 1e-4      # flags win over the file

The keys of the file are the flags without their dashes. A key or flag that does not exist is an
error that names the nearest one, and so is a TrainingArguments flag that this trainer could not
honour: a setting that silently does nothing is worse than none.
"""

import copy
import dataclasses
import difflib
import json
import math
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar, get_args

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from distill.data.records_asked import parse_filter
from distill.losses import all_losses, all_options, find, option_values
from distill.losses.advice import AUTO, ONE_TOKENIZER, TWO_TOKENIZERS
from distill.losses.loss import Loss, Option
from distill.losses.own import addresses_in, import_named, use
from distill.losses.weights import check_effects, check_values, parse_losses
from distill.student.arguments import StudentArguments
from distill.training.flag_file import read_flag_file
from distill.training.kd_schedule import parse_schedule
from distill.training.loss_terms import Uncovered
from distill.training.one_cycle import parse_one_cycle
from distill.training.presets import PRESETS, described, flags_of
from logitstore.console.entry import with_underscores
from logitstore.console.left_out import DEFAULT_MAX_LOST
from logitstore.errors import InputError
from logitstore.text.chat_template import parse_kwargs

_NO_PREDICTIONS = "evaluation sums the losses of --eval_store and gathers no predictions"
_COMPILED = "the losses read hidden states inside the forward pass, which a compiled one hides"
_LIGER = "it replaces the forward pass whose hidden states the losses read"

#: Loggers that have the name of the package that they need.
_PACKAGES = ("tensorboard", "trackio", "wandb")

#: Least values; with less, torch would fail in the first step, with a message of its own.
_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
    "weight_decay": 0,
}

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


def _field_of(option: Option) -> tuple[str, Any, Any]:
    """Make a dataclass's field of the option."""
    kind = Literal[option.choices] if option.choices else type(option.default)
    return option.name, kind, field(default=option.default, metadata={"help": option.help})


if TYPE_CHECKING:  # a type checker does not see what losses declare

    @dataclass
    class LossFlags(TrainingArguments):
        """TrainingArguments and the options of all losses."""

        pairing: Literal["bytes", "position"] = "bytes"
        map: str = "events"
        between: Literal["off", "on"] = "off"
        tail_kl_kind: Literal["forward", "reverse", "jsd", "skew"] = "forward"
        temperature: float = 1.0
        alm_temperature: float = 100.0

else:
    LossFlags = dataclasses.make_dataclass(
        "LossFlags", map(_field_of, all_options().values()), bases=(TrainingArguments,)
    )


@dataclass
class CachedTeacherConfig(LossFlags):
    """Everything TrainingArguments has, plus where the teacher's store is and what to do with it.

    Defaults that differ: learning_rate 2e-5, logging_steps 10, remove_unused_columns False, and no
    progress bar where stderr is not a terminal.

    Raises:
        InputError: For a missing or impossible value, and for every flag in `REJECTED`.
    """

    store: str = field(
        default="", metadata={"help": "The store to train from, as `logitstore capture` wrote it."}
    )
    eval_store: str | None = field(
        default=None, metadata={"help": "A store of held-out text, for --eval_strategy."}
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
        self._check_own()
        self._reject_unused_flags()
        if self.disable_tqdm is None and not sys.stderr.isatty():
            self.disable_tqdm = True  # a log file gets a plain line every --logging_steps
        super().__post_init__()  # type: ignore[no-untyped-call]
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch warns of it, and nothing would be pinned
        self._reject_accelerate_options()
        self._check_loggers()

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
        if self.ce_weight == 0 and not weights:
            raise InputError("--loss ce with --ce_weight 0 leaves nothing to train on.")
        check_effects(self.loss_options, self.loss, weights)
        for flag in ("token_filter", "kd_schedule"):
            if getattr(self, flag) is not None and not weights:
                raise InputError(
                    f"--{flag} {getattr(self, flag)} would have no effect: --loss ce compares "
                    f"nothing with a teacher. Leave --{flag} out."
                )
        if self.balance and not weights:
            raise InputError("--balance: --loss ce has nothing to balance. Leave --balance out.")
        if self.uncovered != "hard" and not weights:
            raise InputError(
                f"--uncovered {self.uncovered} would have no effect: --loss ce has no term that a "
                "teacher's pairs could cover. Leave --uncovered out."
            )

    def _reject_unused_flags(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            # None, "" and the empty list that TrainingArguments makes of them all mean "not given".
            if each.name in REJECTED and (value or None) != (_default(each) or None):
                raise InputError(
                    f"--{each.name} {value} would have no effect: {REJECTED[each.name]}. "
                    f"Leave --{each.name} out."
                )
        if self.train_sampling_strategy not in ("random", "group_by_length", "sequential"):
            raise InputError(
                f"--train_sampling_strategy {self.train_sampling_strategy} would have no effect: "
                "how long rows are for the student is known only after tokenising. Use `random`, "
                "`group_by_length` or `sequential`."
            )

    def _check_loggers(self) -> None:
        """Reject loggers that are not installed; TrainingArguments has made a list of the names."""
        known = set(INTEGRATION_TO_CALLBACK)
        here: list[str] = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
        for name in self.report_to or ():
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

    def _reject_accelerate_options(self) -> None:
        """Reject options of accelerate that break the counts; TrainingArguments has parsed them."""
        accelerate: Any = self.accelerator_config
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
            if getattr(self.parallelism_config, name, 1) > 1:
                raise InputError(
                    f"--parallelism_config {name}: positions are counted per data-parallel rank, "
                    "each with whole rows. Use --fsdp, --deepspeed or plain data parallelism."
                )


def parse(argv: Sequence[str]) -> tuple[CachedTeacherConfig, StudentArguments]:
    """Parse flags, and the file after `--config`, into the configuration of a run.

    Raises:
        InputError: For an unknown flag or key (names the nearest) and for a bad value.
    """
    files = ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config")
    files.add_argument("--preset")
    chosen, flags = files.parse_known_args([with_underscores(word) for word in argv])
    parser = _Parser()
    from_file = parser.flags_of(Path(chosen.config)) if chosen.config else []
    in_file, from_file = files.parse_known_args(from_file)
    preset = chosen.preset or in_file.preset
    _import_own(flags, from_file, chosen.config)
    first = _without_overridden(flags_of(preset), [*from_file, *flags]) if preset else []
    try:
        # The last of two flags wins, so the preset comes first, then the file.
        parsed: tuple[Any, ...] = parser.parse_args_into_dataclasses(
            [*first, *from_file, *flags], return_remaining_strings=True, look_for_args_file=False
        )
    except InputError:
        raise
    except (ValueError, ImportError, OSError) as error:  # from TrainingArguments: already clear
        message = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{message}. See `distill train --help`.") from error
    config, student, *_, unknown = parsed
    if unknown:
        raise InputError(_unknown(str(unknown[0]), parser.known_keys(), "flag"), kind="usage")
    return config, student


def _import_own(flags: Sequence[str], from_file: Sequence[str], path: str) -> None:
    """Import the losses that the command line names; a file may be from others, and names none.

    Raises:
        InputError: The file names one, or one cannot be imported.
    """
    of_loss = ArgumentParser(add_help=False, allow_abbrev=False)
    of_loss.add_argument("--loss", nargs="?")
    typed, in_file = (of_loss.parse_known_args(list(each))[0].loss for each in (flags, from_file))
    if typed is not None:
        import_named(typed)
    elif in_file is not None and (named := next(addresses_in(in_file), None)):
        raise InputError(
            f"--config {path}: loss names {named}, a module to import and so to run, which a file "
            f"cannot ask for. Give --loss {in_file} on the command line; it wins over the file.",
            kind="own-loss",
        )


def _without_overridden(preset: list[str], given: Sequence[str]) -> list[str]:
    """Drop from a preset its schedule if another is given, and what another loss cannot use."""
    names = {flag.split("=")[0].lstrip("-") for flag in given if flag[:2] == "--"}
    schedules = {"one_cycle", "lr_scheduler_type", "warmup_steps"}
    if "one_cycle" in names or (
        names & schedules and any(flag.startswith("--one_cycle") for flag in preset)
    ):
        names |= schedules
    if "loss" in names:
        losses = _losses_of(given)
        read = {option.name for name in losses for option in find(name).options}
        names |= all_options().keys() - read
        names |= set() if losses else {"uncovered"}
    return [flag for flag in preset if flag.split("=")[0][2:] not in names]


def _losses_of(given: Sequence[str]) -> dict[str, float]:
    """Parse the losses that the last `--loss` names."""
    flags = [part for flag in given for part in flag.split("=", 1)]
    last = len(flags) - 1 - flags[::-1].index("--loss")
    named = flags[last + 1 : last + 2] or ["ce"]
    if named == [AUTO]:
        return dict.fromkeys((ONE_TOKENIZER, TWO_TOKENIZERS), 1.0)
    return parse_losses(named[0])


class _Parser(HfArgumentParser):
    """An HfArgumentParser that raises instead of exiting, and reads a YAML file as flags."""

    def __init__(self) -> None:
        super().__init__(
            (CachedTeacherConfig, StudentArguments),  # type: ignore[arg-type]  # upstream NewType
            prog="distill train",
            allow_abbrev=False,
            epilog=described(),
            formatter_class=RawDescriptionHelpFormatter,
        )
        self.add_argument(
            "--preset",
            choices=list(PRESETS),
            help="Settings that belong together, listed below; the file and flags win over them.",
        )
        self.add_argument("--config", help="A YAML file of flags; flags given beside it win.")
        self.add_argument(
            "--json",
            action="store_true",
            help="Print an error as JSON to stdout, too; a finished run is printed so anyhow.",
        )

    def add_argument(self, *names: str, **more: Any) -> Any:
        """Declare a flag with underscores alone: `parse` converts the spelling with hyphens."""
        spelt = [name for name in names if with_underscores(name) == name]
        return super().add_argument(*spelt, **more)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See `distill train --help`.", kind="usage")

    def known_keys(self) -> list[str]:
        return [action.dest for action in self._actions]

    def flags_of(self, path: Path) -> list[str]:
        """Turn a file's keys into flags, so that both go through the same types and checks."""
        loaded = read_flag_file(path)
        known = self.known_keys()
        flags: list[str] = []
        for key, value in loaded.items():
            name = with_underscores(f"--{key}").removeprefix("--")
            if name not in known or name in ("config", "help", "json"):
                raise InputError(f"--config {path}: " + _unknown(str(key), known, "key"))
            choices = next((a.choices for a in self._actions if a.dest == name), None)
            flags += _as_flags(name, _as_written(value, choices))
        return flags


#: What YAML takes for a truth value, though it may be the name of a choice: `save_strategy: no`.
_SPELLINGS = {True: ("true", "yes", "on"), False: ("false", "no", "off")}


def _as_written(value: object, choices: Iterable[object] | None) -> object:
    """Turn YAML's truth value back into the choice that was written, if it is one."""
    if not isinstance(value, bool) or choices is None:
        return value
    named = {str(getattr(choice, "value", choice)): choice for choice in choices}
    return next((word for word in _SPELLINGS[value] if word in named), value)


def _as_flags(name: str, value: object) -> list[str]:
    """Write `--name=value`, a form that is also right for values that look like flags."""
    if value is None:  # YAML's null: the default
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}"]


def _unknown(given: str, known: Iterable[str], what: str) -> str:
    name = with_underscores(given).lstrip("-").split("=")[0]
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    if not given.startswith("-") and what == "flag":
        return f"{given!r} is neither a flag nor the value of one. See `distill train --help`."
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"no {what} is called {given}.{hint} See `distill train --help`."


_Any = TypeVar("_Any")


def _default(each: "dataclasses.Field[_Any]") -> object:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return each.default
