"""Fixed point: numbers of a clipped range as whole ones, so that their sum is exact modulo a power of two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cgfedrec.lent import Lent
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.messages import NotFiniteError
from cgfedrec.wire.values import Field

_MEMORY = Lent()
"""A cohort's numbers are as many bytes as its tables, twice."""


@dataclass(frozen=True)
class FixedPoint:
    """Numbers from ``-largest`` to ``largest`` in steps of 2^-fraction_bits, whose sum is told modulo 2^bits.

    Args:
        largest: Of a number. What lies beyond is clipped to it.
        fraction_bits: Bits after the point.
        bits: Of a number of the sum, and so of each message.

    >>> fixed = FixedPoint(largest=4.0, fraction_bits=16, bits=32)
    >>> fixed.levels, fixed.most_clients
    (262144, 8191)
    >>> whole, clipped = fixed.encode("table", torch.tensor([[0.5, -8.0]]), torch.tensor([7]))
    >>> whole, clipped
    (tensor([[  32768, -262144]]), tensor([1]))
    >>> fixed.decode(whole)
    tensor([[ 0.5000, -4.0000]], dtype=torch.float64)
    """

    largest: float
    fraction_bits: int
    bits: int

    @property
    def levels(self) -> int:
        """The whole number that ``largest`` becomes."""
        return int(self.largest * (1 << self.fraction_bits))

    @property
    def most_clients(self) -> int:
        """How many clients' numbers can be added up before a sum leaves its range."""
        return ((1 << (self.bits - 1)) - 1) // max(self.levels, 1)

    def bits_for(self, clients: int) -> int:
        """How many bits the sum over so many clients takes."""
        return (clients * self.levels).bit_length() + 1

    def field(self, field: Field) -> Field:
        """What travels in place of a field of floating-point numbers."""
        return _field(field.shape, self.bits)

    def encode(self, name: str, value: Tensor, clients: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest whole numbers, int64, and how many of each client's were clipped, `[clients]`, int64.

        Args:
            name: Of the value.
            value: `[clients, ...]`
            clients: `[clients]`, whose it is.

        Raises:
            NotFiniteError: naming the clients, for numbers that are not finite.
        """
        clipped = torch.zeros(len(value), dtype=torch.int64)
        finite = torch.ones(len(value), dtype=torch.bool)
        scale, limit = 2.0**self.fraction_bits, _float_below(self.levels)
        values = value.detach().float()
        if value.is_cpu:
            from cgfedrec.kernels import sums  # here, since numba takes half a second to load

            whole, shape = _MEMORY.tensor(value.shape, torch.int64), (len(value), value[:1].numel())
            numbers, found = values.reshape(shape).numpy(), whole.view(shape).numpy()
            sums.to_whole(numbers, np.float32(scale), np.float32(limit), found, clipped.numpy(), finite.numpy())
        else:
            scaled = (values * scale).flatten(1)
            within = scaled.clamp(-limit, limit)
            finite, clipped = scaled.isfinite().all(1).cpu(), (within != scaled).sum(1)
            whole = within.round_().long().view(value.shape)
        if not finite.all():
            raise NotFiniteError(f"uploaded {name}", clients[~finite.to(clients.device)].tolist())
        return whole, clipped

    def decode(self, whole: Tensor) -> Tensor:
        """What whole numbers `[...]` stand for, float64."""
        return whole.double() / (1 << self.fraction_bits)


def _float_below(number: int) -> float:
    """The largest float32 that is not above a number: the nearest one may be."""
    nearest = np.float32(number)
    return float(nearest if int(nearest) <= number else np.nextafter(nearest, np.float32(0)))


@lru_cache(maxsize=64)  # asked for with every message
def _field(shape: tuple[int, ...], bits: int) -> Field:
    largest = torch.tensor((1 << (bits - 1)) - 1).expand(shape)
    return Field(shape, torch.int64, bounds=Bounds(largest, signed=True, bits=bits))
