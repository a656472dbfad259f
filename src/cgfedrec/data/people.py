"""People: everybody of a file, those included who take no part, and what they have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.data.ids import places
from cgfedrec.data.interactions import Interactions, renumbered
from cgfedrec.data.lists import Lists


@dataclass(frozen=True)
class People:
    """Everybody of a file.

    Args:
        ids: Their original ids, `[people]`.
        clients: `[people]`, int64: the number of each one's client; -1 for those who were dropped.
        items: Of the catalogue, what each of them has, whatever it was held out for, low ratings included.
        num_items: Of the catalogue.
        left: `[any]`, int64, ascending: items that the file does not have any more, where a run goes on with other
            data. Sums keep their places. Nobody is shown them, and no export names them.
    """

    ids: pl.Series
    clients: NDArray[np.int64]
    items: Lists
    num_items: int
    left: NDArray[np.int64]

    @classmethod
    def of(cls, read_in: Interactions, user_ids: pl.Series, item_ids: pl.Series, goes_on: bool = False) -> People:
        """Everybody of a file, of whom some take part, with ids of users and items of their own.

        Args:
            read_in: The file.
            user_ids: Of clients.
            item_ids: Of the catalogue.
            goes_on: Whether those who were there before are among them. Who has nothing now is gone, and only takes
                back what was added then.
        """
        number = places(read_in.item_ids, item_ids)  # items of dropped users alone have left the catalogue
        there, left = np.ones(len(read_in.user_ids), bool), np.empty(0, np.int64)
        if goes_on:
            there = np.bincount(read_in.users, minlength=len(there)) > 0  # [users]
            left = np.flatnonzero(places(item_ids, read_in.item_ids) < 0)
        ids, users = read_in.user_ids.filter(pl.Series(there)), renumbered(there)[read_in.users[read_in.order]]
        items = read_in.items[read_in.order]
        found = number[items] >= 0
        owned = Lists.of(users[found], number.astype(items.dtype)[items[found]], len(ids))
        return cls(ids, places(ids, user_ids), owned, len(item_ids), left)

    def kept_from(self, people: NDArray[np.int64]) -> Tensor:
        """What some of them are not to be shown: all that they have, and what has left, `[people asked for, items]`."""
        found = self.items.mask(people, self.num_items)
        found[:, self.left] = True
        return torch.from_numpy(found)
