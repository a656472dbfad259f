"""Sums over clients of numbers that are rounded to multiples of 1 / `cgfedrec.wire.sums.GRID`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels.compiled import compiled

AT_ONCE = 2048
"""Of the numbers of a sum: 16 KiB of them stay in the cache while all clients are added."""


@compiled
def add(total: NDArray[np.float64], values: NDArray[np.float32], grid: np.float32) -> None:
    """Add to ``total`` `[numbers]` the whole numbers nearest to ``grid`` times those of all clients.

    Args:
        total: `[numbers]`.
        values: `[clients, numbers]`.
        grid: As said.
    """
    for first in range(0, len(total), AT_ONCE):
        part = total[first : first + AT_ONCE]
        for client in range(len(values)):
            mine = values[client, first : first + AT_ONCE]
            for place in range(len(part)):  # from 0 of a slice: so numba sees that it is never negative
                part[place] += np.rint(mine[place] * grid)


@compiled
def add_rows(
    total: NDArray[np.float64], rows: NDArray[np.float32], places: NDArray[np.int64], grid: np.float32
) -> None:
    """The same, of single rows.

    Args:
        total: `[items, dim]`.
        rows: `[rows, dim]`.
        places: `[rows]`: to which item each is added.
        grid: As said.
    """
    for number in range(len(rows)):
        row, sums = rows[number], total[places[number]]
        for column in range(len(row)):
            sums[column] += np.rint(row[column] * grid)


@compiled
def to_whole(
    values: NDArray[np.float32],
    scale: np.float32,
    limit: np.float32,
    whole: NDArray[np.int64],
    clipped: NDArray[np.int64],
    finite: NDArray[np.bool_],
) -> None:
    """The whole numbers nearest to ``scale`` times those of all clients, where these are within a limit.

    Args:
        values: `[clients, numbers]`.
        scale: As said.
        limit: To which what is beyond it is clipped.
        whole: `[clients, numbers]`, into which they go.
        clipped: `[clients]`: how many of each client's were clipped.
        finite: `[clients]`: whether all of a client's are finite.
    """
    for client in range(len(values)):
        mine, found = values[client], whole[client]
        beyond, odd = 0, 0
        for place in range(len(mine)):
            scaled = mine[place] * scale
            within = scaled if scaled < limit else limit
            within = within if within > -limit else -limit
            found[place] = np.int64(np.rint(within))
            beyond += within != scaled
            odd += not abs(scaled) < np.float32(np.inf)
        clipped[client] = beyond
        finite[client] = odd == 0
