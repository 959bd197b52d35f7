"""The hidden states of one sequence, as readers return them: decoded when they are asked for."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from logitstore.format.hidden import EncodedStates, Rows
from logitstore.format.hidden_codec import decode_rows
from logitstore.format.numpy_types import F32, U32, Array


@dataclass(frozen=True)
class HiddenStates:
    """The teacher's hidden states of one sequence.

    Shape legend: T = states, n = records, D = width of a state, E = distinct tokens, De = width of
    an embedding.

    Attributes:
        encoded: In the form in which they are stored.
    """

    encoded: EncodedStates

    @property
    def ids(self) -> U32:
        """(T,) the token that the teacher had read last at each state."""
        return self.encoded.ids

    @property
    def places(self) -> U32 | None:
        """(n,) the state that predicted each record's token; None: state i predicted record i's."""
        return self.encoded.places

    @cached_property
    def last(self) -> F32:
        """(T, D) what the output head read: the last hidden state, behind the final norm."""
        return _decoded(self.encoded.last)

    @property
    def of_records(self) -> F32:
        """(n, D) the state that predicted each record's token."""
        return _decoded(self.rows_of_records)

    @property
    def rows_of_records(self) -> Rows:
        """(n, D) the same, as they are stored."""
        places = self.places
        return self.encoded.last if places is None else self.encoded.last[places]

    @property
    def ids_of_records(self) -> U32:
        """(n,) the token that stands before each record's token."""
        return self.ids if self.places is None else self.ids[self.places]

    @property
    def embedding_ids(self) -> U32 | None:
        """(E,) ascending, all tokens of `ids` and of the records; None: captured without."""
        return self.encoded.embedding_ids

    @cached_property
    def embedding(self) -> F32 | None:
        """(E, De) their rows of the teacher's input embedding; None: captured without."""
        rows = self.encoded.embedding
        return None if rows is None else _decoded(rows)

    def embedded(self, ids: Array) -> F32:
        """Look up (m, De) the embeddings of some tokens of the sequence."""
        assert self.embedding_ids is not None, "captured without --hidden last,embedding"
        assert self.embedding is not None
        found: F32 = self.embedding[np.searchsorted(self.embedding_ids, ids)]
        return found


def _decoded(rows: Rows) -> F32:
    return decode_rows(rows.codes, rows.scale)
