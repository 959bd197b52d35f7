"""Describe the hidden states of a store, and hold those of a sequence as they are stored.

A store may hold the teacher's hidden states in files of their own, the *sidecar*: whoever reads
records never reads a byte of it.

    last        what the teacher's output head read where it predicted a token: the last hidden
                state, behind the final norm. Each record has the one that predicted its token; with
                `context` every token that the teacher read has one.
    embedding   the rows of the teacher's input embedding, of those tokens that the shard has

and once in a store, of a store that has states, the teacher's output embedding (`lm_head.py`).

Shape legend: n = records, T = states, E = distinct tokens, D = width of a state, De = of an
embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from logitstore.format.hidden_codec import BF16, CODE_TYPES, FP8, row_bytes
from logitstore.format.numpy_types import F32, U32, Array

LAST, EMBEDDING = "last", "embedding"
LAYERS = (EMBEDDING, LAST)
DTYPES = (FP8, BF16)
EMBEDDING_WIDTH, LM_HEAD = "embedding_width", "lm_head"
_MAX_WIDTH = 1 << 20
_KEYS = {"layers", "dtype", "context", "width"}


@dataclass(frozen=True)
class HiddenSpec:
    """Says which hidden states a store holds.

    Attributes:
        dtype: `fp8` or `bf16`.
        width: D, the numbers of a state.
        context: Whether tokens without a record have a state, too.
        embedding_width: De; None: no embeddings are kept.
        has_head: Whether the teacher's output embedding lies in the store.
    """

    dtype: str
    width: int
    context: bool = False
    embedding_width: int | None = None
    has_head: bool = False

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Self:
        """Make one of what `capture.hidden` of a store says, which is valid."""
        return cls(
            recorded["dtype"],
            recorded["width"],
            recorded["context"],
            recorded.get(EMBEDDING_WIDTH),
            LM_HEAD in recorded,
        )

    def recorded(self) -> dict[str, Any]:
        """Describe it as `capture.hidden`."""
        layers = [LAST] if self.embedding_width is None else [*LAYERS]
        widths = {"width": self.width, EMBEDDING_WIDTH: self.embedding_width}
        said = {"layers": layers, "dtype": self.dtype, "context": self.context} | widths
        said |= {LM_HEAD: self.has_head or None}
        return {name: value for name, value in said.items() if value is not None}

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are kept."""
        return (LAST,) if self.embedding_width is None else LAYERS

    @property
    def state_bytes(self) -> int:
        """Bytes of a state before compression."""
        return row_bytes(self.width, self.dtype)

    @property
    def code_type(self) -> np.dtype[Any]:
        """The type of its codes."""
        return np.dtype(CODE_TYPES[self.dtype])

    @property
    def has_scales(self) -> bool:
        """Whether each row has a scale."""
        return self.dtype == FP8


def is_hidden(value: Any) -> bool:
    """Tell whether this is a valid `capture.hidden`, spelt in the one way."""
    if not isinstance(value, dict) or set(value) - {EMBEDDING_WIDTH, LM_HEAD} != _KEYS:
        return False
    widths = [value["width"], value.get(EMBEDDING_WIDTH, 1)]
    if not all(type(width) is int and 1 <= width <= _MAX_WIDTH for width in widths):
        return False
    if value["dtype"] not in DTYPES or not isinstance(value["context"], bool):
        return False
    if value.get(LM_HEAD, True) is not True:  # 1 would equal it
        return False
    return bool(HiddenSpec.of(value).recorded() == value)


@dataclass(frozen=True)
class Rows:
    """Rows in the form in which they are stored.

    Attributes:
        codes: (T, D) uint8 or uint16.
        scale: (T,) float32, of fp8; else None.
    """

    codes: Array
    scale: F32 | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, which: Any) -> "Rows":
        return Rows(self.codes[which], None if self.scale is None else self.scale[which])

    @classmethod
    def joined(cls, parts: "Sequence[Rows]") -> "Rows":
        """Join one or more parts in order."""
        scales = [part.scale for part in parts if part.scale is not None]
        codes = np.concatenate([part.codes for part in parts])
        return cls(codes, np.concatenate(scales) if scales else None)

    @classmethod
    def none(cls, spec: HiddenSpec, width: int) -> "Rows":
        """Make no rows at all."""
        scale = np.zeros(0, np.float32) if spec.has_scales else None
        return cls(np.zeros((0, width), spec.code_type), scale)


@dataclass(frozen=True)
class EncodedStates:
    """The hidden states of one sequence in the form in which they are stored.

    Attributes:
        ids: (T,) the token that the teacher had read last at each state.
        last: (T, D) its states.
        places: (n,) the state that predicted each record's token; None without context: state i
            predicted the token of record i.
        embedding_ids: (E,) distinct tokens, ascending; None: no embeddings are kept.
        embedding: (E, De) their embeddings.
    """

    ids: U32
    last: Rows
    places: U32 | None = None
    embedding_ids: U32 | None = None
    embedding: Rows | None = None

    def __len__(self) -> int:
        return len(self.ids)
