"""A query for a few numbers of a student's logits, and its answer from some rows of logits.

All that a loss reads of the student is a few numbers per position. :class:`HeadQuery` names them,
:func:`answer_rows` defines them, and :class:`~distill.head.student_head.StudentHead` computes them
without ever holding the logits of more than a chunk of positions.

The *rest* of a lookup is the student's mass at all tokens but the ids looked up. It is not the
store's *tail*, which is the teacher's mass at all tokens but the entries of a record.

Shape legend: N = positions asked for; c = positions of a chunk; V = student vocabulary; K = top_k,
or the width of a lookup's ids; S = sequences; k = columns of a ranking.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.head.entropies import entropies
from distill.head.members import Members
from logitstore.errors import InputError
from logitstore.records import STD_FLOOR


@dataclass(frozen=True, eq=False)
class Partition:
    """A partition of a vocabulary into events, or a sparse map that shares tokens among events.

    An event is a group of tokens whose summed probability is asked for. A token of event -1, and
    one beyond V (heads are often padded), belongs to none: it counts in the normaliser and in the
    rest. An event may have no token.

    Attributes:
        of_V: (V,) int32 or int64 in [-1, count), the event of each token; with shares (r, V).
        count: Number of events.
        share_rV: (r, V) the share of a token's probability that each of its events gets; a token's
            shares are >= 0 and sum to one. None for a partition: r is 1 and every share one.

    Raises:
        InputError: If the above does not hold.
    """

    of_V: Tensor
    count: int
    share_rV: Tensor | None = None

    def __post_init__(self) -> None:
        if self.share_rV is None and self.of_V.dim() != 1:
            raise InputError(
                f"partition of the vocabulary: expected one event a token, an array (V,), found "
                f"shape {tuple(self.of_V.shape)}; events that share tokens need share_rV."
            )
        seen = (-1, -1)
        if self.of_V.numel():
            seen = int(self.of_V.min()), int(self.of_V.max())
        if seen[0] < -1 or seen[1] >= self.count:
            raise InputError(
                f"partition of the vocabulary: expected events from -1 to {self.count - 1}, found "
                f"{seen[0]} to {seen[1]}. Raise count, or renumber the events."
            )
        if self.share_rV is not None:
            self._check_shares(self.share_rV)

    def _check_shares(self, share_rV: Tensor) -> None:
        if share_rV.dim() != 2 or share_rV.shape != self.of_V.shape:
            raise InputError(
                f"partition of the vocabulary: expected a share (r, V) for each event of a token, "
                f"found {tuple(share_rV.shape)} for {tuple(self.of_V.shape)}."
            )
        off_V = (share_rV.sum(0) - 1).abs()
        if not bool(((share_rV >= 0).all(0) & (off_V < 1e-4)).all()):
            raise InputError(
                "partition of the vocabulary: expected shares >= 0 that sum to 1 for each token, "
                f"found a share of {float(share_rV.min()):g} and a sum that is off by "
                f"{float(off_V.max()):g}. Divide each token's shares by their sum; what goes to no "
                "event is a share of event -1."
            )

    @property
    def event_rV(self) -> Tensor:
        """The events of each token, (r, V) without shares too."""
        return self.of_V[None] if self.of_V.dim() == 1 else self.of_V

    @cached_property
    def members(self) -> Members:
        """The tokens of each event, collected once."""
        return Members.of(self.event_rV, self.count, self.share_rV)

    def to(self, device: torch.device | str) -> "Partition":
        """Move to a device; itself if it is there."""
        of_V = self.of_V.to(device)
        if of_V is self.of_V:
            return self
        return Partition(
            of_V, self.count, None if self.share_rV is None else self.share_rV.to(device)
        )

    def check_width(self, width: int) -> None:
        """Check that a head of `width` tokens has every token of the partition.

        Raises:
            InputError: If it has fewer.
        """
        if self.of_V.shape[-1] > width:
            raise InputError(
                f"partition of the vocabulary: it has {self.of_V.shape[-1]:,} tokens, but the "
                f"student's head makes logits of {width:,}. Make it for this student's tokenizer, "
                "or resize the student's embeddings to its tokenizer."
            )


class Lookup(NamedTuple):
    """A request for the log-probabilities at given ids, and of all other tokens together.

    Attributes:
        ids_NK: (N, K) int32 or int64, ids to look up, distinct in a row; -1 is padding.
        temperature: Divides the logits before the softmax.
        has_rest: Whether the rest is wanted, the mass outside the ids.
        partition: None: the ids are tokens. Else they are events of it, on the device of the ids.
    """

    ids_NK: Tensor
    temperature: float = 1.0
    has_rest: bool = True
    partition: Partition | None = None


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
        top_k_columns_V: (V,) bool, the tokens that `top_k` chooses from; None for all. A head may
            be padded beyond them. The log-probabilities remain those over the full vocabulary.
        has_top_ids: Whether the tokens of `top_k` are wanted too, in a run without gradient such as
            an evaluation. Where `top_k_mask_N` is False they are arbitrary.
        lookups: Ids to look up, by a name that the caller chooses.
        ranking: Columns to choose for whole sequences; None for none.
        scaled_top_k: Number of the largest log-probabilities wanted at one scale of logits; 0 for
            none.
        has_entropy: Whether the entropy of each position is wanted; it has no gradient.
        has_logits: Whether all logits are wanted, which are as large as a chunk of them.
    """

    labels_N: Tensor
    top_k: int = 0
    top_k_mask_N: Tensor | None = None
    top_k_columns_V: Tensor | None = None
    has_top_ids: bool = False
    lookups: Mapping[str, Lookup] = field(default_factory=dict)
    ranking: Ranking | None = None
    scaled_top_k: int = 0
    has_entropy: bool = False
    has_logits: bool = False

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
        scaled_top_logprobs_NK: (N, scaled_top_k) the largest at one scale, in order; -inf beyond V.
        entropy_N: (N,) the entropy in nats, without gradient.
        logits_NV: (N, V) the logits themselves.
        made: What the weights of a loss made of each position, by names that the caller chose.
        logits_of: Makes (c, V) logits of rows of hidden states, by the student's head: with their
            gradient, and none of the head's weights.
    """

    label_logprob_N: Tensor
    top_logprobs_NK: Tensor | None = None
    top_ids_NK: Tensor | None = None
    found: Mapping[str, Found] = field(default_factory=dict)
    column_logprobs_Nk: Tensor | None = None
    scaled_top_logprobs_NK: Tensor | None = None
    entropy_N: Tensor | None = None
    logits_NV: Tensor | None = None
    made: Mapping[str, Tensor] = field(default_factory=dict)
    logits_of: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(
        cls,
        flat: Mapping[str, Tensor],
        logits_of: Callable[[Tensor], Tensor] | None = None,
    ) -> "HeadAnswer":
        """Build an answer from the tensors that :func:`answer_rows` returns, and those made."""
        names = [name.removesuffix(AT_IDS) for name in flat if name.endswith(AT_IDS)]
        found = {name: Found(flat[name + AT_IDS], flat.get(name + REST)) for name in names}
        tensors = {field_.name: flat[field_.name] for field_ in fields(cls) if field_.name in flat}
        made = {n.removeprefix(MADE): tensor for n, tensor in flat.items() if n.startswith(MADE)}
        return cls(**tensors, found=found, made=made, logits_of=logits_of)


#: Names of the tensors of an answer; those of a lookup follow its name.
LABEL, TOP, COLUMNS = "label_logprob_N", "top_logprobs_NK", "column_logprobs_Nk"
TOP_IDS, LOGITS, SCALED_TOP = "top_ids_NK", "logits_NV", "scaled_top_logprobs_NK"
ENTROPY = "entropy_N"
AT_IDS, REST = ".at_ids", ".rest"
#: Begins the names of what the weights of a loss made.
MADE = "made."


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
    if query.has_entropy:
        answer[ENTROPY] = entropies(logits_cV)
    if query.has_logits:
        answer[LOGITS] = logits_cV.clone()
    if query.top_k:
        listed_cV = listed(logits_cV, query.top_k_columns_V)
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
    if query.scaled_top_k:
        scaled_cV = at_one_scale(logits_cV)
        answer[SCALED_TOP] = _top(scaled_cV, scaled_cV.logsumexp(-1), query.scaled_top_k, None)
    return answer


def listed(logits_cV: Tensor, columns_V: Tensor | None) -> Tensor:
    """Make the logits of other tokens than these -inf; of None, none."""
    if columns_V is None:
        return logits_cV
    beyond = (0, logits_cV.shape[1] - len(columns_V))
    return logits_cV.masked_fill(~nn.functional.pad(columns_V, beyond), -torch.inf)


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
    if lookup.partition is not None:  # events are the tokens of a smaller vocabulary
        logits_cV = event_logits(logits_cV, lookup.partition)
    rest_c = _rest(logits_cV, log_z_c, lookup.ids_NK) if lookup.has_rest else None
    return _at(logits_cV, log_z_c, lookup.ids_NK), rest_c


def event_logits(logits_cV: Tensor, partition: Partition) -> Tensor:
    """Compute (c, count + 1) the log of each event's share of e^logits; -inf for none.

    The last column has the tokens that belong to no event.
    """
    partition.check_width(logits_cV.shape[1])
    event_rV, count = partition.event_rV, partition.count
    rows, beyond = len(logits_cV), (0, logits_cV.shape[1] - event_rV.shape[1])
    event_rV = nn.functional.pad(event_rV.long(), beyond, value=-1)
    event_rV = torch.where(event_rV < 0, count, event_rV)
    if partition.share_rV is None:
        terms = logits_cV
    else:
        share_rV = partition.share_rV.to(logits_cV.dtype)
        log_share_rV = nn.functional.pad(share_rV.log(), beyond, value=-torch.inf)
        log_share_rV[0, partition.of_V.shape[1] :] = 0
        terms = (logits_cV[:, None] + log_share_rV).flatten(1)
    event = event_rV.flatten().expand(rows, -1)
    top_cG = terms.new_full((rows, count + 1), -torch.inf)
    top_cG = top_cG.scatter_reduce(1, event, terms.detach(), "amax")
    top_cG = top_cG.masked_fill(top_cG == -torch.inf, 0)
    e = (terms - top_cG.gather(1, event)).exp()
    sum_cG = torch.zeros_like(top_cG).scatter_add(1, event, e)
    # The log of 0 has a NaN gradient, even times zero.
    is_empty_cG = sum_cG.detach() == 0
    log_cG = sum_cG.masked_fill(is_empty_cG, 1).log() + top_cG
    return log_cG.masked_fill(is_empty_cG, -torch.inf)


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
