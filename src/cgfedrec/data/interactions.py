"""Interactions: who touched what, and when, with users and items as numbers from 0."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_array

Numbers = NDArray[np.integer[Any]]
"""Numbers of users or items from 0, int32 or int64: whichever is enough."""
Times = NDArray[np.float64] | NDArray[np.int64]
"""Times of which only the order matters."""


@dataclass
class Interactions:
    """Who touched what, and when: no user and item twice, in the order of the file."""

    user_ids: pl.Series
    """Original id of each user number."""
    item_ids: pl.Series
    """Original id of each item number."""
    users: Numbers
    """`[interactions]`: the number of each one's user."""
    items: Numbers
    """`[interactions]`: the number of each one's item."""
    times: Times | None
    """`[interactions]`; only the order matters. ``None`` where the file has none."""
    positive: NDArray[np.bool_]
    """`[interactions]`: whether the rating reaches the threshold. The user knows the others, and trains on none."""
    report: dict[str, int] = field(default_factory=dict)
    """What was read and what was left out, counted."""
    order: Numbers = field(default_factory=lambda: np.empty(0, np.int32))
    """`[interactions]`: their places, sorted by user, and by item within a user.

    It is found once and then only thinned out, since nothing else here takes as long as sorting.
    """

    def __post_init__(self) -> None:
        if len(self.order) < len(self.users):
            self.order = by_user_and_item(self.users, self.items, len(self.user_ids), len(self.item_ids))

    def keep_users(self, keep: NDArray[np.bool_]) -> Interactions:
        """The interactions of some users, with users and the items that these touched numbered anew.

        Args:
            keep: `[users]`, bool.
        """
        if keep.all():
            return replace(self, report=dict(self.report))
        return self._kept(keep[self.users], keep)

    def keep_rows(self, rows: NDArray[np.bool_]) -> Interactions:
        """Some of the interactions, with the users and items that these have numbered anew.

        Args:
            rows: `[interactions]`, bool.
        """
        users = np.zeros(len(self.user_ids), bool)
        users[self.users[rows]] = True
        return self._kept(rows, users)

    def _kept(self, rows: NDArray[np.bool_], keep: NDArray[np.bool_]) -> Interactions:
        """These rows, `[interactions]`, all of users to keep, `[users]`."""
        kept_items = np.zeros(len(self.item_ids), bool)
        kept_items[self.items[rows]] = True
        return Interactions(
            self.user_ids.filter(pl.Series(keep)),
            self.item_ids.filter(pl.Series(kept_items)),
            renumbered(keep)[self.users[rows]],
            renumbered(kept_items)[self.items[rows]],
            self._times(rows),
            self.positive[rows],
            dict(self.report),
            # Those places that stay, in the order that they have, each as its place among those that stay.
            renumbered(rows)[self.order[rows[self.order]]],
        )

    def _times(self, chosen: NDArray[np.bool_]) -> Times | None:
        if self.times is None:
            return None
        return self.times[chosen]

    def with_ids(self, user_ids: pl.Series, item_ids: pl.Series) -> Interactions:
        """The same interactions, among these users and items too, of whom there may be none.

        Ids that are numbers on one side and text on the other are text in what is returned.
        """
        users, user_place = _united(self.user_ids, user_ids)
        items, item_place = _united(self.item_ids, item_ids)
        order = self.order
        if not all((place[1:] > place[:-1]).all() for place in (user_place, item_place)):
            order = np.empty(0, np.int32)  # found anew: as text, 10 comes before 9
        return replace(
            self,
            user_ids=users,
            item_ids=items,
            users=user_place[self.users].astype(self.users.dtype),
            items=item_place[self.items].astype(self.items.dtype),
            order=order,
        )

    def only_positive(self) -> Interactions:
        """The positive interactions, with the same numbers of users and items."""
        chosen = self.positive
        if chosen.all():
            return self
        return Interactions(
            self.user_ids,
            self.item_ids,
            self.users[chosen],
            self.items[chosen],
            self._times(chosen),
            chosen[chosen],
            dict(self.report),
            renumbered(chosen)[self.order[chosen[self.order]]],
        )


def _united(ids: pl.Series, others: pl.Series) -> tuple[pl.Series, NDArray[np.int64]]:
    """All ids in ascending order, and where those of the first series stand among them, `[ids]`."""
    if ids.dtype != others.dtype:
        ids, others = ids.cast(pl.String), others.cast(pl.String)
    both = pl.concat([ids, others]).unique().sort()
    return both, both.search_sorted(ids).to_numpy().astype(np.int64)


def renumbered(kept: NDArray[np.bool_]) -> Numbers:
    """The new number of each thing that is kept, `[things]`; of one that is not kept it says nothing."""
    numbers: Numbers = kept.cumsum(dtype=index_type(len(kept)))
    numbers -= 1
    return numbers


def index_type(number: int) -> type[np.int32 | np.int64]:
    """The smallest type of integers that can count ``number`` things: half the memory where there are few enough."""
    if number < 2**31:
        return np.int32
    return np.int64


def by_user_and_item(users: Numbers, items: Numbers, num_users: int, num_items: int) -> Numbers:
    """The places of interactions sorted by user, by item within a user, and as they stand where both are the same.

    Args:
        users: `[interactions]`, in [0, num_users).
        items: `[interactions]`, in [0, num_items).
        num_users: How many users there are.
        num_items: How many items there are.

    Returns:
        `[interactions]`
    """
    # A stable sort by the second key, and one by the first key after it.
    by_item = counted(items, num_items)
    order: Numbers = by_item[counted(users[by_item], num_users)]
    return order


def counted(numbers: Numbers, high: int) -> Numbers:
    """The places of numbers in ascending order, equal ones as they stand, `[numbers]`; in linear time.

    Think of a sparse matrix with a row for each number and a 1 in that number's column. Turned from rows into columns,
    it lists the rows column by column: first the places of all zeros, then those of all ones, and so on. SciPy does
    that by counting, which is several times as fast as a sort.

    Args:
        numbers: `[numbers]`, in [0, high).
        high: Above all of them.
    """
    starts = np.arange(len(numbers) + 1, dtype=index_type(len(numbers)))
    ones = np.ones(len(numbers), np.bool_)
    by_column: Numbers = csr_array((ones, numbers, starts), shape=(len(numbers), high)).tocsc().indices
    return by_column
