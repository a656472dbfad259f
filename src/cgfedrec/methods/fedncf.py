"""FedNCF: federated neural collaborative filtering (Perifanis and Efraimidis 2022, arXiv 2106.04405), without its
secure aggregation.

The model is NeuMF (He et al. 2017, arXiv 1708.05031): generalised matrix factorisation beside a multi-layer
perceptron. User vectors stay with their clients. Item embeddings and the network go up, are averaged, and come down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from cgfedrec.client import Batch, StepOutput, empty_parameter
from cgfedrec.kit.factors import FactorClient, FactorMethod
from cgfedrec.kit.means import TableServer
from cgfedrec.kit.network import filled, layers_of, not_layers, num_weights, perceptron, row_length, score_in_chunks
from cgfedrec.kit.optimisers import OptimizerCallable
from cgfedrec.kit.rows import baddbmm, by_rows, rows_of
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Field


class FedNCFClient(FactorClient):
    """Score sigmoid(w . [p * q_i ; MLP([p' ; q'_i])] + b), the MLP with ReLU after each layer.

    A user vector holds p and p' side by side, `[clients, 2 dim]`. A row of the item table likewise holds q and q'.
    ``network`` holds all layers one after another (`layers_of`), so that an optimiser moves them in one operation.
    """

    method: FedNCF
    follows = frozenset({"table"})

    def __init__(self, method: FedNCF, num_items: int, seed: int) -> None:
        super().__init__(method, num_items, seed)
        self.shapes = method.layers()
        self.network = empty_parameter(row_length(self.shapes))

    def start(self, users: Tensor) -> dict[str, Tensor]:
        """Embeddings as a `FactorClient`'s; one network for all, Xavier-uniform with biases of 0."""
        generator = torch.Generator().manual_seed(self.shared_seed + 1)  # the seed itself draws the table
        layers = []
        for inside, out in self.shapes:
            weight = nn.init.xavier_uniform_(torch.empty(out, inside), generator=generator)
            # Transposed: here a layer multiplies rows from the right, `[in, out]`.
            layers += [weight.T.flatten(), torch.zeros(out)]
        return super().start(users) | {"network": filled(torch.cat(layers), self.shapes).expand(len(users), -1)}

    def configure_optimizers(self) -> list[Optimizer]:
        return [by_rows(self.method.optimizer([self.user, self.table, self.network]))]

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        logits = self._logits(rows_of(self.table, batch.items)).float()
        loss = F.binary_cross_entropy_with_logits(logits, batch.targets, batch.weights, reduction="none")
        return StepOutput(loss.sum(1))

    def _logits(self, rows: Tensor) -> Tensor:
        """Logits of some items, `[clients, items]`, from their ``rows`` of the table, `[clients, items, 2 dim]`."""
        *layers, (out, bias) = layers_of(self.network, self.shapes)
        (factors, perceived), (mine, own) = rows.chunk(2, dim=2), self.user.chunk(2, dim=1)  # q, q' and p, p'
        hidden = perceptron(layers, own, perceived).relu()  # [clients, items, last hidden]
        # The last layer w takes both halves, [clients, dim + last hidden, 1]. w . [p * q ; h] is summed half by half;
        # the first is (w * p) . q, so that p * q, [clients, items, dim], is never made.
        of_factors, of_hidden = out.split([mine.shape[1], hidden.shape[2]], dim=1)
        logits = baddbmm(bias, factors, of_factors * mine[:, :, None])
        return baddbmm(logits, hidden, of_hidden).squeeze(2)

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        """The server's item table and network replace the client's."""
        super().receive(broadcast, round)
        if broadcast is not None:
            self.network.data.copy_(filled(broadcast.values["network"], self.shapes))  # type: ignore[arg-type]

    def upload(self) -> Upload:
        # Without the zeros at the end of each row, which are there for the place in memory alone.
        network = self.network.detach()[:, : num_weights(self.shapes)]
        return Upload(self.users, {"table": self.private()["table"], "network": network}, bases=self.bases)

    def public(self, broadcast: Broadcast | None) -> dict[str, Tensor]:
        public = super().public(broadcast)
        return public | {"network": public["network"][: num_weights(self.shapes)]}

    def score(self) -> Tensor:
        return score_in_chunks(self._logits, self.table)


@dataclass(frozen=True, kw_only=True)
class FedNCF(FactorMethod):
    """FedNCF (arXiv 2106.04405): all of NeuMF but the user vectors goes up and down.

    Item embeddings and network are plain means over the participants. The paper goes further, and has a rule of its own
    for each of the two. It leaves open how user vectors start: here each client draws its own.
    """

    dim: int = 64
    """Size of the embeddings of either half."""
    hidden: tuple[int, ...] = (64, 32, 16)
    """Sizes of the MLP's layers, after the first of twice dim."""
    optimizer: OptimizerCallable = Adam
    """Optimiser of embeddings and network."""
    init_scale: float = 0.01

    client_class: ClassVar[type[FactorClient]] = FedNCFClient

    def problems(self) -> Iterator[str | None]:
        yield not_layers("method.hidden", self.hidden)
        yield from super().problems()

    def width(self) -> int:
        """That of both halves, which lie side by side."""
        return 2 * self.dim

    def layers(self) -> list[tuple[int, int]]:
        """What every layer takes in and puts out. The last one makes the logit of both halves."""
        return [*pairwise((2 * self.dim, *self.hidden)), (self.dim + self.hidden[-1], 1)]

    def server(self, num_items: int, seed: int) -> TableServer:
        weights = num_weights(self.layers())
        fields = {"table": Field((num_items, self.width())), "network": Field((weights,))}
        return TableServer(fields, seed, {"network": 0})
