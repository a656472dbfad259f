"""Rows: the items that take part in sums, and what everybody knows of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The items that enough clients have. The others have no row in any later sum, and no part in a profile.

    In a sum over clients, the row of an item that one client alone has would be that client's whole profile.

    Args:
        items: `[rows]`, int64: which items, those of most clients first. So near ids are alike in popularity, and the
            gaps between them small.
        clients: `[rows]`, int64: how many of the clients whose sums these are have each item.
        reach: `[rows]`, int64: the sum of these clients' history lengths, which bounds what a row can add up to.
        num_items: Of the catalogue.
        least: How many clients an item needs.
    """

    items: Tensor
    clients: Tensor
    reach: Tensor
    num_items: int
    least: int

    @classmethod
    def of(cls, counts: Tensor, least: int) -> Rows:
        """The rows that follow from the first sum, `[items, 2]`: each item's clients and its reach."""
        clients, reach = counts.cpu().T
        # Stable, so that both ends number the rows alike.
        order = clients.argsort(descending=True, stable=True)
        items = order[clients[order] >= least]
        return cls(items, clients[items], reach[items], len(clients), least)

    def for_others(self, counts: Tensor) -> Rows:
        """The same rows for the sums of other clients, those who came late, from their first sum `[items, 2]`."""
        clients, reach = counts.cpu()[self.items].T
        return Rows(self.items, clients, reach, self.num_items, self.least)

    @cached_property
    def open(self) -> Tensor:
        """`[rows]`, bool: the rows that enough of these clients have: all, but for those who came late."""
        return self.clients >= self.least

    @cached_property
    def row_of(self) -> Tensor:
        """`[items]`, int64: the row of each item; -1 for one without, or with too few of these clients."""
        rows = torch.full((self.num_items,), -1)
        rows[self.items[self.open]] = self.open.nonzero().squeeze(1)
        return rows

    def __len__(self) -> int:
        return len(self.items)
