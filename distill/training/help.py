"""Print the help of `distill train`: its own flags first, in groups, with their defaults.

It imports neither torch nor transformers, so that it is there at once. The flags most used of
TrainingArguments stand below ours; `--help-all` lists all of them.
"""

from argparse import ArgumentParser, HelpFormatter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

from distill.losses.in_source import loss_flags
from distill.student.arguments import StudentArguments
from distill.training.arguments import OF_LOSSES, PANELS, SETTINGS, TRAINING, RunArguments
from distill.training.presets import PRESETS, described
from distill.training.trainer_flags import trainer_flags
from logitstore.console.entry import with_underscores
from logitstore.console.settings import about
from logitstore.console.settings import described as settings_of

_USAGE = "distill train --model_name_or_path S --store STORE --output_dir OUT …"
_ABOUT = (
    "Train a student from a store, without its teacher. Takes every flag of TrainingArguments of "
    "transformers besides these; --help-all lists them, too."
)
_ALL = "All other flags of TrainingArguments"

#: A flag that TrainingArguments have and a store does not need.
_NOT_USED = "remove_unused_columns"
#: Choices that are listed as the placeholder of a value.
_FEW = 4

#: Flags of TrainingArguments that most runs need: placeholder and text.
_MOST_USED = {
    "output_dir": ("FOLDER", "Folder of the student, new or empty."),
    "num_train_epochs": ("N", "How often all rows are read."),
    "max_steps": ("N", "Steps, instead of epochs; -1: as epochs say."),
    "per_device_train_batch_size": ("N", "Rows of a batch on a device."),
    "gradient_accumulation_steps": ("N", "Batches of a step."),
    "lr_scheduler_type": ("NAME", "How the learning rate goes down: linear, cosine, constant, …"),
    "warmup_steps": ("N", "Steps that it goes up before, or a share of all steps."),
    "weight_decay": ("W", "Of AdamW, but for biases and norms."),
    "bf16": ("", "Compute in bfloat16; weights stay as --dtype says."),
    "gradient_checkpointing": ("", "Compute activations twice to save memory."),
    "dataloader_num_workers": ("N", "Processes that read the store ahead."),
    "eval_strategy": ("no|steps|epoch", "When --eval_store is measured."),
    "save_strategy": ("no|steps|epoch|best", "When checkpoints are saved."),
    "save_steps": ("N", "Steps between checkpoints, or a share of all steps."),
    "resume_from_checkpoint": ("true|FOLDER", "Go on from the last checkpoint, or from this one."),
    "seed": ("N", "Of the order of rows, of new weights and of dropout."),
    "report_to": ("NAMES", "Loggers: wandb, tensorboard, trackio, none."),
    "run_name": ("NAME", "Name of the run, for distill compare."),
}


class _Shown(NamedTuple):
    """A flag as the help shows it.

    Attributes:
        panel: The heading that it stands below.
        name: Its name, without dashes.
        metavar: Placeholder of its value; empty for a switch.
        text: What it does.
        default: What holds without it, for people; empty if that needs no word.
    """

    panel: str
    name: str
    metavar: str
    text: str
    default: str = ""


def asked_for(argv: Sequence[str]) -> str | None:
    """Write the help that a command line asks for; None if it asks for none."""
    words = [with_underscores(word) for word in argv]
    if {"-h", "--help", "--help_all"}.isdisjoint(words):
        return None
    named = ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--preset", nargs="?")
    return help_text(named.parse_known_args(words)[0].preset, every="--help_all" in words)


def help_text(preset: str | None = None, *, every: bool = False) -> str:
    """Write the help, or what a preset sets.

    Args:
        preset: Its name; then its flags and their sources are listed.
        every: Whether all flags of TrainingArguments are listed.
    """
    if preset in PRESETS:
        return described([preset]) + "\n"
    parser = ArgumentParser(
        usage=_USAGE,
        description=_ABOUT,
        add_help=False,
        formatter_class=partial(HelpFormatter, max_help_position=30),
    )
    shown = [*_most_used(), *_own(), *(_all_others() if every else ())]
    for panel in (*PANELS, *([_ALL] if every else [])):
        group = parser.add_argument_group(panel)
        for flag in shown:
            if flag.panel == panel:
                default = f" [{flag.default}]" if flag.default else ""
                value: dict[str, Any] = {"metavar": flag.metavar} if flag.metavar else {}
                group.add_argument(
                    f"--{flag.name}",
                    help=(flag.text + default).replace("%", "%%"),
                    **value or {"action": "store_true"},
                )
    return parser.format_help()


def _own() -> Iterator[_Shown]:
    for kind in (StudentArguments, RunArguments):
        for each in settings_of(kind):
            said = about(each)
            metavar = "" if isinstance(each.default, bool) else said.metavar or "X"
            if each.name != _NOT_USED:
                default = said.unset or _written(each.default)
                yield _Shown(said.panel, each.name, metavar, said.help.replace("`", ""), default)
    for flag in loss_flags():
        words = "|".join(flag.choices) if len(flag.choices) <= _FEW else "KIND"
        text = flag.help.replace("`", "")
        yield _Shown(OF_LOSSES, flag.name, words or "X", text, _written(flag.default))
    text = f"Settings that belong together: {', '.join(PRESETS)}. --preset NAME --help lists one."
    yield _Shown(SETTINGS, "preset", "NAME", text)
    text = "YAML file of flags, without their dashes; flags beside it win."
    yield _Shown(SETTINGS, "config", "FILE", text)
    text = "Print the finished run, or an error, as one JSON object to stdout."
    yield _Shown(SETTINGS, "json", "", text)
    yield _Shown(SETTINGS, "help-all", "", "Also list all flags of TrainingArguments.")


def _most_used() -> Iterator[_Shown]:
    found = {flag.name: flag for flag in trainer_flags()}
    for name, (metavar, text) in _MOST_USED.items():
        if name in found:
            yield _Shown(TRAINING, name, metavar, text, _written(found[name].default))


def _all_others() -> Iterator[_Shown]:
    ours = {each.name for kind in (StudentArguments, RunArguments) for each in fields(kind)}
    for flag in trainer_flags():
        if flag.name not in ours | _MOST_USED.keys():
            metavar = "" if isinstance(flag.default, bool) else "X"
            text = " ".join(flag.help.split())
            yield _Shown(_ALL, flag.name, metavar, text, _written(flag.default))


def _written(default: Any) -> str:
    """Write a default value; empty for none, and for a flag that is off."""
    if default is None or default is False or default == "":
        return ""
    return "on" if default is True else str(default)
