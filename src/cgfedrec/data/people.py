"""People: everybody of a file, those included who take no part, and what they have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.data.ids import places
from cgfedrec.data.interactions import Interactions
from cgfedrec.data.lists import Lists


@dataclass(frozen=True)
class People:
    """Everybody of a file.

    Args:
        ids: Their original ids, `[people]`.
        clients: `[people]`, int64: the number of each one's client; -1 for those who were dropped.
        items: Of the catalogue, what each of them has, whatever it was held out for, low ratings included.
        num_items: Of the catalogue.
    """

    ids: pl.Series
    clients: NDArray[np.int64]
    items: Lists
    num_items: int

    @classmethod
    def of(cls, read_in: Interactions, user_ids: pl.Series, item_ids: pl.Series) -> People:
        """Everybody of a file, of whom some take part, with ids of users and items of their own."""
        number = places(read_in.item_ids, item_ids)  # items of dropped users alone have left the catalogue
        users, items = read_in.users[read_in.order], read_in.items[read_in.order]
        found = number[items] >= 0
        owned = Lists.of(users[found], number.astype(items.dtype)[items[found]], len(read_in.user_ids))
        return cls(read_in.user_ids, places(read_in.user_ids, user_ids), owned, len(item_ids))

    def owned(self, people: NDArray[np.int64]) -> Tensor:
        """Every item that some of them have, `[people asked for, items]`, bool."""
        return torch.from_numpy(self.items.mask(people, self.num_items))
