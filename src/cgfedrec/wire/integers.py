"""Whole numbers of known bounds: each modulo two to the power of its own number of bits."""

from __future__ import annotations

import numpy as np
import torch

from cgfedrec.wire import bits
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.kind import Kind
from cgfedrec.wire.values import Counts, Field


class IntegerKind(Kind[Counts]):
    """Counts `[...]`, one number after another without padding. Zeros fill the last byte.

    A number of b bits travels modulo 2^b. So it takes the same bits under masks that are uniform modulo 2^b and cancel
    in the sum, where its bound is what the sum over all clients can reach: the sum modulo 2^b then tells the sum.
    """

    def code(self, field: Field) -> int:
        if _bounds(field).signed:
            return 253
        return 254

    def encode(self, value: Counts, field: Field) -> tuple[bytes, int]:
        problem = value.bounds.problem(value.values[None])
        if problem is not None:
            raise ValueError(problem)
        numbers = value.values.cpu().numpy().reshape(-1)
        # A shift keeps the sign, so that the lowest bits are those of the number modulo 2^b.
        return bits.to_bytes(bits.of_widths(numbers, _widths(value.bounds))), 0

    def size(self, field: Field, count: int) -> int:
        return _bounds(field).nbytes

    def decode(self, payload: bytes, field: Field, count: int) -> Counts:
        bounds = _bounds(field)
        widths = _widths(bounds)
        numbers = bits.read_widths(bits.split(payload, int(widths.sum())), widths)
        if bounds.signed:
            possible = 1 << widths  # of which the upper half stands for negative numbers
            numbers = np.where(2 * numbers >= possible, numbers - possible, numbers)
        values = torch.from_numpy(numbers).reshape(field.shape)
        problem = bounds.problem(values[None])
        if problem is not None:
            raise ValueError(problem)
        return Counts(values, bounds)


def _bounds(field: Field) -> Bounds:
    assert field.bounds is not None
    return field.bounds


def _widths(bounds: Bounds) -> bits.Integers:
    """The bits of each number, one after another: `[numbers]`."""
    return np.asarray(bounds.widths.cpu().numpy()).reshape(-1)
