"""Histories: each client's own training items, in the order of time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.data.lists import Lists
from cgfedrec.data.times import SECONDS_IN_A_DAY
from cgfedrec.random import mark


class History(NamedTuple):
    """What each client of a cohort has in training, and nothing of what is held out."""

    items: Tensor
    """`[clients, longest]`, int64: each client's items, the newest first; -1 behind those of shorter histories."""
    ages: Tensor
    """`[clients, longest]`, int64: how many of the client's items are newer; 0 everywhere where there are no times."""
    days: Tensor
    """`[clients, longest]`, float64: how many days ago each was; 0 everywhere where times tell no days."""

    @property
    def lengths(self) -> Tensor:
        """`[clients]`, int64: how many items each client has."""
        return self.items.ge(0).sum(1)

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """All items of all clients in one row: whose each is, which it is, and its age, `[entries]` each."""
        clients, places = self.items.ge(0).nonzero(as_tuple=True)
        return clients, self.items[clients, places], self.ages[clients, places]

    def entry_days(self) -> Tensor:
        """How many days ago each of `entries` was, `[entries]`, float64."""
        return self.days[self.items.ge(0)]

    def of(self, chosen: Tensor) -> History:
        """The histories of some of the clients, `[clients]`, bool."""
        return History(*(part[chosen] for part in self))


@dataclass(frozen=True)
class Histories:
    """All clients' training items, in the order of time.

    Args:
        train: The training items of each user.
        lateness: `[entries of train]` each: which item is later (`cgfedrec.data.split.lateness`); ``None`` where the
            data have no times. Equal times are ordered by the rule of the split, so that what is held out is always
            what would have come next.
        days: `[entries of train]`, float64: how many days ago each item was; ``None`` where times tell no days.
    """

    train: Lists
    lateness: list[NDArray[Any]] | None
    days: NDArray[np.float64] | None = None

    @property
    def when(self) -> NDArray[np.int64] | None:
        """When each entry was, `[entries of train]`, alike in whatever unit times are written; ``None`` without times.

        In whole seconds before the latest; where times tell no days, the place among all of them.
        """
        if self.lateness is None:
            return None
        if self.days is None:
            return np.unique(self.lateness[0], return_inverse=True)[1]
        return np.rint(self.days * SECONDS_IN_A_DAY).astype(np.int64)

    @cached_property
    def _places(self) -> Lists:
        """Where the entries of each user stand, the newest first."""
        # Made when it is first asked for: most methods never look at the order.
        starts, entries = self.train.starts, np.arange(len(self.train.items))
        if self.lateness is None:
            return Lists(starts, entries)
        users = np.repeat(np.arange(len(self.train.lengths)), self.train.lengths)
        # `lexsort` takes the most important key last. Backwards, so that the newest come first within a user; the users
        # are then in descending order, which their negative numbers undo.
        return Lists(starts, np.lexsort((*reversed(self.lateness), -users))[::-1])

    @property
    def mark(self) -> bytes:
        """What tells these histories from others of the same items: their order, and their days."""
        days = b"" if self.days is None else self.days.astype("<f8").tobytes()
        return mark(self._places.items.astype("<i8").tobytes(), days)

    def of(self, users: Tensor) -> History:
        """The histories of a cohort, `[clients]`."""
        places = self._places.padded(users.numpy(), -1)
        items = torch.from_numpy(np.where(places < 0, -1, self.train.items[places])).long()
        ages, days = torch.zeros_like(items), torch.zeros(items.shape, dtype=torch.float64)
        if self.lateness is not None:
            ages = torch.arange(items.shape[1]).expand_as(items)
        if self.days is not None:
            days = torch.from_numpy(np.where(places < 0, 0.0, self.days[places]))
        return History(items, ages, days)
