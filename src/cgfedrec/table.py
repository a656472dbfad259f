"""A private item table with a private head: the client that CGFedRec, Local, PFedRec and CoFedRec share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from cgfedrec.client import Batch, Client, StepOutput, check_elementwise, empty_parameter
from cgfedrec.errors import check, not_positive
from cgfedrec.messages import Broadcast, Labels, Upload
from cgfedrec.method import Method
from cgfedrec.random import Stream, uniform
from cgfedrec.structure.contrast import contrast

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
    ) -> None:
        super().__init__()
        self.num_items, self.dim = num_items, dim
        self.optimizer, self.table_lr = optimizer, table_lr
        self.reg, self.temperature = reg, temperature
        self.init_scale, self.head, self.seed = init_scale, head, seed
        self.table = empty_parameter(num_items, dim)
        self.head_weight = empty_parameter(dim)
        self.head_bias = empty_parameter()
        self.labels: Tensor | None = None
        self.sparse = False

    def start(self, users: Tensor) -> dict[str, Tensor]:
        """One initial table for all, N(0, init_scale^2); heads uniform as `torch.nn.Linear` draws them."""
        generator = torch.Generator().manual_seed(self.seed)
        table = torch.randn(self.num_items, self.dim, generator=generator) * self.init_scale
        owner = users.numpy() if self.head == "private" else np.full(len(users), -1)
        drawn = uniform(self.seed, Stream.START, owner[:, None] + 1, np.arange(self.dim + 1))
        head = torch.from_numpy((2 * drawn - 1) * self.dim**-0.5).float()
        return {
            "table": table.repeat(len(users), 1, 1),
            "head_weight": head[:, :-1].contiguous(),
            "head_bias": head[:, -1].contiguous(),
        }

    def configure_optimizers(self) -> list[Optimizer]:
        head, table = self.optimizer([self.head_weight, self.head_bias]), self.optimizer([self.table])
        for group in table.param_groups:
            group["lr"] = self.table_lr
        # plain SGD leaves rows without gradient alone, so it need not look at them
        self.sparse = isinstance(table, SGD) and not any(g["momentum"] or g["weight_decay"] for g in table.param_groups)
        return [head, table]

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        """Step 0 trains the head, step 1 the table. The alignment is flat in the head, so only step 1 has it."""
        trains_head = step == 0
        table = self.table.detach() if trains_head else self.table
        weight, bias = (p if trains_head else p.detach() for p in (self.head_weight, self.head_bias))
        aligns = not trains_head and self.labels is not None and self.reg > 0
        rows = rows_of(table, batch.items, self.sparse and not aligns)
        logits = (rows * weight[:, None]).sum(2) + bias[:, None]
        loss = (F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="none") * batch.weights).sum(1)
        if not aligns:
            return StepOutput(loss)
        assert self.labels is not None
        alignment = contrast(table, self.labels, self.temperature)
        return StepOutput(loss + self.reg * alignment, alignment.detach())

    def receive(self, broadcast: Broadcast | None) -> None:
        labels = None if broadcast is None else broadcast.values["labels"]
        self.labels = labels.values.to(self.table.device) if isinstance(labels, Labels) else None

    def upload(self) -> Upload:
        return Upload(self.users, {"table": self.table.detach()})

    def score(self) -> Tensor:
        return (self.table.detach() @ self.head_weight.detach()[:, :, None]).squeeze(2)


def rows_of(table: Tensor, items: Tensor, sparse: bool) -> Tensor:
    """Each client's rows of its own items.

    Args:
        table: `[clients, items, dim]`.
        items: `[clients, batch]`.
        sparse: Whether the gradient holds these rows only, for an optimiser that needs no others.

    Returns:
        `[clients, batch, dim]`
    """
    rows: Tensor = _RowsOf.apply(table, items, sparse)  # type: ignore[no-untyped-call]
    return rows


class _RowsOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, items: Tensor, sparse: bool) -> Tensor:
        clients = torch.arange(len(table), device=table.device)[:, None].expand_as(items)
        ctx.save_for_backward(clients, items)
        ctx.shape, ctx.sparse = table.shape, sparse
        flat = (clients * table.shape[1] + items).flatten()
        return table.flatten(0, 1).index_select(0, flat).view(*items.shape, -1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        clients, items = ctx.saved_tensors
        values = upstream[0].flatten(0, 1)
        if ctx.sparse:
            places = torch.stack((clients.flatten(), items.flatten()))
            return torch.sparse_coo_tensor(places, values, ctx.shape, check_invariants=False), None, None
        gradient = values.new_zeros(ctx.shape)
        flat = (clients * ctx.shape[1] + items).flatten()
        gradient.flatten(0, 1).index_add_(0, flat, values)
        return gradient, None, None


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
            not_positive("method.dim", dim),
            not_positive("method.lr_eta", lr_eta),
            not_positive("method.table_lr", table_lr),
            not_positive("method.local_epochs", local_epochs),
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
