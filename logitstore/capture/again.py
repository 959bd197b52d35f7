"""A capture run again with the settings that its store has recorded, for `repair --capture`.

What a file says is not what the user says, and a store may come from anybody. So a store decides
neither whether a model's code is run nor any argument of an engine that could load some; and the
address of a server is not kept. Where it cannot be run again from here, the command is named.
"""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from logitstore.capture.checked import SERVER, TRANSFORMERS, VLLM
from logitstore.capture.settings import CaptureSettings
from logitstore.console.settings import described, flag_of, is_switch
from logitstore.console.terminal import printable
from logitstore.errors import InputError
from logitstore.format.spec import (
    BOUNDARIES_FOLDER,
    DONE_FILE,
    STUDENT_FOLDER,
    StoreHeader,
    boundaries_name,
)
from logitstore.storage.paths import StorePath, names_in_or_none, store_path

#: Options of vLLM that a store may decide: they say how much and how fast, and load nothing.
_HARMLESS = frozenset(
    {
        *("way", "tensor_parallel_size", "pipeline_parallel_size", "quantization"),
        *("kv_cache_dtype", "gpu_memory_utilization", "enforce_eager", "max_model_len"),
        *("max_num_seqs", "max_num_batched_tokens", "block_size", "swap_space", "cpu_offload_gb"),
    }
)
_SHOWN = 200  # characters of a value


def capture_again(store: str | os.PathLike[str] | StorePath) -> None:
    """Capture what is missing with the teacher, dataset and settings that the store began with.

    Raises:
        InputError: The store has not recorded them, or teacher or dataset cannot be found; or its
            engine cannot be started by what is recorded. Names the command to run.
        MismatchError: Teacher or dataset has changed.
    """
    path = store_path(store)
    header = StoreHeader.read(path)
    provenance = header.provenance
    settings = provenance.get("settings")
    teacher, dataset = (str(provenance.get(name, "")) for name in ("teacher", "dataset"))
    if "imported" in provenance:
        raise InputError(
            f"{path}: was imported from {dataset}, not captured. Run the same `logitstore import …`"
            " as then: it does only what is missing."
        )
    if "created" in provenance:
        raise InputError(
            f"{path}: was written by a program (`logitstore.create`), not captured. Run the same "
            "program again: it adds only the rows that are missing."
        )
    engine = str(header.spec.teacher.get("engine", TRANSFORMERS))
    files = provenance.get("files")  # of a dataset that is several
    if not isinstance(settings, dict) or not teacher or not dataset:
        more = "" if engine == TRANSFORMERS else f" --engine {engine}"
        raise InputError(
            f"{path}: the store does not say how it was captured (it was written by an older "
            f"version or from a dataset in memory). Run the same `logitstore capture …{more}` as "
            "then."
        )
    again = CaptureSettings.from_recorded(settings)
    if engine != TRANSFORMERS:
        options = [str(each) for each in provenance.get("engine_args") or ()]
        _check_harmless(path, engine, options, _command(path, teacher, files or dataset, settings))
        again = replace(again, engine=engine, engine_args=options)
    from logitstore.capture.job import run_capture

    students: list[str | None] = [*_students(path)] or [None]
    for student in students:
        run_capture(teacher, files or dataset, path, replace(again, boundaries_of=student))


def _check_harmless(path: StorePath, engine: str, options: Sequence[str], command: str) -> None:
    """Reject an engine that a store cannot have started; `command` is the one to run instead."""
    if engine == SERVER:
        raise InputError(
            f"{path}: was captured from a server, whose address is not kept. Give it: run "
            f"`{command} --engine {SERVER} --server URL`, which does only what is missing."
        )
    odd = [each for each in options if each.partition("=")[0].replace("-", "_") not in _HARMLESS]
    if engine != VLLM or odd:
        said = "".join(f" --engine-args {shlex.quote(_shown(each))}" for each in options)
        why = f"with --engine-args {_shown(odd[0])}" if odd else f"by an engine {_shown(engine)}"
        raise InputError(
            f"{path}: was captured {why}, which a store cannot decide. If that is what you want, "
            f"run `{command} --engine {_shown(engine)}{said}`, which does only what is missing."
        )


def _command(path: StorePath, teacher: str, data: object, settings: Mapping[str, Any]) -> str:
    """Write the command that made a store, but for its engine."""
    files = data if isinstance(data, list) else [data]
    words = ["logitstore", "capture", teacher, *files, "--out", path, *_flags(settings)]
    return " ".join(shlex.quote(_shown(word)) for word in words)


def _flags(settings: Mapping[str, Any]) -> Iterator[object]:
    """Yield the flags of the settings that are not as they are without one."""
    for each in described(CaptureSettings):
        value = settings.get(each.name, each.default)
        if value is None or value == each.default or (not value and not each.default):
            continue
        if is_switch(each):
            yield flag_of(each)
            continue
        for one in value if isinstance(value, list) else [value]:
            yield from (flag_of(each), json.dumps(one) if isinstance(one, dict) else one)


def _shown(value: object) -> str:
    return printable(str(value)[:_SHOWN])


def _students(path: StorePath) -> list[str]:
    """List the students at whose boundaries records are missing: their tokenizers in the store."""
    folder = path / BOUNDARIES_FOLDER
    found = []
    for name in names_in_or_none(folder):
        is_there = name == boundaries_name(name) and (folder / name / STUDENT_FOLDER).exists()
        if is_there and not (folder / name / DONE_FILE).exists():
            found.append(str(folder / name / STUDENT_FOLDER))
    return found
