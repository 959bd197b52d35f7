"""The flags that say which student a run trains, and how it is loaded or made."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from logitstore.console.settings import setting
from logitstore.errors import InputError

# Headings of `distill train --help`.
STUDENT, ADAPTERS = "Student", "Adapters (LoRA)"
#: What is said where no student is named.
NEEDED = (
    "--model_name_or_path is required: the student, a hub id or a folder. Or --student_config, for "
    "a new one."
)


@dataclass
class StudentArguments:
    """The student before training: a hub id or a folder, and how to load it."""

    model_name_or_path: str = setting(
        "", STUDENT, "The student: a hub id, or a transformers folder.", metavar="STUDENT"
    )
    model_revision: str | None = setting(
        None, STUDENT, "Branch, tag or commit of a hub id.", metavar="NAME"
    )
    student_config: str | None = setting(
        None,
        STUDENT,
        "Instead of --model_name_or_path: new weights, by --seed, of the architecture in this "
        "folder, hub id or JSON file.",
        metavar="CONFIG",
    )
    tokenizer_name_or_path: str | None = setting(
        None, STUDENT, "Tokenizer of the student, where its own folder has none.", metavar="PATH"
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = setting(
        "float32",
        STUDENT,
        "Type of the weights; auto: the checkpoint's. See also --bf16.",
        metavar="float32|bfloat16|float16|auto",
    )
    use_peft: bool = setting(
        False, ADAPTERS, "Train LoRA adapters on a student that stays as it is."
    )
    lora_r: int = setting(16, ADAPTERS, "Rank of the adapters.", metavar="N")
    lora_alpha: int = setting(32, ADAPTERS, "They are scaled by alpha / r.", metavar="N")
    lora_dropout: float = setting(0.0, ADAPTERS, "Dropout before the adapters.", metavar="P")
    lora_target_modules: list[str] | None = setting(
        None,
        ADAPTERS,
        "Ends of module names, or all-linear.",
        metavar="NAME…",
        unset="peft's for the model",
    )
    lora_merge: bool = setting(
        False, ADAPTERS, "Save a whole model at the end, with the adapters merged into it."
    )

    def __post_init__(self) -> None:
        if not (self.model_name_or_path or self.student_config):
            raise InputError(NEEDED)
        if self.model_name_or_path and self.student_config:
            raise InputError(
                f"--student_config {self.student_config} makes a new student, and "
                f"--model_name_or_path {self.model_name_or_path} loads one. Leave one of them out."
            )
        self._check_adapters()

    @property
    def changed_adapters(self) -> list[str]:
        """Name the given flags that say what new adapters are like."""
        fields = [f for f in dataclasses.fields(self) if f.name.startswith("lora_")]
        changed = [f.name for f in fields if getattr(self, f.name) != f.default]
        return [name for name in changed if name != "lora_merge"]

    def _check_adapters(self) -> None:
        if self.use_peft and self.student_config:
            raise InputError(
                "--use_peft with --student_config: adapters on new weights, which nothing would "
                "save. Leave --use_peft out."
            )
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if not self.use_peft and each.name.startswith("lora_") and value != each.default:
                raise InputError(
                    f"--{each.name} {value} would have no effect: without --use_peft there are no "
                    "adapters. Add --use_peft, or leave it out."
                )
        if self.lora_r < 1 or not 0 <= self.lora_dropout < 1:
            raise InputError(
                f"--lora_r {self.lora_r} --lora_dropout {self.lora_dropout}: expected a rank of at "
                "least 1 and a share from 0 to below 1."
            )
