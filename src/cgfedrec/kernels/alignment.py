"""What the alignment loss does with a client's items beside products of matrices, each in one pass.

`cgfedrec.structure.passes` has the same in torch, which defines it. Everything is of one client and float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels.compiled import compiled, exp_of_negative


@compiled
def unit_rows(
    table: NDArray[np.float32], least: np.float32, unit: NDArray[np.float32], norms: NDArray[np.float32]
) -> None:
    """Rows of length 1 into ``unit`` `[items, dim]`, and lengths of at least ``least`` into ``norms`` `[items]`."""
    for item in range(len(table)):
        row, mine = table[item], unit[item]
        square = np.float32(0)
        for column in range(len(row)):
            square += row[column] * row[column]
        norms[item] = max(np.sqrt(square), least)
        for column in range(len(row)):
            mine[column] = row[column] / norms[item]


@compiled
def add_by_label(rows: NDArray[np.float32], labels: NDArray[np.int64], sums: NDArray[np.float32]) -> None:
    """Add each of ``rows`` `[items, dim]` to its label's of ``sums`` `[clusters, dim]`."""
    for item in range(len(rows)):
        row, total = rows[item], sums[labels[item]]
        for column in range(len(row)):
            total[column] += row[column]


@compiled
def add_of_label(
    rows: NDArray[np.float32], sums: NDArray[np.float32], labels: NDArray[np.int64], shares: NDArray[np.float32]
) -> None:
    """Add to each of ``rows`` `[items, dim]` a share `[items]` of its label's of ``sums`` `[clusters, dim]`."""
    for item in range(len(rows)):
        row, total, share = rows[item], sums[labels[item]], shares[item]
        for column in range(len(row)):
            row[column] += share * total[column]


@compiled
def exponentials(
    tile: NDArray[np.float32], bound: np.float32, of_rows: NDArray[np.float32], of_columns: NDArray[np.float32]
) -> None:
    """Let each number s of ``tile`` `[rows, columns]` be exp(s - bound), where s is at most ``bound``.

    Sums are added to ``of_rows`` `[rows]` and ``of_columns`` `[columns]`.
    """
    for place in range(len(tile)):
        row = tile[place]
        total = np.float32(0)
        for column in range(len(row)):
            row[column] = exp_of_negative(row[column] - bound)
            total += row[column]
            of_columns[column] += row[column]
        of_rows[place] += total


@compiled
def weigh(tile: NDArray[np.float32], of_rows: NDArray[np.float32], of_columns: NDArray[np.float32]) -> None:
    """Multiply each number of ``tile`` `[rows, columns]` by its row's weight plus its column's."""
    for place in range(len(tile)):
        row, weight = tile[place], of_rows[place]
        for column in range(len(row)):
            row[column] *= weight + of_columns[column]


@compiled
def across(slope: NDArray[np.float32], unit: NDArray[np.float32], norms: NDArray[np.float32]) -> None:
    """Let ``slope`` `[items, dim]`, in rows of length 1, be that in the rows of lengths `[items]` that they came from.

    What points along a row cannot change its direction, so it is taken out.
    """
    for item in range(len(slope)):
        mine, row = slope[item], unit[item]
        along = np.float32(0)
        for column in range(len(row)):
            along += mine[column] * row[column]
        for column in range(len(row)):
            mine[column] = (mine[column] - along * row[column]) / norms[item]


@compiled
def against_prototypes(
    similarity: NDArray[np.float32],
    labels: NDArray[np.int64],
    sizes: NDArray[np.float32],
    temperature: np.float32,
    epsilon: np.float32,
    items: np.float32,
    positives: NDArray[np.float32],
    totals: NDArray[np.float32],
) -> None:
    """Let each similarity to a prototype be the loss's slope in it. An anchor's own prototype is without itself.

    Args:
        similarity: `[rows, clusters]`, over the temperature, of some of the items.
        labels: `[rows]`.
        sizes: `[clusters]`: how many items each has.
        temperature: T.
        epsilon: Added to each anchor's sum.
        items: How many there are in all, over which the loss is a mean.
        positives: `[rows]`: into it goes each anchor's similarity to its own prototype.
        totals: `[rows]`: into it goes the sum of exp(similarity - 1/T) over all other items.
    """
    one = np.float32(1)  # a plain 1 would make everything float64
    bound = one / temperature
    scale = bound / items
    # Passes of their own: a vector cannot be loaded at once after one of its numbers has been stored.
    for item in range(len(similarity)):
        row, own = similarity[item], labels[item]
        others = max(sizes[own] - one, one)
        row[own] = row[own] * (one + one / others) - bound / others  # the mean over its positives
        positives[item] = row[own]
    for item in range(len(similarity)):
        row, own = similarity[item], labels[item]
        total = epsilon
        for cluster in range(len(row)):
            row[cluster] = exp_of_negative(row[cluster] - bound) * sizes[cluster]
            total += row[cluster]
        total -= row[own] / sizes[own]  # the anchor itself
        totals[item] = total
        share = scale / total
        for cluster in range(len(row)):
            row[cluster] *= share
    for item in range(len(similarity)):
        row, own = similarity[item], labels[item]
        others = sizes[own] - one
        if others == 0:  # alone in its cluster: no anchor
            row[:] = 0
        else:
            row[own] = (row[own] * others / sizes[own] - scale) * (one + one / others)
