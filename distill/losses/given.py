"""What a loss is given where it does not make its arrays itself: all that it needs of a store.

:mod:`distill.losses.declared` has the table of names.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from distill.losses.aligned import Aligned, Arrays
from distill.losses.loss import Ask, Kind, Options, Teacher

Needs = frozenset[str]
#: As many of the student's largest log-probabilities as the teacher's records have entries.
Width = int | Literal["entries"]


def arrays_for(
    needs: Needs, kind: Kind, columns: int, *, has_map: bool
) -> Callable[[Aligned, Options], Arrays]:
    """Make the function that takes of a sequence what a loss needs.

    Args:
        needs: Of the loss.
        kind: Of its pairs.
        columns: How many columns of a sequence it compares.
        has_map: Whether the teacher's tokens are sent to the student's.
    """

    def arrays(aligned: Aligned, options: Options) -> Arrays:
        if "temperature" in needs:
            aligned = aligned.at_temperature(options["temperature"])
        if kind == "sequence":
            return _of_sequence(aligned, needs, columns)
        made: Arrays = {"index": aligned.last_label}
        if kind == "groups":
            made |= aligned.labels()
        if kind == "labels" and aligned.label_ids is not None:
            made["label"] = aligned.label_ids
        if "hidden" in needs:
            made |= aligned.states()
        if "token logprob" in needs:
            made["logprob"] = aligned.token_logprob().astype(np.float32)
        if has_map and "draws" in needs:
            return {**made, **aligned.entries_by_id(), **aligned.draws()}
        if "entries" in needs:
            made |= aligned.mapped_entries() if has_map else aligned.entries()
        return made

    return arrays


def _of_sequence(aligned: Aligned, needs: Needs, columns: int) -> Arrays:
    """Take the arrays of each of its labels; the sequence is one pair, on its first."""
    made: Arrays = {
        "index": aligned.last_label[:1],
        "token_index": aligned.last_label,
        "token_pair": np.zeros_like(aligned.last_label),
    }
    if "token logprob" in needs:
        made["token_logprob"] = aligned.token_logprob().astype(np.float32)
    if columns:
        made["token_logprobs"] = aligned.columns(columns)
    elif "entries" in needs:
        made |= {f"token_{name}": array for name, array in aligned.entries().items()}
    return made


def ask_for(
    needs: Needs, top_k: Width, columns: int, *, has_logits: bool
) -> Callable[[Teacher, Options], Ask]:
    """Make the function that asks of the student what belongs to those arrays."""

    def ask(teacher: Teacher, options: Options) -> Ask:
        ids_PK = teacher.get("entry_ids")
        if ids_PK is not None and "draw_ids" in teacher:
            ids_PK = torch.cat([ids_PK, teacher["draw_ids"]], 1)
        return Ask(
            top_k=_width(teacher) if top_k == "entries" else top_k,
            ids_PK=ids_PK,
            temperature=options["temperature"] if "temperature" in needs else 1.0,
            has_rest="draw_ids" not in teacher,
            columns=columns,
            has_logits=has_logits,
        )

    return ask


def _width(teacher: Teacher) -> int:
    return next((teacher[n].shape[1] for n in ENTRIES if n in teacher), 0)


#: Names that the entries of a record have in the arrays.
ENTRIES = ("entry_logprobs", "entry_logmass", "token_entry_logprobs")
