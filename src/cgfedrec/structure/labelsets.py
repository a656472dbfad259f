"""Label sets: several labels an item, each of which a client learns a weight for.

This is CGFedRec's alignment in the limit. There, items with one label are pulled together; here they share its weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim import SGD, Optimizer

from cgfedrec.client import Batch, StepOutput, empty_parameter
from cgfedrec.errors import no_count, not_between, not_positive
from cgfedrec.random import Stream, bits, normal
from cgfedrec.structure.clusters import clustered
from cgfedrec.structure.discover import Found
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.nystroem import coordinates
from cgfedrec.structure.structure import Structure, SumsClient
from cgfedrec.structure.tallies import Known
from cgfedrec.wire.values import Field, Labels, Value

DECAYS = (0.0, 0.5, 1.0)
"""rho: an item of age a, in items, weighs (1 + a)^-rho among a client's positives."""
POPULARITIES = (0.0, 0.3, 1.0, 3.0, 10.0)
"""beta: how much an item's popularity counts beside the weights of its labels."""
CLASSES = 32
"""Of popularity."""
NONE = -1
"""In place of a label that an item does not have."""
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
    rounds: int = 8
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
    """Learns a weight for every label, once for each rho: which of these serves all clients best is chosen at last.

    A client's loss is logistic. Its positives weigh (1 + age)^-rho and sum to 1, and its negatives sum to 1.
    """

    structure: LabelSets

    def __init__(self, structure: LabelSets, discovery: Discovery, num_items: int, seed: int) -> None:
        super().__init__(structure, discovery, num_items, seed)
        self.num_labels = structure.num_labels(num_items)
        self.weights = empty_parameter(self.num_labels, len(DECAYS))
        # Whether a client has trained. One that has not scores by the mean of the others' weights.
        self.trained = nn.Parameter(torch.empty(0, dtype=torch.uint8), requires_grad=False)

    def start(self, users: Tensor) -> dict[str, Tensor]:
        shared = {"weights": torch.zeros(1, self.num_labels, len(DECAYS)), "trained": torch.zeros(1, dtype=torch.uint8)}
        return super().start(users) | {
            name: value.expand(len(users), *value.shape[1:]) for name, value in shared.items()
        }

    def changed(self) -> None:
        if not self.structured:
            return
        rows, clusters = self.known.the_rows, self.structure.num_clusters(self.num_items)
        self.labels = torch.full((self.num_items, self.structure.sets + 1), NONE)  # [items, sets + 1]
        for number, name in enumerate(self.structure.names):
            labels = self.kept["structure"][name]
            assert isinstance(labels, Labels)
            self.labels[rows.items, number] = number * clusters + labels.values
        # Everybody has the first sum already, so these classes take no bytes.
        order = self.popularity.cpu().argsort(descending=True, stable=True)
        places = torch.empty_like(order).scatter_(0, order, torch.arange(self.num_items))
        self.labels[:, -1] = self.structure.sets * clusters + places * CLASSES // self.num_items
        everything = torch.ones(1, dtype=torch.bool).expand(1, self.num_items)
        self.items = _labelled(self.labels[None], everything, self.num_labels)

    def configure_optimizers(self) -> list[Optimizer]:
        return [SGD([self.weights], lr=self.structure.step_size)]

    def train_batches(self) -> Sequence[Batch]:
        """All samples of the round in one batch, once for every step. Its weights are `[clients, samples, decays]`."""
        self.trained.data.fill_(1)
        drawn = self.own.batches()
        items, targets, inside = (
            torch.cat([_as_many(part, len(self.users)) for part in parts], dim=1)
            for parts in zip(*((batch.items, batch.targets, batch.weights > 0) for batch in drawn), strict=True)
        )
        self.pairs = _labelled(self.labels[items], inside, self.num_labels)
        self.pairs_back = self.pairs.T.tocsr()

        whose, which, ages = self.own.history.entries()
        table = torch.zeros(len(self.users), self.num_items, dtype=torch.int64)
        table[whose, which] = ages
        newness = 1 / (1 + table.gather(1, items).double())
        positive = newness[..., None] ** torch.tensor(DECAYS) * targets[..., None]  # [clients, samples, decays]
        negative = (inside & (targets == 0)).double()[..., None]
        weights = (_shares(positive) + _shares(negative)).float()
        sizes = inside.sum(1).float()
        return [Batch(items, targets, weights, sizes, torch.ones_like(sizes).bool())] * self.structure.steps

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        weights = self.weights.flatten(0, 1)  # [clients * labels, decays]
        scores: Tensor = _Product.apply(weights, self.pairs, self.pairs_back)  # type: ignore[no-untyped-call]
        scores = scores.view(*batch.targets.shape, -1)  # [clients, samples, decays]
        signs = (1 - 2 * batch.targets)[..., None]  # against positives -1, against negatives 1
        terms = (batch.weights * softplus(signs * scores)).sum(2)  # [clients, samples]
        # One after another: so it does not show to which width a cohort is padded.
        loss = terms.cumsum(1)[:, -1]
        apart: Tensor = self.weights
        if self.average is not None:
            apart = apart - self.average.to(self.device)
        return StepOutput(loss + self.structure.pull / 2 * apart.square().sum((1, 2)))

    def learned(self) -> Tensor:
        return self.weights.detach()

    def read(self, reading: int) -> Tensor:
        decay, beta = self.structure.options[reading]
        weights = self.weights.detach()[:, :, decay]  # [clients, labels]
        if self.average is not None:
            mean = self.average.to(self.device)[:, decay]
            weights = torch.where(self.trained[:, None] > 0, weights, mean)
        scores = torch.from_numpy(self.items @ weights.T.cpu().contiguous().numpy()).T  # [clients, items]
        return scores.to(self.device) + beta * self.popularity


class _Product(torch.autograd.Function):
    """A product of a sparse matrix of ones, `[samples, labels]`, with `[labels, decays]`.

    Each number is summed in the order of its row, whatever else is in the matrix.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, matrix: csr_array, transposed: csr_array) -> Tensor:
        ctx.transposed = transposed
        return torch.from_numpy(matrix @ weights.detach().cpu().numpy()).to(weights.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        made = ctx.transposed @ gradient.contiguous().cpu().numpy()
        return torch.from_numpy(made).to(gradient.device), None, None


def _labelled(labels: Tensor, inside: Tensor, num_labels: int) -> csr_array:
    """Which labels samples have: ones in `[clients * samples, clients * labels]`, each client's in its own columns.

    Args:
        labels: `[clients, samples, sets + 1]`, `NONE` where there is none.
        inside: `[clients, samples]`, bool: which samples are no padding.
        num_labels: Of a client.
    """
    clients = len(labels)
    there = (labels != NONE) & inside[..., None]
    columns = (labels + num_labels * torch.arange(clients)[:, None, None])[there]
    ends = there.sum(2).flatten().cumsum(0)
    starts = torch.nn.functional.pad(ends, (1, 0))
    return csr_array(
        (np.ones(len(columns), np.float32), columns.numpy(), starts.numpy()),
        shape=(len(starts) - 1, clients * num_labels),
    )


def _as_many(part: Tensor, clients: int) -> Tensor:
    """A batch that some clients no longer have, `[some, samples]`, with zeros for those."""
    return torch.nn.functional.pad(part, (0, 0, 0, clients - len(part)))


def _shares(weights: Tensor) -> Tensor:
    """Each client's weights, `[clients, samples, decays]`, as shares of their sum."""
    total = weights.cumsum(1)[:, -1:]
    return weights / total.clamp_min(1e-12)
