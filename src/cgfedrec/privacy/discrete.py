"""Discrete Gaussian noise: whole numbers z with probabilities in proportion to exp(-z^2 / 2 sigma^2).

Its random bits come from SHAKE128 (FIPS 202), which is in Python's standard library: whoever sees some of them cannot
compute others without the key. All arithmetic is on whole numbers, so a key gives the same noise on every machine.
"""

from __future__ import annotations

import decimal
import hashlib
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WIDEST = 14
"""Standard deviations at which the numbers end; beyond lies less than 2^-143 of all."""
INEXACT = 2.0**-136
"""By how much all probabilities together are off at most (total variation), up to a sigma of 2^18."""
AT_ONCE = 2**16
"""Numbers that are drawn together, so that what is in between stays in a cache."""
_WORD, _REST = 32, 128
"""Bits that are drawn for each number, and bits more for the few that these leave undecided."""
_PRECISION = 256
"""Bits behind the point of what is proportional to a probability."""


class DiscreteGaussian:
    """Draws by the alias method (Walker 1977), whose table holds whole numbers and is not rounded any further.

    Of 32 random bits the lowest choose a place in a table of magnitudes, one is the sign, and all others are compared
    with how likely the place stays. Where these agree with it to the last bit, 128 more decide.

    Args:
        sigma: More than 0. The variance is sigma^2, as good as exactly from 1 on.
    """

    def __init__(self, sigma: float) -> None:
        self.most = math.ceil(WIDEST * sigma)
        self.bits = self.most.bit_length()
        # What each of the 2^bits places holds when it is full.
        self.full = 1 << (_WORD - 1 - self.bits + _REST)
        keep, alias = _aliases(_shared_out(_weights(sigma, self.most), 1 << self.bits, self.full), self.full)
        # Both of a place in one number: a place of a large table is fetched from memory.
        self.places = np.array([(k >> _REST) << 32 | a for k, a in zip(keep, alias, strict=True)], np.uint64)
        low = (1 << 64) - 1
        self.rest = np.array([(k >> 64 & low, k & low) for k in keep], np.uint64)  # [places, 2]: what decides then

    def draw(self, key: bytes, number: int) -> NDArray[np.int64]:
        """So many of them, `[number]`, a function of the key. What is drawn first is the same for any number."""
        drawn = np.empty(number, np.int64)
        mask, bits = np.uint32((1 << self.bits) - 1), np.uint32(self.bits)
        one, low = np.uint32(1), np.uint64(2**32 - 1)
        for block, start in enumerate(range(0, number, AT_ONCE)):
            part = drawn[start : start + AT_ONCE]
            random = np.frombuffer(_bits(key, block, 0, 4 * len(part)), "<u4")
            places = (random & mask).astype(np.int64)
            found = self.places[places]
            keep, compared = (found >> np.uint64(32)).astype(np.uint32), random >> bits + one
            stays = compared < keep
            if len(undecided := np.flatnonzero(compared == keep)):
                stays[undecided] = self._stays(places[undecided], key, block)
            sizes = np.where(stays, places, (found & low).astype(np.int64))
            negative = (random >> bits & one).astype(np.int64)
            part[:] = (sizes ^ -negative) + negative  # -z = ~z + 1
        return drawn

    def _stays(self, places: NDArray[np.int64], key: bytes, block: int) -> NDArray[np.bool_]:
        """Whether places `[number]` stay, of which their first bits leave it undecided."""
        high, low = np.frombuffer(_bits(key, block, 1, 16 * len(places)), "<u8").reshape(-1, 2).T
        keep_high, keep_low = self.rest[places].T
        return np.asarray((high < keep_high) | ((high == keep_high) & (low < keep_low)))


@lru_cache(8)
def discrete_gaussian(sigma: float) -> DiscreteGaussian:
    """The one with this sigma, whose tables are made once."""
    return DiscreteGaussian(sigma)


def of_each(sigma: float, keys: Sequence[bytes], number: int) -> NDArray[np.int64]:
    """Noise of each client's own, `[clients, number]`, by the keys of all, `[clients]`."""
    noise = discrete_gaussian(sigma)
    found = np.empty((len(keys), number), np.int64)
    for row, key in enumerate(keys):
        found[row] = noise.draw(key, number)
    return found


def _bits(key: bytes, block: int, use: int, number: int) -> bytes:
    """So many random bytes. Each block and use has its own, and none is a part of another's."""
    return hashlib.shake_128(block.to_bytes(8, "little") + bytes([use]) + key).digest(number)


def _weights(sigma: float, most: int) -> list[int]:
    """What is proportional to the probabilities of magnitudes 0 to ``most``; half as much of 0, which has two signs."""
    one = 1 << _PRECISION
    with decimal.localcontext(decimal.Context(prec=100)):
        variance = decimal.Decimal(sigma) ** 2
        ratio, falls = (int((-1 / (times * variance)).exp() * one) for times in (2, 1))
    # From z to z + 1 the weight falls by exp(-(2 z + 1) / 2 sigma^2).
    found, weight = [one // 2], one
    for _ in range(most):
        weight = weight * ratio >> _PRECISION
        ratio = ratio * falls >> _PRECISION
        found.append(weight)
    return found


def _shared_out(weights: Sequence[int], places: int, full: int) -> list[int]:
    """Whole numbers in proportion to weights that fill all places; the first, a large one, makes up for rounding."""
    total = sum(weights)
    shares = [weight * places * full // total for weight in weights]
    shares[0] += places * full - sum(shares)
    return [*shares, *itertools.repeat(0, places - len(shares))]


def _aliases(left: list[int], full: int) -> tuple[list[int], list[int]]:
    """For each place how much of it stays, and what fills the rest of it."""
    alias = list(range(len(left)))
    small = [place for place, share in enumerate(left) if share < full]
    large = [place for place, share in enumerate(left) if share >= full]
    while small and large:
        less, more = small.pop(), large[-1]
        alias[less] = more
        left[more] -= full - left[less]
        if left[more] < full:
            small.append(large.pop())
    return left, alias
