"""GPFedRec: graph-guided personalisation (Zhang et al., KDD 2024, arXiv 2305.07866).

Item tables go up. The server joins clients whose tables are similar, and averages each client's table with those of
its neighbours. Two tables come down. The mean of all averages replaces every client's table; a client's own average is
what its table is then pulled towards. User vectors and the network that scores stay with their clients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from cgfedrec.client import Batch, StepOutput, empty_parameter
from cgfedrec.errors import check, not_between, not_positive
from cgfedrec.kit.factors import FactorClient, FactorMethod
from cgfedrec.kit.gather import Gathered, GatherServer, Mailbox
from cgfedrec.kit.means import TableServer
from cgfedrec.kit.network import filled, layers_of, not_layers, perceptron, row_length, score_in_chunks
from cgfedrec.kit.optimisers import OptimizerCallable, TableSGD, check_elementwise
from cgfedrec.kit.rows import by_rows, rows_of
from cgfedrec.random import Stream, laplace
from cgfedrec.wire.messages import Broadcast, NotFiniteError, Upload
from cgfedrec.wire.values import Field


class GPFedRecClient(FactorClient):
    """Score item i by a network of ReLU layers on [user vector ; e_i]. One optimiser steps on everything at once.

    The loss is the batch's mean binary cross-entropy plus ``reg`` times the distance of the table from its target. The
    distance is the mean square over all items, and is reported. The target is what the server sent for this client. If
    it sent nothing, the target is the table with which the round starts. ``network`` holds all layers one after another
    (`layers_of`).

    Args:
        method: The settings.
        num_items: n.
        seed: The private one, of the noise too.
    """

    method: GPFedRec
    reports = ("distance",)

    def __init__(self, method: GPFedRec, num_items: int, seed: int) -> None:
        super().__init__(method, num_items, seed)
        self.shapes = list(pairwise((2 * method.dim, *method.hidden, 1)))
        self.network = empty_parameter(row_length(self.shapes))
        self.target = torch.empty(0, num_items, method.dim)
        self.round = 1

    def start(self, users: Tensor) -> dict[str, Tensor]:
        """Embeddings as a `FactorClient`'s; one network for all, as `torch.nn.Linear` draws it."""
        generator = torch.Generator().manual_seed(self.shared_seed + 1)  # the seed itself draws the table
        # A layer's weight and bias together: U(-1/sqrt(in), 1/sqrt(in)).
        layers = [
            (2 * torch.rand((inside + 1) * out, generator=generator) - 1) * inside**-0.5 for inside, out in self.shapes
        ]
        return super().start(users) | {"network": filled(torch.cat(layers), self.shapes).expand(len(users), -1)}

    def configure_optimizers(self) -> list[Optimizer]:
        optimizer = self.method.optimizer([self.network])
        lr = optimizer.param_groups[0]["lr"]
        optimizer.add_param_group({"params": [self.user], "lr": self.method.rate_of_user(lr)})
        optimizer.add_param_group({"params": [self.table], "lr": self.method.rate_of_table(lr, self.num_items)})
        return [by_rows(optimizer)]

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        logits = self._logits(rows_of(self.table, batch.items)).float()
        loss = F.binary_cross_entropy_with_logits(logits, batch.targets, batch.weights, reduction="none").sum(1)
        if self.method.reg == 0:
            return StepOutput(loss)
        # BCE + reg * MSE(E_u, r_u); clients whose batches are used up have left at the end
        distance = F.mse_loss(self.table, self.target[: len(loss)], reduction="none").mean((1, 2))
        return StepOutput(loss + self.method.reg * distance, {"distance": distance.detach()})

    def _logits(self, rows: Tensor) -> Tensor:
        """Logits of some items, `[clients, items]`, from their ``rows`` of the table, `[clients, items, dim]`."""
        return perceptron(layers_of(self.network, self.shapes), self.user, rows).squeeze(2)

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        """The server's table replaces the client's. The client's own average becomes its target."""
        super().receive(broadcast, round)
        # A copy: training moves the table in place, and a target must stay where it is.
        self.target = self.table.data.clone()
        self.round = round
        if broadcast is not None and broadcast.own is not None:
            places, targets = broadcast.own.of(self.users, "target")
            self.target[places] = targets.to(self.target.device)

    def upload(self) -> Upload:
        """The table. If ``noise`` is above 0, each client adds Laplace noise of its own to what it sends."""
        table = self.table.detach()
        if self.method.noise > 0:
            table = table + self._draw_noise().to(table.device)
        return Upload(self.users, {"table": table})

    def _draw_noise(self) -> Tensor:
        """`[clients, items, dim]`: a function of client, round and place, and of the seed that the server lacks."""
        place = np.arange(self.num_items * self.dim).reshape(self.num_items, self.dim)
        drawn = laplace(self.seed, Stream.NOISE, self.users.numpy()[:, None, None] + 1, self.round, place)
        return torch.from_numpy(self.method.noise * drawn).float()

    def score(self) -> Tensor:
        return score_in_chunks(self._logits, self.table)


class GraphServer(GatherServer, TableServer):
    """Averages each participant's table with its neighbours', and keeps the averages r_u and their mean.

    Two participants are neighbours if the cosine of their tables exceeds ``method.threshold`` times the mean cosine of
    all pairs. Everyone is its own neighbour. Work grows with the square of the number of participants. The server keeps
    the r_u of everyone who has ever taken part: a client that is absent keeps its last one.

    Args:
        method: The settings.
        num_items: n.
        seed: The shared one.
    """

    def __init__(self, method: GPFedRec, num_items: int, seed: int) -> None:
        super().__init__({"table": Field((num_items, method.dim))}, seed)
        self.method = method
        self.averages = Mailbox("target", num_items, method.dim)

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        """The mean of all r_u for everyone, and a client's own r_u for those who have one."""
        broadcast = super().broadcast(users, round)
        return broadcast and replace(broadcast, own=self.averages.of(users))

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        """Find the graph and average over it. Report how many neighbours a participant has, itself included."""
        uploads = self.take_uploads()
        similarity = _similarity(uploads)
        graph = neighbours(similarity, self.method.threshold)
        # One hop over the graph: r_u = sum_v W_uv E_v, each row of W the same share for every neighbour.
        weights = (graph / graph.sum(1, keepdim=True)).float()  # [clients, clients]
        targets = self.mean("table").new_empty(len(users), *self.mean("table").shape)
        for items, tables in uploads.slices("table"):
            targets[:, items] = (weights @ tables.flatten(1)).view_as(tables)  # [clients, some items, dim]
        del uploads
        self.averages.put(users, targets)
        # The global table is the mean of the r_u. From here they are summed as a `TableServer` sums uploads.
        TableServer.aggregate(self, Upload(users, {"table": targets}))
        return super().update(users, round) | {"graph/neighbours": graph.sum(1).double().mean().item()}


def _similarity(uploads: Gathered) -> Tensor:
    """The cosine of any two participants' tables, `[clients, clients]`.

    It is float64, since rounding could move a pair across the threshold and change the graph.

    Raises:
        NotFiniteError: naming the clients whose table is not finite.
    """
    clients = uploads.clients
    products = torch.zeros(len(clients), len(clients), dtype=torch.float64)
    for _, tables in uploads.slices("table"):
        rows = tables.flatten(1).double()  # [clients, some items * dim]
        products = products.to(rows.device).addmm_(rows, rows.T)
    norms = products.diagonal().sqrt()
    if not norms.isfinite().all():
        raise NotFiniteError("uploaded table", clients[~norms.isfinite().cpu()].tolist())
    # A table of zeros has no direction. It gets the cosine 0 in place of nan.
    return products / (norms[:, None] * norms).clamp_min(1e-300)


def neighbours(similarity: Tensor, threshold: float) -> Tensor:
    """Who is whose neighbour: two clients that are more similar than ``threshold`` times the mean similarity.

    Args:
        similarity: `[clients, clients]`.
        threshold: Of the mean over all pairs, those of a client with itself included.

    Returns:
        `[clients, clients]`, bool; everyone is its own neighbour.

    >>> neighbours(torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]), threshold=1.0)
    tensor([[ True,  True, False],
            [ True,  True, False],
            [False, False,  True]])
    """
    return (similarity > threshold * similarity.mean()).fill_diagonal_(True)


@dataclass(frozen=True, kw_only=True)
class GPFedRec(FactorMethod):
    """GPFedRec (arXiv 2305.07866): tables go up; the mean table, and each client's own average, come down.

    The published code joins clients by the cosine *distance* of their tables, and so joins the least similar. Here it
    is the similarity, as in the paper. Decided here: the mean similarity is taken over all pairs, those of a client
    with itself included. A client for which the server has no average yet is pulled towards the table with which the
    round starts. Each client draws a user vector of its own; the published code starts all from one. Noise is added
    only to what is sent. It follows from the seed, as all randomness here.
    """

    optimizer: OptimizerCallable = TableSGD
    """Optimiser of everything, with the learning rate of the network."""
    lr_eta: float = 80.0
    """The table learns at lr * items * lr_eta - lr and the user vector at lr * lr_eta - lr, as published, unless their
    own rates are given."""
    user_lr: float | None = None
    """Learning rate of the user vector. The published one is lr / participation * lr_eta - lr."""
    table_lr: float | None = None
    """Learning rate of the table."""
    hidden: tuple[int, ...] = (32, 16, 8)
    """Sizes of the network's layers between the embeddings and the logit."""
    reg: float = 1.0
    """Weight of the pull towards a client's average."""
    threshold: float = 1.0
    """Clients are neighbours above this share of the mean similarity."""
    noise: float = 0.0
    """Scale of the Laplace noise on uploaded values; 0 for none."""
    init_scale: float = 1.0

    client_class: ClassVar[type[FactorClient]] = GPFedRecClient

    def problems(self) -> Iterator[str | None]:
        yield not_positive("method.lr_eta", self.lr_eta)
        if self.user_lr is None and self.lr_eta <= 1:
            yield f"method.lr_eta: {self.lr_eta} is not above 1: give method.user_lr"
        yield not_positive("method.user_lr", self.user_lr, or_none=True)
        yield not_positive("method.table_lr", self.table_lr, or_none=True)
        yield not_layers("method.hidden", self.hidden)
        yield not_between("method.reg", self.reg, 0)
        yield not_positive("method.threshold", self.threshold)
        yield not_between("method.noise", self.noise, 0)
        yield from super().problems()

    def rate_of_user(self, lr: float) -> float:
        """Learning rate of the user vector where that of the network is ``lr``."""
        if self.user_lr is None:
            return lr * self.lr_eta - lr
        return self.user_lr

    def rate_of_table(self, lr: float, num_items: int) -> float:
        """Learning rate of the table where that of the network is ``lr``."""
        if self.table_lr is None:
            return lr * num_items * self.lr_eta - lr
        return self.table_lr

    def client(self, num_items: int, seed: int) -> FactorClient:
        lr = check_elementwise(self.optimizer).param_groups[0]["lr"]
        check(not_positive("method.table_lr", self.rate_of_table(lr, num_items)))
        return GPFedRecClient(self, num_items, seed)

    def server(self, num_items: int, seed: int) -> GraphServer:
        return GraphServer(self, num_items, seed)
