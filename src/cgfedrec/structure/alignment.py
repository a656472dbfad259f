"""Clients that align their items to a server's labels, and the settings of that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from cgfedrec.client import Batch, CompiledSteps, StepOutput
from cgfedrec.errors import check, no_count, not_between
from cgfedrec.kit.steps import plain_rate
from cgfedrec.kit.table import TableClient, TableMethod, TableSettings
from cgfedrec.structure.clusters import KMeansKind
from cgfedrec.structure.contrast import Kind, contrast, loss_and_gradient
from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.values import Labels


class AlignedClient(TableClient):
    """A `TableClient` that pulls its embeddings of items with one label together.

    Once labels have arrived, the table's loss is BCE + ``reg`` times `contrast` over all items, not only those of the
    batch. The alignment is reported.
    """

    method: AlignmentSettings
    reports = ("alignment",)

    def __init__(self, method: AlignmentSettings, num_items: int, seed: int) -> None:
        super().__init__(method, num_items, seed)
        self.labels: Tensor | None = None
        # Which items these are of, `[labels]`; all of them by default. The others have no part in the alignment.
        self.labelled: Tensor | slice = slice(None)

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        """As a `TableClient`'s. The head has no part in the alignment, so only step 1, the table's, adds it."""
        output = super().training_step(batch, step)
        if step == 0 or self.labels is None or self.method.reg == 0:
            return output
        alignment = contrast(
            self.table[:, self.labelled], self.labels, self.method.temperature, kind=self.method.contrast
        )
        return StepOutput(output.loss + self.method.reg * alignment, {"alignment": alignment.detach()})

    def compiled_steps(self, optimizers: Sequence[Optimizer], ends: NDArray[np.int64] | None) -> CompiledSteps | None:
        linear = super().compiled_steps(optimizers, ends)
        rate = plain_rate(optimizers[1], self.table)
        if linear is None or rate is None or self.labels is None or self.method.reg == 0:
            return linear
        labels, method = self.labels, self.method

        def step(batch: Batch) -> StepOutput:
            table = self.table.data[:, self.labelled]
            alignment, gradient = loss_and_gradient(table, labels, method.temperature, kind=method.contrast)
            output = linear(batch)
            self.table.data[:, self.labelled] -= gradient.mul_(rate * method.reg)
            return StepOutput(output.loss + method.reg * alignment, {"alignment": alignment})

        return step

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        # The table itself is never overwritten: labels are all that comes down.
        self.labels = None
        if broadcast is not None:
            labels = broadcast.values["labels"]
            assert isinstance(labels, Labels)
            self.labels = labels.values.to(self.table.device)


@dataclass(frozen=True, kw_only=True)
class AlignmentSettings(TableSettings):
    """The settings of an `AlignedClient`."""

    reg: float = 0.005
    """Weight of the alignment towards the labels."""
    temperature: float = 0.1
    """T of the alignment (`cl_t` of the published code)."""
    contrast: Kind = "exact"
    """``exact``, or against cluster ``prototypes``: an approximation that costs items x clusters."""

    def wrong(self, where: str) -> Iterator[str | None]:
        yield not_between(f"{where}.reg", self.reg, 0)
        yield not_between(f"{where}.temperature", self.temperature, 1e-3, 1e6)
        yield from super().wrong(where)


@dataclass(frozen=True, kw_only=True)
class AlignedMethod(AlignmentSettings, TableMethod):
    """A method whose server clusters the items, and whose clients align their tables to the labels."""

    clusters: int
    """K, the number of item clusters; at most the number of items."""
    kmeans: KMeansKind = "minibatch"
    """``minibatch`` or ``full``, with centroids kept from round to round."""

    client_class: ClassVar[type[TableClient]] = AlignedClient

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.clusters", self.clusters, 2)
        yield from super().problems()

    def check_clusters(self, num_items: int) -> None:
        """Raise `InputError` for more clusters than items."""
        if self.clusters > num_items:
            check(f"method.clusters: {self.clusters} is more than the {num_items} items of the data")
