"""Rows: the items that take part in sums, and what everybody knows of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        reach: `[rows]`, int64: the sum of these clients' history lengths, which bounds what a row can add up to, in
            units of ``unit``.
        mass: `[rows]`, int64: the sum of squares of what each item counts for these clients, in units of ``unit``: G's
            diagonal. Where nothing forgets it is ``clients``.
        num_items: Of the catalogue.
        least: How many clients an item needs.
        unit: As what a pair of items counts that a client has right now; 1 where nothing forgets.
        given: Whether the items are those of an earlier time: then all of them take part.
    """

    items: Tensor
    clients: Tensor
    reach: Tensor
    mass: Tensor
    num_items: int
    least: int
    unit: int = 1
    given: bool = False

    @classmethod
    def at(cls, counts: Tensor, items: Tensor, least: int, unit: int) -> Rows:
        """Rows of given items, `[rows]`, whatever their counts are now, with what the first sum says of them."""
        clients, reach, mass = _columns(counts.cpu()[items], unit)
        return cls(items, clients, reach, mass, len(counts), least, unit, given=True)

    @classmethod
    def of(cls, counts: Tensor, least: int, unit: int = 1) -> Rows:
        """The rows that follow from the first sum, `[items, 2 or more]`: of each item its clients, reach and mass."""
        clients, reach, mass = _columns(counts.cpu(), unit)
        # Stable, so that both ends number the rows alike.
        order = clients.argsort(descending=True, stable=True)
        items = order[clients[order] >= least]
        return cls(items, clients[items], reach[items], mass[items], len(clients), least, unit)

    def for_others(self, counts: Tensor) -> Rows:
        """The same rows for the sums of other clients, those who came late, from their first sum."""
        clients, reach, mass = _columns(counts.cpu()[self.items], self.unit)
        return Rows(self.items, clients, reach, mass, self.num_items, self.least, self.unit)

    def and_others(self, counts: Tensor) -> Rows:
        """The rows with the clients of both, but for those items that too few of the others have."""
        others = self.for_others(counts)
        return replace(
            self,
            clients=self.clients + others.clients * others.open,
            reach=self.reach + others.reach * others.open,
            mass=self.mass + others.mass * others.open,
        )

    @cached_property
    def diagonal(self) -> Tensor:
        """`[rows]`, float64: G's."""
        return self.mass.double() / self.unit

    @cached_property
    def open(self) -> Tensor:
        """`[rows]`, bool: the rows that enough of these clients have: all, but for those who came late."""
        return (self.clients >= self.least) | self.given

    @cached_property
    def row_of(self) -> Tensor:
        """`[items]`, int64: the row of each item; -1 for one without, or with too few of these clients."""
        rows = torch.full((self.num_items,), -1)
        rows[self.items[self.open]] = self.open.nonzero().squeeze(1)
        return rows

    def __len__(self) -> int:
        return len(self.items)


def _columns(counts: Tensor, unit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clients, reach and mass of some items, `[items]` each, from the first sum, `[items, 2 or more]`."""
    clients, reach = counts[:, 0], counts[:, 1]
    if unit == 1:
        return clients, reach, clients
    return clients, reach, counts[:, 2]
