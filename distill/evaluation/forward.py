"""Running a model on some sequences without gradient, and asking its head about some places.

Shape legend: B = sequences, T = padded length, N = places asked about.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from distill.head.query import HeadAnswer, HeadQuery
from distill.head.student_head import StudentHead
from distill.student.encoder_decoder import SEEN, Sides
from logitstore.records import NO_LABEL

Ints = npt.NDArray[np.int64]


def batch_of(sequences: Sequence[Ints], places: Sequence[Ints], pad_id: int) -> dict[str, Tensor]:
    """Make a padded batch in which the tokens at some places are labels.

    Args:
        sequences: Token ids of each, (t,).
        places: Of each, where its labels are: (n,), never 0.
        pad_id: Fills the shorter ones.

    Returns:
        `input_ids`, `attention_mask` and `labels` (B, T); `rows`, which predict the labels, and
        `example`, the sequence of each (N,).
    """
    shape = (len(sequences), max(map(len, sequences)))
    ids, mask = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, NO_LABEL, np.int64)
    for b, (sequence, at) in enumerate(zip(sequences, places, strict=True)):
        ids[b, : len(sequence)], mask[b, : len(sequence)] = sequence, 1
        labels[b, at] = sequence[at]
    example, position = np.nonzero(labels != NO_LABEL)
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels, "example": example}
    arrays["rows"] = example * shape[1] + position - 1
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@torch.no_grad()
def ask(
    model: nn.Module,
    head: StudentHead,
    batch: Mapping[str, Tensor],
    sides: Sides | None,
    *,
    top_k: int = 0,
) -> HeadAnswer:
    """Ask a model for the log-probability of every label, and for the most probable tokens.

    Args:
        model: On its device.
        head: The model's.
        batch: Of :func:`batch_of`.
        sides: How an encoder-decoder is given it; None for a causal model.
        top_k: How many of the most probable tokens; 0: none.
    """
    if sides is not None:
        batch = sides.cut(batch)
    device = next(model.parameters()).device
    labels_N = batch["labels"].flatten()[batch["rows"] + 1].to(device)
    inputs = {name: batch[name].to(device) for name in SEEN if name in batch}
    query = HeadQuery(labels_N, top_k=top_k, has_top_ids=top_k > 0)
    return head(model, inputs, batch["rows"].to(device), query)
