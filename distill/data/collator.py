"""The collator: it joins rows of the dataset into a batch.

:mod:`distill.data.dataset` describes the layout of a batch. Labels and pairs are counted from the
first of their sequence in an example, and from the first of the batch here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distill.alignment.runs import runs
from distill.data.batch_cuts import INDEX, PAIR, WHOLE_SEQUENCE, cut
from distill.data.example import Example, flat
from distill.data.packing import Layout, one_a_row
from distill.data.ragged import tensors_of
from distill.data.targets import Arrays
from distill.losses import find, option_values
from distill.losses.aligned import nothing
from distill.losses.loss import Loss
from distill.student.encoder_decoder import Sides
from logitstore.records import NO_LABEL


class Collator:
    """A function from examples to one batch; :mod:`distill.data.dataset` has the layout."""

    def __init__(
        self,
        pad_id: int,
        losses: Sequence[str] = (),
        *,
        chunk_tokens: int | None = None,
        sides: Sides | None = None,
        layout: Layout = one_a_row,
    ) -> None:
        """Configure how batches are laid out, and how they are cut.

        Args:
            pad_id: The student's padding token.
            losses: Names of the losses.
            chunk_tokens: The most labels of a chunk of the student's head; None: do not cut.
            sides: How an encoder-decoder's inputs are cut; None for a causal student.
            layout: Lays sequences into rows.
        """
        self.sides, self.layout = sides, layout
        self.pad_id, self.chunk_tokens = pad_id, chunk_tokens
        self._losses = {name: find(name) for name in losses}  # a worker may begin without them

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        examples = flat(examples)
        batch = self._rows(examples)
        batch |= {
            "aligned": np.array([e.aligned for e in examples]),
            "skipped": np.array([e.skipped for e in examples]),
            "text_changed": np.array([e.text_changed for e in examples]),
        }
        if shares := [e.share for e in examples if e.share is not None]:
            batch["store_share"] = np.stack(shares)
            batch["read_otherwise"] = np.array([e.read_otherwise for e in examples])
        teacher = {name: _joined(name, each, examples) for name, each in self._losses.items()}
        pieces = self.chunk_tokens and cut(teacher, batch["example"], self.chunk_tokens)
        tensors = {name: tensors_of(arrays) for name, arrays in teacher.items()}
        numbers = torch.tensor([e.row for e in examples])  # int64: a store may count that far
        made = {**tensors_of(batch), "row": numbers, "teacher": tensors, "pieces": pieces or None}
        return made if self.sides is None else self.sides.cut(made)

    def _rows(self, examples: Sequence[Example]) -> Arrays:
        """Lay out the tokens that the model reads, and list where its labels are."""
        lengths = np.array([len(e.token_ids) for e in examples])
        places = self.layout(lengths)
        ids = np.full(places.shape, self.pad_id, np.int32)
        labels, mask = np.full(places.shape, NO_LABEL, np.int32), np.zeros(places.shape, bool)
        first = places.row * places.shape[1] + places.column
        example, cell = runs(first, first + lengths)
        is_label = np.concatenate([e.is_label for e in examples])
        ids.reshape(-1)[cell] = np.concatenate([e.token_ids for e in examples])
        labels.reshape(-1)[cell[is_label]] = ids.reshape(-1)[cell[is_label]]
        mask.reshape(-1)[cell] = True
        mask[:, 0] = True  # attention of a row without tokens must not be empty
        batch = {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "rows": cell[is_label] - 1,  # in the same sequence: a first token is never a label
            "example": example[is_label],
            "tokens": np.maximum(lengths, 1) if self.layout is one_a_row else lengths,
        }
        if self.layout is not one_a_row:
            batch["position_ids"] = np.zeros(places.shape, np.int32)
            batch["position_ids"].reshape(-1)[cell] = cell - first[example]
        return batch


def _joined(name: str, loss: Loss, examples: Sequence[Example]) -> Arrays:
    """Join one loss's arrays of all examples, with label and pair numbers of the batch."""
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    labels = pairs = 0
    for number, example in enumerate(examples):
        arrays = example.teacher.get(name)
        if arrays is not None:
            for key, array in arrays.items():
                is_label = key == "index" or key.endswith(INDEX)
                shift = labels if is_label else pairs if key.endswith(PAIR) else 0
                shift = number if key == WHOLE_SEQUENCE else shift
                parts.setdefault(key, []).append(array + shift if shift else array)
            pairs += len(arrays["index"])
        labels += int(np.count_nonzero(example.is_label))
    joined = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    return joined or loss.arrays(nothing(), option_values({}))
