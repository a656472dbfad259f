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

USERS_AT_ONCE = 256
"""Users for whom a row of all items exists at a time, where something is done for every user."""


class Flat(NamedTuple):
    """The lists of some users, one behind the other."""

    items: Numbers
    """`[entries]`"""
    row: NDArray[np.int64]
    """`[entries]`: whose list each item is from, counted from 0 among the users that were asked for."""
    place: NDArray[np.int64]
    """`[entries]`: where the item stands in that list, from 0."""


@dataclass(frozen=True)
class Pool:
    """The items that some users may be given: those outside each user's list, in ascending order.

    Args:
        cells: `[free]`, int64, one user behind the other. Item i of the user in row r is r * num_items + i. A search in
            a flat mask yields just these numbers, and to take them apart at once would cost as much again.
        sizes: `[users]`: how many items each user has to choose from.
        num_items: Of the catalogue.
    """

    cells: NDArray[np.int64]
    sizes: NDArray[np.int64]
    num_items: int

    def take(self, row: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
        """The items at some places of users' pools.

        Args:
            row: `[rows]`: whose pool, counted from 0 among the pool's users.
            place: `[rows, items]`, each from 0 to below the user's size.

        Returns:
            `[rows, items]`, int64.
        """
        starts = self.sizes.cumsum() - self.sizes
        items: NDArray[np.int64] = self.cells[starts[row][:, None] + place]
        items -= row[:, None] * self.num_items
        return items


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

    def outside(self, users: NDArray[np.int64], num_items: int) -> Pool:
        """What is in no list of ``users``: each user's own pool of the other items."""
        return Pool(np.flatnonzero(~self.mask(users, num_items)), num_items - self.lengths[users], num_items)


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
