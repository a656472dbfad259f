"""LightGCN: vectors smoothed over the graph of who has what (He et al., SIGIR 2020, arXiv 2002.02126)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import block_array, csr_array
from torch import Tensor

from cgfedrec.centralized.factors import Factors, bpr
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import no_count


@dataclass(kw_only=True, eq=False)
class LightGCN(Factors):
    """LightGCN (arXiv 2002.02126): the mean of a vector and of its averages over 1, 2, ... steps in the graph.

    With A the adjacency of users and items and D its degrees, a layer multiplies by D^-1/2 A D^-1/2 (eq. 7), and layers
    0 to ``layers`` are averaged (eq. 8, all weights 1 / (layers + 1)). BPR with ``data.negatives`` negatives a
    positive, where the paper draws one; the penalty is on the vectors before the first layer (eq. 15).
    """

    layers: int = 3
    """How often vectors are passed on; 0 is `MF` with BPR."""
    epochs: int = 400
    batch_size: int = 4096
    weight_decay: float = 1e-4
    patience: int | None = 10

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.layers", self.layers, 0, 100)
        yield from super().problems()

    def loss_of(self, logits: Tensor) -> Tensor:
        return bpr(logits)

    def setup(self, data: FederatedDataModule) -> None:
        self.graph = normalised(data.training_matrix()).to(self.device)

    def vectors(self, table: Tensor) -> Tensor:
        layer = total = table  # [users + items, dim]
        for _ in range(self.layers):
            layer = _PassOn.apply(self.graph, layer)  # type: ignore[no-untyped-call]
            total = total + layer
        return total / (self.layers + 1)


def normalised(interactions: csr_array) -> Tensor:
    """D^-1/2 A D^-1/2 of the graph of users and items, `[users + items, users + items]`, sparse."""
    # Users and items are nodes of one graph. Edges join users with items alone: A = [[0, X], [X^T, 0]].
    adjacency = block_array([[None, interactions], [interactions.T, None]], format="csr")
    degrees = adjacency.sum(1)
    # An item that nobody has in training has degree 0, and no edge to scale.
    scale = np.divide(1, np.sqrt(degrees), where=degrees > 0, out=np.zeros_like(degrees))
    # Edge (r, c) weighs D_r^-1/2 D_c^-1/2; a row's scale is repeated for each of its edges.
    values = adjacency.data * scale[adjacency.indices] * np.repeat(scale, np.diff(adjacency.indptr))
    starts, items, weights = (
        torch.from_numpy(part) for part in (adjacency.indptr, adjacency.indices, values.astype("f4"))
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # a dozen times as fast as COO
        return torch.sparse_csr_tensor(starts, items, weights, adjacency.shape, check_invariants=True)


class _PassOn(torch.autograd.Function):
    """A product with a symmetric sparse matrix. It is its own transpose, so `backward` need not make one."""

    @staticmethod
    def forward(ctx: Any, graph: Tensor, layer: Tensor) -> Tensor:
        ctx.graph = graph
        return graph @ layer

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, ctx.graph @ gradient
