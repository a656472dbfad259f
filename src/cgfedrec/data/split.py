"""Who is held out: each interaction is for training, validation or test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cgfedrec.data.interactions import Interactions, Numbers
from cgfedrec.random import Stream, bits

SplitName = Literal["leave_one_out", "random", "temporal", "rolling", "none"]
NEEDS_TIME = ("leave_one_out", "temporal", "rolling")
"""Splits for which interactions must have times."""


class Part(IntEnum):
    """What an interaction is for."""

    TRAIN = 0
    VAL = 1
    TEST = 2


def assign(
    data: Interactions, split: SplitName, ties: str, fractions: tuple[float, float], seed: int
) -> NDArray[np.int8]:
    """The `Part` of every interaction, `[interactions]`, int8.

    Args:
        data: Positive interactions, each user and item at most once together.
        split: ``leave_one_out``: a user's latest item is for test, the one before it for validation. ``random``: the
            same in an order drawn at random. ``temporal``: one cut in time for all. ``none``: all is training.
        ties: ``file_first`` or ``random``: which of two interactions of a user at the same time counts as later.
        fractions: For ``temporal``, the shares of all interactions that come before validation and before test.
        seed: Of everything random.

    Two users, of whom the first one's second interaction is the latest:

    >>> import polars as pl
    >>> users, items = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([2, 0, 3, 1, 0, 1, 2])
    >>> times = np.array([10, 40, 20, 30, 15, 25, 35])
    >>> ids = pl.Series(["ann", "bob"]), pl.Series(["a", "b", "c", "d"])
    >>> data = Interactions(*ids, users, items, times, positive=np.ones(7, bool))
    >>> assign(data, "leave_one_out", "file_first", (0.8, 0.9), seed=1)
    array([0, 2, 0, 1, 0, 1, 2], dtype=int8)
    >>> assign(data, "temporal", "file_first", (0.5, 0.95), seed=1)  # validation from 25, test from 40
    array([0, 2, 0, 1, 0, 1, 1], dtype=int8)
    """
    if split == "none":
        return np.zeros(len(data.users), np.int8)
    if split == "temporal":
        assert data.times is not None
        cuts = quantiles(data.times, fractions)
        return np.searchsorted(cuts, data.times, side="right").astype(np.int8)
    if split == "random":
        # One after the other, since two random numbers may be equal.
        drawn = bits(seed, Stream.SPLIT, data.users, _place_of_user(data.users))
        levels: list[NDArray[Any]] = [drawn, np.arange(len(data.users))]
    else:
        levels = lateness(data, ties, seed)
    parts = np.zeros(len(data.users), np.int8)
    left = data.order
    for part in (Part.TEST, Part.VAL):
        latest = latest_of_each(data.users[left], [level[left] for level in levels])
        parts[left[latest]] = part
        left = left[~latest]
    return parts


def lateness(data: Interactions, ties: str, seed: int) -> list[NDArray[Any]]:
    """What says which of a user's interactions is later: the first level, where that is equal the next, and so on.

    Args:
        data: With times.
        ties: As of `assign`.
        seed: As of `assign`.

    Returns:
        `[interactions]` each: the higher, the later. The last one tells all of a user's interactions apart.
    """
    assert data.times is not None
    if ties == "random":
        drawn = bits(seed, Stream.TIES, data.users, _place_of_user(data.users))
        return [data.times, drawn, np.arange(len(data.users))]  # two random numbers may be equal
    return [data.times, -np.arange(len(data.users))]  # the one that stands first in the file is the later one


def quantiles(times: NDArray[Any], fractions: Sequence[float]) -> NDArray[Any]:
    """The first times behind these shares of all interactions, `[fractions]`.

    They are times that occur in the data. The mean of two neighbours, as a quantile often is, would be rounded where
    times are large.
    """
    places = [math.ceil(round(fraction * (len(times) - 1), 6)) for fraction in fractions]
    return np.partition(times, places)[places]


def latest_of_each(users: NDArray[Any], levels: list[NDArray[Any]]) -> NDArray[np.bool_]:
    """Which of each user's interactions comes last: by the first level, where that is equal by the next, and so on.

    It narrows down the candidates level by level, for all users at once; to sort would take several times as long.

    Args:
        users: `[interactions]`, ascending.
        levels: `[interactions]` each; the last one tells all of a user's interactions apart.

    Returns:
        `[interactions]`, bool: one for each user.
    """
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    lengths = np.diff(starts, append=len(users))
    last = np.ones(len(users), bool)
    for level in levels:
        # What is no candidate any more gets a value that beats no other.
        lowest: float = -np.inf
        if level.dtype.kind in "iu":
            lowest = np.iinfo(level.dtype).min
        candidates = np.where(last, level, lowest)
        last &= candidates == np.repeat(np.maximum.reduceat(candidates, starts), lengths)
    return last


def _place_of_user(users: Numbers) -> NDArray[np.int64]:
    """How many interactions of the same user stand before each one, `[interactions]`."""
    order = users.argsort(kind="stable")
    places = np.empty(len(users), np.int64)
    places[order] = np.arange(len(users)) - np.searchsorted(users[order], users[order])
    return places
