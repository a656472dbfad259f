"""Reference: a recommender that is given everyone's data in one place, to show what privacy costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from cgfedrec.data.module import FederatedDataModule
from cgfedrec.history import Row
from cgfedrec.method import Recommender

Watch = Callable[[int, int, Row], None]
"""Is told of an epoch that has ended, of how many there are at most, and, where it was measured after this one, of the
metric that chooses the best, by name."""


def watch(epoch: int, epochs: int, found: Row) -> None:
    """A `Watch` that tells nobody."""


class Reference(Recommender, ABC):
    """A centralised recommender: a dataclass of its settings, which keeps what it has learned beside them.

    It is fitted to training interactions alone. Where it stops early, validation interactions choose when; where it has
    several `readings`, they choose one.

    Attributes:
        device: Where it computes; set before `fit`.
        watch: Called after each epoch where fitting takes several; set before `fit`.
        reading: The settings of the one of `readings` that it scores by.
    """

    device = torch.device("cpu")
    # Not annotated: from a subclass's module jsonargparse does not find `Watch`, and then it checks no type there.
    watch = staticmethod(watch)
    reading: Mapping[str, Any]

    @abstractmethod
    def fit(self, data: FederatedDataModule) -> Self:
        """Learn from everyone's training interactions.

        Raises:
            RunError: if fitting fails.
        """

    @abstractmethod
    def score(self, users: Tensor) -> Tensor:
        """Scores of all items, `[users, items]`, for users `[users]` of the data that it was fitted to.

        After `fit` they are those of the first reading, and after `read_by` those of the one that it named.
        """

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """What `fit` has learned, for a checkpoint: tensors `[any]` by name."""

    @abstractmethod
    def recall(self, data: FederatedDataModule, learned: Mapping[str, Tensor]) -> None:
        """Be as after `fit` to these data, with what `learned` returned then, tensors `[any]`.

        Raises:
            KeyError, ValueError: if it is not of these settings and data.
        """

    def read_all(self, users: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Scores for users `[users]` by each of `readings` that the data allow: its name, and `[users, items]`."""
        yield next(iter(self.readings)), self.score(users)

    def adds(self, own: Tensor, ages: Tensor, shown: Tensor) -> Tensor | None:
        """What a training item of a user adds to the score of another item, `[pairs]`; ``None`` where no score is such
        a sum.

        Args:
            own: `[pairs]`: the training item.
            ages: `[pairs]`: how many of the user's are newer.
            shown: `[pairs]`: the other item.
        """
        return None

    def read_by(self, name: str) -> None:
        """Score by one of `readings` from now on."""
        self.reading = self.readings[name]

    def _known(self, learned: Mapping[str, Tensor], name: str, *shape: int) -> Tensor:
        """One of the tensors of `learned`, of a shape, where this reference computes. Raises as `recall`."""
        found = learned[name]
        if found.shape != shape or not found.isfinite().all():
            raise ValueError(f"{name} is not of shape {list(shape)}, or not finite")
        return found.to(self.device)

    def report(self) -> dict[str, float]:
        """What fitting has to tell, for the row of ``metrics.csv``, named like ``train/epochs``."""
        return {}

    def settled(self, rows: Sequence[Row]) -> Mapping[str, Any]:
        """Settings that hold where nothing is held out for validation, from the rows of runs in which something was."""
        return {}
