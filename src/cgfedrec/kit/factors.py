"""A user vector and an item table: the client that the matrix factorisation methods share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from cgfedrec.client import Batch, Client, StepOutput, check_elementwise, empty_parameter, shared_start
from cgfedrec.errors import check, no_count, not_positive
from cgfedrec.kit.rows import bmm, by_rows, linear_loss, rows_of
from cgfedrec.kit.table import OptimizerCallable
from cgfedrec.method import MOST_DIM, MOST_EPOCHS, Method
from cgfedrec.random import Stream, normal
from cgfedrec.wire.messages import Broadcast, Upload


class FactorClient(Client):
    """Score sigmoid(p . q_i), with a private user vector p and an item table Q; one optimiser steps on both.

    Binary cross-entropy is averaged over the batch.

    Args:
        num_items: n.
        seed: Of the start.
        dim: d.
        optimizer: Makes the optimiser.
        init_scale: Standard deviation of every initial value; the table is one for all clients.
    """

    def __init__(self, num_items: int, seed: int, dim: int, optimizer: OptimizerCallable, init_scale: float) -> None:
        super().__init__()
        self.num_items, self.dim, self.seed = num_items, dim, seed
        self.optimizer, self.init_scale = optimizer, init_scale
        self.user = empty_parameter(dim)
        self.table = empty_parameter(num_items, dim)

    def start(self, users: Tensor) -> dict[str, Tensor]:
        """One initial table for all and a user vector of one's own, N(0, init_scale^2)."""
        table = shared_start(self.shared_seed, self.init_scale, self.num_items, self.dim)
        drawn = normal(self.seed, Stream.START, users.numpy()[:, None] + 1, np.arange(self.dim))
        return {
            "user": torch.from_numpy(drawn).float() * self.init_scale,
            "table": table.expand(len(users), -1, -1),
        }

    def configure_optimizers(self) -> list[Optimizer]:
        return [by_rows(self.optimizer([self.user, self.table]))]

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        return StepOutput(linear_loss(rows_of(self.table, batch.items), self.user, None, batch))

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        """The server's table replaces the client's."""
        if broadcast is not None:
            self.table.data.copy_(broadcast.values["table"])  # type: ignore[arg-type]

    def upload(self) -> Upload:
        return Upload(self.users, {"table": self.table.detach()})

    def score(self) -> Tensor:
        return bmm(self.user.detach()[:, None], self.table.detach().mT).squeeze(1)


class FactorMethod(Method):
    """A method whose client is a `FactorClient`.

    Args:
        dim: Size of an embedding.
        optimizer: Optimiser of the user vector and the item table.
        local_epochs: Passes over a participant's own samples in each round.
        init_scale: Standard deviation of every initial value.
    """

    client_class: type[FactorClient] = FactorClient

    def __init__(
        self,
        dim: int = 32,
        optimizer: OptimizerCallable = lambda parameters: Adam(parameters, lr=0.01),
        local_epochs: int = 1,
        init_scale: float = 0.1,
    ) -> None:
        check(
            no_count("method.dim", dim, most=MOST_DIM),
            no_count("method.local_epochs", local_epochs, most=MOST_EPOCHS),
            not_positive("method.init_scale", init_scale),
        )
        super().__init__(local_epochs)
        self.dim = dim
        self.optimizer = optimizer
        self.init_scale = init_scale

    def client(self, num_items: int, seed: int) -> FactorClient:
        return self.client_class(num_items, seed, **self.client_settings(num_items))

    def client_settings(self, num_items: int) -> dict[str, Any]:
        """Keyword arguments of the client."""
        check_elementwise(self.optimizer)
        return {"dim": self.dim, "optimizer": self.optimizer, "init_scale": self.init_scale}
