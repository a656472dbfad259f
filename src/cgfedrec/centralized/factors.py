"""Vectors of users and items, trained together on everyone's data: what MF and LightGCN share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from cgfedrec.centralized.reference import Reference
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import RunError, check, no_count, not_between, not_positive
from cgfedrec.evaluation.ranking import evaluate, no_metric
from cgfedrec.method import MOST_DIM
from cgfedrec.random import Stream, bits, normal

SCORED_AT_ONCE = 256
"""Users whose scores of all items are in memory at a time."""


def logistic(logits: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over the samples `[positives, 1 + negatives]`, the positive first."""
    return (F.softplus(logits).sum() - logits[:, 0].sum()) / logits.numel()


def bpr(logits: Tensor) -> Tensor:
    """Bayesian personalised ranking (Rendle et al., UAI 2009): -log sigmoid(positive - negative), mean over pairs.

    Args:
        logits: `[positives, 1 + negatives]`, the positive first.

    Returns:
        `[]`
    """
    return F.softplus(logits[:, 1:] - logits[:, :1]).mean()


@dataclass(kw_only=True, eq=False)
class Factors(Reference):
    """A reference that scores by p_u . q_i, both made from one trained table. Adam takes steps on batches of positives.

    Negatives are drawn anew in every epoch, ``data.negatives`` for each positive. They come from the same pool and by
    the same random numbers as a client's would in that round. Where the data hold out validation, it is ranked every
    few epochs. The best epoch is kept, and training stops once no better one comes. Without validation all epochs are
    trained.
    """

    dim: int = 64
    """Size of a vector."""
    epochs: int
    """Passes over the training interactions, at most."""
    batch_size: int
    """Positives in a batch, each with its negatives."""
    lr: float = 0.005
    """Of Adam."""
    weight_decay: float
    """Weight of half the squared norm of the trained vectors that a batch touches, one for each time that it does,
    averaged over the positives; as LightGCN does it, and not Adam's own decay."""
    init_scale: float = 0.1
    """Standard deviation of every initial value."""
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
        yield not_between("method.weight_decay", self.weight_decay, 0)
        yield not_positive("method.init_scale", self.init_scale)
        yield no_count("method.evaluate_every", self.evaluate_every)
        yield no_count("method.patience", self.patience, or_none=True)

    def check(self, data: FederatedDataModule) -> None:
        if data.holds_out("val"):
            check(no_metric("method.monitor", self.monitor, data))

    @abstractmethod
    def loss_of(self, logits: Tensor) -> Tensor:
        """The loss of a batch, from logits `[positives, 1 + negatives]`, the positive first."""

    def setup(self, data: FederatedDataModule) -> None:
        """Take from the data what `vectors` needs."""

    def vectors(self, table: Tensor) -> Tensor:
        """What scores are made of, `[users + items, dim]`, from the trained table of the same shape."""
        return table

    def fit(self, data: FederatedDataModule) -> Self:
        self.check(data)
        measured = data.holds_out("val")
        self.setup(data)
        self.num_users = data.num_users
        # One table, [users + items, dim]: users first, so that row num_users + i is item i.
        places = np.arange(data.num_users + data.num_items)[:, None], np.arange(self.dim)
        start = torch.from_numpy(normal(data.seed, Stream.START, *places)).float() * self.init_scale
        table = start.to(self.device).requires_grad_()
        optimizer = Adam([table], lr=self.lr)
        chosen, best, since_best = start, -1.0, 0
        for epoch in range(1, self.epochs + 1):
            self._train(table, optimizer, data, epoch)
            if epoch != self.epochs and (epoch % self.evaluate_every or not measured):
                continue
            self.trained = self.vectors(table.detach()).clone()  # a copy: the table goes on to be trained
            found = 0.0  # without validation only the last epoch comes here, and it is the best
            if measured:
                found = evaluate(data, "val", self.score, SCORED_AT_ONCE)[self.monitor]
            since_best += 1
            if found > best:
                chosen, best, since_best, self.best_epoch = self.trained, found, 0, epoch
            if since_best == self.patience:
                break
        self.trained = chosen
        return self

    def _train(self, table: Tensor, optimizer: Adam, data: FederatedDataModule, epoch: int) -> None:
        """One pass over all positives, in an order drawn for it."""
        users, items = data.training_samples(epoch)
        order = torch.from_numpy(bits(data.seed, Stream.SHUFFLE, epoch, np.arange(len(users))).argsort())
        for batch in order.split(self.batch_size):
            # [batch, 1 + 1 + negatives]: rows of the table, of the user, the positive and its negatives
            rows = torch.cat((users[batch][:, None], items[batch] + self.num_users), dim=1).to(self.device)
            vectors = self.vectors(table)[rows]  # [batch, 1 + 1 + negatives, dim]
            loss = self.loss_of((vectors[:, 1:] * vectors[:, :1]).sum(2))
            if self.weight_decay:
                # Of the trained rows, not of what `vectors` makes of them.
                loss = loss + self.weight_decay / 2 * table[rows].square().sum() / len(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if not table.isfinite().all():
            raise RunError(f"epoch {epoch}: the trained vectors are not finite; a lower learning rate may help")

    def score(self, users: Tensor) -> Tensor:
        return self.trained[users.to(self.device)] @ self.trained[self.num_users :].T

    def report(self) -> dict[str, float]:
        return {"train/epochs": self.best_epoch}
