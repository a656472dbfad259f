"""Clients' state in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgfedrec.simulation.store.base import ClientStore, parts, rows_of
from cgfedrec.simulation.store.rowfiles import Dtype, Rows, raw


class MemoryStore(ClientStore):
    """Keeps rows in memory, in the order in which clients first took part.

    The clients of a cohort are expected together, so their rows lie next to each other. Such a cohort is read as a view
    and trained in place: nothing is copied in or out.

    Args:
        order: As in `ClientStore`.
        example: As in `ClientStore`.
        dtype: As in `ClientStore`.
        folder: As in `ClientStore`.
        expected: For how many clients to reserve room at first. Most operating systems give memory only once it is
            written to, so a number that is too high costs nothing. If it is too low, all rows move to a larger place.
    """

    def __init__(
        self,
        order: Tensor,
        example: Mapping[str, Tensor],
        dtype: Dtype = "float32",
        folder: Path | None = None,
        expected: int = 0,
    ) -> None:
        super().__init__(order, example, dtype, folder)
        self._expected = expected
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.known.zero_()
        # [users]: each user's row, -1 where there is none. `owners` is the inverse, [rows]: each row's user.
        self.place = torch.full((self.num_users,), -1)
        self.owners = torch.empty(0, dtype=torch.int64)
        # [room, ...] of each tensor; the first len(owners) rows belong to somebody.
        self.rows = {name: torch.empty(0, *shape, dtype=self.dtypes[name]) for name, shape in self.shapes.items()}
        self._room = 0

    def expect(self, users: Tensor) -> None:
        """Give a row to each of ``users``, `[clients]`, who has none yet, in this order."""
        with self._lock:
            new = users[self.place[users] < 0]
            self.place[new] = torch.arange(len(self.owners), len(self.owners) + len(new))
            self.owners = torch.cat((self.owners, new))
            if len(self.owners) > self._room:
                self._grow()

    def _grow(self) -> None:
        kept = self._room
        # By half at least, so that a row is moved a few times at most however often the store grows.
        self._room = min(self.num_users, max(len(self.owners), self._expected, kept + kept // 2))
        for name, before in self.rows.items():
            self.rows[name] = torch.empty(self._room, *self.shapes[name], dtype=self.dtypes[name])
            self.rows[name][:kept] = before

    def read(self, users: Tensor) -> Rows:
        """The rows of ``users``, `[clients, ...]`; they are the store's own memory where they are neighbours."""
        where = self._where(users)
        return {name: rows[where] for name, rows in self.rows.items()}

    def write(self, users: Tensor, rows: Mapping[str, Tensor]) -> None:
        """As in `ClientStore`; rows that were trained in place are there already."""
        if (self.place[users] < 0).any():
            self.expect(users)
        where = self._where(users)
        for name, value in rows.items():
            # The same address means the same memory: the client holds what `read` gave it.
            trained_in_place = isinstance(where, slice) and self.rows[name][where].data_ptr() == value.data_ptr()
            if not trained_in_place:
                self.rows[name][where] = value.to("cpu", self.dtypes[name])

    def pin(self, name: str) -> None:
        """Nothing: a checkpoint holds the rows themselves."""

    def _where(self, users: Tensor) -> Tensor | slice:
        """The rows of some users: a slice if they are neighbours in this order, since a slice is read as a view."""
        place = self.place[users]
        first = int(place[0])
        if place.equal(torch.arange(first, first + len(place))):
            return slice(first, first + len(place))
        return place

    def state_dict(self) -> dict[str, Any]:
        """The users who took part, `[rows]`, and their rows, `[rows, ...]`.

        The rows are copied only if somebody was expected who never came.
        """
        written = self.known[self.owners]
        if written.all():
            rows = {name: _first(value, len(written)) for name, value in self.rows.items()}
        else:
            rows = {name: value[: len(written)][written] for name, value in self.rows.items()}
        return {"users": self.owners[written], "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in `ClientStore`."""
        self._check(state)
        users = state["users"]
        self._forget()
        self.expect(users)
        for part in parts(len(users)):
            self.write(users[part], rows_of(state, part, self._files))
        self.known[users] = True


def _first(rows: Tensor, number: int) -> Tensor:
    """The first ``number`` rows, in a tensor that owns no memory beyond them.

    A plain slice would still own the room that is reserved behind it, and torch saves all that a tensor owns: the
    checkpoint would hold empty rows.
    """
    if number == len(rows):
        return rows
    return torch.from_numpy(raw(rows[:number])).view(rows.dtype).view(number, *rows.shape[1:])
