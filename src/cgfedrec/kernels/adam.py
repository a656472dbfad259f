"""Adam on a user vector and on the rows that it scores: the step of `cgfedrec.methods.fedmf.FedMFClient`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels.compiled import compiled, score, slope


@compiled
def step(
    table: NDArray[np.float32],
    table_averages: NDArray[np.float32],
    users: NDArray[np.float32],
    user_averages: NDArray[np.float32],
    ends: NDArray[np.int64],
    rows: NDArray[np.int64],
    targets: NDArray[np.float32],
    weights: NDArray[np.float32],
    beta_1: np.float32,
    beta_2: np.float32,
    rate: np.float32,
    root: np.float32,
    eps: np.float32,
    logits: NDArray[np.float32],
) -> None:
    """A step of all clients on a batch, in place. All rows of a client move, as Adam has it.

    Args:
        table: `[rows, dim]`, of all clients, one client after another.
        table_averages: `[rows, 2, dim]`: Adam's averages of gradients and of their squares.
        users: `[clients, dim]`.
        user_averages: `[clients, 2, dim]`.
        ends: `[clients]`: where each client's rows end.
        rows: `[clients, batch]`: which row each sample is.
        targets: `[clients, batch]`.
        weights: `[clients, batch]`.
        beta_1: Of the average gradient.
        beta_2: Of the average square.
        rate: Learning rate, over 1 - beta_1^t at step t.
        root: Of 1 - beta_2^t.
        eps: Added to the root of the average square.
        logits: `[clients, batch]`; afterwards those before the step.
    """
    width, dim = rows.shape[1], table.shape[1]
    slopes, gradient, moved = np.empty(width, np.float32), np.empty(dim, np.float32), np.empty(dim, np.float32)
    of_rows = np.zeros(0, np.float32)
    start = 0
    for client in range(len(rows)):
        user, mine = users[client], rows[client]
        score(table, mine, user, np.float32(0), logits[client])
        slope(logits[client], targets[client], weights[client], slopes)
        # A row's gradient is the user vector, times the sum of the slopes of its samples.
        if len(of_rows) < ends[client] - start:
            of_rows = np.zeros(ends[client] - start, np.float32)
        for sample in range(width):
            of_rows[mine[sample] - start] += slopes[sample]
        gradient[:] = 0
        for place in range(start, ends[client]):
            row, sum_of_slopes = table[place], of_rows[place - start]
            of_rows[place - start] = 0
            mean, square = table_averages[place, 0], table_averages[place, 1]
            for column in range(dim):
                gradient[column] += sum_of_slopes * row[column]
                one = sum_of_slopes * user[column]
                mean[column] += (one - mean[column]) * (np.float32(1) - beta_1)
                square[column] = square[column] * beta_2 + one * one * (np.float32(1) - beta_2)
                row[column] -= rate * mean[column] / (np.sqrt(square[column]) / root + eps)
        mean, square = user_averages[client, 0], user_averages[client, 1]
        for column in range(dim):
            one = gradient[column]
            mean[column] += (one - mean[column]) * (np.float32(1) - beta_1)
            square[column] = square[column] * beta_2 + one * one * (np.float32(1) - beta_2)
            moved[column] = rate * mean[column] / (np.sqrt(square[column]) / root + eps)
        for column in range(dim):
            user[column] -= moved[column]
        start = ends[client]
