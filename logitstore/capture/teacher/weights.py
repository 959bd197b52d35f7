"""Load a teacher's weights onto its devices, quantised and with the attention asked for."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from logitstore.capture.teacher.memory import is_out_of_memory
from logitstore.capture.teacher.quantization import (
    DTYPES,
    checkpoint_quantization,
    transformers_config,
)
from logitstore.capture.teacher.teacher import Teacher, fingerprint_of
from logitstore.errors import InputError, in_a_line
from logitstore.models.loading import why_not_loaded


def load_model(teacher: Teacher, device: torch.device) -> Any:
    """Load the model in eval mode, on a device or spread over those of its device map.

    Raises:
        InputError: Weights cannot be read, are missing or do not fit, are not those that were
            found, or a library is not installed that an option needs.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            teacher.name, **_options(teacher, device)
        )
        model, loading_info = loaded
        if teacher.device_map is None and not is_quantized(teacher):  # those are placed already
            model = model.to(device)
    except InputError:
        raise
    except Exception as e:  # a broken file gives any class
        raise _explain(teacher, device, e) from e
    if missing := sorted(
        loading_info["missing_keys"]
    ):  # filled with random numbers by transformers
        raise InputError(
            f"{teacher.name}: {len(missing)} of the teacher's weights are missing, first "
            f"{missing[0]}. Download the model again, or save all of it with "
            "model.save_pretrained(FOLDER)."
        )
    check_unchanged(teacher)
    # A forward pass of whole sequences never reads cached keys and values.
    model.config.get_text_config(decoder=True).use_cache = False
    return model.eval()


def check_unchanged(teacher: Teacher) -> None:
    """Check, once its weights are loaded, that they are those that were found.

    Raises:
        InputError: They are not.
    """
    found = fingerprint_of(teacher.name, teacher.config, teacher.gguf_file)
    if found != teacher.fingerprint:
        raise InputError(
            f"{teacher.name}: the teacher was written to between the look at its files and the "
            "loading of its weights, so the store could not say which teacher made it. Run the "
            "same command again when nothing writes there any more."
        )


def is_quantized(teacher: Teacher) -> bool:
    """Tell whether the teacher is quantised, when loaded or since it was saved."""
    return teacher.quantization is not None or checkpoint_quantization(teacher.config) is not None


def input_device(model: Any) -> torch.device:
    """Return the device on which a model that is spread over several takes its input.

    Offloaded weights are on no device now ("meta"); accelerate moves the input to where they go.
    """
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))


def _options(teacher: Teacher, device: torch.device) -> dict[str, Any]:
    options: dict[str, Any] = {
        # The commit that was found: a branch may have moved on since.
        "revision": getattr(teacher.config, "_commit_hash", None) or teacher.revision,
        "dtype": DTYPES[teacher.dtype],
        "trust_remote_code": teacher.trust_remote_code,
        "output_loading_info": True,
    }
    if teacher.attn_implementation is not None:
        options["attn_implementation"] = teacher.attn_implementation
    if teacher.gguf_file is not None:
        options["gguf_file"] = teacher.gguf_file
    elif teacher.quantization is not None:
        options["quantization_config"] = transformers_config(teacher.quantization)
    if teacher.device_map is not None:
        options["device_map"] = teacher.device_map
    elif is_quantized(teacher):  # quantised where it runs: it cannot be moved later
        options["device_map"] = {"": str(device)}
    return options


def _explain(teacher: Teacher, device: torch.device, error: Exception) -> InputError:
    """Make the error that says why the weights were not loaded, and what to change."""
    why, name = in_a_line(error), teacher.name
    if is_out_of_memory(error):
        where = "the devices of this machine" if teacher.device_map is not None else str(device)
        return InputError(
            f"{name}: the teacher does not fit the memory of {where} ({why}). Spread it with "
            "--device-map auto, or load less of it with --dtype bfloat16 or --quantization "
            "bitsandbytes-8bit."
        )
    if teacher.attn_implementation is not None and "attention" in why.lower():
        first = why.split(". ")[0]  # the next one lists what no user would give
        return InputError(
            f"--attn-implementation {teacher.attn_implementation}: {name} cannot run with it here "
            f"({first}). Use eager or sdpa, or leave it out; or install what it needs."
        )
    if isinstance(error, ImportError) and is_quantized(teacher):
        asked = teacher.quantization is not None and teacher.gguf_file is None
        method = checkpoint_quantization(teacher.config)
        cause = "--quantization" if asked else f"it is quantised ({method}), and"
        step = ", or leave --quantization out" if asked else ", or give a teacher that is not"
        return InputError(
            f"{name}: {cause} needs a package that is not installed ({why}). Install it with pip"
            f"{step}."
        )
    return InputError(
        f"{name}: AutoModelForCausalLM cannot load the teacher ({why_not_loaded(name, error)}). "
        "Give a causal model, or download this one again."
    )
