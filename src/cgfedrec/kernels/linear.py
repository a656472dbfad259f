"""Plain SGD on a linear head, and then on the rows that it scores: the steps of `cgfedrec.kit.table.TableClient`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels import Samples
from cgfedrec.kernels.compiled import compiled, score, slope


@compiled
def step(
    table: NDArray[np.float32],
    heads: NDArray[np.float32],
    biases: NDArray[np.float32],
    samples: Samples,
    head_rate: np.float32,
    table_rate: np.float32,
) -> None:
    """Both steps of all clients on a batch, in place.

    Args:
        table: `[rows, dim]`, of all clients.
        heads: `[clients, dim]`.
        biases: `[clients]`.
        samples: Of the first clients, or of all.
        head_rate: Learning rate of heads and biases.
        table_rate: Of the table.
    """
    width, dim = samples.rows.shape[1], table.shape[1]
    slopes, gradient = np.empty(width, np.float32), np.empty(dim, np.float32)
    for client in range(len(samples.rows)):
        head, rows, logits = heads[client], samples.rows[client], samples.logits[client]
        targets, weights = samples.targets[client], samples.weights[client]
        score(table, rows, head, biases[client], logits)
        slope(logits, targets, weights, slopes)
        gradient[:] = 0
        of_bias = np.float32(0)
        for sample in range(width):
            row = table[rows[sample]]
            for column in range(dim):
                gradient[column] += slopes[sample] * row[column]
            of_bias += slopes[sample]
        for column in range(dim):
            head[column] -= head_rate * gradient[column]
        biases[client] -= head_rate * of_bias

        score(table, rows, head, biases[client], logits)
        slope(logits, targets, weights, slopes)
        for sample in range(width):
            moved = table_rate * slopes[sample]
            row = table[rows[sample]]
            for column in range(dim):
                row[column] -= moved * head[column]
