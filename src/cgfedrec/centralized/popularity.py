"""Popularity: everybody is shown what most users have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from cgfedrec.centralized.reference import Reference
from cgfedrec.data.module import FederatedDataModule


@dataclass(kw_only=True, eq=False)
class Popularity(Reference):
    """Scores an item by the share of users who have it in training."""

    def fit(self, data: FederatedDataModule) -> Self:
        self.popularity = data.popularity
        return self

    def score(self, users: Tensor) -> Tensor:
        # [items], the same row for every user
        return self.popularity.expand(len(users), -1)
