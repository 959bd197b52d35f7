"""Packing of several sequences into one row, each read as if it were alone: `--packing`.

A batch keeps its sequences, so order, steps and what a checkpoint counts stay the same. Only their
places change, and with them the amount of padding:

    one a row    a a a a a a      packed    a a a a a a     position_ids    0 1 2 3 4 5
                 b b b - - -                b b b c c -                     0 1 2 0 1 0
                 c c - - - -

Rows are at most half as wide again as the longest sequence: attention costs the square of the
width, which would soon be more than the padding saved. Only FlashAttention, which takes the bounds
of sequences instead of a mask and skips all else, gets the whole batch in one row.

A sequence begins where `position_ids` start again at 0; nothing else marks it. transformers makes
the attention's mask from that (or, for FlashAttention, the bounds), provided that it is given no
other mask. Each padding token is a sequence of its own. No attribute of a model tells whether it
respects this, so :func:`check_packing` tries the model itself.

Shape legend: B = sequences; R = rows; W = their width.
"""

import heapq
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitstore.errors import InputError
from logitstore.models.context_length import context_length

Ints = npt.NDArray[np.int64]

#: Number of tokens of each text that a model is tried with.
_TRIED = 8
#: The most that packed logits may differ, as a share of the change that a visible text in front
#: makes: so much is rounding. A model whose positions alone are wrong differs by a fifth of that
#: change, all others by nearly the whole.
_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3}
_ROUNDING_OF_HALF = 0.1


class Places(NamedTuple):
    """The places of a batch's sequences: (B,) the row of each, and the column where it begins."""

    row: Ints
    column: Ints
    shape: tuple[int, int]


#: A function that lays the sequences of a batch, given their lengths, into rows.
Layout = Callable[[Ints], Places]


def one_a_row(lengths: Ints) -> Places:
    """Lay each sequence into a row of its own, padded to the longest."""
    width = max(1, int(lengths.max(initial=0)))  # a model needs one column to run on
    return Places(np.arange(len(lengths)), np.zeros_like(lengths), (len(lengths), width))


def packed(lengths: Ints, most: int | None = None) -> Places:
    """Lay sequences into the number of rows that leaves the least padding.

    Args:
        lengths: (B,) tokens of each sequence.
        most: The most columns of a row that the model can run on; None: any number.
    """
    longest, total = max(1, int(lengths.max(initial=0))), int(lengths.sum())
    widest = max(longest, min(longest * 3 // 2, most or longest * 3 // 2))
    best = one_a_row(lengths)
    for rows in range(max(1, -(-total // widest)), len(lengths)):
        places = _dealt(lengths, rows)
        if places.shape[1] <= widest and _cells(places) < _cells(best):
            best = places
        if places.shape[1] == longest:  # with more rows, the rows only get emptier
            break
    return best


def _dealt(lengths: Ints, rows: int) -> Places:
    """Lay the longest sequence first, each into the row with the fewest tokens."""
    row, column = np.zeros_like(lengths), np.zeros_like(lengths)
    filled = [(0, r) for r in range(rows)]
    for i in np.argsort(-lengths, kind="stable").tolist():
        column[i], row[i] = filled[0]
        heapq.heapreplace(filled, (filled[0][0] + int(lengths[i]), filled[0][1]))
    return Places(row, column, (rows, max(1, *(used for used, _ in filled))))


def _cells(places: Places) -> int:
    return places.shape[0] * places.shape[1]


def in_one_row(lengths: Ints) -> Places:
    """Lay all sequences into one row, without any padding."""
    total = int(lengths.sum())
    return Places(np.zeros_like(lengths), np.cumsum(lengths) - lengths, (1, max(1, total)))


def layout_of(model: Any) -> Layout:
    """Choose how to pack for this model, which :func:`check_packing` has accepted."""
    if _is_flash(model):
        return in_one_row
    return partial(packed, most=context_length(model.config))


def check_packing(model: Any) -> None:
    """Check that the model reads a text packed behind another as it reads it in front.

    Two texts of one length are packed in both orders. Nothing precedes the text in front; so any
    difference for the same text behind comes from the other text, or from positions that do not
    start again. It is measured against the difference when the model may see the text in front.

    FlashAttention runs on a GPU only, and the model may not be on one yet. In that case the rest of
    the model is tried, with another attention in its place.

    Raises:
        InputError: The model reads it differently, or it is an encoder-decoder.
    """
    name = f"{model.name_or_path or type(model).__name__}"
    if model.config.is_encoder_decoder:
        raise InputError(
            f"--packing: {name} is an encoder-decoder, whose decoder would read the prompts of all "
            "texts in a row. Leave --packing out; --train_sampling_strategy group_by_length also "
            "saves padding."
        )
    if _are_elsewhere(model):  # shards, or weights that another process brings
        return
    was_training, attention = model.training, model.config._attn_implementation
    model.eval()
    if _is_flash(model):  # not by transformers' setter, which would load it again afterwards
        model.config._attn_implementation = "eager"
    try:
        leaked, seen = _differences(model)
    except TypeError:  # no position_ids among its arguments
        leaked, seen = 1.0, 1.0
    finally:
        model.config._attn_implementation = attention
        model.train(was_training)
    if not leaked <= _ROUNDING.get(model.dtype, _ROUNDING_OF_HALF) * seen:  # also NaN
        raise InputError(
            f"--packing: {name} reads a text otherwise when another lies in front of it in its "
            f"row: {_kind(model)} does not keep to position_ids that start again (a recurrent "
            "state, positions of its own, or an attention without a mask). Leave --packing out; "
            "--train_sampling_strategy group_by_length also saves padding."
        )


@torch.no_grad()
def _differences(model: Any) -> tuple[float, float]:
    """Measure how far a text's logits change behind another: packed, and as one text with it."""
    device = next(model.parameters()).device
    ids = torch.arange(2 * _TRIED, device=device) % model.get_input_embeddings().num_embeddings
    ahead, text = ids.split(_TRIED)
    restarting = torch.arange(_TRIED, device=device).repeat(2)[None]

    def logits(*texts: Tensor, **more: Tensor) -> Tensor:
        made: Tensor = model(input_ids=torch.cat(texts)[None], use_cache=False, **more).logits[0]
        return made.float()

    in_front = logits(text, ahead, position_ids=restarting)[:_TRIED]
    behind = logits(ahead, text, position_ids=restarting)[_TRIED:]
    as_one = logits(ahead, text)[_TRIED:]
    return float((behind - in_front).norm()), float((as_one - in_front).norm())


def _are_elsewhere(model: nn.Module) -> bool:
    return any(p.is_meta or not p.numel() for p in model.parameters())


def _is_flash(model: Any) -> bool:
    """Tell whether it uses FlashAttention, also one from the hub: `kernels-community/…flash…`."""
    return "flash" in str(model.config._attn_implementation)


def _kind(model: Any) -> str:
    """Name a model's architecture and attention, for messages: the model inside an adapter's."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = model.config._attn_implementation
    return f"{type(inner).__name__} with {attention} attention"
