"""Adapters of peft on a student: new ones, those of a folder, and merged ones at the end.

Adapters are made of random numbers, so all of them come after the run's seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import PreTrainedModel, set_seed
from transformers.utils.peft_utils import find_adapter_config_file

from logitstore.errors import InputError
from logitstore.models.loading import load_or_explain, why_unreachable
from logitstore.storage.files import read_file

if TYPE_CHECKING:
    from distill.student.arguments import StudentArguments

_FILE, _MAX_BYTES = "adapter_config.json", 1024 * 1024


class Base(NamedTuple):
    """The model that adapters were trained on.

    Attributes:
        name: A folder or a hub id.
        revision: Branch, tag or commit of a hub id.
    """

    name: str
    revision: str | None


def base_of(name: str, revision: str | None = None) -> Base | None:
    """Look up the model that adapters were trained on; None for what holds no adapters.

    Args:
        name: A folder or a hub id.
        revision: Branch, tag or commit of a hub id.

    Raises:
        InputError: They are adapters, and do not say of which model.
    """
    path = Path(name) / _FILE
    if not Path(name).is_dir():
        if why_unreachable(name) is not None:  # whoever loads it says so
            return None
        try:
            found = find_adapter_config_file(name, revision=revision)
        except (OSError, ValueError):  # no such model: whoever loads it says so
            return None
        if found is None:
            return None
        path = Path(found)
    if not path.is_file():
        return None
    try:
        about = json.loads(read_file(path, _MAX_BYTES))
        base, of_base = about["base_model_name_or_path"], about.get("revision")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError):
        base = of_base = None
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{path}: does not say which model its adapters are for. Write the folder or hub id of "
            "that model there, as base_model_name_or_path."
        )
    return Base(base, of_base if isinstance(of_base, str) else None)


def adapted(model: PreTrainedModel, arguments: StudentArguments, seed: int) -> Any:
    """Put new LoRA adapters on a model, whose own weights then stay as they are.

    Raises:
        InputError: There are no such modules, or peft is not installed.
    """
    peft = _peft()
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    targets = arguments.lora_target_modules
    config = peft.LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type=kind,
    )
    set_seed(seed)  # whatever was drawn before
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:  # names that the model has not, or an architecture it knows not
        says = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"--lora_target_modules {' '.join(targets or ['of peft itself'])}: {says}. Name the "
            "ends of module names, such as q_proj v_proj, or all-linear."
        ) from error


def go_on(model: PreTrainedModel, arguments: StudentArguments) -> Any:
    """Put the adapters that the user named on the model that they are for, to train them on.

    Raises:
        InputError: They cannot be loaded, cannot be trained here, or other ones are asked for.
    """
    peft, name = _peft(), arguments.model_name_or_path
    asked = arguments.changed_adapters
    if asked:
        raise InputError(
            f"--{asked[0]}: {name} holds adapters, which have a rank and places of their own, and "
            f"training goes on from them. Leave --{asked[0]} out; or merge them into their model "
            "first, and put new ones on that."
        )

    def load() -> Any:
        return peft.PeftModel.from_pretrained(
            model, name, is_trainable=True, revision=arguments.model_revision
        )

    found = load_or_explain(name, load, f"{name}: peft cannot load these adapters")
    if any(config.is_prompt_learning for config in found.peft_config.values()):
        raise InputError(
            f"{name}: these adapters add tokens of their own to a text, which no record is of. "
            "Give adapters of weights, such as LoRA's."
        )
    return found


def settings_of(model: Any) -> dict[str, Any] | None:
    """Return what a run object records of a model's adapters; None of a model without."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    config = next(iter(configs.values()))
    places = getattr(config, "target_modules", None)
    return {
        "lora_r": getattr(config, "r", None),
        "lora_alpha": getattr(config, "lora_alpha", None),
        "lora_dropout": getattr(config, "lora_dropout", None),
        "lora_target_modules": sorted(places) if isinstance(places, set | list) else places,
    }


def reject_idle(name: str, base: Base) -> InputError:
    """Make the error for adapters that would be loaded and not trained."""
    return InputError(
        f"--model_name_or_path {name}: holds adapters for {base.name}, not a whole model, and "
        "without --use_peft nothing of it would be trained. Add --use_peft to go on from them (and "
        "--lora_merge to save a whole model at the end), or name a whole model."
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(
            "--use_peft: the package peft is not installed. Run `pip install 'logitstore[peft]'`, "
            "or leave --use_peft out."
        ) from error
    return peft
