"""Label sets: several labels an item, each of which a client learns a weight for.

This is CGFedRec's alignment in the limit. There, items with one label are pulled together; here they share its weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, softplus
from torch.optim import SGD, Optimizer

from cgfedrec.client import Batch, StepOutput, empty_parameter
from cgfedrec.errors import check, no_count, not_between, not_positive
from cgfedrec.random import Stream, bits, normal
from cgfedrec.structure.clusters import clustered
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.nystroem import coordinates
from cgfedrec.structure.structure import Found, Structure, SumsClient
from cgfedrec.structure.tallies import Known
from cgfedrec.wire.values import Field, Labels, Value

DECAYS = (0.0, 0.5, 1.0)
"""rho: an item of age a, in items, weighs (1 + a)^-rho among a client's positives."""
POPULARITIES = (0.0, 0.1, 0.3, 1.0, 3.0)
"""beta: how much an item's popularity counts beside the weights of its labels."""
CLASSES = 32
"""Of popularity."""
PROJECTED = 32
"""Dimensions to which coordinates are projected before they are clustered."""


@dataclass(frozen=True, kw_only=True)
class LabelSets(Structure):
    """Several clusterings of the items, and a client that learns a weight for every label.

    An item scores the sum of its labels' weights: one label in each set, and the class of its popularity. Items without
    a row have that class alone.
    """

    sets: int = 16
    """How many clusterings. The first is of the items' coordinates, each other one of a random projection of them."""
    clusters: int = 60
    """Labels in a set, or as many as items if these are fewer."""
    rounds: int = 12
    """Rounds in which clients train and average their weights."""
    steps: int = 5
    """Steps that a client takes in each of these rounds, on all its items with fresh negatives."""
    step_size: float = 1.0
    """Of gradient descent."""
    pull: float = 0.02
    """How strongly a client's weights are pulled towards the mean of all clients'."""

    verifies: ClassVar[bool] = False

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.structure.sets", self.sets, most=1024)
        yield no_count("method.structure.clusters", self.clusters, 2, 65536)
        yield no_count("method.structure.rounds", self.rounds, most=250)
        yield no_count("method.structure.steps", self.steps, most=1000)
        yield not_positive("method.structure.step_size", self.step_size)
        yield not_between("method.structure.pull", self.pull, 0, 1)

    @property
    def train_rounds(self) -> int:
        return self.rounds

    @property
    def options(self) -> list[tuple[int, float]]:
        """The pairs to choose among: the place of rho in `DECAYS`, and beta."""
        return [(decay, popularity) for decay in range(len(DECAYS)) for popularity in POPULARITIES]

    @property
    def readings(self) -> Sequence[str]:
        return [f"rho {DECAYS[decay]:g}, beta {popularity:g}" for decay, popularity in self.options]

    def num_clusters(self, num_items: int) -> int:
        """Labels that a set may use: what everybody knows before anything is counted."""
        return min(self.clusters, num_items)

    def num_labels(self, num_items: int) -> int:
        """Labels of all sets, and the classes of popularity."""
        return self.sets * self.num_clusters(num_items) + CLASSES

    def find(self, found: Found, discovery: Discovery) -> dict[str, Value]:
        """Cluster the items anew for each set."""
        places = coordinates(found.factor).numpy()  # [rows, dim]
        clusters = min(self.clusters, len(places))
        weights = (found.rows.clients + 1).double().sqrt().numpy()
        values: dict[str, Value] = {}
        for number, name in enumerate(self.names):
            seen = places
            if number > 0:
                axes = np.arange(places.shape[1])[:, None]
                seen = places @ normal(found.seed, Stream.PROJECTIONS, number, axes, np.arange(PROJECTED))
            seed = int(bits(found.seed, Stream.CLUSTERS, 1, number) >> np.uint64(32))
            labels, _ = clustered(seen, clusters, seed, weights=weights)
            values[name] = Labels(torch.from_numpy(labels), self.num_clusters(found.rows.num_items))
        return values

    @property
    def names(self) -> list[str]:
        """Of the sets on the wire."""
        return [f"labels{number}" for number in range(self.sets)]

    def fields(self, known: Known, discovery: Discovery) -> dict[str, Field]:
        clusters = self.num_clusters(known.num_items)
        field = Field((len(known.the_rows),), torch.int64, clusters=clusters)
        return dict.fromkeys(self.names, field)

    def average(self, known: Known) -> Field:
        """The clients' weights, `[labels, decays]`."""
        return Field((self.num_labels(known.num_items), len(DECAYS)))

    def client(self, discovery: Discovery, num_items: int, seed: int) -> LabelSetsClient:
        return LabelSetsClient(self, discovery, num_items, seed)


class LabelSetsClient(SumsClient):
    """Learns a weight for every label, once for each rho: which of them serves all clients best, is chosen at last."""

    structure: LabelSets

    def __init__(self, structure: LabelSets, discovery: Discovery, num_items: int, seed: int) -> None:
        super().__init__(structure, discovery, num_items, seed)
        self.weights = empty_parameter(structure.num_labels(num_items), len(DECAYS))

    def start(self, users: Tensor) -> dict[str, Tensor]:
        return super().start(users) | {"weights": torch.zeros(1, *self.weights.shape[1:]).expand(len(users), -1, -1)}

    def changed(self) -> None:
        if not self.structured:
            return
        rows, clusters = self.known.the_rows, self.structure.num_clusters(self.num_items)
        none = self.structure.num_labels(self.num_items)  # one beyond the last
        self.labels = torch.full((self.num_items, self.structure.sets + 1), none)  # [items, sets + 1]
        for number, name in enumerate(self.structure.names):
            labels = self.kept["structure"][name]
            assert isinstance(labels, Labels)
            self.labels[rows.items, number] = number * clusters + labels.values
        # By the first sum, which all have: classes take no bytes.
        order = self.popularity.cpu().argsort(descending=True, stable=True)
        places = torch.empty_like(order).scatter_(0, order, torch.arange(self.num_items))
        self.labels[:, -1] = none - CLASSES + places * CLASSES // self.num_items

    def configure_optimizers(self) -> list[Optimizer]:
        return [SGD([self.weights], lr=self.structure.step_size)]

    def train_batches(self) -> Sequence[Batch]:
        drawn = self.own.batches()
        clients = len(self.users)
        items, targets, inside = (
            torch.cat([pad(part, (0, 0, 0, clients - len(part))) for part in parts], dim=1)
            for parts in zip(*((batch.items, batch.targets, batch.weights.gt(0)) for batch in drawn))
        )
        # [clients, items, decays]
        whose, which, ages = self.own.history.entries()
        decayed = (1 + ages[:, None].double()).pow(-torch.tensor(DECAYS, dtype=torch.float64))
        table = torch.zeros(clients, self.num_items, len(DECAYS), dtype=torch.float64)
        table[whose, which] = decayed
        positive = table.gather(1, items[..., None].expand(-1, -1, len(DECAYS))) * targets[..., None]
        positive /= positive.sum(1, keepdim=True).clamp_min(1e-12)
        negative = ((targets == 0) & inside).double()
        negative /= negative.sum(1, keepdim=True).clamp_min(1)
        weights = (positive + negative[..., None]).float()
        batch = Batch(items, targets, weights, inside.sum(1).float(), torch.ones(clients, dtype=torch.bool))
        return [batch] * self.structure.steps

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        labels = self.labels.to(self.device)[batch.items]  # [clients, samples, sets + 1]
        scores = self._scores(labels)
        signs = 1 - 2 * batch.targets[..., None]
        losses = (batch.weights * softplus(signs * scores)).sum((1, 2))
        mean = self.average if self.average is not None else 0
        pulled = (self.weights - mean).square().sum((1, 2)) * self.structure.pull / 2
        return StepOutput(losses + pulled)

    def _scores(self, labels):
        clients, samples, sets = labels.shape
        padded = pad(self.weights, (0, 0, 0, 1))
        index = labels.flatten(1) + (torch.arange(clients) * padded.shape[1])[:, None]
        found = torch.nn.functional.embedding(index, padded.flatten(0, 1))
        return found.view(clients, samples, sets, -1).sum(2)

    def learned(self) -> Tensor:
        return self.weights.detach()

    def read(self, reading: int) -> Tensor:
        decay, beta = self.structure.options[reading]
        weights = pad(self.weights.detach()[:, :, decay], (0, 1))
        scores = sum(weights[:, labels] for labels in self.labels.to(self.device).T)
        return scores + beta * self.popularity
