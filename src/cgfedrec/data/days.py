"""Days: how long ago an interaction was, where times are true and not a mere order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cgfedrec.data.interactions import Times
from cgfedrec.data.times import NANOSECONDS_IN_A_DAY, nanoseconds

DENSE = 0.5
"""From this share of all whole numbers between the first and the last on, times are taken for an order."""


def per_day(times: Times) -> float:
    """How many units of these times a day has. What they count since 1970 is told by their size.

    Args:
        times: `[interactions]`

    Returns:
        86,400 where they are taken for seconds, and so on.

    >>> per_day(np.array([881250949, 891717742]))
    86400.0
    """
    return NANOSECONDS_IN_A_DAY / nanoseconds(float(np.abs(times).max(initial=0)))


def days_ago(times: Times, now: float) -> NDArray[np.float64]:
    """How many days before ``now`` each of these times was, `[interactions]`.

    >>> days_ago(np.array([881250949, 881164549]), 881250949)
    array([0., 1.])
    """
    return np.asarray((now - times) / per_day(times), np.float64)


def is_order(times: Times) -> bool:
    """Whether times are no times, but places in an order: 1, 2, 3, ..., of all interactions or of each user's.

    They are where most whole numbers between the first and the last occur, or where all lie within one day.

    >>> is_order(np.array([1, 2, 3, 1, 2, 4]))
    True
    >>> is_order(np.array([881250949, 891717742, 878887116]))
    False
    """
    if not len(times):
        return True
    span = float(times.max()) - float(times.min())
    if span < per_day(times):
        return True
    return times.dtype.kind == "i" and len(np.unique(times)) >= DENSE * (span + 1)
