"""Tallies: the sums over clients from which structure is discovered.

A tally is one numbered sum, to which every client adds once. What a client adds is a table with a row for each item, of
which only the rows of its own items are not zero. All rows travel, since which ones are zero is private.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cgfedrec.data.histories import History
from cgfedrec.forgetting import kept
from cgfedrec.structure.rows import Rows
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.values import Field

SHARES = 256
"""What counts less than a whole, since it is long ago, travels as a whole number of such parts."""


@dataclass(frozen=True)
class Known:
    """What server and clients both know at some point, from what came down so far.

    Args:
        num_items: Of the catalogue.
        num_clients: How many clients will ever take part.
        seed: The shared one.
        rows: The items that take part, once the first sum has been counted.
        labels: `[rows]`, int64: the cluster of each row, once found.
        pairs: `[rows, most]`, int64: each row's candidates in ascending order, then -1, once found.
        directions: `[rows, columns]`, float32: columns in place of labels, once found.
        keys: `[items]`, int64: the number by which the signs of each item are drawn, where that is not its own: an item
            keeps its signs when others come and numbers change.
        mark: Of the run, its data, the round and all that has come down: what a client draws noise of.
    """

    num_items: int
    num_clients: int
    seed: int
    rows: Rows | None = None
    labels: Tensor | None = None
    pairs: Tensor | None = None
    directions: Tensor | None = None
    keys: Tensor | None = None
    mark: bytes = b""

    @property
    def the_rows(self) -> Rows:
        """The rows, where they are known."""
        assert self.rows is not None, "the first sum has not been counted"
        return self.rows

    def for_others(self, counts: Tensor) -> Known:
        """The same for the sums of those who came late, from their first sum, `[items, 2]`."""
        return replace(self, rows=self.the_rows.for_others(counts))


@dataclass(frozen=True)
class Tally(ABC):
    """One sum.

    Args:
        plain_bits: As many bits for each number, or more where the largest needs more: the same sum in more bytes, to
            compare with.
        half_life: Days after which what a client has of a pair of items counts half; ``None`` for never.
    """

    plain_bits: int | None = None
    half_life: float | None = None

    name: ClassVar[str]
    """Of the sum: of its field on the wire, and of the phase of a run."""
    dtype: ClassVar[torch.dtype] = torch.int64
    """Of what a client adds."""

    def field(self, known: Known) -> Field:
        """What one client sends."""
        bounds = self.bounds(known)
        return Field(bounds.shape, torch.int64, bounds=bounds)

    @abstractmethod
    def bounds(self, known: Known) -> Bounds:
        """What each number of the sum, and so of any client's part in it, can reach."""

    def packed(self, largest: Tensor, signed: bool = False) -> Bounds:
        """Bounds of numbers up to ``largest`` `[...]`, in the bits that they need or in plain ones."""
        bounds = Bounds(largest, signed)
        if self.plain_bits is None:
            return bounds
        return Bounds(largest, signed, max(self.plain_bits, int(bounds.widths.max())))

    @property
    def unit(self) -> int:
        """As what a pair of items counts that a client has right now."""
        return 1 if self.half_life is None else SHARES

    def told(self, values: Tensor) -> Tensor:
        """Numbers as they travel, `[...]`: whole ones as they are, others in parts of `SHARES`."""
        if self.half_life is None:
            return values
        return (SHARES * values).round().long()

    @abstractmethod
    def of(self, history: History, users: Tensor, known: Known, seed: int) -> Tensor:
        """What clients add.

        Args:
            history: Their own items.
            users: `[clients]`, int64: who they are.
            known: What came down.
            seed: Their private one.

        Returns:
            `[clients, rows, columns]`, of `dtype`. Whole numbers are sparse: entries are rows of own items.
        """


def weights_of(history: History, half_life: float | None) -> Tensor:
    """What each entry of histories counts, `[entries]`: 2^(-days / 2 half-life), so that a pair has the half-life.

    Where nothing forgets it is 1, int64; else float64.
    """
    if half_life is None:
        return torch.ones(int(history.lengths.sum()), dtype=torch.int64)
    return kept(history.entry_days(), 2 * half_life)


def own_rows(history: History, known: Known, half_life: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of clients' own items, in order: whose each is, which, and what it counts, `[entries]` each."""
    clients, items, _ = history.entries()
    rows = known.the_rows.row_of[items]
    there = rows >= 0
    clients, rows, weights = clients[there], rows[there], weights_of(history, half_life)[there]
    order = (clients * len(known.the_rows) + rows).argsort()
    return clients[order], rows[order], weights[order]


def table(clients: Tensor, rows: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A sparse table of the given entries, which are in ascending order.

    Args:
        clients: `[entries]`
        rows: `[entries]`
        values: `[entries, columns]`
        shape: `[clients, rows, columns]`
    """
    return torch.sparse_coo_tensor(
        torch.stack((clients, rows)), values, shape, is_coalesced=True, check_invariants=False
    )


@dataclass(frozen=True)
class ItemCounts(Tally):
    """The first sum: how many clients have each item, and its reach, the sum of the lengths of their histories.

    Where interactions are forgotten, a length is the sum of what items count; and there is the item's mass, the sum of
    the squares of what it counts. After these come popularities of late.

    Args:
        recents: Half-lives in days of popularities of late: an interaction t days old counts 2^(-t / half-life).
    """

    recents: tuple[float, ...] = ()

    name: ClassVar[str] = "bounds"

    def bounds(self, known: Known) -> Bounds:
        most = known.num_clients
        largest = [most, most * known.num_items * self.unit]  # every client could have everything
        if self.half_life is not None:
            largest.append(most * SHARES)
        largest += [most * SHARES] * len(self.recents)
        return self.packed(torch.tensor(largest).expand(known.num_items, -1))

    def of(self, history: History, users: Tensor, known: Known, seed: int) -> Tensor:
        clients, items, _ = history.entries()
        order = (clients * known.num_items + items).argsort()
        clients, items, days = clients[order], items[order], history.entry_days()[order]
        weights = weights_of(history, self.half_life)[order]
        lengths = torch.zeros(len(users), dtype=weights.dtype).index_add_(0, clients, weights)
        columns = [torch.ones_like(items)]
        if self.half_life is None:
            columns.append(lengths[clients])
        else:  # rounded up, since it bounds what the row can add up to
            columns += [(SHARES * weights * lengths[clients]).ceil().long(), self.told(weights.square())]
        columns += [(SHARES * kept(days, recent)).round().long() for recent in self.recents]
        return table(clients, items, torch.stack(columns, dim=1), (len(users), known.num_items, len(columns)))


class PairCounts(Tally):
    """How many clients have both an item and each of its candidates, each as much as it still counts."""

    name = "verify"

    def bounds(self, known: Known) -> Bounds:
        assert known.pairs is not None
        rows = known.the_rows
        clients, others = rows.clients * rows.open, known.pairs.clamp_min(0)
        both = torch.minimum(clients[:, None], clients[others])
        if self.half_life is not None:
            # By Cauchy and Schwarz, sum w_i w_j is at most the root of the two masses' product. Each client's part of a
            # mass, and of this sum, has been rounded by half a unit at most.
            mass = rows.mass * rows.open + clients / 2
            both = ((mass[:, None] * mass[others]).sqrt() + both / 2).ceil().long()
        return self.packed(both.masked_fill(known.pairs < 0, 0))

    def of(self, history: History, users: Tensor, known: Known, seed: int) -> Tensor:
        assert known.pairs is not None
        clients, rows, weights = own_rows(history, known, self.half_life)
        number = len(known.the_rows)
        keys = clients * number + rows  # [entries], ascending
        own = torch.zeros(len(users) * number, dtype=torch.bool)
        own[keys] = True
        pairs = known.pairs[rows]  # [entries, most]
        wanted = (clients * number)[:, None] + pairs.clamp_min(0)
        both = own[wanted] & (pairs >= 0)
        counts = both.long()
        if self.half_life is not None:
            entries, _ = both.nonzero(as_tuple=True)
            counts[both] = self.told(weights[entries] * weights[torch.searchsorted(keys, wanted[both])])
        return table(clients, rows, counts, (len(users), *known.pairs.shape))
