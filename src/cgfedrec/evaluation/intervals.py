"""How sure a mean is, and a difference of means over the same users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean and its interval."""

    mean: float
    half: float | None
    """Half of the interval's width; ``None`` for a single value, of which nobody knows how much it varies."""
    n: int
    """How many values the mean is over."""

    @property
    def low(self) -> float:
        """The lower end; the mean where there is no interval."""
        return self.mean - (self.half or 0)

    @property
    def high(self) -> float:
        """The upper end; the mean where there is no interval."""
        return self.mean + (self.half or 0)


def interval(values: Sequence[float] | Values, level: float = 0.95) -> Interval:
    """The mean of independent values and its interval by Student's t.

    Args:
        values: `[n]`, one or more.
        level: How often such an interval holds the true mean.
    """
    array = np.asarray(values, float)
    if len(array) < 2:
        return Interval(float(array.mean()), None, len(array))
    half = stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5
    return Interval(float(array.mean()), float(half), len(array))


def paired_interval(first: Values, second: Values) -> Interval:
    """How much more ``first`` is than ``second``, user by user: the mean difference and its interval.

    What makes a user easy or hard for both falls out of the differences, so it is narrower than two intervals apart.

    Args:
        first: `[users]`, one or more.
        second: `[users]`, of the same users in the same order.
    """
    return interval(first - second)
