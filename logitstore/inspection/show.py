"""Answer `logitstore show`: a sequence, a record of it, or the most extreme records of a store."""

from typing import Any

from logitstore.console.terminal import has_colour, printable
from logitstore.errors import InputError
from logitstore.inspection.scalars import worst
from logitstore.store import LogitStore
from logitstore.text.sequence_facts import sequence_facts
from logitstore.text.sequence_text import position_text, sequence_text


def shown(
    store: LogitStore, sequence: int | None, around: int | None, count: int | None
) -> tuple[dict[str, Any], str]:
    """Return what `logitstore show` prints, as JSON and as text.

    Args:
        store: The store.
        sequence: The number of the sequence, or None with `count`.
        around: The number of a record of it, or None for all.
        count: How many of the store's most extreme records to show, instead of a sequence.

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
        records: dict[str, Any] = worst(store, count)
        return records, _worst_text(store, records)
    if sequence is None or not 0 <= sequence < len(store):
        fault = "a sequence is missing" if sequence is None else f"there is no sequence {sequence}"
        raise InputError(
            f"{store.path}: {fault}; it holds 0 to {len(store) - 1}. Give one of these, or "
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
    for name, label in (("surprise", "-log p, nats"), ("tail", "probability beyond the entries")):
        lines.append(f"largest {name} ({label})")
        lines += [
            f"  {record[name]:>9.4f}   sequence {record['sequence']} record {record['record']}"
            for record in found[name]
        ]
    example = next((record for records in found.values() for record in records), None)
    if example is not None:
        where = f"{example['sequence']} --around {example['record']}"
        lines.append(f"`logitstore show {printable(str(store.path))} {where}` shows the first.")
    return "\n".join(lines)
