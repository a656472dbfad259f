"""Vectors of users and items, trained together on everyone's positives and negatives: what MF and LightGCN share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from cgfedrec.centralized.vectors import Vectors
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import RunError, not_between, not_positive
from cgfedrec.random import Stream, bits, normal


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
class Factors(Vectors):
    """A reference that scores by p_u . q_i, both made from one trained table. Adam takes steps on batches of positives.

    Negatives are drawn anew in every epoch, ``data.negatives`` for each positive. They come from the same pool and by
    the same random numbers as a client's would in that round. Where the data hold out validation, it is ranked every
    few epochs. The best epoch is kept, and training stops once no better one comes. Without validation all epochs are
    trained.
    """

    batch_size: int
    """Positives in a batch, each with its negatives."""
    lr: float = 0.005
    weight_decay: float
    """Weight of half the squared norm of the trained vectors that a batch touches, one for each time that it does,
    averaged over the positives; as LightGCN does it, and not Adam's own decay."""
    init_scale: float = 0.1
    """Standard deviation of every initial value."""

    def problems(self) -> Iterator[str | None]:
        yield from super().problems()
        yield not_between("method.weight_decay", self.weight_decay, 0)
        yield not_positive("method.init_scale", self.init_scale)

    @abstractmethod
    def loss_of(self, logits: Tensor) -> Tensor:
        """The loss of a batch, from logits `[positives, 1 + negatives]`, the positive first."""

    def setup(self, data: FederatedDataModule) -> None:
        """Take from the data what `vectors` needs."""

    def vectors(self, table: Tensor) -> Tensor:
        """What scores are made of, `[users + items, dim]`, from the trained table of the same shape."""
        return table

    def begin(self, data: FederatedDataModule) -> None:
        self.setup(data)
        # One table, [users + items, dim]: users first, so that row num_users + i is item i.
        places = np.arange(data.num_users + data.num_items)[:, None], np.arange(self.dim)
        start = torch.from_numpy(normal(data.seed, Stream.START, *places)).float() * self.init_scale
        self.table = start.to(self.device).requires_grad_()
        self.optimizer = Adam([self.table], lr=self.lr)

    def found(self) -> Tensor:
        return self.vectors(self.table.detach()).clone()  # a copy: the table goes on to be trained

    def train(self, data: FederatedDataModule, epoch: int) -> None:
        """One pass over all positives, in an order drawn for it."""
        users, items = data.training_samples(epoch)
        order = torch.from_numpy(bits(data.seed, Stream.SHUFFLE, epoch, np.arange(len(users))).argsort())
        for batch in order.split(self.batch_size):
            # [batch, 1 + 1 + negatives]: rows of the table, of the user, the positive and its negatives
            rows = torch.cat((users[batch][:, None], items[batch] + self.num_users), dim=1).to(self.device)
            vectors = self.vectors(self.table)[rows]  # [batch, 1 + 1 + negatives, dim]
            loss = self.loss_of((vectors[:, 1:] * vectors[:, :1]).sum(2))
            if self.weight_decay:
                # Of the trained rows, not of what `vectors` makes of them.
                loss = loss + self.weight_decay / 2 * self.table[rows].square().sum() / len(batch)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if not self.table.isfinite().all():
            raise RunError(f"epoch {epoch}: the trained vectors are not finite; a lower learning rate may help")
