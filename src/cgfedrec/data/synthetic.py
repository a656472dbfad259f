"""The embedded data set: interactions drawn from planted item groups.

Every item belongs to one of ``groups`` groups of equal size, in an order that its number does not reveal. Every user
favours ``tastes`` groups, with shares that fall off by half from one to the next. A user's next item comes from a
favoured group with probability ``focus`` and from the whole catalogue otherwise; within either, items are drawn in
proportion to their popularity, which follows a power law, rank^(-skew), over the whole catalogue. A user takes each
item at most once. Numbers of interactions are log-normal around ``interactions``, at least 5 and at most half the
catalogue. Users arrive over a month, and between two interactions of a user lie exponential gaps of three days on
average; timestamps are whole seconds.

With ``drift`` above 0 what is popular changes. Every item has a peak of its own, uniform within a season of 120 days
and again in each season after; at a time t its popularity is rank^(-skew) exp(2 drift cos(2 pi (t - peak) / season)).
Popularity within a group and over the catalogue both follow it; the groups, their items and the tastes of users stay,
and so do numbers and times of interactions. Time is cut into windows of five days. What a user takes in a window is
drawn by what is popular in its middle, without what the user has already; so drawing takes as many times as long as
there are windows in a user's time, some fifteen. Who knows what others took of late then knows more than who knows all
that they ever took.

What a recommender can find here is the groups: who knows them knows the user's next item up to its group and
popularity. It is made to show the effect of structure clearly, and is no model of any real catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cgfedrec.data.interactions import Interactions
from cgfedrec.errors import check, no_count, not_between
from cgfedrec.random import Stream, bits, normal, uniform

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Goes through the parts of a long task and tells the user how far it is; the text says what is being done."""
FEWEST = 5
"""Interactions that every user has at least."""
DRAWN_AT_ONCE = 4_000_000
"""Pairs of user and item for which preferences are in memory at a time."""
_DAY = 86_400
_ARRIVAL, _GAP = 30 * _DAY, 3 * _DAY
_SEASON, _WINDOW = 120 * _DAY, 5 * _DAY


def untold(parts: Sequence[Any], what: str) -> Iterable[Any]:
    """A `Track` that tells nothing."""
    return parts


@dataclass(frozen=True)
class Synthetic:
    """The embedded data set; `cgfedrec.data.synthetic` describes how it is drawn.

    Args:
        users: Number of users.
        items: Number of items.
        groups: Number of planted item groups.
        tastes: How many groups a user favours.
        focus: Probability that an interaction comes from a favoured group.
        skew: Exponent of the popularity power law; 0 makes all items alike.
        interactions: Median number of interactions of a user.
        seed: Of the generator; by default ``seed_everything``.
        drift: How strongly the popularity of each item rises and falls within a season of 120 days; at 0 it stays.
    """

    users: int = 600
    items: int = 200
    groups: int = 10
    tastes: int = 2
    focus: float = 0.9
    skew: float = 0.4
    interactions: int = 20
    seed: int | None = None
    drift: float = 0.0

    def __post_init__(self) -> None:
        check(*self._problems())

    def _problems(self) -> Iterator[str | None]:
        yield no_count("data.synthetic.users", self.users, most=2**24)
        yield no_count("data.synthetic.items", self.items, most=2**24)
        if not 1 <= self.groups <= self.items:
            yield f"data.synthetic.groups: {self.groups} must be from 1 to items ({self.items})"
        if not 1 <= self.tastes <= self.groups:
            yield f"data.synthetic.tastes: {self.tastes} must be from 1 to groups ({self.groups})"
        yield not_between("data.synthetic.focus", self.focus, 0, 1)
        yield not_between("data.synthetic.skew", self.skew, 0, 10)
        yield no_count("data.synthetic.seed", self.seed, 0, 2**63 - 1, or_none=True)
        yield not_between("data.synthetic.drift", self.drift, 0, 10)
        if not FEWEST <= self.interactions <= self.items // 2:
            yield (
                f"data.synthetic.interactions: {self.interactions} must be from {FEWEST} to half of items "
                f"({self.items})"
            )

    def item_groups(self, seed: int) -> NDArray[np.int64]:
        """The planted group of every item, `[items]`, int64.

        Args:
            seed: Of the run; it counts where this data set has no seed of its own.
        """
        shuffled = bits(self._seed(seed), Stream.SYNTHETIC, 0, np.arange(self.items)).argsort()
        groups = np.empty(self.items, np.int64)
        groups[shuffled] = np.arange(self.items) % self.groups
        return groups

    def draw(self, seed: int, track: Track = untold) -> Interactions:
        """Draw the interactions of all users, some users at a time.

        Args:
            seed: Of the run; it counts where this data set has no seed of its own.
            track: Tells how many users are done.
        """
        seed = self._seed(seed)
        counts = self._counts(seed)
        parts = np.array_split(np.arange(self.users), -(-self.users * self.items // DRAWN_AT_ONCE))
        told = track(parts, f"drawing embedded data, {self.users:,} users x {self.items:,} items")
        drawn = [self._draw(seed, users, counts[users]) for users in told]
        items, times = (np.concatenate(values) for values in zip(*drawn, strict=True))
        everything = Interactions(
            pl.Series(range(1, self.users + 1)),
            pl.Series(range(1, self.items + 1)),
            np.repeat(np.arange(self.users), counts),
            items,
            times,
            np.ones(len(items), bool),
            {"rows": len(items)},
        )
        return everything.keep_users(np.ones(self.users, bool))

    def _draw(
        self, seed: int, users: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Items and times of some users, `[interactions]` each, one user after another.

        Args:
            seed: Of every draw.
            users: `[users]`
            counts: `[users]`: how many interactions each has.
        """
        # All users draw as many items as the one with the most; what is too many is dropped at the end.
        users, most = users[:, None], int(counts.max())
        gaps = -np.log(uniform(seed, Stream.SYNTHETIC, 5, users, np.arange(most))) * _GAP
        arrival = uniform(seed, Stream.SYNTHETIC, 6, users) * _ARRIVAL
        times = (arrival + gaps.cumsum(1)).astype(np.int64)
        taken = np.arange(most) < counts[:, None]
        if self.drift:
            return self._drifting(seed, users, np.where(taken, times // _WINDOW, -1))[taken], times[taken]
        noise = uniform(seed, Stream.SYNTHETIC, 3, users, np.arange(self.items))
        return _order(self._preferences(seed, users, self._popularity(seed)), noise, most)[taken], times[taken]

    def _drifting(self, seed: int, users: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Items of some users, window by window, each by what is popular in it, `[users, most]`.

        Args:
            seed: Of every draw.
            users: `[users, 1]`
            windows: `[users, most]`: in which each interaction lies, ascending; -1 for those that are too many.
        """
        items = np.zeros_like(windows)
        had = np.zeros((len(users), self.items), bool)
        for window in np.unique(windows[windows >= 0]):
            here = windows == window  # [users, most]
            active = here.any(1).nonzero()[0]
            counts = here[active].sum(1)
            popularity = self._popularity(seed, (window + 0.5) * _WINDOW)
            preferences = self._preferences(seed, users[active], popularity)
            noise = uniform(seed, Stream.SYNTHETIC, 8, users[active], np.arange(self.items), window)
            preferences[had[active]] = 0
            order = _order(preferences, noise, int(counts.max()))
            rows, places = (np.arange(order.shape[1]) < counts[:, None]).nonzero()
            items[here] = order[rows, places]
            had[active[rows], order[rows, places]] = True
        return items

    def _seed(self, seed: int) -> int:
        if self.seed is None:
            return seed
        return self.seed

    def _popularity(self, seed: int, time: float | None = None) -> NDArray[np.float64]:
        """How popular each item is, `[items]`, at a time, in seconds, or without any drift."""
        # The rank of a random number among all: a permutation of 1 to items.
        ranks = bits(seed, Stream.SYNTHETIC, 1, np.arange(self.items)).argsort().argsort() + 1.0
        popularity = np.asarray(ranks**-self.skew, np.float64)
        if time is None:
            return popularity
        peaks = uniform(seed, Stream.SYNTHETIC, 7, np.arange(self.items))  # in seasons
        popularity *= np.exp(2 * self.drift * np.cos(2 * np.pi * (time / _SEASON - peaks)))
        return popularity

    def _preferences(self, seed: int, users: NDArray[np.int64], popularity: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability with which each user would draw each item first, `[users, items]`.

        Args:
            seed: Of every draw.
            users: `[users, 1]`
            popularity: `[items]`
        """
        groups = self.item_groups(seed)
        favoured = bits(seed, Stream.SYNTHETIC, 2, users, np.arange(self.groups)).argsort(1)
        shares = np.zeros((len(users), self.groups))
        halves = 0.5 ** np.arange(self.tastes)
        np.put_along_axis(shares, favoured[:, : self.tastes], halves / halves.sum(), axis=1)
        # Each item's share of its own group's popularity, [items].
        in_group = popularity / np.bincount(groups, popularity)[groups]
        # A little is left to the whole catalogue even where focus is 1, or logarithms would be infinite.
        preferences: NDArray[np.float64] = (
            self.focus * shares[:, groups] * in_group + (1 - self.focus + 1e-9) * popularity / popularity.sum()
        )
        return preferences

    def _counts(self, seed: int) -> NDArray[np.int64]:
        """How many interactions each user has, `[users]`."""
        drawn = normal(seed, Stream.SYNTHETIC, 4, np.arange(self.users))
        counts: NDArray[np.float64] = np.clip(self.interactions * np.exp(0.5 * drawn), FEWEST, self.items // 2)
        return counts.astype(np.int64)


def _order(preferences: NDArray[np.float64], uniform: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Draw one item after another, each in proportion to its preference, without putting any back, `[users, most]`.

    Args:
        preferences: `[users, items]`; those with 0 are never drawn.
        uniform: `[users, items]`: random numbers.
        most: How many to draw.
    """
    # To add Gumbel noise to the logarithms of preferences and to sort is to draw so. [users, items], lowest first.
    with np.errstate(divide="ignore"):
        scores = -np.log(preferences) + np.log(-np.log(uniform))
    chosen = np.argpartition(scores, most - 1, axis=1)[:, :most]
    within = np.take_along_axis(scores, chosen, 1).argsort(1)
    order: NDArray[np.int64] = np.take_along_axis(chosen, within, 1)
    return order
