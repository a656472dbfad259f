"""A private item table with a private head: the client that CGFedRec, Local, PFedRec and CoFedRec share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from cgfedrec.client import Batch, Client, StepOutput, check_elementwise, empty_parameter, shared_start
from cgfedrec.errors import check, no_count, not_positive
from cgfedrec.kit.rows import bmm, by_rows, linear_loss, rows_of
from cgfedrec.method import MOST_DIM, MOST_EPOCHS, Method
from cgfedrec.random import Stream, uniform
from cgfedrec.structure.contrast import Kind, contrast
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Labels

OptimizerCallable = Callable[[Iterable[nn.Parameter]], Optimizer]
Head = Literal["shared", "private"]


class TableClient(Client):
    """A private item table and a private linear head: item i scores sigmoid(w . e_i + b). There is no user vector.

    On each batch the head takes a step first, then the table, on the loss recomputed. Binary cross-entropy is
    averaged over the batch; once labels have arrived, the table's loss adds ``reg`` times `contrast` over all items.

    Args:
        num_items: n.
        seed: Of the start.
        dim: d.
        optimizer: Makes the head's optimiser, and the table's with another learning rate.
        table_lr: Learning rate of the table.
        init_scale: Standard deviation of the shared initial table.
        head: Whether all clients start from one ``shared`` head, or each from a ``private`` one of its own.
        reg: Weight of the alignment.
        temperature: T of the alignment.
        contrast: How the alignment is computed.
    """

    def __init__(
        self,
        num_items: int,
        seed: int,
        dim: int,
        optimizer: OptimizerCallable,
        table_lr: float,
        init_scale: float,
        head: Head,
        reg: float = 0.0,
        temperature: float = 0.1,
        contrast: Kind = "exact",
    ) -> None:
        super().__init__()
        self.num_items, self.dim = num_items, dim
        self.optimizer, self.table_lr = optimizer, table_lr
        self.reg, self.temperature, self.contrast = reg, temperature, contrast
        self.init_scale, self.head, self.seed = init_scale, head, seed
        self.table = empty_parameter(num_items, dim)
        self.head_weight = empty_parameter(dim)
        self.head_bias = empty_parameter()
        self.labels: Tensor | None = None
        self._rows: Tensor | None = None

    def start(self, users: Tensor) -> dict[str, Tensor]:
        """One initial table for all, N(0, init_scale^2); heads uniform as `torch.nn.Linear` draws them."""
        table = shared_start(self.shared_seed, self.init_scale, self.num_items, self.dim)
        owners, seed = np.zeros(len(users), np.int64), self.shared_seed
        if self.head == "private":
            owners, seed = users.numpy() + 1, self.seed
        drawn = uniform(seed, Stream.START, owners[:, None], np.arange(self.dim + 1))
        head = torch.from_numpy((2 * drawn - 1) * self.dim**-0.5).float()
        return {
            "table": table.expand(len(users), -1, -1),
            "head_weight": head[:, :-1].contiguous(),
            "head_bias": head[:, -1].contiguous(),
        }

    def configure_optimizers(self) -> list[Optimizer]:
        head, table = self.optimizer([self.head_weight, self.head_bias]), self.optimizer([self.table])
        for group in table.param_groups:
            group["lr"] = self.table_lr
        return [head, by_rows(table)]

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        """Step 0 trains the head, step 1 the table. The alignment is flat in the head, so only step 1 has it."""
        if step == 0:
            self._rows = rows_of(self.table.detach(), batch.items)
            return StepOutput(linear_loss(self._rows, self.head_weight, self.head_bias, batch))
        rows = rows_of(self.table, batch.items, self._rows)
        self._rows = None
        loss = linear_loss(rows, self.head_weight.detach(), self.head_bias.detach(), batch)
        if self.labels is None or self.reg == 0:
            return StepOutput(loss)
        alignment = contrast(self.table, self.labels, self.temperature, kind=self.contrast)
        return StepOutput(loss + self.reg * alignment, alignment.detach())

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        labels = None if broadcast is None else broadcast.values["labels"]
        self.labels = labels.values.to(self.table.device) if isinstance(labels, Labels) else None

    def upload(self) -> Upload:
        return Upload(self.users, {"table": self.table.detach()})

    def score(self) -> Tensor:
        return bmm(self.head_weight.detach()[:, None], self.table.detach().mT).squeeze(1)


class TableMethod(Method):
    """A method whose client is a `TableClient`.

    Args:
        dim: Size of an item embedding.
        optimizer: Optimiser of the head and, with another learning rate, of the table.
        lr_eta: The table learns at lr * items * lr_eta, unless table_lr is given.
        table_lr: Learning rate of the table.
        local_epochs: Passes over a participant's own samples in each round.
        init_scale: Standard deviation of the initial table, which all clients share.
        head: Whether clients start from one ``shared`` head, or each from a ``private`` random one, which makes
            the mean of their tables a random projection of who touched what.
    """

    client_class: type[TableClient] = TableClient

    def __init__(
        self,
        dim: int = 32,
        optimizer: OptimizerCallable = lambda parameters: SGD(parameters, lr=0.1),
        lr_eta: float = 80.0,
        table_lr: float | None = None,
        local_epochs: int = 2,
        init_scale: float = 1.0,
        head: Head = "shared",
    ) -> None:
        check(
            no_count("method.dim", dim, most=MOST_DIM),
            not_positive("method.lr_eta", lr_eta),
            not_positive("method.table_lr", table_lr, or_none=True),
            no_count("method.local_epochs", local_epochs, most=MOST_EPOCHS),
            not_positive("method.init_scale", init_scale),
        )
        super().__init__(local_epochs)
        self.dim = dim
        self.optimizer = optimizer
        self.lr_eta = lr_eta
        self.table_lr = table_lr
        self.init_scale = init_scale
        self.head: Head = head

    def client(self, num_items: int, seed: int) -> TableClient:
        return self.client_class(num_items, seed, **self.client_settings(num_items))

    def client_settings(self, num_items: int) -> dict[str, Any]:
        """Keyword arguments of the client."""
        lr = check_elementwise(self.optimizer).param_groups[0]["lr"]
        return {
            "dim": self.dim,
            "optimizer": self.optimizer,
            "table_lr": lr * num_items * self.lr_eta if self.table_lr is None else self.table_lr,
            "init_scale": self.init_scale,
            "head": self.head,
        }
