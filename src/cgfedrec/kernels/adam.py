"""Adam on a user vector and on the rows that it scores: the step of `cgfedrec.methods.fedmf.FedMFClient`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels import Samples
from cgfedrec.kernels.compiled import compiled, inlined, score, slope


@inlined
def moved(
    value: np.float32,
    mean: np.float32,
    square: np.float32,
    gradient: np.float32,
    rate: np.float32,
    root: np.float32,
    epsilon: np.float32,
    new_mean: np.float32,
    old_square: np.float32,
    new_square: np.float32,
) -> tuple[np.float32, np.float32, np.float32]:
    """A number after Adam's step, and its averages of gradients and of their squares; arguments are those before it."""
    mean += (gradient - mean) * new_mean
    square = square * old_square + gradient * gradient * new_square
    return value - rate * mean / (np.sqrt(square) / root + epsilon), mean, square


@compiled
def step(
    table: NDArray[np.float32],
    users: NDArray[np.float32],
    of_table: NDArray[np.float32],
    of_users: NDArray[np.float32],
    ends: NDArray[np.int64],
    samples: Samples,
    rate: np.float32,
    root: np.float32,
    epsilon: np.float32,
    new_mean: np.float32,
    old_square: np.float32,
    new_square: np.float32,
) -> None:
    """A step of all clients on a batch, in place. As Adam has it, all rows of a client move.

    Args:
        table: `[rows, dim]`, of all clients, one client after another.
        users: `[clients, dim]`.
        of_table: `[rows, 2, dim]`: Adam's averages of gradients and of their squares.
        of_users: `[clients, 2, dim]`: likewise.
        ends: `[clients]`: where each client's rows end.
        samples: Of the first clients, or of all.
        rate: Learning rate, over 1 - beta_1^t at step t.
        root: Of 1 - beta_2^t.
        epsilon: Added to the root of the average square.
        new_mean: What a new gradient weighs in the average, 1 - beta_1.
        old_square: What the average square so far weighs in the next, beta_2.
        new_square: What a new square does, 1 - beta_2. It is no difference of float32 numbers: these are too coarse.
    """
    width, dim = samples.rows.shape[1], table.shape[1]
    slopes, gradient = np.empty(width, np.float32), np.empty(dim, np.float32)
    sums = np.zeros(0, np.float32)
    start = 0
    for client in range(len(samples.rows)):
        user, rows, logits = users[client], samples.rows[client], samples.logits[client]
        score(table, rows, user, np.float32(0), logits)
        slope(logits, samples.targets[client], samples.weights[client], slopes)
        # A row's gradient is the user vector, times the sum of the slopes of its samples.
        if len(sums) < ends[client] - start:
            sums = np.zeros(ends[client] - start, np.float32)
        for sample in range(width):
            sums[rows[sample] - start] += slopes[sample]
        gradient[:] = 0
        for place in range(start, ends[client]):
            row, means, squares = table[place], of_table[place, 0], of_table[place, 1]
            factor = sums[place - start]
            sums[place - start] = 0
            for column in range(dim):
                gradient[column] += factor * row[column]
                row[column], means[column], squares[column] = moved(
                    row[column],
                    means[column],
                    squares[column],
                    factor * user[column],
                    rate,
                    root,
                    epsilon,
                    new_mean,
                    old_square,
                    new_square,
                )
        means, squares = of_users[client, 0], of_users[client, 1]
        for column in range(dim):
            user[column], means[column], squares[column] = moved(
                user[column],
                means[column],
                squares[column],
                gradient[column],
                rate,
                root,
                epsilon,
                new_mean,
                old_square,
                new_square,
            )
        start = ends[client]
