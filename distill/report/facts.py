"""How the runs were made: what is alike for all contenders, and what is each one's own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report.results import RunObject

#: Of a run object: its key, and what people call it.
_NAMES = {
    "loss": "loss",
    "ce_weight": "weight of cross-entropy",
    "balance": "balanced",
    "uncovered": "labels without a pair",
    "pairing": "pairing of ULD",
    "map": "map of the vocabularies",
    "between": "labels inside a token",
    "tail_kl_kind": "kind of tail KL",
    "temperature": "temperature",
    "alm_temperature": "temperature of ALM",
    "model_name_or_path": "student before",
    "student_config": "student's config",
    "lora": "adapters",
    "steps": "steps",
    "sequences": "sequences",
    "sequences_skipped": "sequences skipped",
    "store": "store",
    "store_digest": "digest of the store",
    "teachers": "of several teachers",
}
_TEACHER = {"name": "teacher", "dataset": "dataset", "top_k": "top k"}
_PATHS = {"model_name_or_path", "student_config", "store", "name", "dataset"}
_DIGEST = 12


def differing(contenders: Sequence[Sequence[RunObject]]) -> tuple[dict[str, str], list[str]]:
    """Separate what is alike for all contenders from what each has of its own.

    Returns:
        Facts that are alike, by name; and of each contender the others, in one line.
    """
    facts = [_facts(runs) for runs in contenders]
    names = list(dict.fromkeys(name for own in facts for name in own))
    alike = [name for name in names if len({own.get(name) for own in facts}) == 1]
    if len(contenders) == 1:
        return facts[0], [""]
    lines = [
        " · ".join(f"{name}: {own[name]}" for name in names if name in own and name not in alike)
        for own in facts
    ]
    return {name: facts[0][name] for name in alike}, lines


def _facts(runs: Sequence[RunObject]) -> dict[str, str]:
    """Collect the facts of one contender; where its seeds differ, all of their values."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for name, said in _of_run(run).items():
            values = found.setdefault(name, [])
            if said not in values:
                values.append(said)
    return {name: ", ".join(values) for name, values in found.items()}


def _of_run(run: RunObject) -> dict[str, str]:
    teacher = run.get("teacher")
    parts: list[tuple[Mapping[str, Any], Mapping[str, str]]] = [(run, _NAMES)]
    if isinstance(teacher, Mapping):
        parts.append((teacher, _TEACHER))
    found = {
        label: _said(key, part[key])
        for part, names in parts
        for key, label in names.items()
        if part.get(key) is not None
    }
    return found | {"seeds": str(run.get("seed"))}


def _said(key: str, value: Any) -> str:
    if key == "store" and isinstance(value, list):  # several, of one text by several teachers
        return ", ".join(_said(key, each) for each in value)
    text = value if isinstance(value, str) else json.dumps(value)
    if key == "store_digest":
        return f"{text[:_DIGEST]}…"
    # Of a path its last part: the rest is of one machine alone, and pages are passed on.
    is_path = key in _PATHS and (text[:1] in ("/", "~", ".") or text.count("/") > 1)
    return Path(text).name if is_path else text
