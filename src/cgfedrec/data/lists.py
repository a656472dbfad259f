"""A list of items for each user, and what is looked up in many lists at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cgfedrec.data.interactions import Numbers


class Flat(NamedTuple):
    """The lists of some users, one behind the other."""

    items: Numbers
    """`[entries]`"""
    row: NDArray[np.int64]
    """`[entries]`: whose list each item is from, counted from 0 among the users that were asked for."""
    place: NDArray[np.int64]
    """`[entries]`: where the item stands in that list, from 0."""


@dataclass(frozen=True)
class Lists:
    """A list of items for each user, as compressed sparse rows.

    Args:
        starts: `[users + 1]`: the list of user u is ``items[starts[u] : starts[u + 1]]``.
        items: `[entries]`, ascending within each list.
    """

    starts: NDArray[np.int64]
    items: Numbers

    @classmethod
    def of(cls, users: Numbers, items: Numbers, num_users: int) -> Lists:
        """The lists of interactions that are in ascending order of users, and of items within a user.

        Args:
            users: `[interactions]`
            items: `[interactions]`
            num_users: How many lists there are; a user without interactions has an empty one.
        """
        return cls(np.append(0, np.bincount(users, minlength=num_users).cumsum()), items)

    @cached_property  # of all users, and asked for with every cohort
    def lengths(self) -> NDArray[np.int64]:
        """`[users]`: how many items each list has."""
        return np.diff(self.starts)

    @cached_property
    def ascend(self) -> bool:
        """Whether every list does, and has no item twice."""
        rises = self.items[1:] > self.items[:-1]
        begins = self.starts[(self.starts > 0) & (self.starts < len(self.items))]
        rises[begins - 1] = True  # from one list to the next
        return bool(rises.all())

    def flat(self, users: NDArray[np.int64]) -> Flat:
        """The lists of ``users``, `[rows]`, one behind the other."""
        lengths = self.lengths[users]
        row = np.repeat(np.arange(len(users)), lengths)
        # Count through all entries, and begin again at 0 where a list begins.
        place = np.arange(len(row)) - (lengths.cumsum() - lengths)[row]
        return Flat(self.items[self.starts[users][row] + place], row, place)

    def padded(self, users: NDArray[np.int64], fill: int) -> NDArray[np.int64]:
        """The lists of ``users`` as rows, `[users, longest]`; ``fill`` stands behind those that are shorter."""
        items, row, place = self.flat(users)
        rows = np.full((len(users), self.lengths[users].max(initial=0)), fill)
        rows[row, place] = items
        return rows

    def mask(self, users: NDArray[np.int64], num_items: int) -> NDArray[np.bool_]:
        """`[users, items]`: True where an item is in the user's list."""
        items, row, _ = self.flat(users)
        marked = np.zeros((len(users), num_items), bool)
        marked[row, items] = True
        return marked

    def drawn_outside(
        self, users: NDArray[np.int64], states: NDArray[np.uint64], times: NDArray[np.int64], number: int, high: int
    ) -> NDArray[np.int64]:
        """Draw items that are in no list of their users: different ones each time, every set equally likely.

        Args:
            users: `[rows]`
            states: `[rows]`: `cgfedrec.random.bits` of what a row's draws hang on beside their number.
            times: `[rows]`: how often something is drawn.
            number: How many items each time.
            high: How many items there are.

        Returns:
            `[sum of times, number]`

        Raises:
            ValueError: where fewer are in no list, and for lists that do not ascend.
        """
        from cgfedrec.kernels import draws  # here, since numba takes half a second, and most commands draw nothing

        if (times[high - self.lengths[users] < number] > 0).any():
            raise ValueError(f"some users have fewer than {number} items outside their lists")
        if not self.ascend:
            raise ValueError("some lists of items do not ascend, or have an item twice")
        items = np.empty((times.sum(), number), np.int64)
        draws.outside(self.starts, self.items, users, states, times, high, items)
        return items


def fingerprint(parts: Iterable[Lists], ids: Iterable[pl.Series], when: NDArray[np.int64] | None) -> str:
    """A hash of lists, of the ids of who and what they are about, and of when, `[entries]`, where that is known."""
    digest = hashlib.sha256()
    for lists in parts:
        digest.update(lists.starts.astype("<i8").data)
        digest.update(lists.items.astype("<i8").data)
    for some in ids:
        digest.update("\n".join(map(str, some)).encode())
    if when is not None:
        digest.update(when.astype("<i8").data)
    return digest.hexdigest()
