"""Servers that must look at single uploads, and what waits at them for single clients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgfedrec.server import Growing, Server
from cgfedrec.wire.messages import Sum, Upload


class GatherServer(Server):
    """Keeps what each client sends until its round ends.

    The few published methods whose server compares or groups clients derive from it (GPFedRec, CoFedRec, FedCA), and
    what works on sums alone refuses them. Beside another server, as in ``class Mine(GatherServer, ClusterServer)``, it
    comes first.
    """

    sees_single_uploads = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.uploads: list[Upload] = []

    def reduce(self, upload: Upload) -> Upload:
        """A copy: what arrives lies in the clients' own memory, in which they go on to train."""
        return Upload(upload.clients, {name: value.clone() for name, value in upload.values.items()}, upload.sparse)

    def aggregate(self, part: Upload | Sum) -> None:
        assert isinstance(part, Upload)
        self.uploads.append(part)

    def take_uploads(self) -> list[Upload]:
        """This round's uploads, cohort by cohort; then it gathers those of the next."""
        gathered, self.uploads = self.uploads, []
        return gathered


class Mailbox(Growing):
    """Rows that wait for single clients; a row may wait for several.

    Args:
        name: What an `Upload` calls these rows.
        shape: Of a row.
    """

    grows = ("clients", "places", "rows")
    clients: Tensor
    """`[waiting]`, int64: for whom."""
    places: Tensor
    """`[waiting]`, int64: which of ``rows``."""
    rows: Tensor
    """`[rows, *shape]`"""

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
        """Nothing waits for ``users`` `[clients]` any longer, and a row that waits for nobody is dropped."""
        waiting = ~torch.isin(self.clients, users.to(self.clients.device))
        needed, self.places = self.places[waiting].unique(return_inverse=True)
        self.clients, self.rows = self.clients[waiting], self.rows[needed]

    def put(self, users: Tensor, rows: Tensor, places: Tensor | None = None) -> None:
        """Let rows wait for clients. What waited for them before is discarded.

        Args:
            users: `[clients]`.
            rows: `[rows, *shape]`.
            places: `[clients]`: which row is for whom; by default the first row for the first client, and so on.
        """
        self.discard(users)
        places = torch.arange(len(users)) if places is None else places
        self.places = torch.cat((self.places, len(self.rows) + places.to(self.places.device)))
        self.clients = torch.cat((self.clients, users.to(self.clients.device)))
        self.rows = torch.cat((self.rows, rows)) if len(self.rows) else rows
