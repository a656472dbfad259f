"""What whole numbers can reach, and how many bits they need for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cgfedrec.wire.byvalue import ByValue

LARGEST = 2**40
"""The largest bound. Eight million numbers that reach it can be added in int64."""


@dataclass(frozen=True, eq=False)
class Bounds(ByValue):
    """What each of many numbers can reach. Both ends know it before a message is sent, and so how many bits each takes.

    A number takes ceil(log2(how many values it can have)) bits. One that can only be 0 takes none: it does not travel.

    Args:
        largest: `[...]`, int64, from 0 to `LARGEST`: for each number the largest value. It may be expanded, so that
            all the columns of a row share one number in memory.
        signed: Whether a number may also be negative, down to ``-largest``. Otherwise it is at least 0.
        bits: As many bits for each number, at most 62, whatever it can reach. It is the same message in more bytes, to
            compare with.

    Raises:
        ValueError: for bounds of another type or out of range, and where ``bits`` are too few.

    >>> bounds = Bounds(torch.tensor([0, 1, 4, 7]))  # 1, 2, 5 and 8 values
    >>> bounds.widths
    tensor([0, 1, 3, 3])
    >>> bounds.nbytes  # 7 bits, and one to fill the byte
    1
    >>> Bounds(torch.tensor([0, 1, 4, 7]), signed=True).widths  # 1, 3, 9 and 15 values
    tensor([0, 2, 4, 4])
    """

    largest: Tensor
    signed: bool = False
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.largest.dtype != torch.int64:
            raise ValueError(f"bounds are int64, not {self.largest.dtype}")
        if self.bits is not None and not 0 <= self.bits <= 62:
            raise ValueError(f"a number takes between 0 and 62 bits, not {self.bits}")
        if not self._compact.numel():
            return
        low, high = (int(one) for one in self._compact.aminmax())
        if low < 0 or high > LARGEST:
            raise ValueError(f"bounds lie between 0 and {LARGEST}, and these between {low} and {high}")
        needed = int(self._needed.max())
        if self.bits is not None and self.bits < needed:
            raise ValueError(f"numbers up to {high} take {needed} bits each, not {self.bits}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        return tuple(self.largest.shape)

    @cached_property
    def _compact(self) -> Tensor:
        """The bounds with one number along every axis that is expanded, `[...]`."""
        once = (slice(0, 1) if stride == 0 else slice(None) for stride in self.largest.stride())
        return self.largest[tuple(once)]

    @property
    def _needed(self) -> Tensor:
        """The bits that tell a number's values apart, `[...]` as `_compact`, int64."""
        values = self._compact
        if self.signed:
            values = 2 * values
        # The length in bits of a whole number is its exponent as a float, which holds numbers of this size exactly.
        return torch.frexp(values.double()).exponent.long()

    @property
    def widths(self) -> Tensor:
        """The bits of each number on the wire, `[...]`, int64; it may be expanded."""
        if self.bits is not None:
            return torch.tensor(self.bits, device=self.largest.device).expand(self.shape)
        return self._needed.expand(self.shape)

    @cached_property
    def nbytes(self) -> int:
        """The bytes of all numbers together."""
        if not self.largest.numel():
            return 0
        if self.bits is not None:
            bits = self.bits * self.largest.numel()
        else:
            repeats = self.largest.numel() // self._compact.numel()
            bits = repeats * int(self._needed.sum())
        return (bits + 7) // 8

    def problem(self, values: Tensor) -> str | None:
        """What is wrong with numbers that should lie within these bounds, if anything is.

        Args:
            values: `[clients, ...]`, int64; or sparse, its entries being rows `[clients, rows]` that are not all zero.
        """
        if values.dtype != torch.int64:
            return f"it is of {values.dtype}, and numbers of known bounds are int64"
        if tuple(values.shape[1:]) != self.shape:
            return f"it is {list(values.shape[1:])} for a client, with bounds for {list(self.shape)}"
        largest = self._compact.to(values.device)
        if values.layout == torch.sparse_coo:
            if values.sparse_dim() != 2 or not values.is_coalesced():
                return "it is sparse, and so must be coalesced, with entries for [clients, rows]"
            clients, rows = values.indices()  # [entries] each
            places = clients * values.shape[1] + rows
            within = (clients >= 0) & (clients < values.shape[0]) & (rows >= 0) & (rows < values.shape[1])
            if not within.all() or not (places.diff() > 0).all():
                return "it is sparse, and its entries are not those of different rows, in ascending order"
            values = values.values()  # [entries, columns]
            largest = largest.expand(self.shape[0], *largest.shape[1:])[rows]
        return self._outside(values, largest)

    def _outside(self, values: Tensor, largest: Tensor) -> str | None:
        """Which of ``values`` `[..., *shape]` lies outside, if one does."""
        smallest = torch.zeros_like(largest)
        if self.signed:
            smallest = -largest
        if largest.numel() == 1 and values.numel():  # the same for all: one look at the two ends
            ends = values.aminmax()
            if bool((ends.min >= smallest).all()) and bool((ends.max <= largest).all()):
                return None
        outside = (values < smallest) | (values > largest)
        if not outside.any():
            return None
        low, high, value = (int(one.expand_as(values)[outside][0]) for one in (smallest, largest, values))
        return f"{value} is not between {low} and {high}"
