"""The private state of all clients, loaded and saved a cohort at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgfedrec.client import Client


class ClientStore:
    """Holds every client's private tensors, row by row.

    A client that never took part has no rows of its own: it still stands at the shared start. Memory for all rows is
    reserved but, on an ordinary operating system, only the rows written take any.

    Args:
        num_users: How many clients there are.
    """

    def __init__(self, num_users: int) -> None:
        self.num_users = num_users
        self.known = torch.zeros(num_users, dtype=torch.bool)
        self.rows: dict[str, Tensor] = {}

    def load(self, client: Client, users: Tensor) -> None:
        """Make ``client`` the cohort ``users``, each as it was left, or at its start."""
        known = self.known[users]
        if known.all():
            private = {name: rows[users] for name, rows in self.rows.items()}
        else:
            private = client.start(users)
            for name, rows in self.rows.items():
                private[name][known] = rows[users[known]]
        client.load(users, private)

    def save(self, client: Client) -> None:
        """Keep the cohort's private state."""
        for name, private in client.private().items():
            if name not in self.rows:
                self.rows[name] = torch.empty(self.num_users, *private.shape[1:], dtype=private.dtype)
            self.rows[name][client.users] = private.cpu()
        self.known[client.users] = True

    def state_dict(self) -> dict[str, Any]:
        """The clients that took part, and their rows."""
        users = self.known.nonzero().squeeze(1)
        everyone = len(users) == self.num_users
        return {"users": users, "rows": {name: rows if everyone else rows[users] for name, rows in self.rows.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what `state_dict` returned; clients that it does not name are back at the start."""
        users = state["users"]
        self.known.zero_()
        self.known[users] = True
        self.rows = {}
        for name, saved in state["rows"].items():
            self.rows[name] = torch.empty(self.num_users, *saved.shape[1:], dtype=saved.dtype)
            self.rows[name][users] = saved
