"""Readers: what a client scores with that came down to everybody, in plain arrays, for histories of anybody.

A reader is made by a client that serves newcomers (`cgfedrec.client.Client.reader`), written into an export, and read
from it where there is no torch. It gives the scores that the client would give, in the same float32 arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cgfedrec.errors import not_between
from cgfedrec.serving.container import Arrays
from cgfedrec.serving.top import NOTHING, best_keys, best_of_all, keys_of

CELLS = 2**19
"""Pairs of user and item whose scores are in memory at a time."""


class Entries(NamedTuple):
    """Items of some users, in order of users and, within a user, of items; `[entries]` each."""

    users: NDArray[np.int64]
    """Whose each is, from 0."""
    items: NDArray[np.int64]
    ages: NDArray[np.int64]
    """How many of the user's items are newer; 0 everywhere where there is no order."""

    def of(self, start: int, end: int) -> Entries:
        """Those of the users from ``start`` to before ``end``, numbered from 0."""
        first, last = np.searchsorted(self.users, (start, end))
        return Entries(self.users[first:last] - start, self.items[first:last], self.ages[first:last])


class Reader(ABC):
    """Scores all items by histories.

    Args:
        popular: `[items]`, float32: how popular each item is now. It is what somebody without any history sees.
        reading: How it reads, in a word or two.
    """

    kind: ClassVar[str]
    """By which an export names it."""

    def __init__(self, popular: NDArray[np.float32], reading: str) -> None:
        self.popular, self.reading = popular, reading
        self.by_popularity = Ordered.of(popular)

    @property
    def num_items(self) -> int:
        """Of the catalogue."""
        return len(self.popular)

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The plain values that an export keeps of it, beside `arrays`."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that an export keeps of it, `[...]` each by name."""

    @classmethod
    @abstractmethod
    def of(cls, parameters: Mapping[str, Any], arrays: Arrays) -> Reader:
        """Read from an export. Raises ``ValueError``, ``KeyError`` or ``TypeError`` where that holds another thing."""

    @abstractmethod
    def scores(self, history: Entries, number: int) -> NDArray[np.float32]:
        """Scores of all items for so many users, `[users, items]`."""

    @abstractmethod
    def adds(self, own: NDArray[np.int64], ages: NDArray[np.int64], shown: NDArray[np.int64]) -> NDArray[np.float32]:
        """What an item of a history adds to the score of another one, `[pairs]`.

        Args:
            own: `[pairs]`: the item of the history.
            ages: `[pairs]`: its age, as of `Entries`.
            shown: `[pairs]`: the other one.
        """

    def best(self, history: Entries, kept_out: Entries, number: int, k: int) -> NDArray[np.int64]:
        """The keys of the best items for users who all have a history, `[users, k]` (`cgfedrec.serving.top`).

        Args:
            history: What they have.
            kept_out: What they are not to be shown.
            number: How many users there are.
            k: How many items for each.
        """
        found = []
        for start, end in blocks(number, self.num_items):
            out = kept_out.of(start, end)
            scores = self.scores(history.of(start, end), end - start)
            scores[out.users, out.items] = -np.inf
            found.append(best_of_all(scores, k))
        return np.concatenate(found)


class Ordered(NamedTuple):
    """Items in the order of some scores that are the same for everybody."""

    scores: NDArray[np.float32]
    """`[items]`"""
    items: NDArray[np.int64]
    """`[items]`: the best first, equals by their number."""
    places: NDArray[np.int64]
    """`[items]`: where each item stands among these."""

    @classmethod
    def of(cls, scores: NDArray[np.float32]) -> Ordered:
        """Put `[items]` in order."""
        items = np.argsort(-scores, kind="stable")
        places = np.empty_like(items)
        places[items] = np.arange(len(items))
        return cls(scores, items, places)

    def best(self, kept_out: Entries, number: int, k: int) -> NDArray[np.int64]:
        """The keys of the best items for so many users without what each is not to be shown, `[users, k]`."""
        found = []
        for start, end in blocks(number, k + most(kept_out, number)):
            part = kept_out.of(start, end)
            items = self.items[: k + most(part, end - start)]
            keys = np.tile(keys_of(self.scores[items], items), (end - start, 1))  # [users, first]
            places = self.places[part.items]
            among = places < len(items)
            keys[part.users[among], places[among]] = NOTHING
            found.append(best_keys(keys, k))
        return np.concatenate(found)


def check_vectors(arrays: Arrays, **others: type) -> None:
    """Refuse what is no vector `[...]` of finite float32, or of another type that is named."""
    for name, one in arrays.items():
        kind = np.dtype(others.get(name, np.float32))
        if one.ndim != 1 or one.dtype != kind or not np.isfinite(one).all():
            raise ValueError(f"{name} is no vector of finite {kind}")


def number_of(parameters: Mapping[str, Any], name: str) -> float:
    """A number that is computed with, from 0. Raises ``ValueError`` for another, NaN included, and for what is none."""
    if problem := not_between(name, parameters[name], 0):
        raise ValueError(problem)
    return float(parameters[name])


def most(entries: Entries, number: int) -> int:
    """How many entries one of so many users has at most."""
    if not len(entries.users):
        return 0
    return int(np.bincount(entries.users, minlength=number).max())


def blocks(number: int, cells: int) -> list[tuple[int, int]]:
    """So many users in blocks, from where to before where, of `CELLS` in all if each takes so many."""
    size = max(1, CELLS // max(1, cells))
    return [(start, min(start + size, number)) for start in range(0, number, size)]
