"""A trial of the user's own losses before the first step: shape, numbers, and a gradient.

Some labels of the store are collated as training does it, and answered by a made-up student, whose
logits are drawn at random: neither the model nor a step is needed to see that a function fails.

Shape legend: N = labels of the trial, V = student vocabulary, P = pairs of a loss.
"""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.data.batch_cuts import piece_of
from distill.data.collator import Collator
from distill.data.dataset import StoreDataset
from distill.data.example import Example
from distill.data.left_out import in_blocks
from distill.head.query import HeadAnswer, answer_rows, column_mass, rank_columns
from distill.losses import find, is_own
from distill.losses.loss import NotAskedError
from distill.training.batch_query import query_of
from distill.training.loss_terms import terms_of, unpacked
from logitstore.errors import InputError, LogitStoreError

#: Sequences that are looked at to find some with pairs, how many of them are taken, and about how
#: many of their labels are answered.
_LOOKED_AT, _SEQUENCES, _LABELS = 16, 2, 64
_MOST_LABELS = 512


def try_own_losses(data: StoreDataset) -> None:
    """Try the losses of a run that are the user's own, each alone; do nothing where none are.

    Raises:
        InputError: One fails, or returns what cannot be trained with; says which, and how.
    """
    # What is made by weights of a loss's own needs the student itself.
    own = [name for name in data.losses if is_own(name) and find(name).module is None]
    if not own:
        return
    found = [data[i] for i in in_blocks(len(data), _LOOKED_AT, _SEQUENCES)]
    for name in own:
        paired = [each for each in found if name in each.teacher and _pairs(each, name)]
        shortest = sorted(paired, key=lambda each: int(each.is_label.sum()))[:_SEQUENCES]
        for examples in (shortest, [each._replace(teacher={}) for each in found[:1]]):
            if examples:
                _try(name, data, examples)


def _pairs(example: Example, name: str) -> int:
    return len(example.teacher[name]["index"])


def _try(name: str, data: StoreDataset, examples: Sequence[Example]) -> None:
    """Try a loss on some sequences; of those that no pair covers, it is given nothing at all."""
    collate = Collator(data.reader.tokenizer.pad_id, [name], chunk_tokens=_LABELS)
    batch = unpacked(collate(examples))
    teacher, start, stop = batch["teacher"], 0, len(batch["rows"])
    pieces = batch["pieces"].each if batch["pieces"] is not None else ()
    for piece in pieces:
        if piece.pairs[name].stop > piece.pairs[name].start:
            teacher, start, stop = piece_of(teacher, piece), piece.start, piece.stop
            break
    if stop - start > _MOST_LABELS:  # of one long sequence, for a loss of whole ones
        return
    answer, logits_NV = _made_up(batch, data, start, stop)
    try:
        term = terms_of(teacher, answer, data.options, "none")[name]
    except LogitStoreError:
        raise
    except Exception as error:
        raise _failed(name, error, teacher[name]) from error
    _check_values(name, term.values_P, term.bound_P)
    if len(term.values_P):
        _check_slope(name, term.values_P, logits_NV)


def _made_up(
    batch: Mapping[str, Any], data: StoreDataset, start: int, stop: int
) -> tuple[HeadAnswer, Tensor]:
    """Answer what the losses ask at labels start to stop, from logits drawn at random."""
    query = query_of(batch, data.options, data.partitions).part(start, stop)
    gen = torch.Generator().manual_seed(0)
    logits_NV = 3 * torch.randn(stop - start, data.reader.tokenizer.size, generator=gen)
    logits_NV.requires_grad_()
    columns_Sk = None
    if query.ranking is not None:
        mass_SV = column_mass(None, logits_NV.detach(), query.ranking)
        columns_Sk = rank_columns(mass_SV, query.ranking.k)
    return HeadAnswer.of(answer_rows(logits_NV, query, columns_Sk)), logits_NV


def _check_values(name: str, values_P: Tensor, bound_P: Tensor) -> None:
    for what, x_P in (("loss", values_P), ("bound", bound_P)):
        if not x_P.is_floating_point():
            raise _rejected(name, f"returns a {what} of {x_P.dtype}, expected a float for each")
        bad = int((~torch.isfinite(x_P.detach())).sum())
        if bad:
            first = x_P.detach()[~torch.isfinite(x_P.detach())][0].item()
            raise _rejected(
                name,
                f"returns a {what} of {first:g} for {bad} of {len(x_P)} pairs of the store, with a "
                "student whose logits are drawn at random; expected finite numbers (entries are "
                "padded with -inf, whose product with 0 is nan: mask before you multiply)",
            )


def _check_slope(name: str, values_P: Tensor, logits_NV: Tensor) -> None:
    if not values_P.requires_grad:
        raise _rejected(
            name,
            "has no gradient: it does not depend on what `student` answers, so nothing is "
            "learnt from it",
        )
    (slope_NV,) = torch.autograd.grad(values_P.sum(), logits_NV)
    if not bool(torch.isfinite(slope_NV).all()):
        raise _rejected(
            name,
            "has a finite value and a gradient that is not, with a student whose logits are drawn "
            "at random (the gradient of a branch that is not taken counts, too: mask what goes "
            "into a logarithm or a quotient, not what comes out)",
        )


def _rejected(name: str, what: str) -> InputError:
    return InputError(f"--loss {find(name)}: {what}. Change the function.", kind="own-loss")


def _line_of(name: str, error: Exception) -> traceback.FrameSummary:
    """Find the last line that ran of the file of a loss; of none of its own, the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(find(name).values, "__code__", None)
    own = [each for each in frames if code is not None and each.filename == code.co_filename]
    return (own or frames)[-1]


def _failed(name: str, error: Exception, given: Mapping[str, Tensor]) -> InputError:
    last = _line_of(name, error)
    if isinstance(error, NotAskedError):
        return InputError(
            f"--loss {find(name)}: {last.filename} line {last.lineno}: {error}.", kind="own-loss"
        )
    arrays = ", ".join(f"{key} {tuple(array.shape)}" for key, array in given.items())
    pairs = len(given["index"])
    return InputError(
        f"--loss {find(name)}: fails on {pairs} pairs of the store, in {last.filename} line "
        f"{last.lineno}: {type(error).__name__}: {error}. What it is given: {arrays}. What it "
        "needs of a store is declared above it (needs=…); a batch may have no pair.",
        kind="own-loss",
    )
