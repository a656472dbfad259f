"""The plain way, as published code of this field works: what cgfedrec is compared with.

One client at a time, a fresh module and fresh optimisers each; the n x n contrast by autograd, in both steps; negatives
drawn user by user; metrics by data frame, user by user.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgfedrec.client import Batch
from cgfedrec.structure.contrast import EPSILON

State = Mapping[str, Tensor]


class Scorer(nn.Module):
    """One client: an item table and a linear head."""

    def __init__(self, items: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(items, dim)
        self.head = nn.Linear(dim, 1)

    def forward(self, items: Tensor) -> Tensor:
        """Probabilities, `[batch]`."""
        return torch.sigmoid(self.head(self.table(items))).squeeze(1)


def contrast(table: Tensor, labels: Tensor, temperature: float, base_temperature: float = 0.5) -> Tensor:
    """The supervised contrastive loss over the whole n x n matrix."""
    unit = F.normalize(table, dim=1)
    itself = torch.eye(len(table), dtype=torch.bool)
    positive = ((labels[:, None] == labels) & ~itself).float()
    similarity = unit @ unit.T / temperature
    others = (similarity.exp() * ~itself).sum(1) + EPSILON * math.exp(1 / temperature)
    log_probability = similarity - others.log()[:, None]
    counts = positive.sum(1)
    means = (positive * log_probability).sum(1) / counts.clamp_min(1)
    return -(temperature / base_temperature) * means.mean()


def train(
    state: State,
    batches: Sequence[Batch],
    labels: Tensor | None,
    lr: float = 0.1,
    table_lr: float = 13_456.0,
    reg: float = 0.005,
    temperature: float = 0.1,
) -> dict[str, Tensor]:
    """Train one client on its batches (of a cohort of one). Returns its state."""
    items, dim = state["table"].shape
    model = Scorer(items, dim)
    with torch.no_grad():
        model.table.weight.copy_(state["table"])
        model.head.weight.copy_(state["head_weight"][None])
        model.head.bias.copy_(state["head_bias"][None])
    head, table = (
        torch.optim.SGD(model.head.parameters(), lr=lr),
        torch.optim.SGD(model.table.parameters(), lr=table_lr),
    )
    for batch in batches:
        real = batch.weights[0] > 0
        for optimizer in (head, table):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy(model(batch.items[0][real]), batch.targets[0][real])
            if labels is not None:
                loss = loss + reg * contrast(model.table.weight, labels, temperature)
            loss.backward()
            optimizer.step()
    return {
        "table": model.table.weight.detach(),
        "head_weight": model.head.weight.detach()[0],
        "head_bias": model.head.bias.detach()[0],
    }


def draw(histories: Sequence[Sequence[int]], items: int, negatives: int = 4) -> list[tuple[list[int], list[float]]]:
    """Samples of every user: each positive with its negatives."""
    catalogue = set(range(items))
    drawn = []
    for history in histories:
        pool = list(catalogue - set(history))
        chosen, targets = [], []
        for item in history:
            chosen += [item, *random.sample(pool, negatives)]
            targets += [1.0] + [0.0] * negatives
        drawn.append((chosen, targets))
    return drawn


def evaluate(
    scores: Sequence[Tensor], relevant: Sequence[int], candidates: Sequence[Sequence[int]], k: int = 10
) -> float:
    """HR@k over sampled candidates, by a data frame for every user."""
    hits = 0
    for row, target, sampled in zip(scores, relevant, candidates, strict=True):
        ids = [target, *sampled]
        frame = pl.DataFrame({"item": ids, "score": row[ids].tolist()}).sort("score", descending=True).head(k)
        hits += int(frame.filter(pl.col("item") == target).height)
    return hits / len(relevant)
