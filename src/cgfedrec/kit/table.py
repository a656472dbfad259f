"""A private item table with a private head: the client that CGFedRec, Local, PFedRec and CoFedRec build on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from cgfedrec.client import Batch, Client, CompiledSteps, StepOutput, empty_parameter, shared_start
from cgfedrec.errors import no_count, not_positive
from cgfedrec.kit import scores, steps
from cgfedrec.kit.optimisers import OptimizerCallable, TableSGD, check_elementwise
from cgfedrec.kit.rows import by_rows, linear_loss, rows_of
from cgfedrec.method import MOST_DIM, Method
from cgfedrec.random import Stream, uniform
from cgfedrec.wire.messages import Upload

Head = Literal["shared", "private"]


class TableClient(Client):
    """A private item table and a private linear head: item i scores sigmoid(w . e_i + b). There is no user vector.

    The loss is binary cross-entropy, averaged over the batch. On each batch the head takes a step first. Then the loss
    is computed anew, and the table takes a step.

    Args:
        method: The settings: a method's, or those of a structure.
        num_items: n.
        seed: The private one.
    """

    scores_moved = True

    def __init__(self, method: TableSettings, num_items: int, seed: int) -> None:
        super().__init__()
        self.method, self.num_items, self.seed = method, num_items, seed
        self.table = empty_parameter(num_items, method.dim)
        self.head_weight = empty_parameter(method.dim)
        self.head_bias = empty_parameter()
        self._rows: Tensor | None = None  # [clients, batch, dim], from step 0 to step 1 of a batch

    def start(self, users: Tensor) -> dict[str, Tensor]:
        """One initial table for all, N(0, init_scale^2); heads uniform as `torch.nn.Linear` draws them."""
        dim = self.method.dim
        table = shared_start(self.shared_seed, self.method.init_scale, self.num_items, dim)
        # A shared head is drawn for client 0 by everyone. Private ones are counted from 1.
        owners, seed = np.zeros(len(users), np.int64), self.shared_seed
        if self.method.head == "private":
            owners, seed = users.numpy() + 1, self.seed
        drawn = uniform(seed, Stream.START, owners[:, None], np.arange(dim + 1))
        head = torch.from_numpy((2 * drawn - 1) * dim**-0.5).float()  # [clients, dim + 1]: weight and bias
        return {
            "table": table.expand(len(users), -1, -1),
            "head_weight": head[:, :-1].contiguous(),
            "head_bias": head[:, -1].contiguous(),
        }

    def configure_optimizers(self) -> list[Optimizer]:
        # The table steps on the rows of the batch alone, however many items there are. The head is small.
        make = self.method.optimizer
        head, table = make([self.head_weight, self.head_bias]), make([self.table])
        for group in table.param_groups:
            group["lr"] = self.method.rate_of_table(head.param_groups[0]["lr"], self.num_items)
        return [head, by_rows(table)]

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        """Step 0 trains the head, step 1 the table."""
        if step == 0:
            self._rows = rows_of(self.table.detach(), batch.items)
            return StepOutput(linear_loss(self._rows, self.head_weight, self.head_bias, batch))
        # The head's step has not moved the table, so the rows are still those of step 0.
        rows = rows_of(self.table, batch.items, self._rows)
        self._rows = None
        return StepOutput(linear_loss(rows, self.head_weight.detach(), self.head_bias.detach(), batch))

    def compiled_steps(self, optimizers: Sequence[Optimizer], ends: NDArray[np.int64] | None) -> CompiledSteps | None:
        return steps.linear(self.table, self.head_weight, self.head_bias, optimizers, ends)

    def upload(self) -> Upload:
        return Upload(self.users, {"table": self.private()["table"]}, bases=self.bases)

    def score(self) -> Tensor:
        # The bias is left out, which changes no client's order.
        return scores.linear(self.head_weight, self.table, self.moved.get("table"))


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """The settings of a `TableClient`."""

    dim: int = 32
    """Size of an item embedding."""
    optimizer: OptimizerCallable = TableSGD
    """Optimiser of the head and, with another learning rate, of the table."""
    lr_eta: float = 80.0
    """The table learns at lr * items * lr_eta, unless table_lr is given."""
    table_lr: float | None = None
    """Learning rate of the table."""
    local_epochs: int = 2
    """Passes over a participant's own samples in each round."""
    init_scale: float = 1.0
    """Standard deviation of the initial table, which all clients share."""
    head: Head = "shared"
    """Whether clients start from one ``shared`` head, or each from a ``private`` random one, which makes the mean of
    their tables a random projection of who touched what."""

    def wrong(self, where: str) -> Iterator[str | None]:
        """What is wrong with them, as settings of ``where``."""
        yield no_count(f"{where}.dim", self.dim, most=MOST_DIM)
        yield not_positive(f"{where}.lr_eta", self.lr_eta)
        yield not_positive(f"{where}.table_lr", self.table_lr, or_none=True)
        yield not_positive(f"{where}.init_scale", self.init_scale)

    def rate_of_table(self, lr: float, num_items: int) -> float:
        """Learning rate of the table where that of the head is ``lr``."""
        if self.table_lr is None:
            return lr * num_items * self.lr_eta
        return self.table_lr


@dataclass(frozen=True, kw_only=True)
class TableMethod(TableSettings, Method):
    """A method whose client is a `TableClient`."""

    client_class: ClassVar[type[TableClient]] = TableClient

    def problems(self) -> Iterator[str | None]:
        yield from self.wrong("method")
        yield from super().problems()

    def client(self, num_items: int, seed: int) -> TableClient:
        check_elementwise(self.optimizer)
        return self.client_class(self, num_items, seed)
