"""Popularity: everybody is shown what most users have."""

from __future__ import annotations

from torch import Tensor

from cgfedrec.data.module import FederatedDataModule


class Popularity:
    """Scores an item by the share of users who have it in training."""

    def fit(self, data: FederatedDataModule) -> Popularity:
        self.popularity = data.popularity
        return self

    def score(self, users: Tensor) -> Tensor:
        """`[users, items]`"""
        return self.popularity.expand(len(users), -1)
