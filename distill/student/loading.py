"""The student before training: loaded, or made new from a config; whole, or with adapters.

No code from a model's folder is run. An encoder-decoder is told by its config.
"""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from distill.student.adapters import Base, adapted, base_of, go_on, reject_idle
from distill.student.arguments import StudentArguments
from logitstore.errors import InputError
from logitstore.models.loading import GIVE_A_MODEL, load_or_explain, load_tokenizer
from logitstore.text.tokenizer import ByteTokenizer

_BY = "AutoModelForCausalLM or AutoModelForSeq2SeqLM"
_GIVE_A_TOKENIZER = (
    "Give a folder with config.json, weights and a fast tokenizer, or a hub id; or name a "
    "tokenizer that is elsewhere with --tokenizer_name_or_path."
)
_GIVE_THE_BASE = (
    "Put that model there, or change base_model_name_or_path in adapter_config.json to where it is."
)


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

    tokenizer = load_tokenizer(
        tokenizer_name or name, revision=None if tokenizer_name else revision
    )
    base = base_of(name, revision)
    if base is None:
        return _load_model(name, revision, dtype, f"{name}: {_BY} cannot load it"), tokenizer
    config = _config_of(base, name)

    def model() -> PreTrainedModel:
        found: PreTrainedModel = _class_of(config).from_pretrained(
            name, dtype=_dtype(dtype), revision=revision, trust_remote_code=False
        )
        return found

    return load_or_explain(name, model, f"{name}: {_BY} cannot load it"), tokenizer


def _load_model(
    name: str, revision: str | None, dtype: str, fault: str, advice: str = GIVE_A_MODEL
) -> PreTrainedModel:
    """Load a whole model; `fault` and `advice` are the message where that fails."""

    def model() -> PreTrainedModel:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, revision=revision)
        found: PreTrainedModel = _class_of(config).from_pretrained(
            name, dtype=_dtype(dtype), revision=revision, trust_remote_code=False
        )
        return found

    return load_or_explain(name, model, fault, advice)


def _config_of(base: Base, name: str) -> Any:
    """Load the config of the model that adapters are for."""

    def config() -> Any:
        return AutoConfig.from_pretrained(
            base.name, trust_remote_code=False, revision=base.revision
        )

    return load_or_explain(base.name, config, _lacks_base(name, base), _GIVE_THE_BASE)


def _lacks_base(name: str, base: Base) -> str:
    return f"{name}: holds adapters for {base.name}, and that model cannot be loaded"


def make_student(
    arguments: StudentArguments, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load or make the model that a run trains, adapters included, and its tokenizer.

    Args:
        arguments: Of the run.
        seed: Of all that is random: new weights, and adapters.

    Raises:
        InputError: For whatever cannot be loaded, or cannot be adapted.
    """
    set_seed(seed)
    name, revision = arguments.model_name_or_path, arguments.model_revision
    base = base_of(name, revision) if name else None
    if base is not None and not arguments.use_peft:
        raise reject_idle(name, base)
    if base is not None:
        named = arguments.tokenizer_name_or_path
        advice = GIVE_A_MODEL if named else _GIVE_A_TOKENIZER
        tokenizer = load_tokenizer(named or name, revision=revision, advice=advice)
        whole = _load_model(
            base.name, base.revision, arguments.dtype, _lacks_base(name, base), _GIVE_THE_BASE
        )
        return go_on(whole, arguments), tokenizer
    if arguments.student_config is None:
        model, tokenizer = load_student(
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            dtype=arguments.dtype,
            tokenizer_name=arguments.tokenizer_name_or_path,
        )
    else:
        model, tokenizer = _new(arguments, arguments.student_config, seed)
    return (adapted(model, arguments, seed) if arguments.use_peft else model), tokenizer


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
