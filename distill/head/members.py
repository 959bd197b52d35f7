"""The tokens of each event of a partition, as tables that a few large operations can read.

An event is a group of tokens. Most have one, a few have thousands. Events of similar size share a
table, a row each, as wide as the largest of them; a smaller event repeats its own members to fill
its row. So the members of many events are read in one go, without a list of lists, and without
wasting more than the tables' growth from one to the next.

Shape legend: r = events that a token can be part of; V = vocabulary; G = events; E = events of a
table; s = its width; n = members of all events.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

#: A table's largest event is at most so many times its smallest. On a GPU starting an operation
#: costs more than what it does to some padding.
GROWTH, GROWTH_ON_GPU = 2, 8


class Table(NamedTuple):
    """The members of events of similar size.

    Attributes:
        token_Es: (E, s) int64, the tokens of each event, repeated from the first to fill the row.
        log_share_Es: (E, s) log of the share of a token's mass that the event gets, -inf where it
            is repeated. None if all are 0: no shares, and every row is full.
    """

    token_Es: Tensor
    log_share_Es: Tensor | None


@dataclass(frozen=True)
class Members:
    """The members of all events.

    Attributes:
        tables: The tables, the narrowest first.
        table_G: (G + 1,) int64, the table of each event; `len(tables)` for one without members,
            and for the last, which stands for padding.
        row_G: (G + 1,) int64, the row of the table.
        has_shares: Whether a token can be part of several events.
    """

    tables: list[Table]
    table_G: Tensor
    row_G: Tensor
    has_shares: bool

    @classmethod
    def of(cls, event_rV: Tensor, count: int, share_rV: Tensor | None) -> "Members":
        """Collect the members of `count` events; an event of -1 or a share of 0 is no membership.

        Args:
            event_rV: (r, V) the events of each token.
            count: Number of events.
            share_rV: (r, V) the share of the token's mass that each gets; None: all of it.
        """
        is_member_rV = event_rV >= 0
        if share_rV is not None:
            is_member_rV &= share_rV > 0
        event_n, token_n = event_rV[is_member_rV].long(), is_member_rV.nonzero()[:, 1]
        event_n, order_n = event_n.sort(stable=True)
        token_n = token_n[order_n]
        log_share_n = None if share_rV is None else share_rV[is_member_rV][order_n].log()
        size_G = event_n.bincount(minlength=count + 1)
        first_G = size_G.cumsum(0) - size_G
        table_G, row_G = torch.full_like(size_G, -1), torch.zeros_like(size_G)
        tables: list[Table] = []
        for low, high in _ranges(int(size_G.max()), event_rV.device):
            events_E = ((size_G > low) & (size_G <= high)).nonzero().squeeze(1)
            if len(events_E):
                table_G[events_E] = len(tables)
                row_G[events_E] = torch.arange(len(events_E), device=events_E.device)
                tables.append(_table(first_G[events_E], size_G[events_E], token_n, log_share_n))
        table_G[table_G < 0] = len(tables)
        return cls(tables, table_G, row_G, share_rV is not None)


def _ranges(largest: int, device: torch.device) -> list[tuple[int, int]]:
    """Return the sizes (above, up to) of each table's events; the first has those of one token."""
    growth = GROWTH if device.type == "cpu" else GROWTH_ON_GPU
    bounds = [0, 1]
    while bounds[-1] < largest:
        bounds.append(bounds[-1] * growth)
    return list(pairwise(bounds))


def _table(first_E: Tensor, size_E: Tensor, token_n: Tensor, log_share_n: Tensor | None) -> Table:
    place_s = torch.arange(int(size_E.max()), device=size_E.device)
    own_Es = first_E[:, None] + place_s % size_E[:, None]
    is_repeated_Es = place_s >= size_E[:, None]
    if log_share_n is None:
        if not bool(is_repeated_Es.any()):
            return Table(token_n[own_Es], None)
        zeros_Es = torch.zeros(own_Es.shape, device=own_Es.device)
        return Table(token_n[own_Es], zeros_Es.masked_fill_(is_repeated_Es, -torch.inf))
    return Table(token_n[own_Es], log_share_n[own_Es].masked_fill_(is_repeated_Es, -torch.inf))
