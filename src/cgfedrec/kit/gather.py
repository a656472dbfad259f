"""What waits at a server for single clients."""

from __future__ import annotations

import torch
from torch import Tensor

from cgfedrec.server import Growing
from cgfedrec.wire.messages import Upload


class Mailbox(Growing):
    """Rows that wait for single clients; a row may wait for several.

    Args:
        name: What an `Upload` calls these rows.
        shape: Of a row.
    """

    grows = ("clients", "places", "rows")
    clients: Tensor
    places: Tensor
    rows: Tensor

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("clients", torch.empty(0, dtype=torch.int64))
        self.register_buffer("places", torch.empty(0, dtype=torch.int64))
        self.register_buffer("rows", torch.empty(0, *shape))

    def of(self, users: Tensor) -> Upload | None:
        """What waits for some of ``users`` `[clients]`; ``None`` where nothing does."""
        found, waiting = (users.to(self.clients.device)[:, None] == self.clients).nonzero(as_tuple=True)
        if not len(found):
            return None
        return Upload(users[found.to(users.device)], {self.name: self.rows[self.places[waiting]]})

    def discard(self, users: Tensor) -> None:
        """Nothing waits for ``users`` any longer, and what waits for nobody goes."""
        waiting = ~torch.isin(self.clients, users.to(self.clients.device))
        needed, self.places = self.places[waiting].unique(return_inverse=True)
        self.clients, self.rows = self.clients[waiting], self.rows[needed]

    def put(self, users: Tensor, rows: Tensor, places: Tensor | None = None) -> None:
        """Let row ``places[c]`` of ``rows``, or without places row c, wait for ``users[c]`` in place of what did."""
        self.discard(users)
        places = torch.arange(len(users)) if places is None else places
        self.places = torch.cat((self.places, len(self.rows) + places.to(self.places.device)))
        self.clients = torch.cat((self.clients, users.to(self.clients.device)))
        self.rows = torch.cat((self.rows, rows)) if len(self.rows) else rows
