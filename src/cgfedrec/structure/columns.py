"""Columns: tallies that add up clients' profiles, how much of what they have lies in each of some columns."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.data.histories import History
from cgfedrec.random import Stream, bits
from cgfedrec.structure.tallies import Known, Tally, own_rows, table
from cgfedrec.wire.bounds import Bounds


def signs(random_bits: NDArray[np.uint64]) -> Tensor:
    """-1 or 1 by the first bit of each number, `[...]`, int64."""
    return torch.from_numpy(2 * (random_bits >> np.uint64(63)).astype(np.int64) - 1)


class Columns(Tally):
    """G C for some columns C `[rows, columns]`: the row of an own item is the client's profile C^T x.

    The sum's row of item i adds up the profiles of those who have it: how item i goes together with each column.
    """

    signed: ClassVar[bool] = False

    @abstractmethod
    def columns(self, known: Known, rows: Tensor | None = None) -> Tensor:
        """C, `[rows, columns]`, int64, of numbers between -1 and 1: of all rows, or of some `[rows]`."""

    @abstractmethod
    def width(self, known: Known) -> int:
        """How many columns."""

    def bounds(self, known: Known) -> Bounds:
        rows = known.the_rows
        reach = rows.reach * rows.open  # a row that is not open is not sent
        return self.packed(reach[:, None].expand(-1, self.width(known)), self.signed)

    def of(self, history: History, users: Tensor, known: Known, seed: int) -> Tensor:
        clients, rows, weights = own_rows(history, known, self.half_life)
        own = weights[:, None] * self._columns_at(known, rows)  # [entries, columns]
        profiles = own.new_zeros(len(users), own.shape[1]).index_add_(0, clients, own)
        values = self.told(weights[:, None] * profiles[clients])
        return table(clients, rows, values, (len(users), len(known.the_rows), own.shape[1]))

    def _columns_at(self, known: Known, rows: Tensor) -> Tensor:
        """`columns` at some rows, `[entries]`, which may repeat: `[entries, columns]`."""
        if len(rows) < len(known.the_rows):
            return self.columns(known, rows)
        return self.columns(known)[rows]


@dataclass(frozen=True)
class SignColumns(Columns):
    """Columns of random signs, which everybody draws from the shared seed.

    Args:
        number: How many.
        first: Which one is the first: columns of other numbers have other signs.
    """

    number: int = 32
    first: int = 0

    name: ClassVar[str] = "sketch"
    signed: ClassVar[bool] = True

    def columns(self, known: Known, rows: Tensor | None = None) -> Tensor:
        items = known.the_rows.items
        if rows is not None:
            items = items[rows]
        if known.keys is not None:
            items = known.keys[items]
        columns = np.arange(self.first, self.first + self.number)
        return signs(bits(known.seed, Stream.SIGNS, items.numpy()[:, None], columns))

    def width(self, known: Known) -> int:
        return self.number


@dataclass(frozen=True)
class LabelColumns(Columns):
    """A column for each cluster, 1 where an item has its label: a profile is a histogram of the client's own items."""

    name: ClassVar[str] = "labels"

    def columns(self, known: Known, rows: Tensor | None = None) -> Tensor:
        assert known.labels is not None
        labels = known.labels if rows is None else known.labels[rows]
        return torch.nn.functional.one_hot(labels, self.width(known))

    def width(self, known: Known) -> int:
        assert known.labels is not None
        return int(known.labels.max()) + 1
