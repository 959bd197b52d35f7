"""A query for a few numbers of a student's logits, and its answer from some rows of logits.

All that a loss reads of the student is a few numbers per position. :class:`HeadQuery` names them,
:func:`answer_rows` defines them, and :class:`~distill.head.student_head.StudentHead` computes them
without ever holding the logits of more than a chunk of positions.

The *rest* of a lookup is the student's mass at all tokens but the ids looked up. It is not the
store's *tail*, which is the teacher's mass at all tokens but the entries of a record.

Shape legend: N = positions asked for; c = positions of a chunk; V = student vocabulary; K = top_k,
or the width of a lookup's ids; S = sequences; k = columns of a ranking.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from logitstore.records import STD_FLOOR


class Lookup(NamedTuple):
    """A request for the log-probabilities at given ids, and of all other tokens together.

    Attributes:
        ids_NK: (N, K) int32 or int64, ids to look up, distinct in a row; -1 is padding.
        temperature: Divides the logits before the softmax.
        has_rest: Whether the rest is wanted, the mass outside the ids.
    """

    ids_NK: Tensor
    temperature: float = 1.0
    has_rest: bool = True


class Found(NamedTuple):
    """An answer to a :class:`Lookup`.

    Attributes:
        logprobs_NK: (N, K) at the ids; -inf in padding.
        rest_logmass_N: (N,) log of the mass outside the ids; -inf for none. None if not asked for.
    """

    logprobs_NK: Tensor
    rest_logmass_N: Tensor | None


class Ranking(NamedTuple):
    """A request for the columns with most probability over each sequence, at one scale of logits.

    Logits are divided by their standard deviation over the vocabulary plus `STD_FLOOR`, as
    MultiLevelOT does. A sequence's columns are ranked by the sum of their probability over all of
    its positions in the query; the choice has no gradient.

    Attributes:
        sequence_N: (N,) int64 in [0, sequences), the sequence of each position.
        sequences: Number of sequences.
        k: Number of columns to choose in each.
    """

    sequence_N: Tensor
    sequences: int
    k: int


@dataclass(frozen=True)
class HeadQuery:
    """A request for what a loss reads of the student at each of N positions.

    Attributes:
        labels_N: (N,) int64 in [0, V), the student's own tokens.
        top_k: Number of the largest log-probabilities wanted; 0 for none.
        top_k_mask_N: (N,) bool, where `top_k` is wanted; None for everywhere.
        top_k_columns_V: (V,) bool, the tokens that `top_k` chooses from; None for all. The
            log-probabilities remain those over the full vocabulary.
        has_top_ids: Whether the tokens of `top_k` are wanted too, in a run without gradient such as
            an evaluation. Where `top_k_mask_N` is False they are arbitrary.
        lookups: Ids to look up, by a name that the caller chooses.
        ranking: Columns to choose for whole sequences; None for none.
    """

    labels_N: Tensor
    top_k: int = 0
    top_k_mask_N: Tensor | None = None
    top_k_columns_V: Tensor | None = None
    has_top_ids: bool = False
    lookups: Mapping[str, Lookup] = field(default_factory=dict)
    ranking: Ranking | None = None

    def part(self, start: int, stop: int) -> "HeadQuery":
        """Return the same query for positions start to stop."""
        mask_N, ranking = self.top_k_mask_N, self.ranking
        return replace(
            self,
            labels_N=self.labels_N[start:stop],
            top_k_mask_N=None if mask_N is None else mask_N[start:stop],
            lookups={
                name: lookup._replace(ids_NK=lookup.ids_NK[start:stop])
                for name, lookup in self.lookups.items()
            },
            ranking=ranking and ranking._replace(sequence_N=ranking.sequence_N[start:stop]),
        )

    def indexing(self) -> "HeadQuery":
        """Return the same query with int64 ids, as torch indexes by.

        Ids of a whole batch stay int32, since int64 takes twice the memory: call this on a chunk.
        """
        lookups = {
            name: lookup._replace(ids_NK=lookup.ids_NK.long())
            for name, lookup in self.lookups.items()
        }
        return replace(self, lookups=lookups)


@dataclass(frozen=True)
class HeadAnswer:
    """An answer to a :class:`HeadQuery`: log-probabilities over the full student vocabulary.

    They are float32, or float64 for a float64 model.

    Attributes:
        label_logprob_N: (N,) of the labels.
        top_logprobs_NK: (N, top_k) largest first; -inf beyond V and where masked. None if not
            asked for, as with all below.
        top_ids_NK: (N, top_k) int64, the tokens of `top_logprobs_NK`; 0 beyond V.
        found: The answer to each lookup, by its name.
        column_logprobs_Nk: (N, k) at the ranked columns of the position's sequence, the one with
            most mass first, of logits at one scale; -inf beyond V.
    """

    label_logprob_N: Tensor
    top_logprobs_NK: Tensor | None = None
    top_ids_NK: Tensor | None = None
    found: Mapping[str, Found] = field(default_factory=dict)
    column_logprobs_Nk: Tensor | None = None

    @classmethod
    def of(cls, flat: Mapping[str, Tensor]) -> "HeadAnswer":
        """Build an answer from the tensors that :func:`answer_rows` returns."""
        names = [name.removesuffix(AT_IDS) for name in flat if name.endswith(AT_IDS)]
        found = {name: Found(flat[name + AT_IDS], flat.get(name + REST)) for name in names}
        tensors = {field_.name: flat[field_.name] for field_ in fields(cls) if field_.name in flat}
        return cls(**tensors, found=found)


#: Names of the tensors of an answer; those of a lookup follow its name.
LABEL, TOP, COLUMNS = "label_logprob_N", "top_logprobs_NK", "column_logprobs_Nk"
TOP_IDS = "top_ids_NK"
AT_IDS, REST = ".at_ids", ".rest"


def answer_rows(
    logits_cV: Tensor, query: HeadQuery, columns_Sk: Tensor | None = None
) -> dict[str, Tensor]:
    """Answer a query from some rows of logits: the definition, whose gradient is autograd's.

    Args:
        logits_cV: Logits of any floating dtype; sums are float32, or float64 for float64.
        query: The query for just these rows.
        columns_Sk: The columns that :func:`rank_columns` chose, where the query has a ranking.

    Returns:
        Tensors by name, only those that are asked for.
    """
    logits_cV, query = widened(logits_cV), query.indexing()
    log_z_c = logits_cV.logsumexp(-1)
    # New tensors, not views of the logits: an in-place change to one must not change the others.
    label_c = logits_cV.gather(1, query.labels_N[:, None]).squeeze(1) - log_z_c
    answer = {LABEL: label_c}
    if query.top_k:
        columns_V = query.top_k_columns_V
        listed_cV = (
            logits_cV if columns_V is None else logits_cV.masked_fill(~columns_V, -torch.inf)
        )
        answer[TOP] = _top(listed_cV, log_z_c, query.top_k, query.top_k_mask_N)
        if query.has_top_ids:
            ids_cK = listed_cV.topk(min(query.top_k, listed_cV.shape[1])).indices
            answer[TOP_IDS] = nn.functional.pad(ids_cK, (0, query.top_k - ids_cK.shape[1]))
    for name, lookup in query.lookups.items():
        at_ids_cK, rest_c = _look_up(logits_cV, log_z_c, lookup)
        answer[name + AT_IDS] = at_ids_cK
        if rest_c is not None:
            answer[name + REST] = rest_c
    if query.ranking is not None:
        assert columns_Sk is not None
        scaled_cV = at_one_scale(logits_cV)
        ids_ck = columns_Sk[query.ranking.sequence_N]
        answer[COLUMNS] = _at(scaled_cV, scaled_cV.logsumexp(-1), ids_ck)
    return answer


def widened(logits: Tensor) -> Tensor:
    """Convert logits to float32, unless they are wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def at_one_scale(logits_cV: Tensor) -> Tensor:
    """Divide logits by their unbiased standard deviation, with a finite gradient where it is 0."""
    tiny = torch.finfo(logits_cV.dtype).tiny
    centred_cV = logits_cV - logits_cV.mean(-1, keepdim=True)
    variance_c1 = centred_cV.square().sum(-1, keepdim=True) / max(1, logits_cV.shape[1] - 1)
    return logits_cV / (variance_c1.clamp(min=tiny).sqrt() + STD_FLOOR)


def column_mass(mass_SV: Tensor | None, logits_cV: Tensor, ranking: Ranking) -> Tensor:
    """Add the probabilities of some rows to the sums of their sequences (None: start at zero)."""
    p_cV = at_one_scale(widened(logits_cV)).softmax(-1)
    if mass_SV is None:
        mass_SV = p_cV.new_zeros(ranking.sequences, p_cV.shape[1])
    return mass_SV.index_add_(0, ranking.sequence_N, p_cV)


def rank_columns(mass_SV: Tensor, k: int) -> Tensor:
    """Choose (S, k) int64 columns, the one with most mass first; -1 beyond the vocabulary.

    Of columns with equal mass the lower id comes first, on every device.
    """
    width = mass_SV.shape[1]
    if mass_SV.dtype == torch.float32:
        # No library's topk promises an order among equals, and a stable sort takes forty times as
        # long. So one integer holds the bits of the mass (they order as floats do) above the id.
        ids_V = torch.arange(width, device=mass_SV.device)
        key_SV = (mass_SV.clamp(min=0).view(torch.int32).long() << 32) | (width - 1 - ids_V)
        order = width - 1 - (key_SV.topk(min(k, width)).values & 0xFFFF_FFFF)
    else:
        order = mass_SV.sort(descending=True, stable=True).indices[:, :k]
    return nn.functional.pad(order, (0, k - order.shape[1]), value=-1)


def _look_up(logits_cV: Tensor, log_z_c: Tensor, lookup: Lookup) -> tuple[Tensor, Tensor | None]:
    if lookup.temperature != 1:
        logits_cV = logits_cV / lookup.temperature
        log_z_c = logits_cV.logsumexp(-1)
    rest_c = _rest(logits_cV, log_z_c, lookup.ids_NK) if lookup.has_rest else None
    return _at(logits_cV, log_z_c, lookup.ids_NK), rest_c


def _at(logits_cV: Tensor, log_z_c: Tensor, ids_cK: Tensor) -> Tensor:
    """Read the log-probabilities at the ids; -inf in padding."""
    at_ids_cK = logits_cV.gather(1, ids_cK.clamp(min=0)) - log_z_c[:, None]
    return at_ids_cK.masked_fill(ids_cK < 0, -torch.inf)


def _top(logits_cV: Tensor, log_z_c: Tensor, k: int, mask_c: Tensor | None) -> Tensor:
    """Find the k largest log-probabilities of each row; -inf beyond V, and in unmasked rows."""
    rows, width = logits_cV.shape
    if mask_c is None:
        top = logits_cV.topk(min(k, width)).values - log_z_c[:, None]
        return nn.functional.pad(top, (0, k - top.shape[1]), value=-torch.inf)
    wanted = mask_c.nonzero().squeeze(1)
    top = _top(logits_cV[wanted], log_z_c[wanted], k, None)
    return top.new_full((rows, k), -torch.inf).index_copy(0, wanted, top)


def _rest(logits_cV: Tensor, log_z_c: Tensor, ids_cK: Tensor) -> Tensor:
    """Compute the log of the mass outside the ids, summed over the other tokens themselves.

    1 - sum(p) cancels to noise exactly where the student is good.
    """
    rows, width = logits_cV.shape
    # Padding marks a column beyond the vocabulary, so that it never hides a token.
    is_id_cV = torch.zeros(rows, width + 1, dtype=torch.bool, device=logits_cV.device)
    is_id_cV.scatter_(1, torch.where(ids_cK >= 0, ids_cK, width), True)
    rest_cV = logits_cV.masked_fill(is_id_cV[:, :width], -torch.inf)
    # A row of all -inf has a NaN gradient, even times zero. (Models mask tokens with -inf, too.)
    has_rest_c = rest_cV.detach().amax(-1) > -torch.inf
    log_rest_c = rest_cV.masked_fill(~has_rest_c[:, None], 0).logsumexp(-1) - log_z_c
    return log_rest_c.masked_fill(~has_rest_c, -torch.inf)
