"""Controls: other sums in place of the method's own, to see what its parts are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cgfedrec.data.histories import History
from cgfedrec.random import Stream, bits
from cgfedrec.structure.columns import Columns, SignColumns, signs
from cgfedrec.structure.tallies import Known, Tally, own_rows, table
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.values import Field


class MoreSigns(SignColumns):
    """Columns of new random signs, in place of labels: a second sketch that knows nothing of the first."""

    name: ClassVar[str] = "signs"


class PowerColumns(Columns):
    """The directions in which the first sketch is largest, in place of labels: one step of power iteration.

    They come down in 32 bits a number, and their sums go up likewise, since they are no whole numbers.
    """

    name: ClassVar[str] = "power"
    dtype: ClassVar[torch.dtype] = torch.float32

    def field(self, known: Known) -> Field:
        return Field((len(known.the_rows), self.width(known)), self.dtype)

    def columns(self, known: Known, rows: Tensor | None = None) -> Tensor:
        """C, `[rows, columns]`, float32."""
        assert known.directions is not None
        return known.directions if rows is None else known.directions[rows]

    def width(self, known: Known) -> int:
        return self.columns(known).shape[1]

    def of(self, history: History, users: Tensor, known: Known, seed: int) -> Tensor:
        """As of any columns, `[clients, rows, columns]`, but float32, and laid out in full."""
        return super().of(history, users, known, seed).to_dense()


@dataclass(frozen=True)
class Heads(Tally):
    """A projection from the users' side, in place of columns: what CGFedRec's private heads amount to.

    The row of an own item is the client's head, random signs that nobody else knows. The sum S is x w^T over clients,
    and S S^T / columns is G in the mean over heads.

    Args:
        number: How many columns.
    """

    number: int = 64

    name: ClassVar[str] = "sketch"

    def bounds(self, known: Known) -> Bounds:
        rows = known.the_rows
        clients = rows.clients * rows.open
        return self.packed(clients[:, None].expand(-1, self.number), signed=True)

    def of(self, history: History, users: Tensor, known: Known, seed: int) -> Tensor:
        clients, rows, _ = own_rows(history, known)
        heads = signs(bits(seed, Stream.HEADS, users.numpy()[:, None], np.arange(self.number)))  # [clients, columns]
        return table(clients, rows, heads[clients], (len(users), len(known.the_rows), self.number))


def directions(sketch: Tensor, number: int) -> Tensor:
    """An orthogonal basis of where a sketch is largest.

    Args:
        sketch: G C, `[rows, columns]`, float64.
        number: How many directions, at most.

    Returns:
        `[rows, at most number]`, float32: columns as long as one of signs, so that none outweighs another.
    """
    left, _, _ = torch.linalg.svd(sketch, full_matrices=False)
    found: Tensor = left[:, :number] * len(sketch) ** 0.5
    return found.float().contiguous()  # a checkpoint takes nothing else, and LAPACK lays out columns


def by_heads(sketch: Tensor) -> Tensor:
    """F from the sum over `Heads`, S `[rows, columns]`, float64: F F^T is G in the mean over heads."""
    made: Tensor = sketch / sketch.shape[1] ** 0.5
    return made


def shuffled(labels: Tensor, seed: int) -> Tensor:
    """The labels in an order drawn at random, `[rows]`: clusters of the same sizes that say nothing of the items."""
    order = bits(seed, Stream.PERMUTATION, np.arange(len(labels))).argsort()
    return labels[torch.from_numpy(order)]
