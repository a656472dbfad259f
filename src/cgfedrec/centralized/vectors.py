"""Vectors of users and items, trained for as many epochs as serve validation: what MF, LightGCN and SASRec share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

from torch import Tensor

from cgfedrec.centralized.reference import Reference
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import check, no_count, not_positive
from cgfedrec.evaluation.ranking import evaluate, no_metric
from cgfedrec.history import Row
from cgfedrec.method import MOST_DIM

SCORED_AT_ONCE = 256
"""Users whose scores of all items are in memory at a time."""
EPOCHS = "train/epochs"
"""The column that says how many epochs were best."""


@dataclass(kw_only=True, eq=False)
class Vectors(Reference):
    """A reference that scores by the inner product of a user's vector and an item's, trained by Adam.

    Where the data hold out validation, it is ranked every few epochs. The best epoch is kept, and training stops once
    no better one comes. Without validation all epochs are trained.
    """

    dim: int = 64
    """Size of a vector."""
    epochs: int
    """Passes over the training interactions, at most."""
    batch_size: int
    lr: float
    """Of Adam."""
    evaluate_every: int = 5
    """Epochs between two evaluations; the last epoch is always evaluated."""
    patience: int | None
    """Stop after this many evaluations without a better one; ``null`` for never."""
    monitor: str = "val/ndcg@10"
    """The validation metric that chooses the best epoch."""

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.dim", self.dim, most=MOST_DIM)
        yield no_count("method.epochs", self.epochs)
        yield no_count("method.batch_size", self.batch_size)
        yield not_positive("method.lr", self.lr)
        yield no_count("method.evaluate_every", self.evaluate_every)
        yield no_count("method.patience", self.patience, or_none=True)

    def check(self, data: FederatedDataModule) -> None:
        if data.holds_out("val"):
            check(no_metric("method.monitor", self.monitor, data))

    @abstractmethod
    def begin(self, data: FederatedDataModule) -> None:
        """Start from nothing."""

    @abstractmethod
    def train(self, data: FederatedDataModule, epoch: int) -> None:
        """One pass over everything; epochs count from 1. Raises `RunError` where it diverges."""

    @abstractmethod
    def found(self) -> Tensor:
        """What scores are made of after the epochs so far, `[users + items, dim]`; later ones leave it as it is."""

    def fit(self, data: FederatedDataModule) -> Self:
        self.check(data)
        measured = data.holds_out("val")
        self.num_users = data.num_users
        self.begin(data)
        best, since_best = -1.0, 0
        for epoch in range(1, self.epochs + 1):
            self.train(data, epoch)
            if epoch != self.epochs and (epoch % self.evaluate_every or not measured):
                self.watch(epoch, self.epochs, {})
                continue
            self.trained = self.found()
            value = 0.0  # without validation only the last epoch comes here, and it is the best
            if measured:
                value = evaluate(data, "val", self.score, SCORED_AT_ONCE)[self.monitor]
            self.watch(epoch, self.epochs, {self.monitor: value} if measured else {})
            since_best += 1
            if value > best:
                chosen, best, since_best, self.best_epoch = self.trained, value, 0, epoch
            if since_best == self.patience:
                break
        self.trained = chosen
        return self

    def learned(self) -> dict[str, Tensor]:
        return {"vectors": self.trained}

    def recall(self, data: FederatedDataModule, learned: Mapping[str, Tensor]) -> None:
        self.num_users = data.num_users
        self.trained = self._known(learned, "vectors", data.num_users + data.num_items, self.dim)

    def score(self, users: Tensor) -> Tensor:
        return self.trained[users.to(self.device)] @ self.trained[self.num_users :].T

    def report(self) -> dict[str, float]:
        return {EPOCHS: self.best_epoch}

    def settled(self, rows: Sequence[Row]) -> Mapping[str, Any]:
        """The median of the epochs that were best."""
        return {"epochs": round(median(row[EPOCHS] for row in rows))}
