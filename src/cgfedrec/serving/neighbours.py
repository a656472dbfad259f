"""Neighbours of the items of a history, with weights: what CGFedCo sends down, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels import FEW
from cgfedrec.serving.container import Arrays
from cgfedrec.serving.readers import Entries, Ordered, Reader, blocks, check_vectors, most, number_of
from cgfedrec.serving.top import LAST, NOTHING, best_keys, in_rows, keys_of

PIECE = 16
"""Neighbours that are fetched together. Of 8, 16 and 32 it is the fastest on real lists, whose lengths differ."""
SPARSE = 50
"""How many times as long as an item takes among all it takes alone, where few of all are looked at. Measured."""

MANY = 2**23
"""Neighbours in all histories from which on a compiled loop is worth the half second that it takes to load."""


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
        # [items + 1]: where the pieces of each item's neighbours begin; [pieces, PIECE]: items and weights. What is
        # left of an item's last piece is item 0 with the weight 0, which adds nothing.
        lengths = np.diff(starts)
        pieces = -(-lengths // PIECE)
        self._pieces = np.append(0, np.cumsum(pieces))
        self._near = np.zeros((self._pieces[-1], PIECE), np.int32)
        self._weights = np.zeros((self._pieces[-1], PIECE), np.float32)
        places = np.arange(len(targets)) + np.repeat(self._pieces[:-1] * PIECE - starts[:-1], lengths)
        self._near.reshape(-1)[places] = targets
        self._weights.reshape(-1)[places] = weights
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
        check_vectors({**vectors, "starts": starts, "targets": targets}, starts=np.int64, targets=np.int32)
        agree = len(vectors["beside"]) == number == len(starts) - 1 and len(targets) == len(vectors["weights"])
        if not agree or starts[0] != 0 or starts[-1] != len(targets) or (np.diff(starts) < 0).any():
            raise ValueError("the neighbours are not those of so many items")
        if len(targets) and not 0 <= targets.min() <= targets.max() < number:
            raise ValueError("neighbours are no items")
        reading, decay = str(parameters["reading"]), number_of(parameters, "decay")
        return cls(starts, targets, **vectors, reading=reading, decay=decay)

    def only(self, items: NDArray[np.int64]) -> NeighbourReader:
        """The same for some of its items, `[kept]`, ascending, by their places there; the others are nobody's."""
        number = np.full(self.num_items, -1)
        number[items] = np.arange(len(items))
        sources = np.repeat(number, np.diff(self.starts))
        there = (sources >= 0) & (number[self.targets] >= 0)
        starts = np.append(0, np.bincount(sources[there], minlength=len(items)).cumsum())
        near = number[self.targets[there]].astype(np.int32), self.weights[there]
        beside = self.beside[items], self.popular[items]
        return NeighbourReader(starts, *near, *beside, self.reading, self.decay, self.buckets)

    def scores(self, history: Entries, number: int) -> NDArray[np.float32]:
        board = np.zeros((number, self.num_items), np.float32)
        np.add.at(board.reshape(-1), *self._terms(history))
        board += self.beside
        return board

    def adds(self, own: NDArray[np.int64], ages: NDArray[np.int64], shown: NDArray[np.int64]) -> NDArray[np.float32]:
        # Neighbours lie in order of item and target, so a pair has one place among them, if any.
        known = np.repeat(np.arange(self.num_items), np.diff(self.starts)) * self.num_items + self.targets
        pairs = own * self.num_items + shown
        places = np.minimum(np.searchsorted(known, pairs), max(len(known) - 1, 0))
        there = known[places] == pairs if len(known) else np.zeros(len(pairs), bool)
        found = np.zeros(len(pairs), np.float32)
        found[there] = self.counts(ages[there]) * self.weights[places[there]]
        return found

    def best(self, history: Entries, kept_out: Entries, number: int, k: int) -> NDArray[np.int64]:
        """As of any reader, by looking at those items alone that can be among the best.

        These are the neighbours of a history, and of all others the first by what everybody has beside. Nothing takes
        away from that: whoever stands behind k others there that may be shown stands behind them in the end.
        """
        terms = (self.starts[history.items + 1] - self.starts[history.items]).sum()
        if terms >= MANY and k <= FEW:
            return self._best_of_many(history, kept_out, number, k)
        if not self.only_adds or terms * SPARSE > number * self.num_items:
            return super().best(history, kept_out, number, k)
        parts = blocks(number, self.num_items)
        width = parts[0][1] * self.num_items
        board, mark = np.zeros(width, np.float32), np.full(width, -1, np.int32)
        found = []
        for start, end in parts:
            out = kept_out.of(start, end)
            first = self.by_beside.items[: k + most(out, end - start)]
            # 1. Sums over neighbours, one after another as a sparse product adds them up; and each cell once.
            cells, terms = self._terms(history.of(start, end))
            np.add.at(board, cells, terms)
            places = np.arange(len(cells), dtype=np.int32)
            mark[cells] = places
            cells_once = cells[mark[cells] == places]
            users, items = np.divmod(cells_once, self.num_items)
            hidden = out.users * self.num_items + out.items
            board[hidden] = -np.inf
            # 2. Their keys, in a table with a row for each user; and those of the first by what is beside.
            others = np.arange(end - start)[:, None] * self.num_items + first  # [users, first]
            new = mark[others] < 0
            keys = keys_of(board[cells_once] + self.beside[items], items)
            more = np.where(new, keys_of(board[others] + self.beside[first], first), NOTHING)
            found.append(best_keys(np.concatenate((in_rows(keys, users, end - start), more), axis=1), k))
            # 3. The board is clean again.
            board[cells] = board[hidden] = 0
            mark[cells] = -1
        return np.concatenate(found)

    def _best_of_many(self, history: Entries, kept_out: Entries, number: int, k: int) -> NDArray[np.int64]:
        """`best` by a compiled loop."""
        from cgfedrec.kernels import neighbours as kernel

        values, items = np.full((number, k), -np.inf, np.float32), np.full((number, k), LAST)
        bounds, hidden = (np.searchsorted(one.users, np.arange(number + 1)) for one in (history, kept_out))
        near = self.starts, self.targets, self.weights, self.beside, self.by_beside.items
        counts = self.counts(history.ages)
        kernel.best(*near, bounds, history.items, counts, hidden, kept_out.items, values, items)
        return keys_of(values, items)

    def _terms(self, history: Entries) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What each neighbour of each entry adds to which cell of a board `[users * items]`, `[terms]` each.

        A few of them add 0 to the first item of a user.
        """
        first = self._pieces[history.items]
        lengths = self._pieces[history.items + 1] - first
        rows = np.arange(lengths.sum()) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)
        cells = np.repeat(history.users * self.num_items, lengths)[:, None] + self._near[rows]  # [rows, PIECE]
        terms = self._weights[rows]
        terms *= np.repeat(self.counts(history.ages), lengths)[:, None]
        return cells.reshape(-1), terms.reshape(-1)

    def counts(self, ages: NDArray[np.int64]) -> NDArray[np.float32]:
        """What entries of these ages count, `[entries]`."""
        if self.buckets is None:
            return ((1.0 + ages) ** -self.decay).astype(np.float32)
        edges = 2 ** np.arange(len(self.buckets) - 1)
        return self.buckets[np.searchsorted(edges, ages, side="right")]
