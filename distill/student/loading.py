"""The student before training: loaded, or made new from a config; whole, or with adapters.

No code from a model's folder is run. An encoder-decoder is told by its config.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from logitstore.errors import InputError
from logitstore.models.loading import load_or_explain, load_tokenizer
from logitstore.storage.files import read_file
from logitstore.text.tokenizer import ByteTokenizer


@dataclass
class StudentArguments:
    """The student before training: a hub id or a folder, and how to load it."""

    model_name_or_path: str = field(
        default="", metadata={"help": "The student: a hub id, or a transformers folder."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a hub id."}
    )
    student_config: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --model_name_or_path: new weights, by --seed, of the architecture "
            "in this folder, hub id or JSON file."
        },
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Of the student, where its own folder has none."}
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = field(
        default="float32",
        metadata={"help": "Type of the weights; `auto` is the checkpoint's. See also --bf16."},
    )
    use_peft: bool = field(
        default=False, metadata={"help": "Train LoRA adapters on a student that stays as it is."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "They are scaled by alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Before the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Ends of module names, or all-linear. Default: peft's for the model."},
    )

    def __post_init__(self) -> None:
        if not (self.model_name_or_path or self.student_config):
            raise InputError(
                "--model_name_or_path is required: the student, a hub id or a folder. Or "
                "--student_config, for a new one."
            )
        if self.model_name_or_path and self.student_config:
            raise InputError(
                f"--student_config {self.student_config} makes a new student, and "
                f"--model_name_or_path {self.model_name_or_path} loads one. Leave one of them out."
            )
        self._check_adapters()

    @property
    def lora(self) -> dict[str, Any] | None:
        """The settings of the adapters, which a run object records; None without adapters."""
        names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
        return {name: getattr(self, name) for name in names} if self.use_peft else None

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


_ADAPTER_FILE, _MAX_ADAPTER_BYTES = "adapter_config.json", 1024 * 1024


def load_student(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    tokenizer_name: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer; of a folder of adapters, with the model they were trained on.

    Args:
        name: A folder or a hub id.
        revision: Branch, tag or commit of a hub id.
        dtype: Of the weights; `auto` is the checkpoint's.
        tokenizer_name: Where the tokenizer is, if elsewhere.

    Raises:
        InputError: When either cannot be loaded.
    """

    def model() -> PreTrainedModel:
        described = _base_of(name) or name
        config = AutoConfig.from_pretrained(
            described, trust_remote_code=False, revision=revision if described == name else None
        )
        found: PreTrainedModel = _class_of(config).from_pretrained(
            name, dtype=_dtype(dtype), revision=revision, trust_remote_code=False
        )
        return found

    tokenizer = load_tokenizer(
        tokenizer_name or name, revision=None if tokenizer_name else revision
    )
    by = "AutoModelForCausalLM or AutoModelForSeq2SeqLM"
    return load_or_explain(name, model, f"{name}: {by} cannot load it"), tokenizer


def make_student(
    arguments: StudentArguments, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load or make the model that a run trains, adapters included, and its tokenizer.

    Args:
        arguments: Of the run.
        seed: Of new weights.

    Raises:
        InputError: For whatever cannot be loaded, or cannot be adapted.
    """
    if arguments.student_config is None:
        model, tokenizer = load_student(
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            dtype=arguments.dtype,
            tokenizer_name=arguments.tokenizer_name_or_path,
        )
    else:
        model, tokenizer = _new(arguments, arguments.student_config, seed)
    return (_adapted(model, arguments) if arguments.use_peft else model), tokenizer


def _new(
    arguments: StudentArguments, name: str, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = load_tokenizer(
        arguments.tokenizer_name_or_path or name, revision=arguments.model_revision
    )

    def model() -> PreTrainedModel:
        config = AutoConfig.from_pretrained(
            name, trust_remote_code=False, revision=arguments.model_revision
        )
        set_seed(seed)
        made: PreTrainedModel = _class_of(config).from_config(
            config, dtype=_dtype(arguments.dtype, config), trust_remote_code=False
        )
        return made

    return load_or_explain(name, model, f"{name}: AutoConfig cannot load it"), tokenizer


def _adapted(model: PreTrainedModel, arguments: StudentArguments) -> Any:
    """Put LoRA's adapters on the model, whose own weights then stay as they are."""
    try:
        import peft
    except ImportError as error:
        raise InputError(
            "--use_peft: the package peft is not installed. Run `pip install 'logitstore[peft]'`, "
            "or leave --use_peft out."
        ) from error
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    targets = arguments.lora_target_modules
    config = peft.LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type=kind,
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:  # names that the model has not, or an architecture it knows not
        says = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"--lora_target_modules {' '.join(targets or ['of peft itself'])}: {says}. Name the "
            "ends of module names, such as q_proj v_proj, or all-linear."
        ) from error


def _base_of(name: str) -> str | None:
    """Look up the model that a folder of adapters was trained on; None without adapters."""
    path = Path(name) / _ADAPTER_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(read_file(path, _MAX_ADAPTER_BYTES))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _class_of(config: Any) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _dtype(name: str, config: Any = None) -> Any:
    if name != "auto":
        return getattr(torch, name)
    return "auto" if config is None else getattr(config, "dtype", None) or torch.float32


def check_embeddings(model: PreTrainedModel, student: ByteTokenizer) -> None:
    """Check that the model has an embedding for every id that its tokenizer makes.

    Raises:
        InputError: It has not.
    """
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    if student.size > rows:
        raise InputError(
            f"{model.name_or_path}: its tokenizer has ids up to {student.size - 1:,}, but the "
            f"model only {rows:,} embeddings. Save it once with "
            f"model.resize_token_embeddings({student.size})."
        )
