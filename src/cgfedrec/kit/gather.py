"""Servers that must look at single uploads, and what waits at them for single clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cgfedrec.growing import Growing
from cgfedrec.processes import Processes
from cgfedrec.server import Server
from cgfedrec.wire.messages import Upload, dense
from cgfedrec.wire.sums import Sum

AT_ONCE = 2**22
"""Numbers of all clients together that are copied, sorted or compared at a time."""


class Gathered:
    """A round's uploads: they lie in pieces, as they came, and are read in ascending order of clients.

    All of them side by side would take as much memory again.

    Args:
        pieces: At least one; of others without clients nothing is kept.

    Attributes:
        clients: `[clients]`, ascending.
    """

    def __init__(self, pieces: Sequence[Upload]) -> None:
        self.pieces = [piece for piece in pieces if len(piece.clients)] or [pieces[0]]
        self.clients, self._order = torch.cat([piece.clients for piece in self.pieces]).sort()

    def of(self, name: str, which: slice | Tensor = slice(None)) -> Tensor:
        """Of each client's value the places `which` along its first axis, such as some items, `[clients, some, ...]`.

        Args:
            name: Of the value.
            which: A slice, or a mask `[items]`; by default all.
        """
        rows = torch.cat([dense(piece.values[name])[:, which] for piece in self.pieces])
        return rows[self._order.to(rows.device)]

    def slices(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Some places along a value's first axis after others, with `of` them, `[clients, some, ...]`."""
        _, length, *others = self.pieces[0].values[name].shape
        step = max(1, AT_ONCE // max(1, len(self.clients) * torch.Size(others).numel()))
        for first in range(0, length, step):
            which = slice(first, first + step)
            yield which, self.of(name, which)


class GatherServer(Server):
    """Keeps what each client sends until its round ends, and reads it in ascending order of clients then.

    So what it makes of them does not depend on cohorts, nor on which process or node answers first.

    The few published methods whose server compares or groups clients derive from it: GPFedRec, CoFedRec and FedCA. What
    works on sums alone refuses them by ``sees_single_uploads``. Beside another server it comes first, as in
    ``class Mine(GatherServer, ClusterServer)``.
    """

    sees_single_uploads = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.uploads: list[Upload] = []

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.uploads = []  # of a round that was not ended
        super()._load_from_state_dict(*args, **kwargs)

    def reduce(self, upload: Upload) -> Upload:
        """A copy. What arrives lies in the clients' own memory, where training goes on in place."""
        return replace(upload, values={name: value.clone() for name, value in upload.values.items()})

    def aggregate(self, part: Upload | Sum) -> None:
        assert isinstance(part, Upload)
        self.uploads.append(part)

    def gather(self, processes: Processes) -> None:
        if processes.number == 1:
            return
        nobody = self.of_nobody()
        assert isinstance(nobody, Upload)
        uploads = [nobody, *self.uploads]
        self.uploads = []
        clients = torch.cat(processes.together(torch.cat([upload.clients for upload in uploads])))
        values = {}
        for name in nobody.values:
            ours = torch.cat([dense(upload.values[name]).cpu() for upload in uploads])
            values[name] = torch.cat(processes.together(ours))
        self.uploads = [replace(nobody, clients=clients, values=values)]

    def take_uploads(self) -> Gathered:
        """This round's uploads. From here on those of the next round are gathered."""
        gathered, self.uploads = Gathered(self.uploads), []
        return gathered


class Mailbox(Growing):
    """Rows that wait for single clients. A row may wait for several.

    A client takes part only now and then. What the server has for it alone is kept here until then, in every checkpoint
    too.

    Args:
        name: What an `Upload` calls these rows.
        shape: Of a row.

    >>> mailbox = Mailbox("table", 2)
    >>> mailbox.put(torch.tensor([4, 9]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> found = mailbox.of(torch.tensor([9, 5]))  # nothing waits for client 5
    >>> found.clients, found.values["table"]
    (tensor([9]), tensor([[3., 4.]]))
    >>> mailbox.discard(torch.tensor([4]))
    >>> mailbox.of(torch.tensor([4, 9])).values["table"]
    tensor([[3., 4.]])
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
        # [clients, waiting]: which user is whom a row waits for
        found, waiting = (users.to(self.clients.device)[:, None] == self.clients).nonzero(as_tuple=True)
        if not len(found):
            return None
        return Upload(users[found.to(users.device)], {self.name: self.rows[self.places[waiting]]})

    def discard(self, users: Tensor) -> None:
        """Let nothing wait for ``users`` `[clients]` any longer. A row that then waits for nobody is dropped."""
        waiting = ~torch.isin(self.clients, users.to(self.clients.device))
        # The rows that are still needed close ranks, and places follow them.
        needed, self.places = self.places[waiting].unique(return_inverse=True)
        self.clients, self.rows = self.clients[waiting], self.rows[needed]

    def put(self, users: Tensor, rows: Tensor, places: Tensor | None = None) -> None:
        """Let rows wait for clients, in place of what waited for them before.

        Args:
            users: `[clients]`.
            rows: `[rows, *shape]`.
            places: `[clients]`: which row is for whom; by default the first row for the first client, and so on.
        """
        self.discard(users)
        if places is None:
            places = torch.arange(len(users))
        self.places = torch.cat((self.places, len(self.rows) + places.to(self.places.device)))
        self.clients = torch.cat((self.clients, users.to(self.clients.device)))
        if len(self.rows):
            rows = torch.cat((self.rows, rows))
        self.rows = rows  # not copied where nothing else waits: these may be the tables of all clients
