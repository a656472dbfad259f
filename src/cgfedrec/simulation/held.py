"""Who has had what comes down once, so that it counts once."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

import torch
from torch import Tensor

from cgfedrec.wire.messages import Broadcast


class Held:
    """Which clients have had the welcome and each bulletin.

    Args:
        num_users: Of all clients.
        welcome: Its bytes.

    Attributes:
        masks: `[users]`, bool, by name.
    """

    def __init__(self, num_users: int, welcome: int) -> None:
        self.num_users = num_users
        self.welcome = welcome
        self.masks = {"welcome": torch.zeros(num_users, dtype=torch.bool)}
        self._lock = Lock()

    def newly(self, users: Tensor, broadcast: Broadcast | None) -> int:
        """The bytes of what each of ``users`` `[users]` downloads with a broadcast and has not had; now they have."""
        nbytes = 0
        with self._lock:
            for name, size in self._sizes(broadcast).items():
                held = self.masks.setdefault(name, torch.zeros(self.num_users, dtype=torch.bool))
                nbytes += int((~held[users]).sum()) * size
                held[users] = True
        return nbytes

    def all_of(self, broadcast: Broadcast | None) -> int:
        """The bytes of all that somebody must download who has had nothing."""
        return sum(self._sizes(broadcast).values())

    def _sizes(self, broadcast: Broadcast | None) -> dict[str, int]:
        bulletins = {} if broadcast is None else broadcast.kept
        return {"welcome": self.welcome} | {name: bulletin.nbytes for name, bulletin in bulletins.items()}

    def load(self, masks: Mapping[str, Tensor], at_home: Tensor) -> None:
        """Take over masks, which may hold anything, for clients `[users]`, bool.

        Raises:
            ValueError: if they are no such masks.
        """
        for name, users in masks.items():
            if type(name) is not str or users.dtype != torch.bool or users.shape != (self.num_users,):
                raise ValueError("who has had what came down is no mask of the users")
        self.masks |= {name: users & at_home for name, users in masks.items()}
