"""The best of many scores, in an order that leaves nothing open: of equal scores the item of the lower number first.

A score and its item's number become one whole number of 64 bits, the key: the score's bits in the upper half, so that
keys are ordered as scores are, and below them how far the item stands from the end. Of keys no two are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LAST = 2**31 - 1
"""Above the number of any item."""
GROUP = 16
"""Items that are looked at together."""
_MAGNITUDE = np.int32(0x7FFFFFFF)


def keys_of(scores: NDArray[np.float32], items: NDArray[Any]) -> NDArray[np.int64]:
    """The key of each score, `[...]`.

    Args:
        scores: `[...]`; none may be NaN.
        items: Their items' numbers, of a shape that broadcasts to that of the scores.

    >>> keys = keys_of(np.array([0.5, -1, 0.5, -np.inf, 2], np.float32), np.arange(5))
    >>> np.argsort(-keys).tolist()
    [4, 0, 2, 1, 3]
    """
    bits = (scores + np.float32(0)).view(np.int32)  # -0 becomes 0
    # Of negative floats the bits grow with the magnitude: these are turned round, all but the sign.
    ordered = bits ^ ((bits >> 31) & _MAGNITUDE)
    keys = ordered.astype(np.int64) << 32
    keys |= LAST - items
    return keys


def parts_of(keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and items of keys, `[...]` each."""
    ordered = (keys >> 32).astype(np.int32)
    bits = ordered ^ ((ordered >> 31) & _MAGNITUDE)
    return bits.view(np.float32), LAST - (keys & LAST)


NOTHING = int(keys_of(np.array([-np.inf], np.float32), np.array([LAST]))[0])
"""The key of no item at all: its score is -inf."""


def best_keys(keys: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The largest of each row, `[users, any]`, in order: `[users, k]`, with `NOTHING` where there are fewer."""
    found = keys.shape[1]
    if found > k:
        keys = np.partition(keys, found - k, axis=1)[:, found - k :]
    best = np.sort(keys, axis=1)[:, ::-1]
    if found < k:
        best = np.pad(best, ((0, 0), (0, k - found)), constant_values=NOTHING)
    return best


def in_rows(keys: NDArray[np.int64], users: NDArray[Any], number: int) -> NDArray[np.int64]:
    """Keys of so many users, `[keys]`, as a table with a row for each, `[users, most]`, filled up with `NOTHING`.

    Args:
        keys: In the order of users.
        users: `[keys]`: whose each is.
        number: How many users there are.
    """
    lengths = np.bincount(users, minlength=number)
    table = np.full((number, int(lengths.max(initial=0))), NOTHING)
    places = np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    table[users, places] = keys
    return table


def best_of_all(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The keys of the best ``k`` of each row of scores, `[users, items]`: `[users, k]`."""
    number, items = scores.shape
    cells = np.flatnonzero(scores >= _bound(scores, k))
    users, which = np.divmod(cells, items)
    return best_keys(in_rows(keys_of(scores.reshape(-1)[cells], which), users, number), k)


def _bound(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """A score that at least ``k`` of each row reach, `[users, 1]`, and not many more.

    To find the k-th of all would take longer than all else. So items are put into groups, and it is the k-th of the
    groups' best: each of k groups has one that reaches it.
    """
    number, items = scores.shape
    groups = items // GROUP
    if groups < k:
        return np.partition(scores, items - k, axis=1)[:, items - k, None]
    best = scores[:, : groups * GROUP].reshape(number, GROUP, groups).max(1)
    return np.partition(best, groups - k, axis=1)[:, groups - k, None]
