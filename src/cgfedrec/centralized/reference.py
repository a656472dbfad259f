"""Reference: a recommender that is given everyone's data in one place, to show what privacy costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from cgfedrec.data.module import FederatedDataModule
from cgfedrec.history import Row
from cgfedrec.method import Recommender


class Reference(Recommender, ABC):
    """A centralised recommender: a dataclass of its settings, which keeps what it has learned beside them.

    It is fitted to training interactions alone. Where it stops early, validation interactions choose when.

    Attributes:
        device: Where it computes; set before `fit`.
    """

    device = torch.device("cpu")

    def check(self, data: FederatedDataModule) -> None:
        """Raise `InputError` for settings that do not fit the data, before anything is written."""

    @abstractmethod
    def fit(self, data: FederatedDataModule) -> Self:
        """Learn from everyone's training interactions.

        Raises:
            RunError: if fitting fails.
        """

    @abstractmethod
    def score(self, users: Tensor) -> Tensor:
        """Scores of all items, `[users, items]`, for users `[users]` of the data that it was fitted to."""

    def settled(self, rows: Sequence[Row]) -> Mapping[str, Any]:
        """Settings that follow from the rows of earlier cuts, for cuts at which nothing is held out to find them."""
        return {}

    def report(self) -> dict[str, float]:
        """What fitting has to tell, for the row of ``metrics.csv``, named like ``train/epochs``."""
        return {}
