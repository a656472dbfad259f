"""Discrete Gaussian noise: whole numbers z with probabilities in proportion to exp(-z^2 / 2 sigma^2)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WIDEST = 14
"""Standard deviations at which the numbers end; beyond lies less than 1e-43 of all."""
AT_ONCE = 2**16
"""Numbers that are drawn together, so that what is in between stays in a cache."""


class DiscreteGaussian:
    """Draws by the alias method (Walker 1977): one number at random, a comparison, and no logarithm.

    Args:
        sigma: More than 0. The variance is sigma^2, as good as exactly from 1 on.
    """

    def __init__(self, sigma: float) -> None:
        self.most = math.ceil(WIDEST * sigma)
        values = np.arange(-self.most, self.most + 1)
        weights = np.exp(-(values**2) / (2 * sigma**2))
        self.bits = int(len(values) - 1).bit_length()
        size = 1 << self.bits
        self.probabilities = np.zeros(size)
        self.probabilities[: len(values)] = weights / weights.sum()
        keep, self.alias = _aliases(self.probabilities)
        # Of one random number of 64 bits the lowest choose a place, and all others are compared.
        self.keep = (keep * 2.0 ** (64 - self.bits)).astype(np.uint64)

    def draw(self, seed: int, number: int) -> NDArray[np.int64]:
        """So many of them, `[number]`, a function of the seed."""
        generator = np.random.SFC64(seed)
        drawn = np.empty(number, np.int64)
        mask, bits = np.uint64((1 << self.bits) - 1), np.uint64(self.bits)
        for start in range(0, number, AT_ONCE):
            part = drawn[start : start + AT_ONCE]
            random = generator.random_raw(len(part))
            places = (random & mask).astype(np.int64)
            stays = (random >> bits) < self.keep[places]
            part[:] = np.where(stays, places, self.alias[places]) - self.most
        return drawn


@lru_cache(8)
def discrete_gaussian(sigma: float) -> DiscreteGaussian:
    """The one with this sigma, whose tables are made once."""
    return DiscreteGaussian(sigma)


def of_each(sigma: float, seeds: NDArray[np.uint64], number: int) -> NDArray[np.int64]:
    """Noise of each client's own, `[clients, number]`, by the seeds `[clients]` of all."""
    noise = discrete_gaussian(sigma)
    found = np.empty((len(seeds), number), np.int64)
    for row, own in enumerate(seeds):
        found[row] = noise.draw(int(own), number)
    return found


def _aliases(probabilities: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each place how likely it stays, and what takes its place otherwise, `[size]` each."""
    size = len(probabilities)
    left = probabilities * size  # 1 in the mean
    keep, alias = np.ones(size), np.arange(size)
    small, large = list(np.flatnonzero(left < 1)), list(np.flatnonzero(left >= 1))
    while small and large:
        less, more = small.pop(), large[-1]
        keep[less], alias[less] = left[less], more
        left[more] -= 1 - left[less]
        if left[more] < 1:
            small.append(large.pop())
    return keep, alias
