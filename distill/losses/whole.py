"""The teacher's hidden states on the device: the arrays `whole_…` of a batch as numbers.

They travel as they are stored, a byte a number in fp8, and become float32 here.

Shape legend: m = records of all sequences, E = distinct tokens of each sequence, one after the
other, D = width; N = labels.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from distill.losses.loss import Inside, Teacher


def decoded(teacher: Teacher, name: str) -> Tensor:
    """Decode (m, D) float32 rows from `NAME_codes`, and of fp8 `NAME_scale`."""
    codes, scale = teacher[f"{name}_codes"], teacher.get(f"{name}_scale")
    if scale is None:
        return codes.view(torch.bfloat16 if codes.dtype == torch.int16 else codes.dtype).float()
    return codes.view(torch.float8_e4m3fn).float() * scale[:, None]


def embedded(teacher: Teacher, ids: str) -> Tensor:
    """Look (m, D) float32 up: the teacher's embeddings of the tokens in the array `ids`."""
    if not len(teacher[ids]):
        return torch.zeros(0, 0, device=teacher[ids].device)
    known_E, order_E = teacher["whole_embedding_ids"].sort(stable=True)
    place_m = order_E[torch.searchsorted(known_E, teacher[ids])]
    return decoded(teacher, "whole_embedding")[place_m]


def by_sequence(
    inside: Inside, teacher: Teacher, of_labels: Sequence[Tensor], of_records: Sequence[Tensor]
) -> Iterator[Sequence[Tensor]]:
    """Split tensors by sequence, each in turn: those with a row a label, then a row a record."""
    label_N, record_m = inside.sequence_N, teacher["whole_sequence"]
    count = 1 + max((int(each.max()) for each in (label_N, record_m) if len(each)), default=-1)
    for each, tensors in ((label_N, of_labels), (record_m, of_records)):
        lengths = torch.bincount(each, minlength=count).tolist()
        yield from (torch.split(tensor, lengths) for tensor in tensors)
