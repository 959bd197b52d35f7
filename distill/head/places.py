"""The places in rows of logits that belong to what a lookup lists: ids, or events.

A softmax whose exponentials leave out what is listed needs three things of these places, in order:

1. the listed logits (of an event: the log of its members' summed exponentials), with what the rest
   does not have hidden behind -inf;
2. after the exponentials of the rest are taken: whatever is needed later, put back in its place;
3. the gradient written there, when it is known.

For ids that is one gather and two scatters. The members of events are many more: their logits stay
in their own places meanwhile, so that no copy of them is kept, and they are read a block of rows at
a time. A listed event's slope goes to its members by their share of its mass.

With shares a token can be part of a listed event and of one that is not: then it keeps a place in
the rest, with the logarithm of that share added to its logit.

Shape legend: c = rows; b = rows of a block; V = vocabulary; K = width of a lookup's ids; G =
events; L = listed events of a table; s = its width; r = events that a token can be part of.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distill.head.query import Partition

#: Members of listed events that a block has, unless one row has more: some MiB of temporaries on a
#: CPU; a GPU would wait for many small steps.
BLOCK_MEMBERS, BLOCK_MEMBERS_ON_GPU = 2**19, 2**23


class Places(Protocol):
    """The places of what a lookup lists.

    Attributes:
        blocks: The rows of each block, one after the other.
    """

    blocks: list[slice]

    def take_out(self, block: int, rows_bV: Tensor) -> Tensor:
        """Return (b, K) the logits of what is listed, -inf in padding, and hide them in the rows.

        Args:
            block: Which of `blocks`.
            rows_bV: The logits of its rows, overwritten where something is listed.
        """

    def put_back(self, rows_bV: Tensor) -> None:
        """Put what :meth:`write` reads into the rows of the block taken out last."""

    def write(
        self, block: int, rows_bV: Tensor, top_b: Tensor, factor_b: Tensor, slope_bK: Tensor
    ) -> None:
        """Turn the rows of a block into their gradient.

        Args:
            block: Which of `blocks`.
            rows_bV: Exponentials of the rest, of the logits minus `top_b`; what `put_back` put.
            top_b: See above.
            factor_b: The gradient of the rest is its exponentials times this.
            slope_bK: The gradient with respect to what is listed, 0 in padding.
        """


class IdPlaces:
    """The places of ids, for writing all of them in one scatter.

    Padding has no place of its own, so it writes the value of its row's first id to that id a
    second time; in a row without ids it writes the value that is already at column 0.
    """

    def __init__(self, ids_cK: Tensor) -> None:
        self.blocks: list[slice] = [slice(0, len(ids_cK))]
        self._given_cK, is_id_cK = ids_cK, ids_cK >= 0
        self._is_empty = not ids_cK.shape[1]
        if not self._is_empty:
            own_K = torch.arange(ids_cK.shape[1], device=ids_cK.device)
            first_c1 = is_id_cK.int().argmax(-1, keepdim=True)
            self._slot_cK = torch.where(is_id_cK, own_K, first_c1)
            self._ids_cK = ids_cK.gather(1, self._slot_cK).clamp(min=0)
            self._has_ids_c1 = is_id_cK.any(-1, keepdim=True)

    def take_out(self, block: int, rows_bV: Tensor) -> Tensor:
        at_cK = logits_at(rows_bV, self._given_cK)
        self._overwrite(rows_bV, torch.full_like(at_cK, -torch.inf))
        return at_cK

    def put_back(self, rows_bV: Tensor) -> None:
        pass

    def write(
        self, block: int, rows_bV: Tensor, top_b: Tensor, factor_b: Tensor, slope_bK: Tensor
    ) -> None:
        rows_bV.mul_(factor_b[:, None])
        self._overwrite(rows_bV, slope_bK)

    def _overwrite(self, rows_cV: Tensor, values_cK: Tensor) -> None:
        """Put values at the ids; those of padding are not read."""
        if not self._is_empty:
            old_cK = rows_cV.gather(1, self._ids_cK)
            values_cK = values_cK.gather(1, self._slot_cK)
            rows_cV.scatter_(1, self._ids_cK, torch.where(self._has_ids_c1, values_cK, old_cK))


class _Listed(NamedTuple):
    """Listed events of a block whose members are in one table."""

    table: int
    at_L: Tensor  # their places in the block's ids, flattened


class _Read(NamedTuple):
    """The members of such events: where they are in the block's rows, flattened, and what."""

    listed: _Listed
    place_Ls: Tensor
    logit_Ls: Tensor
    log_share_Ls: Tensor | None


class EventPlaces:
    """The places of the members of events.

    Args:
        ids_cK: (c, K) int64 events, distinct in a row; -1 is padding.
        partition: What the events are made of.
    """

    def __init__(self, ids_cK: Tensor, partition: Partition) -> None:
        self._partition, self._members = partition, partition.members
        self._event_cK = torch.where(ids_cK < 0, partition.count, ids_cK)
        tables = self._members.tables
        table_cK = self._members.table_G[self._event_cK]
        counts_cJ = table_cK.new_zeros(len(ids_cK), len(tables) + 1)
        counts_cJ.scatter_add_(1, table_cK, torch.ones_like(table_cK))
        counts = counts_cJ[:, : len(tables)].tolist()  # what a GPU waits for, once a chunk
        widths = [each.token_Es.shape[1] for each in tables]
        self.blocks: list[slice] = _blocks(counts, widths, ids_cK.device)
        self._listed = [
            _by_table(table_cK[own], [sum(each) for each in zip(*counts[own], strict=True)])
            for own in self.blocks
        ]
        self._at: list[Tensor] = []  # the answer of each block
        self._taken: list[_Read] = []

    def take_out(self, block: int, rows_bV: Tensor) -> Tensor:
        read = self._read(block, rows_bV)
        event_bK, flat = self._event_cK[self.blocks[block]], rows_bV.view(-1)
        at = rows_bV.new_full((event_bK.numel(),), -torch.inf)
        for (_, at_L), _, logit_Ls, log_share_Ls in read:
            logit_Ls = logit_Ls if log_share_Ls is None else logit_Ls + log_share_Ls
            own_L = logit_Ls.squeeze(1) if logit_Ls.shape[1] == 1 else logit_Ls.logsumexp(-1)
            at.index_copy_(0, at_L, own_L)
        for each, hidden in zip(read, self._hidden(block, read, rows_bV.shape[1]), strict=True):
            if hidden is None:
                flat.index_fill_(0, each.place_Ls.flatten(), -torch.inf)
            else:
                flat.scatter_(0, each.place_Ls.flatten(), hidden.flatten())
        self._taken = read
        self._at.append(at)
        return at.view_as(event_bK)

    def put_back(self, rows_bV: Tensor) -> None:
        for _, place_Ls, logit_Ls, _ in self._taken:
            rows_bV.view(-1).scatter_(0, place_Ls.flatten(), logit_Ls.flatten())
        self._taken = []

    def write(
        self, block: int, rows_bV: Tensor, top_b: Tensor, factor_b: Tensor, slope_bK: Tensor
    ) -> None:
        read, flat = self._read(block, rows_bV), rows_bV.view(-1)
        rows_bV.mul_(factor_b[:, None])
        if self._members.has_shares:
            width = rows_bV.shape[1]
            for each, hidden in zip(read, self._hidden(block, read, width), strict=True):
                assert hidden is not None
                row_Ls = each.place_Ls // width
                rest_Ls = hidden.sub_(top_b[row_Ls]).exp_().mul_(factor_b[row_Ls])
                flat.scatter_(0, each.place_Ls.flatten(), rest_Ls.flatten())
        at = self._at[block].masked_fill(self._at[block] == -torch.inf, 0)
        for (_, at_L), place_Ls, logit_Ls, log_share_Ls in read:
            slope_L1 = slope_bK.flatten()[at_L][:, None]
            logit_Ls.sub_(at[at_L][:, None])
            if self._members.has_shares:
                assert log_share_Ls is not None
                slope_Ls = logit_Ls.add_(log_share_Ls).exp_().mul_(slope_L1)
                # The members of one event are distinct, those of several need not be.
                flat.index_put_((place_Ls,), slope_Ls, accumulate=True)
            else:  # a repeated member writes what it wrote before
                flat.scatter_(0, place_Ls.flatten(), logit_Ls.exp_().mul_(slope_L1).flatten())

    def _read(self, block: int, rows_bV: Tensor) -> list[_Read]:
        """Read the logits of all members of a block's listed events."""
        event_bK, read = self._event_cK[self.blocks[block]], []
        for listed in self._listed[block]:
            token_Es, log_share_Es = self._members.tables[listed.table]
            row_L = self._members.row_G[event_bK.flatten()[listed.at_L]]
            start_L = listed.at_L // event_bK.shape[1] * rows_bV.shape[1]
            place_Ls = token_Es.index_select(0, row_L) + start_L[:, None]
            logit_Ls = rows_bV.view(-1).index_select(0, place_Ls.flatten()).view_as(place_Ls)
            log_share_Ls = None
            if log_share_Es is not None:
                log_share_Ls = log_share_Es.index_select(0, row_L).to(logit_Ls.dtype)
            read.append(_Read(listed, place_Ls, logit_Ls, log_share_Ls))
        return read

    def _hidden(self, block: int, read: Sequence[_Read], width: int) -> list[Tensor | None]:
        """Compute what the rest has of each member's logit; None for nothing, without shares."""
        share_rV = self._partition.share_rV
        if share_rV is None:
            return [None] * len(read)
        event_bK, count = self._event_cK[self.blocks[block]], self._partition.count
        is_listed_bG = torch.zeros(
            len(event_bK), count + 1, dtype=torch.bool, device=event_bK.device
        )
        is_listed_bG.scatter_(1, event_bK, True)
        is_listed_bG[:, count] = False  # of padding, and of tokens that belong to no event
        hidden: list[Tensor | None] = []
        for _, place_Ls, logit_Ls, _ in read:
            row_Ls, token_Ls = place_Ls // width, place_Ls % width
            event_rLs = self._partition.event_rV[:, token_Ls].long()
            event_rLs = torch.where(event_rLs < 0, count, event_rLs)
            is_listed_rLs = is_listed_bG[row_Ls, event_rLs]
            outside_Ls = share_rV[:, token_Ls].masked_fill(is_listed_rLs, 0).sum(0)
            hidden.append(logit_Ls + outside_Ls.log().to(logit_Ls.dtype))
        return hidden


def logits_at(logits_cV: Tensor, ids_cK: Tensor) -> Tensor:
    """Read the logits at ids; -inf in padding."""
    return logits_cV.gather(1, ids_cK.clamp(min=0)).masked_fill_(ids_cK < 0, -torch.inf)


def _blocks(
    counts: Sequence[Sequence[int]], widths: Sequence[int], device: torch.device
) -> list[slice]:
    """Cut the rows where a block would have too many members.

    Args:
        counts: For each row, how many of its events are in each table.
        widths: The width of each table.
        device: Where the rows are.
    """
    most = BLOCK_MEMBERS if device.type == "cpu" else BLOCK_MEMBERS_ON_GPU
    starts, total = [0], 0
    for row, each in enumerate(counts):
        own = sum(count * width for count, width in zip(each, widths, strict=True))
        if total and total + own > most:
            starts.append(row)
            total = 0
        total += own
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(counts)], strict=True)]


def _by_table(table_bK: Tensor, counts: Sequence[int]) -> list[_Listed]:
    """Sort a block's listed events by table, given how many each table has."""
    order = table_bK.flatten().argsort(stable=True)
    listed, start = [], 0
    for table, count in enumerate(counts):
        if count:
            listed.append(_Listed(table, order[start : start + count]))
        start += count
    return listed
