"""Popularity: everybody is shown what most users have, or have had of late."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from cgfedrec.centralized.reference import Reference
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import check
from cgfedrec.forgetting import HalfLife, days_untold, fixed, half_lives, kept, not_half_life


@dataclass(kw_only=True, eq=False)
class Popularity(Reference):
    """Scores an item by the share of users who have it in training, or have had it of late."""

    half_life: HalfLife = None
    """Days after which an interaction counts half; ``null``: it always counts. ``chosen``: the earlier cuts of a
    rolling evaluation choose it; elsewhere it is ``null``."""

    def problems(self) -> Iterator[str | None]:
        yield not_half_life("method.half_life", self.half_life)

    def check(self, data: FederatedDataModule) -> None:
        check(days_untold("method.half_life", self.half_life, data.days))

    @property
    def alternatives(self) -> Sequence[Mapping[str, Any]]:
        return half_lives("half_life", self.half_life)

    def fit(self, data: FederatedDataModule) -> Self:
        self.check(data)
        self.popularity = counted(data, fixed(self.half_life)) / data.num_users
        return self

    def learned(self) -> dict[str, Tensor]:
        return {"popularity": self.popularity}

    def recall(self, data: FederatedDataModule, learned: Mapping[str, Tensor]) -> None:
        self.popularity = self._known(learned, "popularity", data.num_items)

    def score(self, users: Tensor) -> Tensor:
        # [items], the same row for every user
        return self.popularity.expand(len(users), -1)


def counted(data: FederatedDataModule, half_life: float | None) -> Tensor:
    """How many users have each item in training, each counted as what a half-life leaves of it; `[items]`, float64."""
    left = None
    if half_life is not None:
        assert data.days is not None
        left = kept(data.days, half_life)
    counts = np.bincount(data.training_matrix().indices, left, data.num_items)
    return torch.from_numpy(counts.astype(np.float64))
