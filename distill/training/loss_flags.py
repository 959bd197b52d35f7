"""The flags of all losses, as fields of a run's settings."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from transformers import TrainingArguments

from distill.losses import all_options
from distill.losses.loss import Option


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
        cdm_map: Literal["exact", "prefix", "mined"] = "exact"
        cdm_threshold: float = 0.1
        dskd_temperature: float = 2.0
        dskd_wrong: Literal["hard", "none"] = "hard"
        dskd_space: Literal["auto", "student", "both"] = "auto"
        cot2align_alpha: float = 0.1
        loss_learning_rate: float = 0.001

else:
    LossFlags = dataclasses.make_dataclass(
        "LossFlags", map(_field_of, all_options().values()), bases=(TrainingArguments,)
    )
