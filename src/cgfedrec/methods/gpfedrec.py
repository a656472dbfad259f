"""GPFedRec: graph-guided personalisation (Zhang et al., KDD 2024, arXiv 2305.07866).

Item tables go up. The server joins clients whose tables are similar and averages over each client's neighbours; the
mean of these averages comes down in place of every client's table, and a client's own average as what its table is
pulled towards. User vectors and the network that scores stay with their clients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Optimizer

from cgfedrec.client import Batch, StepOutput, check_elementwise, empty_parameter
from cgfedrec.errors import check, checked_with, not_between, not_positive
from cgfedrec.kit.factors import FactorClient, FactorMethod
from cgfedrec.kit.gather import GatherServer, Mailbox
from cgfedrec.kit.network import filled, layers_of, not_layers, perceptron, row_length, score_in_chunks
from cgfedrec.kit.rows import by_rows, rows_of
from cgfedrec.kit.table import OptimizerCallable
from cgfedrec.random import Stream, laplace
from cgfedrec.server import TableServer
from cgfedrec.wire.messages import Broadcast, NotFiniteError, Upload
from cgfedrec.wire.values import Field

COMPARED_AT_ONCE = 2**22
"""Values, of all clients' tables, that the server holds side by side."""


class GPFedRecClient(FactorClient):
    """Score item i by a network of ReLU layers on [user vector ; e_i]; one optimiser steps on everything at once.

    The loss is the batch's mean binary cross-entropy plus ``reg`` times the mean square of the table's distance from
    its target, taken over all items. The target is what the server sent for this client, and where it sent nothing,
    the table with which the round starts. ``network`` holds all layers one after another (`layers_of`).

    Args:
        num_items: n.
        seed: Of the start and of the noise.
        dim: d, of the user vector and of an item embedding.
        optimizer: Makes the optimiser, with the learning rate of the network.
        init_scale: Standard deviation of the initial embeddings.
        hidden: Sizes of the network's layers between the embeddings, 2 d, and the logit.
        user_lr: Learning rate of the user vector.
        table_lr: Learning rate of the table.
        reg: Weight of the pull towards the target.
        noise: Scale b of the Laplace noise on what is uploaded.
    """

    def __init__(
        self,
        num_items: int,
        seed: int,
        dim: int,
        optimizer: OptimizerCallable,
        init_scale: float,
        hidden: tuple[int, ...],
        user_lr: float,
        table_lr: float,
        reg: float,
        noise: float,
    ) -> None:
        super().__init__(num_items, seed, dim, optimizer, init_scale)
        self.user_lr, self.table_lr, self.reg, self.noise = user_lr, table_lr, reg, noise
        self.shapes = list(pairwise((2 * dim, *hidden, 1)))
        self.network = empty_parameter(row_length(self.shapes))
        self.target = torch.empty(0, num_items, dim)
        self.round = 1

    def start(self, users: Tensor) -> dict[str, Tensor]:
        """Embeddings as a `FactorClient`'s; one network for all, as `torch.nn.Linear` draws it."""
        generator = torch.Generator().manual_seed(self.shared_seed + 1)
        layers = [
            (2 * torch.rand((inside + 1) * out, generator=generator) - 1) * inside**-0.5 for inside, out in self.shapes
        ]
        return super().start(users) | {"network": filled(torch.cat(layers), self.shapes).expand(len(users), -1)}

    def configure_optimizers(self) -> list[Optimizer]:
        optimizer = self.optimizer([self.network])
        optimizer.add_param_group({"params": [self.user], "lr": self.user_lr})
        optimizer.add_param_group({"params": [self.table], "lr": self.table_lr})
        return [by_rows(optimizer)]

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        logits = self._logits(rows_of(self.table, batch.items)).float()
        loss = F.binary_cross_entropy_with_logits(logits, batch.targets, batch.weights, reduction="none").sum(1)
        if self.reg == 0:
            return StepOutput(loss)
        distance = F.mse_loss(self.table, self.target[: len(loss)], reduction="none").mean((1, 2))
        return StepOutput(loss + self.reg * distance, distance.detach())

    def _logits(self, rows: Tensor) -> Tensor:
        """Logits of some items, `[clients, items]`, from their ``rows`` of the table, `[clients, items, dim]`."""
        return perceptron(layers_of(self.network, self.shapes), self.user, rows).squeeze(2)

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        """The server's table replaces the client's; the client's own average becomes its target."""
        super().receive(broadcast, round)
        self.target = self.table.data.clone()
        self.round = round
        if broadcast is not None and broadcast.own is not None:
            places, targets = broadcast.own.of(self.users, "target")
            self.target[places] = targets.to(self.target.device)

    def upload(self) -> Upload:
        """The table, with Laplace noise of the client's own where there is to be some."""
        table = self.table.detach()
        if self.noise > 0:
            table = table + self._draw_noise().to(table.device)
        return Upload(self.users, {"table": table})

    def _draw_noise(self) -> Tensor:
        place = np.arange(self.num_items * self.dim).reshape(self.num_items, self.dim)
        drawn = laplace(self.seed, Stream.NOISE, self.users.numpy()[:, None, None] + 1, self.round, place)
        return torch.from_numpy(self.noise * drawn).float()

    def score(self) -> Tensor:
        return score_in_chunks(self._logits, self.table)


class GraphServer(GatherServer, TableServer):
    """Averages each participant's table with its neighbours', and keeps the averages r_u and their mean.

    Two participants are neighbours if the cosine of their tables exceeds ``threshold`` times the mean cosine of all
    pairs; everyone is its own neighbour. Work grows with the square of the participants, and the r_u of all who have
    ever taken part are kept: a client that is absent keeps its last.

    Args:
        num_items: n.
        dim: d.
        threshold: Of the mean cosine.
        seed: Of the shared start.
    """

    def __init__(self, num_items: int, dim: int, threshold: float, seed: int) -> None:
        super().__init__({"table": Field((num_items, dim))}, seed)
        self.threshold = threshold
        self.averages = Mailbox("target", num_items, dim)

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        """The mean of all r_u for everyone, and a client's own r_u for those who have one."""
        broadcast = super().broadcast(users, round)
        return broadcast and replace(broadcast, own=self.averages.of(users))

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        """Find the graph, average over it; report how many neighbours a participant has, itself included."""
        similarity = self._similarity(users)
        graph = neighbours(similarity, self.threshold)
        weights = (graph / graph.sum(1, keepdim=True)).float()
        targets = self.mean("table").new_empty(len(users), *self.mean("table").shape)
        for items, tables in self._tables():
            targets[:, items] = (weights @ tables.flatten(1)).view_as(tables)
        self.averages.put(users, targets)
        self.take_uploads()
        TableServer.aggregate(self, Upload(users, {"table": targets}))
        return super().update(users, round) | {"graph/neighbours": graph.sum(1).double().mean().item()}

    def _similarity(self, users: Tensor) -> Tensor:
        """The cosine of any two participants' tables, `[clients, clients]`, in float64, for edges hang on it.

        Raises:
            NotFiniteError: naming the clients whose table is not finite.
        """
        products = torch.zeros(len(users), len(users), dtype=torch.float64, device=self.mean("table").device)
        for _, tables in self._tables():
            rows = tables.flatten(1).double()
            products.addmm_(rows, rows.T)
        norms = products.diagonal().sqrt()
        if not norms.isfinite().all():
            raise NotFiniteError("uploaded table", users[~norms.isfinite().cpu()].tolist())
        return products / (norms[:, None] * norms).clamp_min(1e-300)

    def _tables(self) -> Iterator[tuple[slice, Tensor]]:
        """Some items after others, and their rows in all participants' tables, `[clients, items, dim]`."""
        tables = [upload.values["table"] for upload in self.uploads]
        num_items, dim = tables[0].shape[1:]
        at_once = max(1, COMPARED_AT_ONCE // (sum(map(len, tables)) * dim))
        for first in range(0, num_items, at_once):
            items = slice(first, first + at_once)
            yield items, torch.cat([table[:, items] for table in tables])


def neighbours(similarity: Tensor, threshold: float) -> Tensor:
    """Who is whose neighbour, `[clients, clients]`, bool: whoever is more similar than ``threshold`` times the mean."""
    return (similarity > threshold * similarity.mean()).fill_diagonal_(True)


class GPFedRec(FactorMethod):
    """GPFedRec (arXiv 2305.07866): tables go up; the mean table, and each client's own average, come down.

    The published code joins clients by the cosine *distance* of their tables, and so the least similar; here it is the
    similarity, as in the paper. What the card leaves open is decided thus. The mean similarity is taken over all
    pairs, those of a client with itself included. A client for which the server has no average yet is pulled towards
    the table with which the round starts. Each client draws a user vector of its own; the published code starts all
    from one. Noise is added to what is sent alone; as all randomness here, it follows from the seed.

    Args:
        dim: Size of a user vector and of an item embedding.
        optimizer: Optimiser of everything, with the learning rate of the network.
        lr_eta: The table learns at lr * items * lr_eta - lr and the user vector at lr * lr_eta - lr, as published,
            unless their own rates are given.
        user_lr: Learning rate of the user vector. The published one is lr / participation * lr_eta - lr.
        table_lr: Learning rate of the table.
        hidden: Sizes of the network's layers between the embeddings and the logit.
        reg: Weight of the pull towards a client's average.
        threshold: Clients are neighbours above this share of the mean similarity.
        noise: Scale of the Laplace noise on uploaded values; 0 for none.
        local_epochs: Passes over a participant's own samples in each round.
        init_scale: Standard deviation of the initial embeddings.
    """

    client_class = GPFedRecClient

    def __init__(
        self,
        dim: int = 32,
        optimizer: OptimizerCallable = lambda parameters: SGD(parameters, lr=0.1),
        lr_eta: float = 80.0,
        user_lr: float | None = None,
        table_lr: float | None = None,
        hidden: tuple[int, ...] = (32, 16, 8),
        reg: float = 1.0,
        threshold: float = 1.0,
        noise: float = 0.0,
        local_epochs: int = 1,
        init_scale: float = 1.0,
    ) -> None:
        with checked_with(
            not_positive("method.lr_eta", lr_eta),
            f"method.lr_eta: {lr_eta} is not above 1: give method.user_lr" if user_lr is None and lr_eta <= 1 else None,
            not_positive("method.user_lr", user_lr, or_none=True),
            not_positive("method.table_lr", table_lr, or_none=True),
            not_layers("method.hidden", hidden),
            not_between("method.reg", reg, 0),
            not_positive("method.threshold", threshold),
            not_between("method.noise", noise, 0),
        ):
            super().__init__(dim, optimizer, local_epochs, init_scale)
        self.lr_eta = lr_eta
        self.user_lr = user_lr
        self.table_lr = table_lr
        self.hidden = hidden
        self.reg = reg
        self.threshold = threshold
        self.noise = noise

    def client_settings(self, num_items: int) -> dict[str, Any]:
        lr = check_elementwise(self.optimizer).param_groups[0]["lr"]
        table_lr = lr * num_items * self.lr_eta - lr if self.table_lr is None else self.table_lr
        check(not_positive("method.table_lr", table_lr))
        return super().client_settings(num_items) | {
            "hidden": self.hidden,
            "user_lr": lr * self.lr_eta - lr if self.user_lr is None else self.user_lr,
            "table_lr": table_lr,
            "reg": self.reg,
            "noise": self.noise,
        }

    def server(self, num_items: int, seed: int) -> GraphServer:
        return GraphServer(num_items, self.dim, self.threshold, seed)
