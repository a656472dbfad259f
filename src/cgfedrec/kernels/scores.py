"""Scores that are products of rows with a client's vector: of tables in full, and of the rows in which they differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels.compiled import compiled

AT_ONCE = 512
"""Rows that all clients score before the next ones: such a piece of a table that they share stays in the cache."""


@compiled
def product(row: NDArray[np.float32], vector: NDArray[np.float32]) -> np.float32:
    """A row times a vector, `[dim]` each."""
    total = np.float32(0)
    for column in range(len(vector)):
        total += row[column] * vector[column]
    return total


@compiled
def of_tables(
    tables: NDArray[np.float32], firsts: NDArray[np.int64], vectors: NDArray[np.float32], scores: NDArray[np.float32]
) -> None:
    """Every client's scores of all items.

    Args:
        tables: `[rows, dim]`, of all clients.
        firsts: `[clients]`: the first row of each one's table; several may have the same.
        vectors: `[clients, dim]`.
        scores: `[clients, items]`: where they go.
    """
    clients, items = scores.shape
    for start in range(0, items, AT_ONCE):
        for client in range(clients):
            vector, first = vectors[client], firsts[client]
            for item in range(start, min(start + AT_ONCE, items)):
                scores[client, item] = product(tables[first + item], vector)


@compiled
def of_rows(
    rows: NDArray[np.float32],
    owners: NDArray[np.int64],
    items: NDArray[np.int64],
    vectors: NDArray[np.float32],
    scores: NDArray[np.float32],
) -> None:
    """Scores of some rows alone.

    Args:
        rows: `[rows, dim]`.
        owners: `[rows]`: whose each is.
        items: `[rows]`: of which item.
        vectors: `[clients, dim]`.
        scores: `[clients, items]`: where they go.
    """
    for place in range(len(rows)):
        client = owners[place]
        scores[client, items[place]] = product(rows[place], vectors[client])
