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

from cgfedrec.serving.container import Arrays
from cgfedrec.serving.top import NOTHING, best_keys, best_of_all, in_rows, keys_of

CELLS = 2**19
"""Pairs of user and item whose scores are in memory at a time."""


SPARSE = 50
"""How many times as long as an item takes among all it takes alone, where few of all are looked at. Measured."""


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

    def best(self, history: Entries, kept_out: Entries, number: int, k: int) -> NDArray[np.int64]:
        """The keys of the best items for users who all have a history, `[users, k]` (`cgfedrec.serving.top`).

        Args:
            history: What they have.
            kept_out: What they are not to be shown.
            number: How many users there are.
            k: How many items for each.
        """
        found = []
        for start, end in _blocks(number, self.num_items):
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

    @classmethod
    def of(cls, scores: NDArray[np.float32]) -> Ordered:
        """Put `[items]` in order."""
        return cls(scores, np.argsort(-scores, kind="stable"))

    def best(self, kept_out: Entries, number: int, k: int) -> NDArray[np.int64]:
        """The keys of the best items for so many users without what each is not to be shown, `[users, k]`."""
        found = []
        for start, end in _blocks(number, k + _most(kept_out, number)):
            board, part = np.zeros((end - start, len(self.scores)), bool), kept_out.of(start, end)
            board[part.users, part.items] = True
            items = self.items[: k + _most(part, end - start)]
            keys = np.where(board[:, items], NOTHING, keys_of(self.scores[items], items))
            found.append(best_keys(keys, k))
        return np.concatenate(found)


class NeighbourReader(Reader):
    """Sums weights over neighbours in a history, and adds what is the same for everybody.

    An item i scores the sum over items j of the history of weight(j, i) times what j counts at its age, plus beside_i.

    Args:
        starts: `[items + 1]`, int64: where the neighbours of each item j begin.
        targets: `[neighbours]`, int32: the items i, ascending for each j.
        weights: `[neighbours]`, float32.
        beside: `[items]`, float32.
        popular: As of `Reader`.
        reading: As of `Reader`.
        decay: An item of age a counts (1 + a)^-decay.
        buckets: `[buckets]`, float32, in place of that: what an item counts by its age, 0, 1, 2-3, 4-7, and so on.
    """

    kind = "neighbours"

    def __init__(
        self,
        starts: NDArray[np.int64],
        targets: NDArray[np.int32],
        weights: NDArray[np.float32],
        beside: NDArray[np.float32],
        popular: NDArray[np.float32],
        reading: str,
        decay: float = 0.0,
        buckets: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__(popular, reading)
        self.starts, self.targets, self.weights, self.beside = starts, targets, weights, beside
        self.decay, self.buckets = decay, buckets
        self.by_beside = Ordered.of(beside)
        # Then an item scores at least what it has beside, which `best` makes use of.
        self.only_adds = not (weights < 0).any() and (buckets is None or not (buckets < 0).any())

    def parameters(self) -> dict[str, Any]:
        return {"reading": self.reading, "decay": self.decay}

    def arrays(self) -> dict[str, NDArray[Any]]:
        parts: dict[str, NDArray[Any]] = {
            name: getattr(self, name) for name in ("starts", "targets", "weights", "beside", "popular")
        }
        if self.buckets is not None:
            parts["buckets"] = self.buckets
        return parts

    @classmethod
    def of(cls, parameters: Mapping[str, Any], arrays: Arrays) -> NeighbourReader:
        starts, targets = arrays["starts"], arrays["targets"]
        vectors = {name: arrays[name] for name in ("weights", "beside", "popular", "buckets") if name in arrays}
        number = len(vectors["popular"])
        _check_vectors({**vectors, "starts": starts, "targets": targets}, starts=np.int64, targets=np.int32)
        agree = len(vectors["beside"]) == number == len(starts) - 1 and len(targets) == len(vectors["weights"])
        if not agree or starts[0] != 0 or starts[-1] != len(targets) or (np.diff(starts) < 0).any():
            raise ValueError("the neighbours are not those of so many items")
        if len(targets) and not 0 <= targets.min() <= targets.max() < number:
            raise ValueError("neighbours are no items")
        reading, decay = str(parameters["reading"]), float(parameters["decay"])
        return cls(starts, targets, **vectors, reading=reading, decay=decay)

    def scores(self, history: Entries, number: int) -> NDArray[np.float32]:
        board = np.zeros((number, self.num_items), np.float32)
        users, items, terms = self._terms(history)
        np.add.at(board.reshape(-1), users * self.num_items + items, terms)
        board += self.beside
        return board

    def best(self, history: Entries, kept_out: Entries, number: int, k: int) -> NDArray[np.int64]:
        """As of any reader, by looking at those items alone that can be among the best.

        These are the neighbours of a history, and of all others the first by what everybody has beside. Nothing takes
        away from that: whoever stands behind k others there that may be shown stands behind them in the end.
        """
        terms = (self.starts[history.items + 1] - self.starts[history.items]).sum()
        if not self.only_adds or terms * SPARSE > number * self.num_items:
            return super().best(history, kept_out, number, k)
        blocks = _blocks(number, self.num_items)
        width = blocks[0][1] * self.num_items
        board, mark = np.zeros(width, np.float32), np.full(width, -1, np.int32)
        found = []
        for start, end in blocks:
            out = kept_out.of(start, end)
            first = self.by_beside.items[: k + _most(out, end - start)]
            # 1. Sums over neighbours, one after another as a sparse product adds them up; and each cell once.
            users, items, terms = self._terms(history.of(start, end))
            cells = users * self.num_items + items
            np.add.at(board, cells, terms)
            places = np.arange(len(cells), dtype=np.int32)
            mark[cells] = places
            once = mark[cells] == places
            users, items = users[once], items[once]
            hidden = out.users * self.num_items + out.items
            board[hidden] = -np.inf
            # 2. Their keys, in a table with a row for each user; and those of the first by what is beside.
            others = np.arange(end - start)[:, None] * self.num_items + first  # [users, first]
            new = mark[others] < 0
            keys = keys_of(board[cells[once]] + self.beside[items], items)
            more = np.where(new, keys_of(board[others] + self.beside[first], first), NOTHING)
            found.append(best_keys(np.concatenate((in_rows(keys, users, end - start), more), axis=1), k))
            # 3. The board is clean again.
            board[cells] = board[hidden] = 0
            mark[cells] = -1
        return np.concatenate(found)

    def _terms(self, history: Entries) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """What each neighbour of each entry adds for whom to which item: users, items and numbers, `[terms]` each."""
        first = self.starts[history.items]
        lengths = self.starts[history.items + 1] - first
        places = np.arange(lengths.sum()) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)
        counts = np.repeat(self._counts(history.ages), lengths)
        return np.repeat(history.users, lengths), self.targets[places], counts * self.weights[places]

    def _counts(self, ages: NDArray[np.int64]) -> NDArray[np.float32]:
        """What entries of these ages count, `[entries]`."""
        if self.buckets is None:
            return ((1.0 + ages) ** -self.decay).astype(np.float32)
        edges = 2 ** np.arange(len(self.buckets) - 1)
        return self.buckets[np.searchsorted(edges, ages, side="right")]


class FilterReader(Reader):
    """Sends a history through a low-pass filter (`cgfedrec.methods.fedgf`): x V E V^T + alpha x D^-1/2 V V^T D^1/2.

    Args:
        basis: V, `[items, rank]`, float32.
        spectrum: E, `[rank]`, float32.
        counts: D, `[items]`, float32: how many clients have each item. It says what is popular.
        alpha: Weight of the ideal filter.
        least: An item that fewer clients have takes no part in that.
    """

    kind = "filter"

    def __init__(
        self,
        basis: NDArray[np.float32],
        spectrum: NDArray[np.float32],
        counts: NDArray[np.float32],
        alpha: float,
        least: float,
    ) -> None:
        super().__init__(counts, f"alpha {alpha:g}")
        self.basis, self.spectrum, self.alpha, self.least = basis, spectrum, alpha, least
        counted = counts.astype(np.float64)
        self._roots = np.sqrt(counted)
        self._inverse = np.where(counts < least, 0, 1 / np.maximum(self._roots, 1e-300))
        self._basis = basis.astype(np.float64)

    def parameters(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "least": self.least}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"basis": self.basis, "spectrum": self.spectrum, "counts": self.popular}

    @classmethod
    def of(cls, parameters: Mapping[str, Any], arrays: Arrays) -> FilterReader:
        basis, spectrum, counts = (arrays[name] for name in ("basis", "spectrum", "counts"))
        _check_vectors({"basis": basis.reshape(-1), "spectrum": spectrum, "counts": counts})
        if basis.shape != (len(counts), len(spectrum)) or (counts < 0).any():
            raise ValueError("the basis is not one of so many items")
        return cls(basis, spectrum, counts, float(parameters["alpha"]), float(parameters["least"]))

    def scores(self, history: Entries, number: int) -> NDArray[np.float32]:
        linear, ideal = np.zeros((2, number, len(self.spectrum)))
        rows = self._basis[history.items]
        np.add.at(linear, history.users, rows)
        np.add.at(ideal, history.users, self._inverse[history.items, None] * rows)
        together = linear * self.spectrum @ self._basis.T + self.alpha * (ideal @ self._basis.T * self._roots)
        return together.astype(np.float32)


READERS: Mapping[str, type[Reader]] = {one.kind: one for one in (NeighbourReader, FilterReader)}
"""By kind."""


def _check_vectors(arrays: Arrays, **others: type) -> None:
    """Refuse what is no vector `[...]` of finite float32, or of another type that is named."""
    for name, one in arrays.items():
        kind = np.dtype(others.get(name, np.float32))
        if one.ndim != 1 or one.dtype != kind or not np.isfinite(one).all():
            raise ValueError(f"{name} is no vector of finite {kind}")


def _most(entries: Entries, number: int) -> int:
    """How many entries one of so many users has at most."""
    if not len(entries.users):
        return 0
    return int(np.bincount(entries.users, minlength=number).max())


def _blocks(number: int, cells: int) -> list[tuple[int, int]]:
    """So many users in blocks, from where to before where, of `CELLS` in all if each takes so many."""
    size = max(1, CELLS // max(1, cells))
    return [(start, min(start + size, number)) for start in range(0, number, size)]
