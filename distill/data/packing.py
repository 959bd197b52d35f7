"""Several sequences in one row, each as if it were alone: what `--packing` does to a batch.

A batch keeps its sequences, so order, steps and what a checkpoint counts stay as they are; only
where they lie changes, and with it how much of the rectangle is padding:

    one a row    a a a a a a      packed    a a a a a a     position_ids    0 1 2 3 4 5
                 b b b - - -                b b b c c -                     0 1 2 0 1 0
                 c c - - - -

Rows are at most half as wide again as the longest sequence: what padding saves, an attention over
the square of the width would soon cost again. Only FlashAttention, which takes the bounds of
sequences instead of a mask and skips what lies outside them, gets everything in one row.

Nothing but `position_ids` says where a sequence begins: they start again at 0. transformers makes
the attention's mask of that (or, for FlashAttention, the bounds), provided that it is given no
other mask. Padding is sequences of one token each. Which models keep to it is not written anywhere
that a program could read, so :func:`check_packing` tries the model itself.

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

#: Tokens of each text that a model is tried with.
_TRIED = 8
#: How much of what the text in front would change may be seen; the rest is rounding. A model whose
#: positions alone are wrong differs by a fifth, all others by nearly the whole.
_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3}
_ROUNDING_OF_HALF = 0.1


class Places(NamedTuple):
    """Where the sequences of a batch lie: (B,) row of each, and the column that it begins in."""

    row: Ints
    column: Ints
    shape: tuple[int, int]


#: How the sequences of a batch, of these lengths, are laid into rows.
Layout = Callable[[Ints], Places]


def one_a_row(lengths: Ints) -> Places:
    """Each in a row of its own, padded to the longest."""
    width = max(1, int(lengths.max(initial=0)))  # a model needs one column to run on
    return Places(np.arange(len(lengths)), np.zeros_like(lengths), (len(lengths), width))


def packed(lengths: Ints, most: int | None = None) -> Places:
    """In the number of rows that leaves the least padding.

    Args:
        lengths: (B,) tokens of each.
        most: Columns that a row may have, if that is less; some models cannot run on more.
    """
    longest, total = max(1, int(lengths.max(initial=0))), int(lengths.sum())
    widest = max(longest, min(longest * 3 // 2, most or longest * 3 // 2))
    best = one_a_row(lengths)
    for rows in range(max(1, -(-total // widest)), len(lengths)):
        found = _dealt(lengths, rows)
        if found.shape[1] <= widest and _cells(found) < _cells(best):
            best = found
        if found.shape[1] == longest:  # from here on rows only get emptier
            break
    return best


def _dealt(lengths: Ints, rows: int) -> Places:
    """The longest first, each into the row that is emptiest."""
    row, column = np.zeros_like(lengths), np.zeros_like(lengths)
    filled = [(0, r) for r in range(rows)]
    for each in np.argsort(-lengths, kind="stable").tolist():
        column[each], row[each] = filled[0]
        heapq.heapreplace(filled, (filled[0][0] + int(lengths[each]), filled[0][1]))
    return Places(row, column, (rows, max(1, *(used for used, _ in filled))))


def _cells(places: Places) -> int:
    return places.shape[0] * places.shape[1]


def in_one_row(lengths: Ints) -> Places:
    """All behind one another, without any padding."""
    total = int(lengths.sum())
    return Places(np.zeros_like(lengths), np.cumsum(lengths) - lengths, (1, max(1, total)))


def layout_of(model: Any) -> Layout:
    """How to pack for this model, which :func:`check_packing` has let pass."""
    if _is_flash(model):
        return in_one_row
    return partial(packed, most=context_length(model.config))


def check_packing(model: Any) -> None:
    """Tries whether the model reads a text packed behind another as it reads it in front of it.

    Of two texts of one length, in both orders, nothing can precede the one in front; so whatever
    the model makes otherwise of the one behind is what it was told by its neighbour, or by a
    position that went on counting. The scale is what the model makes of it if it may see all.

    FlashAttention runs on a GPU alone, and the model may not be there yet. So all but attention is
    tried in that case, with another attention in its place.

    Raises:
        InputError: It does not; or it has an encoder, whose input is another text.
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
    if _is_flash(model):  # transformers' own setter would load it anew on the way back
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
    """How far a text's logits move behind another one: packed, and as one text with it."""
    device = next(model.parameters()).device
    ids = torch.arange(2 * _TRIED, device=device) % model.get_input_embeddings().num_embeddings
    ahead, text = ids.split(_TRIED)
    restarting = torch.arange(_TRIED, device=device).repeat(2)[None]

    def logits(*texts: Tensor, **more: Tensor) -> Tensor:
        found: Tensor = model(input_ids=torch.cat(texts)[None], use_cache=False, **more).logits[0]
        return found.float()

    in_front = logits(text, ahead, position_ids=restarting)[:_TRIED]
    behind = logits(ahead, text, position_ids=restarting)[_TRIED:]
    as_one = logits(ahead, text)[_TRIED:]
    return float((behind - in_front).norm()), float((as_one - in_front).norm())


def _are_elsewhere(model: nn.Module) -> bool:
    return any(p.is_meta or not p.numel() for p in model.parameters())


def _is_flash(model: Any) -> bool:
    """Also those of the hub's kernels, `kernels-community/vllm-flash-attn3` and the like."""
    return "flash" in str(model.config._attn_implementation)


def _kind(model: Any) -> str:
    """Architecture and attention, for messages; not those of what adapters wrap."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = model.config._attn_implementation
    return f"{type(inner).__name__} with {attention} attention"
