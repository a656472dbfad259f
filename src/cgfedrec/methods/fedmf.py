"""FedMF: federated matrix factorisation (Chai et al. 2019, arXiv 1906.05108), without its encryption.

The user vector stays with its client. The item table goes up, is averaged, and comes down in place of the client's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.optim import Optimizer

from cgfedrec.client import CompiledSteps
from cgfedrec.kit import steps
from cgfedrec.kit.factors import FactorBase, FactorClient, FactorMethod
from cgfedrec.kit.means import TableServer
from cgfedrec.kit.robust import Aggregation, RobustMethod, RobustTableServer
from cgfedrec.kit.rows import by_rows
from cgfedrec.lent import Scratch
from cgfedrec.server import Server
from cgfedrec.wire.values import Field


class FedMFClient(FactorClient):
    """A `FactorClient` in which one optimiser moves the user vector and the table."""

    method: FedMF
    follows = frozenset({"table"})

    def __init__(self, method: FactorBase, num_items: int, seed: int) -> None:
        super().__init__(method, num_items, seed)
        self._averages = Scratch(), Scratch()  # of Adam, where its steps are compiled

    def configure_optimizers(self) -> list[Optimizer]:
        return [by_rows(self.method.optimizer([self.user, self.table]))]

    def compiled_steps(self, optimizers: Sequence[Optimizer], ends: NDArray[np.int64] | None) -> CompiledSteps | None:
        return steps.factors(self.table, self.user, optimizers[0], ends, self._averages)


@dataclass(frozen=True, kw_only=True)
class FedMF(FactorMethod, RobustMethod):
    """FedMF (arXiv 1906.05108): item tables go up and down, user vectors stay."""

    aggregation: Aggregation = "mean"

    client_class: ClassVar[type[FactorClient]] = FedMFClient

    def server(self, num_items: int, seed: int) -> Server:
        return self.aggregating(TableServer, RobustTableServer, {"table": Field((num_items, self.dim))}, seed)
