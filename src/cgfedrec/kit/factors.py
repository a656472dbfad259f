"""A user vector and an item table: the client that the matrix factorisation methods share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cgfedrec.client import Batch, Client, StepOutput, empty_parameter, shared_start
from cgfedrec.errors import no_count, not_positive
from cgfedrec.kit import scores
from cgfedrec.kit.optimisers import FactorAdam, OptimizerCallable, check_elementwise
from cgfedrec.kit.rows import linear_loss, rows_of
from cgfedrec.method import MOST_DIM, Method
from cgfedrec.random import Stream, normal
from cgfedrec.wire.messages import Broadcast, Upload


class FactorClient(Client):
    """Score sigmoid(p . q_i), with a private user vector p and an item table Q.

    The loss is binary cross-entropy, averaged over the batch. A method's own client says which optimiser moves what.

    Args:
        method: The settings.
        num_items: n.
        seed: The private one.
    """

    scores_moved = True

    def __init__(self, method: FactorBase, num_items: int, seed: int) -> None:
        super().__init__()
        self.method, self.num_items, self.seed = method, num_items, seed
        self.dim = method.width()
        self.user = empty_parameter(self.dim)
        self.table = empty_parameter(num_items, self.dim)

    def start(self, users: Tensor) -> dict[str, Tensor]:
        """One initial table for all, and for each client a user vector of its own. All are N(0, scale^2)."""
        scale = self.method.scale()
        table = shared_start(self.shared_seed, scale, self.num_items, self.dim)
        # From the private seed: with a user vector, a table's change would tell which of its items the client has.
        drawn = normal(self.seed, Stream.START, users.numpy()[:, None] + 1, np.arange(self.dim))
        return {
            "user": torch.from_numpy(drawn).float() * scale,
            "table": table.expand(len(users), -1, -1),
        }

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        return StepOutput(linear_loss(rows_of(self.table, batch.items), self.user, None, batch))

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        """The server's table replaces the client's."""
        if broadcast is not None:
            self.replace("table", broadcast.values["table"])  # type: ignore[arg-type]

    def upload(self) -> Upload:
        return Upload(self.users, {"table": self.private()["table"]}, bases=self.bases)

    def score(self) -> Tensor:
        return scores.linear(self.user, self.table, self.moved.get("table"))


@dataclass(frozen=True, kw_only=True)
class FactorBase(Method):
    """A method whose client is a `FactorClient`."""

    dim: int = 32
    """Size of an embedding."""
    local_epochs: int = 1
    init_scale: float = 0.1
    """Standard deviation of the initial embeddings."""

    client_class: ClassVar[type[FactorClient]]

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.dim", self.dim, most=MOST_DIM)
        yield not_positive("method.init_scale", self.scale())
        yield from super().problems()

    def width(self) -> int:
        """Numbers in a user vector, and in a row of the item table."""
        return self.dim

    def scale(self) -> float:
        """Standard deviation of every initial value of a user vector and of the item table."""
        return self.init_scale

    def client(self, num_items: int, seed: int) -> FactorClient:
        return self.client_class(self, num_items, seed)


@dataclass(frozen=True, kw_only=True)
class FactorMethod(FactorBase):
    """A `FactorBase` that lets its user choose the optimiser."""

    optimizer: OptimizerCallable = FactorAdam
    """Optimiser of the user vector and the item table."""

    def client(self, num_items: int, seed: int) -> FactorClient:
        check_elementwise(self.optimizer)
        return super().client(num_items, seed)
