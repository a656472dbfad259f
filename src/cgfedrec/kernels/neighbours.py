"""The best items of many histories by neighbours: what `cgfedrec.serving.neighbours` does in numpy, to the bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels.compiled import compiled_as_written
from cgfedrec.kernels.ranks import offer

HIDDEN = np.float32(-np.inf)


@compiled_as_written
def best(
    starts: NDArray[np.int64],
    targets: NDArray[np.int32],
    weights: NDArray[np.float32],
    beside: NDArray[np.float32],
    first: NDArray[np.int64],
    bounds: NDArray[np.int64],
    items: NDArray[np.int64],
    counts: NDArray[np.float32],
    hidden_bounds: NDArray[np.int64],
    hidden: NDArray[np.int64],
    values: NDArray[np.float32],
    found: NDArray[np.int64],
) -> None:
    """The best items of each user that are not hidden, best first; of equal ones the lower number first.

    Args:
        starts: `[items + 1]`: where the neighbours of each item begin.
        targets: `[neighbours]`: which items they are.
        weights: `[neighbours]`.
        beside: `[items]`, which every item scores besides.
        first: `[items]`: all of them, the best by what is beside first. Of those that are near nothing k are enough.
        bounds: `[users + 1]`: where the history of each user begins.
        items: `[entries]`, of all histories.
        counts: `[entries]`: what each counts.
        hidden_bounds: `[users + 1]`: where those begin that a user is not shown.
        hidden: `[any]`: which items.
        values: `[users, k]`, -inf everywhere; into it go scores.
        found: `[users, k]`, above any item's number everywhere; into it go items.
    """
    number, k = len(beside), values.shape[1]
    board = np.empty(number, np.float32)  # what neighbours add
    last_user = np.full(number, -1)  # for whom an item was seen last: until then nothing of it counts
    seen = np.empty(number, np.int64)
    for user in range(len(values)):
        scores, best_items, many = values[user], found[user], 0
        for entry in range(bounds[user], bounds[user + 1]):
            for place in range(starts[items[entry]], starts[items[entry] + 1]):
                item = targets[place]
                added = weights[place] * counts[entry]
                if last_user[item] == user:
                    board[item] += added
                else:
                    board[item], last_user[item], seen[many] = added, user, item
                    many += 1
        for place in range(hidden_bounds[user], hidden_bounds[user + 1]):
            board[hidden[place]], last_user[hidden[place]] = HIDDEN, user
        for place in range(many):
            item = seen[place]
            offer(scores, best_items, board[item] + beside[item], item)
        others = 0
        for item in first:
            if others == k:
                break
            if last_user[item] != user:
                others += 1
                offer(scores, best_items, beside[item], item)
