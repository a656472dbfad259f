"""PFedRec: dual personalisation (Zhang et al., IJCAI 2023, arXiv 2301.08143).

The item table goes up, is averaged, and comes down in place of the client's. Local training then makes it the client's
own again. The score function, a linear head, never leaves. Clients score with their own tables, after training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cgfedrec.kit.means import TableServer
from cgfedrec.kit.robust import Aggregation, RobustMethod, RobustTableServer
from cgfedrec.kit.table import TableClient, TableMethod
from cgfedrec.server import Server
from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.values import Field


class PFedRecClient(TableClient):
    """A `TableClient` whose table starts each round as the server's."""

    follows = frozenset({"table"})

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        if broadcast is not None:
            self.replace("table", broadcast.values["table"])  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class PFedRec(TableMethod, RobustMethod):
    """PFedRec (arXiv 2301.08143): item tables go up and down, heads stay."""

    local_epochs: int = 1
    aggregation: Aggregation = "mean"

    client_class: ClassVar[type[TableClient]] = PFedRecClient

    def server(self, num_items: int, seed: int) -> Server:
        return self.aggregating(TableServer, RobustTableServer, {"table": Field((num_items, self.dim))}, seed)
