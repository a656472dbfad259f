"""The plain way, as published code of this field works: what cgfedrec is compared with.

One client at a time: a copy of the model and fresh optimisers each, a data loader that hands out one sample after
another, the n x n contrast by autograd in both steps, negatives drawn user by user, metrics by data frame.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping, Sequence

import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cgfedrec.structure.prototypes import EPSILON

State = dict[str, Tensor]
Samples = tuple[Sequence[int], Sequence[float]]
"""Items and targets."""


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
    model: Scorer,
    state: Mapping[str, Tensor],
    epochs: Sequence[Samples],
    labels: Tensor | None,
    batch_size: int = 256,
    lr: float = 0.1,
    table_lr: float = 13_456.0,
    reg: float = 0.005,
    temperature: float = 0.1,
) -> State:
    """Train one client, from its state, on the samples of each epoch, in their order. Returns its state after that."""
    model = copy.deepcopy(model)
    model.load_state_dict(state)
    optimizers = [
        torch.optim.SGD(model.head.parameters(), lr=lr),
        torch.optim.SGD(model.table.parameters(), lr=table_lr),
    ]
    for samples in epochs:
        dataset = TensorDataset(*map(torch.tensor, samples))
        for items, targets in DataLoader(dataset, batch_size):
            for optimizer in optimizers:
                optimizer.zero_grad()
                loss = F.binary_cross_entropy(model(items), targets)
                if labels is not None:
                    loss = loss + reg * contrast(model.table.weight, labels, temperature)
                loss.backward()
                optimizer.step()
    return copy.deepcopy(model.state_dict())


def aggregate(states: Sequence[State]) -> Tensor:
    """The mean table, client after client."""
    total = torch.zeros_like(states[0]["table.weight"])
    for state in states:
        total += state["table.weight"]
    return total / len(states)


def draw(histories: Sequence[Sequence[int]], items: int, negatives: int = 4) -> list[Samples]:
    """Samples of every user: each positive with its negatives, row by row of a data frame of users."""
    catalogue = set(range(items))
    frame = pl.DataFrame({"user": range(len(histories)), "history": histories})
    drawn: list[Samples] = []
    for _, history in frame.iter_rows():
        pool = catalogue - set(history)
        chosen: list[int] = []
        targets: list[float] = []
        for item in history:
            chosen += [item, *random.sample(list(pool), negatives)]
            targets += [1.0] + [0.0] * negatives
        drawn.append((chosen, targets))
    return drawn


def evaluate(
    model: Scorer,
    states: Sequence[Mapping[str, Tensor]],
    relevant: Sequence[int],
    candidates: Sequence[Sequence[int]],
    k: int = 10,
) -> float:
    """HR@k over sampled candidates: each user scored by a copy of the model, and ranked by a data frame."""
    hits = 0
    for state, target, sampled in zip(states, relevant, candidates, strict=True):
        mine = copy.deepcopy(model)
        mine.load_state_dict(state)
        ids = [target, *sampled]
        with torch.no_grad():
            scores = mine(torch.tensor(ids)).tolist()
        frame = pl.DataFrame({"item": ids, "score": scores}).sort("score", descending=True).head(k)
        hits += int(frame.filter(pl.col("item") == target).height)
    return hits / len(relevant)
