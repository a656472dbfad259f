"""The best items of many histories by neighbours: what `cgfedrec.serving.neighbours` does in numpy, to the bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels.compiled import compiled_as_written
from cgfedrec.kernels.ranks import insert


@compiled_as_written
def best(
    starts: NDArray[np.int64],
    targets: NDArray[np.int32],
    weights: NDArray[np.float32],
    beside: NDArray[np.float32],
    first: NDArray[np.int64],
    only_adds: bool,
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
        first: `[items]`: all of them, the best by what is beside first.
        only_adds: Whether neighbours take nothing away. Then of items that are near nothing the first k are enough.
        bounds: `[users + 1]`: where the history of each user begins.
        items: `[entries]`, of all histories.
        counts: `[entries]`: what each counts.
        hidden_bounds: `[users + 1]`: where those begin that a user is not shown.
        hidden: `[any]`: which items.
        values: `[users, k]`, -inf everywhere; into it go scores.
        found: `[users, k]`, above any item's number everywhere; into it go items.
    """
    number, k = len(beside), values.shape[1]
    board, state = np.zeros(number, np.float32), np.zeros(number, np.int8)  # of an item: 1 is near, 2 is hidden
    seen = np.empty(number, np.int64)
    for user in range(len(values)):
        scores, best_items, many = values[user], found[user], 0
        for entry in range(bounds[user], bounds[user + 1]):
            for place in range(starts[items[entry]], starts[items[entry] + 1]):
                item = targets[place]
                board[item] += weights[place] * counts[entry]
                if state[item] == 0:
                    state[item] = 1
                    seen[many] = item
                    many += 1
        for place in range(hidden_bounds[user], hidden_bounds[user + 1]):
            item = hidden[place]
            if state[item] == 0:
                seen[many] = item
                many += 1
            state[item] = 2
        for place in range(many):
            item = seen[place]
            score = board[item] + beside[item]
            if state[item] == 1 and not (
                score < scores[k - 1] or (score == scores[k - 1] and item > best_items[k - 1])
            ):
                insert(scores, best_items, score, item)
        shown = 0
        for item in first:
            if only_adds and shown == k:
                break
            if state[item] == 0:
                shown += 1
                score = beside[item]
                if not (score < scores[k - 1] or (score == scores[k - 1] and item > best_items[k - 1])):
                    insert(scores, best_items, score, item)
        for place in range(many):
            board[seen[place]] = 0
            state[seen[place]] = 0
