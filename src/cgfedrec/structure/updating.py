"""Updating: what has changed since sums were counted is added to them, and nobody else is asked again.

Columns and candidates stay as they were. An item that enough clients have by now gets a row: its label is that of the
nearest cluster, and its candidates come from the sketch. Old rows keep their place, before new ones.

A client that took part before, with a history x then and x' now, adds x'_i C^T x' - d x_i C^T x to row i, and likewise
to the other sums: d is what is left of a pair by now. The server multiplies the sums of before by d. Together that is
what all would have added now, to rounding; where nothing forgets it is the same to the bit. What a client takes back,
or all of it, is subtracted in this way.

A sum of changes is over few clients. Its row of an item that only one of them has shows that client's change, as a late
client's would; so too few changes wait until there are more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cgfedrec.data.histories import History
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.tallies import SHARES, ItemCounts, Known, Tally
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.values import Field

ANEW = 0.1
"""From this share of all interactions on, changes since columns and candidates were found lead to new ones."""


class Past(NamedTuple):
    """What everybody knows of the sums of before, in the numbers of now."""

    counts: Tensor
    """`[items, ...]`, int64: the first sum of then, less what has been forgotten since."""
    rows: int
    """How many rows there were. They are the first ones."""
    days: float
    """How long ago it was."""

    def known(self, known: Known) -> Known:
        """What is known now, but with the rows of then alone, and what the sums of then said of them."""
        now = known.the_rows
        items = now.items[: self.rows]
        then = Rows.at(self.counts, items, now.least, now.unit)
        labels, pairs = known.labels, known.pairs
        if labels is not None:
            labels = labels[: self.rows]
        if pairs is not None:
            pairs = pairs[: self.rows]
        return replace(known, rows=then, labels=labels, pairs=pairs)


def left(tally: Tally, days: float) -> Tensor:
    """What is left of each column of a tally after some days, `[columns]` or `[1]`, float64."""
    if not isinstance(tally, ItemCounts):
        return torch.tensor([_left(tally.half_life, days)], dtype=torch.float64)
    shares = [1.0, _left(tally.half_life, days)]  # how many have an item does not forget
    if tally.half_life is not None:
        shares.append(_left(tally.half_life, days))
    return torch.tensor(shares + [_left(recent, days) for recent in tally.recents], dtype=torch.float64)


def _left(half_life: float | None, days: float) -> float:
    if half_life is None:
        return 1.0
    return float(2 ** (-days / half_life))


def aged(tally: Tally, total: Tensor, days: float) -> Tensor:
    """A sum of before, `[rows, columns]`, less what has been forgotten in some days; whole numbers again."""
    shares = left(tally, days)
    if (shares == 1).all():
        return total
    found = (total * shares).round().long()
    if isinstance(tally, ItemCounts) and tally.half_life is not None:
        # A bound: rounded up, and by half a unit more for each client, whose part is rounded by itself.
        found[:, 1] = (total[:, 1] * shares[1]).ceil().long() + total[:, 0]
    return found


def possible(counts: Tensor) -> Tensor:
    """The first sum once changes have been added, `[items, columns]`, within what those can add who have each item.

    What forgets can be off by a few parts of `SHARES`: a total of before is rounded once, in every update, and what
    each client takes back by itself. So mass and popularities of late may end below 0, or be left over where nobody has
    the item any more. How many have it is never rounded, and reach only upwards: there, what cannot be is somebody's
    error, and stays to be seen.
    """
    found = counts.clone()
    found[:, 2:] = counts[:, 2:].clamp_min(0).minimum(SHARES * counts[:, :1])
    return found


def change_field(tally: Tally, known: Known, past: Past) -> Field:
    """What one client sends: as much as it may add now, up or down, and as much as it may take back."""
    largest = tally.bounds(known).largest.clone()
    if isinstance(tally, ItemCounts):
        largest *= 2
    else:
        largest[: past.rows] += tally.bounds(past.known(known)).largest
    bounds = Bounds(largest, signed=True)
    return Field(bounds.shape, torch.int64, bounds=bounds)


def change_of(
    tally: Tally, now: History, before: History, users: Tensor, known: Known, past: Past, seed: int
) -> Tensor:
    """What clients add: what they have now, less what is left of what they had.

    Args:
        tally: The sum.
        now: Their items.
        before: The items that they had when they last added to it.
        users: `[clients]`, int64: who they are.
        known: What came down.
        past: Of the sums of before.
        seed: Their private one.

    Returns:
        `[clients, rows, columns]`, int64, sparse.
    """
    added = tally.of(now, users, known, seed)
    if isinstance(tally, ItemCounts):
        taken = tally.of(before, users, known, seed)
    else:
        taken = tally.of(before, users, past.known(known), seed)
    values = taken.values() * left(tally, past.days)
    taken = torch.sparse_coo_tensor(taken.indices(), values.round().long(), added.shape, check_invariants=False)
    return (added - taken).coalesce()


def with_new_rows(counts: Tensor, items: Tensor, least: int) -> Tensor:
    """The items of all rows, `[rows]`: those of before, `[before]`, then those that enough clients have by now.

    Args:
        counts: `[items]`: how many clients have each item.
        items: `[before]`, int64.
        least: How many clients an item needs.
    """
    there = torch.zeros(len(counts), dtype=torch.bool)
    there[items] = True
    order = counts.argsort(descending=True, stable=True)
    new = order[(counts[order] >= least) & ~there[order]]
    return torch.cat((items, new))


def with_new_labels(labels: Tensor, places: Tensor) -> Tensor:
    """The labels of all rows, `[rows]`: new ones, behind those of before, get that of the nearest cluster.

    Args:
        labels: `[before]`, int64.
        places: `[rows, dim]`: where all rows lie, each of length 1 or 0.
    """
    clusters = int(labels.max()) + 1
    centres = places.new_zeros(clusters, places.shape[1]).index_add_(0, labels, places[: len(labels)])
    centres /= torch.bincount(labels, minlength=clusters).clamp_min(1)[:, None]
    distances = torch.cdist(places[len(labels) :], centres)
    distances[:, torch.bincount(labels, minlength=clusters) == 0] = torch.inf
    return torch.cat((labels, distances.argmin(1)))
