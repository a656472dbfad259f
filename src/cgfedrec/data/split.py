"""Who is held out: each interaction is for training, validation or test."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cgfedrec.data.ratings import Interactions
from cgfedrec.random import Stream, bits

SplitName = Literal["leave_one_out", "random", "temporal", "none"]
NEEDS_TIME = ("leave_one_out", "temporal")


class Part(IntEnum):
    """What an interaction is for."""

    TRAIN = 0
    VAL = 1
    TEST = 2


def assign(
    data: Interactions, split: SplitName, ties: str, fractions: tuple[float, float], seed: int
) -> NDArray[np.int64]:
    """The `Part` of every interaction, `[interactions]`.

    Args:
        data: Positive interactions, each user and item at most once together.
        split: ``leave_one_out``: a user's latest item is for test, the one before it for validation. ``random``: the
            same in an order drawn at random. ``temporal``: one cut in time for all. ``none``: all is training.
        ties: ``file_first`` or ``random``: which of two interactions of a user at the same time counts as later.
        fractions: For ``temporal``, the shares of all interactions that come before validation and before test.
        seed: Of everything random.
    """
    parts = np.zeros(len(data.users), np.int64)
    if split == "temporal":
        assert data.times is not None
        cuts = np.quantile(data.times, fractions)
        return np.searchsorted(cuts, data.times, side="right").astype(np.int64)
    if split == "none":
        return parts
    rows = np.arange(len(data.users))
    drawn = bits(
        seed, Stream.TIES if split == "leave_one_out" else Stream.SPLIT, data.users, _place_of_user(data.users)
    )
    later = drawn if ties == "random" or split == "random" else -rows
    times = np.zeros(len(rows)) if split == "random" else data.times
    assert times is not None
    order = np.lexsort((later, times, data.users))
    ends = np.append(np.flatnonzero(np.diff(data.users[order])), len(order) - 1)
    parts[order[ends]] = Part.TEST
    parts[order[ends - 1]] = Part.VAL
    return parts


def _place_of_user(users: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same user's interactions stand before each, `[interactions]`."""
    order = users.argsort(kind="stable")
    places = np.empty(len(users), np.int64)
    places[order] = np.arange(len(users)) - np.searchsorted(users[order], users[order])
    return places
