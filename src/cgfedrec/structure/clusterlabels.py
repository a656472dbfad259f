"""Cluster labels: one label an item, to which the paper's own clients align their tables.

A control for CGFedRec. Its labels come from the mean of tables that say little of who has what, and these from sums
that do; its client is the same. So it shows which of the two held it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from cgfedrec.client import STEPS, Batch, CompiledSteps, StepOutput
from cgfedrec.errors import no_count
from cgfedrec.kit.optimisers import check_elementwise
from cgfedrec.method import MOST_EPOCHS
from cgfedrec.random import Stream, bits
from cgfedrec.structure.alignment import AlignedClient, AlignmentSettings
from cgfedrec.structure.clusters import clustered
from cgfedrec.structure.discover import Found
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.nystroem import coordinates
from cgfedrec.structure.structure import Structure, SumsClient
from cgfedrec.structure.tallies import Known
from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.values import Field, Labels, Value


@dataclass(frozen=True, kw_only=True)
class ClusterLabels(AlignmentSettings, Structure):
    """One label an item, and CGFedRec's client: a private table and head, aligned to the labels.

    Items without a row have no label, and no part in the alignment: clients train their embeddings by their own
    interactions and negatives alone.
    """

    clusters: int = 60
    """How many labels, or as many as items if these are fewer."""
    rounds: int = 50
    """Rounds in which clients train. Nothing travels in them."""

    verifies: ClassVar[bool] = False

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.structure.clusters", self.clusters, 2, 65536)
        yield no_count("method.structure.rounds", self.rounds, most=200)
        yield no_count("method.structure.local_epochs", self.local_epochs, most=MOST_EPOCHS)
        yield from self.wrong("method.structure")

    @property
    def train_rounds(self) -> int:
        return self.rounds

    def find(self, found: Found, discovery: Discovery) -> dict[str, Value]:
        """Cluster the items by what the sums say of them."""
        places = coordinates(found.factor).numpy()  # [rows, dim]
        weights = (found.rows.clients + 1).double().sqrt().numpy()
        seed = int(bits(found.seed, Stream.CLUSTERS, 1, 0) >> np.uint64(32))
        labels, _ = clustered(places, min(self.clusters, len(places)), seed, weights=weights)
        return {"labels": Labels(torch.from_numpy(labels), min(self.clusters, found.rows.num_items))}

    def fields(self, known: Known, discovery: Discovery) -> dict[str, Field]:
        clusters = min(self.clusters, known.num_items)
        return {"labels": Field((len(known.the_rows),), torch.int64, clusters=clusters)}

    def client(self, discovery: Discovery, num_items: int, seed: int) -> ClusterLabelsClient:
        check_elementwise(self.optimizer, "method.structure")
        return ClusterLabelsClient(self, discovery, num_items, seed)


class ClusterLabelsClient(SumsClient):
    """Adds to sums by itself, and trains and scores as the `AlignedClient` that it holds."""

    structure: ClusterLabels
    reports = AlignedClient.reports

    def __init__(self, structure: ClusterLabels, discovery: Discovery, num_items: int, seed: int) -> None:
        super().__init__(structure, discovery, num_items, seed)
        self.aligned = AlignedClient(structure, num_items, seed)

    def start(self, users: Tensor) -> dict[str, Tensor]:
        aligned: Mapping[str, Tensor] = self.aligned.start(users)
        return super().start(users) | {f"aligned.{name}": value for name, value in aligned.items()}

    def welcome(self, broadcast: Broadcast | None) -> None:
        super().welcome(broadcast)
        self.aligned.welcome(broadcast)

    def changed(self) -> None:
        if self.structured:
            self.aligned.receive(Broadcast(self.kept["structure"]), 0)
            self.aligned.labelled = self.known.the_rows.items.to(self.device)

    def configure_optimizers(self) -> list[Optimizer]:
        return self.aligned.configure_optimizers()

    def train_batches(self) -> Sequence[Batch]:
        # The paper's client passes over its samples more than once a round; a client of sums has no need to.
        return replace(self.own, epochs=self.structure.local_epochs).batches()

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        return self.aligned.training_step(batch, step)

    def compiled_steps(self, optimizers: Sequence[Optimizer], ends: NDArray[np.int64] | None) -> CompiledSteps | None:
        if self.aligned.replaced(*STEPS):
            return None
        return self.aligned.compiled_steps(optimizers, ends)

    def read(self, reading: int) -> Tensor:
        return self.aligned.score()
