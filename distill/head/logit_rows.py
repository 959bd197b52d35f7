"""Rows of logits that become the answer to a query and then its gradient, in one buffer.

:func:`distill.head.query.answer_rows` is the definition. It leaves the gradient to autograd, which
makes and keeps a [rows, vocabulary] tensor for every step. Here the logits turn into exponentials
in place, and those into the gradient. Every answer about a row is a logit minus a normaliser, or
the difference of two normalisers, and the slope of a normaliser is a softmax. So with g the slopes
of the answers that use one softmax and G their sum,

    d / d logit_j  =  g of the answers at j  -  G e^(z_j - log_z)  +  g_rest e^(z_j - log_rest)

where the last term is for tokens outside a lookup's ids only. Exponentials are taken relative to
the largest logit *outside* the ids. So the mass outside is a sum of its own terms, however small it
is, and none of its exponents can overflow; the ids' share of the normaliser is added as logarithms.

Shape legend: c = rows; V = vocabulary; K = width of a lookup's ids; k = columns of a ranking.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill.head.entropies import entropies
from distill.head.places import EventPlaces, IdPlaces, Places, logits_at
from distill.head.query import (
    AT_IDS,
    COLUMNS,
    ENTROPY,
    LABEL,
    LOGITS,
    REST,
    SCALED_TOP,
    TOP,
    TOP_IDS,
    HeadQuery,
    Lookup,
    Ranking,
    listed,
    rank_columns,
    widened,
)
from distill.head.scaled_rows import ScaledRows


class LogitRows:
    """A few rows of logits, overwritten first by exponentials for the answer, then by its gradient.

    Args:
        logits_cV: Logits of any floating dtype. Overwritten if they are float32 or float64.
        query: The query for just these rows.
        columns_Sk: The columns that :func:`~distill.head.query.rank_columns` chose for each
            sequence. If the query has a ranking and this is None, the rows must be whole sequences,
            and their columns are chosen here.

    Attributes:
        answer: The tensors of :func:`~distill.head.query.answer_rows`, without gradient.
    """

    def __init__(
        self, logits_cV: Tensor, query: HeadQuery, columns_Sk: Tensor | None = None
    ) -> None:
        logits_cV, query = widened(logits_cV), query.indexing()
        self._query = query
        self._logits_cV = logits_cV.clone() if query.has_logits else None
        self._entropy_c = entropies(logits_cV) if query.has_entropy else None
        # First, since it subtracts each row's mean, which changes no log-probability below.
        self._scaled, self._at_one_scale = _scaled(logits_cV, query, columns_Sk)
        self._top_cK, self._top_ids_cK = _largest(logits_cV, query)
        shared = None if self._scaled else _lookup_with_shared_softmax(query)
        self._softmaxes = {
            name: _Softmax(logits_cV / lookup.temperature, lookup)
            for name, lookup in query.lookups.items()
            if name != shared and _needs_a_softmax(lookup)
        }
        self._at = {  # all other lookups need nothing but a few logits
            name: logits_at(logits_cV, lookup.ids_NK)
            for name, lookup in query.lookups.items()
            if name != shared and name not in self._softmaxes
        }
        self._label_c = logits_cV.gather(1, query.labels_N[:, None]).squeeze(1)
        self._shared = shared
        if self._scaled is None:  # last, since its exponentials overwrite the logits
            self._softmax = _Softmax(logits_cV, None if shared is None else query.lookups[shared])
        self.answer = self._answer()

    def _answer(self) -> dict[str, Tensor]:
        log_z_c1 = (self._scaled or self._softmax).log_z_c[:, None]
        answer = {LABEL: self._label_c - log_z_c1.squeeze(1)}
        if self._logits_cV is not None:
            answer[LOGITS] = self._logits_cV
        if self._entropy_c is not None:
            answer[ENTROPY] = self._entropy_c
        if self._query.top_k:
            answer[TOP] = self._top_cK - log_z_c1
            if self._query.has_top_ids:
                answer[TOP_IDS] = self._top_ids_cK
        for name in self._query.lookups:
            if name in self._at:
                answer[name + AT_IDS] = self._at[name] - log_z_c1
                continue
            softmax = self._softmax if name == self._shared else self._softmaxes[name]
            answer[name + AT_IDS] = softmax.at_cK - softmax.log_z_c[:, None]
            if self._query.lookups[name].has_rest:
                answer[name + REST] = softmax.log_rest_c - softmax.log_z_c
        return answer | self._at_one_scale

    def slope(self, slopes: Mapping[str, Tensor]) -> Tensor:
        """Compute (c, V) the gradient with respect to the logits, in the memory of the rows.

        It can be computed once, since it overwrites what it is computed from.

        Args:
            slopes: The gradient with respect to each tensor of `answer`. It is not read where the
                answer is -inf, which no logit can change.
        """
        slopes = {
            name: slope.masked_fill(self.answer[name] == -torch.inf, 0)
            for name, slope in slopes.items()
        }
        total_c = slopes[LABEL]
        if TOP in slopes:
            total_c = total_c + slopes[TOP].sum(-1)
        for name in self._at:
            total_c = total_c + slopes[name + AT_IDS].sum(-1)
        if self._scaled is not None:
            slope_cV = self._scaled.slope(total_c, [slopes[name] for name in self._at_one_scale])
        elif self._shared is None:
            slope_cV = self._softmax.slope(total_c, None, None)
        else:
            at_cK, rest_c = slopes[self._shared + AT_IDS], slopes.get(self._shared + REST)
            slope_cV = self._softmax.slope(total_c, at_cK, rest_c)
        if LOGITS in slopes:
            slope_cV.add_(slopes[LOGITS])
        slope_cV.scatter_add_(1, self._query.labels_N[:, None], slopes[LABEL][:, None])
        if TOP in slopes:
            slope_cV.scatter_add_(1, self._top_ids_cK, slopes[TOP])
        for name in self._at:
            ids_cK = self._query.lookups[name].ids_NK.clamp(min=0)  # padding has no slope
            slope_cV.scatter_add_(1, ids_cK, slopes[name + AT_IDS])
        for name, softmax in self._softmaxes.items():
            nothing_c = torch.zeros_like(total_c)
            tempered_cV = softmax.slope(nothing_c, slopes[name + AT_IDS], slopes.get(name + REST))
            slope_cV.add_(tempered_cV, alpha=1 / self._query.lookups[name].temperature)
        return slope_cV


def _scaled(
    logits_cV: Tensor, query: HeadQuery, columns_Sk: Tensor | None
) -> tuple[ScaledRows | None, dict[str, Tensor]]:
    """Bring the rows to one scale if something is asked of them there; answer that."""
    answer: dict[str, Tensor] = {}
    if query.ranking is None and not query.scaled_top_k:
        return None, answer
    if query.ranking is None:
        scaled = ScaledRows(logits_cV, None)
    else:
        scaled, columns_Sk = _ranked(logits_cV, query.ranking, columns_Sk)
        answer[COLUMNS] = scaled.at_columns(columns_Sk)
    if query.scaled_top_k:
        answer[SCALED_TOP] = scaled.largest(query.scaled_top_k)
    return scaled, answer


def _ranked(
    logits_cV: Tensor, ranking: Ranking, columns_Sk: Tensor | None
) -> tuple[ScaledRows, Tensor]:
    """Bring the rows to one scale, and choose the columns of their sequences if they are not."""
    if columns_Sk is not None:
        return ScaledRows(logits_cV, ranking), columns_Sk
    # Whole sequences: those from the first to the last of these rows, and no others.
    sequences = ranking.sequence_N.tolist() or [0]
    first, last = min(sequences), max(sequences)
    ranking = ranking._replace(sequence_N=ranking.sequence_N - first, sequences=last - first + 1)
    mass_SV = logits_cV.new_zeros(ranking.sequences, logits_cV.shape[1])
    scaled = ScaledRows(logits_cV, ranking, mass_SV)
    return scaled, rank_columns(mass_SV, ranking.k)


def _lookup_with_shared_softmax(query: HeadQuery) -> str | None:
    """Choose the lookup that shares its exponentials with the labels; others get their own."""
    for name, lookup in query.lookups.items():
        if lookup.temperature == 1 and _needs_a_softmax(lookup):
            return name
    return None


def _needs_a_softmax(lookup: Lookup) -> bool:
    """Tell whether a lookup needs more than a few logits."""
    return lookup.has_rest or lookup.temperature != 1 or lookup.partition is not None


def _largest(logits_cV: Tensor, query: HeadQuery) -> tuple[Tensor, Tensor]:
    """Find (c, top_k) the largest logits and their ids; -inf and 0 beyond V and if not wanted."""
    if not query.top_k:
        nothing = logits_cV.new_zeros(len(logits_cV), 0)
        return nothing, nothing.long()
    listed_cV = listed(logits_cV, query.top_k_columns_V)
    values_cK, ids_cK = listed_cV.topk(min(query.top_k, logits_cV.shape[1]))
    missing = (0, query.top_k - values_cK.shape[1])
    values_cK = nn.functional.pad(values_cK, missing, value=-torch.inf)
    if query.top_k_mask_N is not None:
        values_cK = values_cK.masked_fill(~query.top_k_mask_N[:, None], -torch.inf)
    return values_cK, nn.functional.pad(ids_cK, missing)


class _Softmax:
    """A softmax of the rows, as exponentials of the logits outside a lookup's ids.

    Args:
        logits_cV: The logits, overwritten by exponentials.
        lookup: The ids to look up; None for none.

    Attributes:
        at_cK: The logits at the ids; -inf in padding.
        log_rest_c: Log of the sum of exponentials outside the ids; -inf for none.
        log_z_c: Log of the sum of exponentials of all logits.
    """

    def __init__(self, logits_cV: Tensor, lookup: Lookup | None) -> None:
        self._places = _places(logits_cV, lookup)
        self._e_cV = logits_cV if logits_cV.is_contiguous() else logits_cV.contiguous()
        parts = [self._exponentials(block) for block in range(len(self._places.blocks))]
        self.at_cK, self._top_c, sum_c = (torch.cat(each) for each in zip(*parts, strict=True))
        self.log_rest_c = sum_c.log() + self._top_c
        self.log_z_c = self.log_rest_c
        if self.at_cK.shape[1]:  # no library sums nothing
            self.log_z_c = torch.logaddexp(self.log_rest_c, self.at_cK.logsumexp(-1))

    def _exponentials(self, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Take the exponentials of a block; return what is listed, and the rest's top and sum."""
        rows_bV = self._e_cV[self._places.blocks[block]]
        at_bK = self._places.take_out(block, rows_bV)
        top_b = rows_bV.amax(-1)
        top_b = top_b.masked_fill(top_b == -torch.inf, 0)
        sum_b = rows_bV.sub_(top_b[:, None]).exp_().sum(-1)
        self._places.put_back(rows_bV)
        return at_bK, top_b, sum_b

    def slope(self, total_c: Tensor, at_cK: Tensor | None, rest_c: Tensor | None) -> Tensor:
        """Compute (c, V) the gradient, in place of the exponentials.

        Args:
            total_c: Sum of the slopes of all other answers that `log_z_c` is subtracted from. The
                caller adds those slopes at their own ids.
            at_cK: Slopes at the ids, 0 in padding; None without a lookup.
            rest_c: Slope of the log-mass outside the ids; None if not asked for.
        """
        at_cK = torch.zeros_like(self.at_cK) if at_cK is None else at_cK
        total_c = total_c + at_cK.sum(-1)
        factor_c = torch.zeros_like(total_c)
        if rest_c is not None:
            total_c = total_c + rest_c
            has_rest_c = self.log_rest_c > -torch.inf
            factor_c = rest_c * torch.where(has_rest_c, (self._top_c - self.log_rest_c).exp(), 0)
        factor_c = factor_c - total_c * (self._top_c - self.log_z_c).exp()
        slope_cK = at_cK - total_c[:, None] * (self.at_cK - self.log_z_c[:, None]).exp()
        for block, own in enumerate(self._places.blocks):
            rows = self._e_cV[own], self._top_c[own], factor_c[own], slope_cK[own]
            self._places.write(block, *rows)
        return self._e_cV


def _places(logits_cV: Tensor, lookup: Lookup | None) -> Places:
    if lookup is None:
        return IdPlaces(logits_cV.new_zeros(len(logits_cV), 0).long())
    if lookup.partition is None:
        return IdPlaces(lookup.ids_NK)
    lookup.partition.check_width(logits_cV.shape[1])
    return EventPlaces(lookup.ids_NK, lookup.partition)
