"""FedMF: federated matrix factorisation (Chai et al. 2019, arXiv 1906.05108), without its encryption.

The user vector stays with its client; the item table goes up, is averaged, and comes down in place of the client's.
"""

from __future__ import annotations

from cgfedrec.kit.factors import FactorMethod
from cgfedrec.server import TableServer
from cgfedrec.wire.values import Field


class FedMF(FactorMethod):
    """FedMF (arXiv 1906.05108): item tables go up and down, user vectors stay."""

    def server(self, num_items: int, seed: int) -> TableServer:
        return TableServer({"table": Field((num_items, self.dim))}, seed)
