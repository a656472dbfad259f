"""The private state of all clients, loaded and saved a cohort at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgfedrec.client import Client


class ClientStore:
    """Holds every client's private tensors, a row each.

    A client that never took part has no row of its own: it still stands at the shared start. Memory for all rows is
    reserved but, on an ordinary operating system, only the rows written take any. A cohort whose rows lie next to each
    other is trained in place, without a copy.

    Args:
        order: All users, `[users]`; those next to each other have neighbouring rows.
    """

    def __init__(self, order: Tensor) -> None:
        self.num_users = len(order)
        self.order = order
        self.place = torch.empty_like(order)
        self.place[order] = torch.arange(self.num_users)
        self.known = torch.zeros(self.num_users, dtype=torch.bool)
        self.rows: dict[str, Tensor] = {}

    def load(self, client: Client, users: Tensor) -> None:
        """Make ``client`` the cohort ``users``, each as it was left, or at its start."""
        known = self.known[users]
        if known.all():
            where = self._where(users)
            private = {name: rows[where] for name, rows in self.rows.items()}
        else:
            private = client.start(users)
            for name, rows in self.rows.items():
                private[name][known] = rows[self.place[users[known]]]
        client.load(users, private)

    def save(self, client: Client) -> None:
        """Keep the cohort's private state."""
        where = self._where(client.users)
        for name, private in client.private().items():
            if name not in self.rows:
                self.rows[name] = torch.empty(self.num_users, *private.shape[1:], dtype=private.dtype)
            trained_in_place = isinstance(where, slice) and self.rows[name][where].data_ptr() == private.data_ptr()
            if not trained_in_place:
                self.rows[name][where] = private.cpu()
        self.known[client.users] = True

    def _where(self, users: Tensor) -> Tensor | slice:
        """The rows of some users: a slice where they are neighbours, in this order."""
        place = self.place[users]
        first = int(place[0])
        neighbours = place.equal(torch.arange(first, first + len(place)))
        return slice(first, first + len(place)) if neighbours else place

    def state_dict(self) -> dict[str, Any]:
        """The clients that took part, and their rows, not copied where all did."""
        written = self.known[self.order]
        rows = self.rows if written.all() else {name: rows[written] for name, rows in self.rows.items()}
        return {"users": self.order[written], "rows": dict(rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what `state_dict` returned; clients that it does not name are back at the start."""
        users = state["users"]
        self.known.zero_()
        self.known[users] = True
        self.rows = {}
        for name, saved in state["rows"].items():
            self.rows[name] = torch.empty(self.num_users, *saved.shape[1:], dtype=saved.dtype)
            self.rows[name][self.place[users]] = saved
