"""What is asked of a student's logits, and the answer to it from some rows of them.

Everything that a loss here reads of the student is a few numbers per position. :class:`HeadQuery`
names them, :func:`answer_rows` computes them from a chunk of logits, and
:class:`~distill.head.student_head.StudentHead` sees to it that no more logits than that exist
at once.

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
    """Log-probabilities at given ids, and of all else together.

    Attributes:
        ids_NK: (N, K) int32 or int64, ids to look up, distinct in a row; -1 is padding.
        temperature: Of the softmax: log-probabilities of z / temperature.
        has_rest: Whether the mass outside the ids is wanted.
    """

    ids_NK: Tensor
    temperature: float = 1.0
    has_rest: bool = True


class Found(NamedTuple):
    """The answer to a :class:`Lookup`.

    Attributes:
        logprobs_NK: (N, K) at the ids; -inf in padding.
        rest_logmass_N: (N,) log of the mass outside the ids, -inf for none. None: not asked.
    """

    logprobs_NK: Tensor
    rest_logmass_N: Tensor | None


class Ranking(NamedTuple):
    """The columns with most probability over each sequence, at one scale of logits.

    Logits are divided by their standard deviation over the vocabulary plus `STD_FLOOR`, as
    MultiLevelOT does. A sequence's columns are ranked by the sum of their probability over all of
    its positions in the query; the choice has no gradient.

    Attributes:
        sequence_N: (N,) int64 in [0, sequences), the sequence of each position.
        sequences: How many there are.
        k: Columns to choose in each.
    """

    sequence_N: Tensor
    sequences: int
    k: int


@dataclass(frozen=True)
class HeadQuery:
    """What to compute at each of N positions.

    Attributes:
        labels_N: (N,) int64 in [0, V), the student's own tokens.
        top_k: How many of the largest log-probabilities; 0 for none.
        top_k_mask_N: (N,) bool, where `top_k` is wanted; None for everywhere.
        top_k_columns_V: (V,) bool, of which tokens; None for all. The log-probabilities remain
            those over the full vocabulary.
        has_top_ids: Whether the tokens of `top_k` are wanted too: of a run without gradient, such
            as an evaluation. Where `top_k_mask_N` is False they mean nothing.
        lookups: Ids to look up, by a name of the asker's.
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
        """The same question about positions start to stop."""
        mask_N, ranking = self.top_k_mask_N, self.ranking
        return replace(
            self,
            labels_N=self.labels_N[start:stop],
            top_k_mask_N=None if mask_N is None else mask_N[start:stop],
            lookups={
                name: each._replace(ids_NK=each.ids_NK[start:stop])
                for name, each in self.lookups.items()
            },
            ranking=ranking and ranking._replace(sequence_N=ranking.sequence_N[start:stop]),
        )

    def indexing(self) -> "HeadQuery":
        """The same with ids as torch indexes by them: of a chunk, never of a whole batch."""
        lookups = {n: each._replace(ids_NK=each.ids_NK.long()) for n, each in self.lookups.items()}
        return replace(self, lookups=lookups)


@dataclass(frozen=True)
class HeadAnswer:
    """Log-probabilities over the full student vocabulary: float32, float64 of a float64 model.

    Attributes:
        label_logprob_N: (N,) of the labels.
        top_logprobs_NK: (N, top_k) largest first; -inf beyond V and where masked. None: not asked.
        top_ids_NK: (N, top_k) int64, whose they are; 0 beyond V. None: not asked.
        found: The answer to each lookup, by its name.
        column_logprobs_Nk: (N, k) at the ranked columns of the position's sequence, the one with
            most mass first, of logits at one scale; -inf beyond V. None: not asked.
    """

    label_logprob_N: Tensor
    top_logprobs_NK: Tensor | None = None
    top_ids_NK: Tensor | None = None
    found: Mapping[str, Found] = field(default_factory=dict)
    column_logprobs_Nk: Tensor | None = None

    @classmethod
    def of(cls, flat: Mapping[str, Tensor]) -> "HeadAnswer":
        """From the tensors of :func:`answer_rows`."""
        names = [name.removesuffix(AT_IDS) for name in flat if name.endswith(AT_IDS)]
        found = {name: Found(flat[name + AT_IDS], flat.get(name + REST)) for name in names}
        own = {each.name: flat[each.name] for each in fields(cls) if each.name in flat}
        return cls(**own, found=found)


#: What the tensors of an answer are called, those of a lookup behind its name.
LABEL, TOP, COLUMNS = "label_logprob_N", "top_logprobs_NK", "column_logprobs_Nk"
TOP_IDS = "top_ids_NK"
AT_IDS, REST = ".at_ids", ".rest"


def answer_rows(
    logits_cV: Tensor, query: HeadQuery, columns_Sk: Tensor | None = None
) -> dict[str, Tensor]:
    """The answer for some rows of logits, as a flat dict of tensors without what is not asked for.

    Args:
        logits_cV: Of any floating dtype; sums are float32, or float64 of float64.
        query: The question about just these rows.
        columns_Sk: What :func:`rank_columns` chose, where the query has a ranking.
    """
    logits_cV, query = widened(logits_cV), query.indexing()
    log_z_c = logits_cV.logsumexp(-1)
    # Differences, not views of something: an in-place change must not reach past a wrapper's hooks.
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
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def at_one_scale(logits_cV: Tensor) -> Tensor:
    """Logits over their standard deviation: unbiased, and with a gradient where it is 0."""
    tiny = torch.finfo(logits_cV.dtype).tiny
    centred_cV = logits_cV - logits_cV.mean(-1, keepdim=True)
    variance_c1 = centred_cV.square().sum(-1, keepdim=True) / max(1, logits_cV.shape[1] - 1)
    return logits_cV / (variance_c1.clamp(min=tiny).sqrt() + STD_FLOOR)


def column_mass(mass_SV: Tensor | None, logits_cV: Tensor, ranking: Ranking) -> Tensor:
    """Adds the probabilities of some rows to the sums of their sequences (None: the first rows)."""
    p_cV = at_one_scale(widened(logits_cV)).softmax(-1)
    if mass_SV is None:
        mass_SV = p_cV.new_zeros(ranking.sequences, p_cV.shape[1])
    return mass_SV.index_add_(0, ranking.sequence_N, p_cV)


def rank_columns(mass_SV: Tensor, k: int) -> Tensor:
    """(S, k) int64, the columns with most mass first; -1 beyond the vocabulary.

    Of columns with equal mass it is the lower id, on every device.
    """
    width = mass_SV.shape[1]
    if mass_SV.dtype == torch.float32:
        # No library's topk promises an order among equals, and a stable sort takes forty times as
        # long: so the bits of the mass, which order as it does, and the id below them are one key.
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
    """Log-probabilities at the ids; -inf in padding."""
    at_ids_cK = logits_cV.gather(1, ids_cK.clamp(min=0)) - log_z_c[:, None]
    return at_ids_cK.masked_fill(ids_cK < 0, -torch.inf)


def _top(logits_cV: Tensor, log_z_c: Tensor, k: int, mask_c: Tensor | None) -> Tensor:
    """The k largest log-probabilities of each row; -inf beyond V, and in rows outside the mask."""
    rows, width = logits_cV.shape
    if mask_c is None:
        top = logits_cV.topk(min(k, width)).values - log_z_c[:, None]
        return nn.functional.pad(top, (0, k - top.shape[1]), value=-torch.inf)
    wanted = mask_c.nonzero().squeeze(1)
    top = _top(logits_cV[wanted], log_z_c[wanted], k, None)
    return top.new_full((rows, k), -torch.inf).index_copy(0, wanted, top)


def _rest(logits_cV: Tensor, log_z_c: Tensor, ids_cK: Tensor) -> Tensor:
    """Log of the mass outside the ids, summed over the other tokens themselves.

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
