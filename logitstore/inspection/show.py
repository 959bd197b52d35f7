"""What `logitstore show` was asked for: a sequence, a place in it, or where the extremes are."""

from typing import Any

from logitstore.console.terminal import has_colour
from logitstore.errors import InputError
from logitstore.inspection.scalars import worst
from logitstore.inspection.sequence import position_text, sequence_facts, sequence_text
from logitstore.store import LogitStore


def shown(
    store: LogitStore, sequence: int | None, around: int | None, count: int | None
) -> tuple[dict[str, Any], str]:
    """As JSON, and as text.

    Args:
        store: The store.
        sequence: Which one, or None with `count`.
        around: A record of it, or None for all.
        count: So many of the worst records of the whole store, instead of a sequence.

    Raises:
        InputError: There is no such sequence or record, or the request contradicts itself.
    """
    if count is not None:
        if sequence is not None or around is not None:
            raise InputError(
                "--worst looks at the whole store. Leave the sequence and --around out."
            )
        if count < 1:
            raise InputError(f"--worst is {count}, expected 1 or more.")
        found: dict[str, Any] = worst(store, count)
        return found, _worst_text(store, found)
    if sequence is None or not 0 <= sequence < len(store):
        asked = "a sequence is missing" if sequence is None else f"there is no sequence {sequence}"
        raise InputError(
            f"{store.path}: {asked}; it holds 0 to {len(store) - 1}. Give one of these, or "
            "--worst 10 for where to look."
        )
    found, colour = sequence_facts(store, sequence), has_colour()
    if around is None:
        return found, sequence_text(found, colour=colour)
    if not 0 <= around < len(found["tokens"]):
        raise InputError(
            f"{store.path}: sequence {sequence} has no record {around}; it has "
            f"{len(found['tokens'])}, from 0 on. Give one of these to --around."
        )
    kept = found | {"tokens": [found["tokens"][around]], "record": around}
    return kept, position_text(found, around, colour=colour)


def _worst_text(store: LogitStore, found: dict[str, Any]) -> str:
    lines = []
    for name, label in (("surprise", "-log p, nats"), ("tail", "outside the entries")):
        lines.append(f"largest {name} ({label})")
        lines += [
            f"  {each[name]:>9.4f}   sequence {each['sequence']} record {each['record']}"
            for each in found[name]
        ]
    example = next((each for kept in found.values() for each in kept), None)
    if example is not None:
        lines.append(
            f"`logitstore show {store.path} {example['sequence']} --around {example['record']}` "
            "shows the first."
        )
    return "\n".join(lines)
