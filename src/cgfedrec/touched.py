"""Tables that come down to all of a cohort: a client trains the rows that its batches touch, and has no others.

A federation's catalogue has rows for all items, and a client's batches touch some hundreds of them. The other rows stay
what everybody has. So nobody goes over them: neither an optimiser, nor what adds uploads up (`cgfedrec.wire.moved`),
nor the store of clients' state, nor whoever scores by products with rows (`Client.scores_moved`). Tables are laid out
in full for clients that score otherwise, for steps of the wire, and for a server that looks at single uploads. Results
are the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cgfedrec.client import Batch, Client
from cgfedrec.errors import RunError
from cgfedrec.lent import Lent
from cgfedrec.memory import VECTOR, is_shared
from cgfedrec.wire.moved import of_rows

NO_ITEM = "a batch has items that are not in the catalogue; see Client.batches"


class Touched:
    """The rows of a cohort's tables that its batches touch. While there is one, the client has these alone.

    A table is `[1, rows, dim]` then: the rows of all clients, one client after another. ``batch.items`` says which of
    them a client's samples are, which is all that `cgfedrec.kit.rows.rows_of` asks for.

    Args:
        client: Holds the cohort; some of its tables follow, and are shared by all.
        names: Of these tables.
        batches: Of the cohort.
        memory: For its tables.

    Attributes:
        batches: The same, whose items count among these rows.
        ends: `[clients]`: where each client's rows end.
    """

    def __init__(self, client: Client, names: Sequence[str], batches: Sequence[Batch], memory: Lent) -> None:
        self.client, self.names = client, names
        self._bases = {name: client.get_parameter(name).data[0] for name in names}  # [items, dim]
        clients, num_items = len(client.users), len(self._bases[names[0]])
        if any(
            batch.items.numel() and not 0 <= batch.items.min() <= batch.items.max() < num_items for batch in batches
        ):
            raise RunError(NO_ITEM)
        # All tables as one, `[clients * items]`: where each sample's item stands in it, and which are touched at all.
        places = [batch.items.cpu().numpy() + num_items * np.arange(len(batch.items))[:, None] for batch in batches]
        touched = np.zeros(clients * num_items, bool)
        for place in places:
            touched[place] = True
        found = touched.nonzero()[0]  # [touched], client after client
        counts = np.count_nonzero(touched.reshape(clients, num_items), axis=1)
        # Each client has a whole number of vectors of any processor, and so perhaps a few rows more.
        multiple = max(VECTOR // math.gcd(VECTOR, base.shape[1]) for base in self._bases.values())
        room = -(-counts // multiple) * multiple
        self.ends = room.cumsum()  # [clients]
        owners = np.arange(clients).repeat(counts)
        numbers = np.arange(len(found)) + (self.ends - room - counts.cumsum() + counts).repeat(counts)
        number_of = np.empty(len(touched), np.int64)  # of what is touched; of all else anything
        number_of[found] = numbers
        self.batches = [
            batch._replace(items=torch.from_numpy(number_of[place]))
            for batch, place in zip(batches, places, strict=True)
        ]
        items, total = found - owners * num_items, int(self.ends[-1])
        self._indices = torch.from_numpy(np.stack((owners, items))).to(client.device)  # [2, touched]
        self._numbers = None if len(numbers) == total else torch.from_numpy(numbers).to(client.device)
        of_rows = items
        if self._numbers is not None:
            of_rows = np.zeros(total, np.int64)  # the item of each row; of those that are too many any
            of_rows[numbers] = items
        for name, base in self._bases.items():
            client.get_parameter(name).data = _fetched(base, torch.from_numpy(of_rows).to(client.device), memory)[None]
        self._memory = memory

    @classmethod
    def by(cls, client: Client, batches: Sequence[Batch], memory: Lent) -> Touched | None:
        """What ``batches`` touch of the tables that follow; ``None`` where none of them is shared by the cohort."""
        names = [name for name in sorted(client.follows) if is_shared(client.get_parameter(name).data)]
        return cls(client, names, batches, memory) if names else None

    def rows(self, clients: int) -> int:
        """How many rows the first so many clients have."""
        return int(self.ends[clients - 1])

    def check_gradients(self) -> None:
        """Refuse a step whose gradient is one of all rows: what it computed saw some of them alone."""
        for name in self.names:
            gradient = self.client.get_parameter(name).grad
            if gradient is not None and not gradient.is_sparse:
                kind = type(self.client).__name__
                raise RunError(
                    f"{kind}.training_step uses all rows of {name!r}, of which it has those of its batches alone: "
                    f"use cgfedrec.kit.rows.rows_of, or let {kind}.follows not name it"
                )

    def leave(self) -> None:
        """Let the client hold each table as what it has trained, a sparse tensor `[clients, items, dim]` (`moved`).

        Its entries are whole rows, in order. Rows without an entry are those that all began with.
        """
        for name, base in self._bases.items():
            parameter = self.client.get_parameter(name)
            rows = parameter.data[0]
            if self._numbers is not None:
                rows = _fetched(rows, self._numbers, self._memory)
            shape = (len(self.client.users), *base.shape)
            self.client.bases[name], self.client.moved[name] = base, of_rows(self._indices, rows, shape)
            parameter.data = parameter.data.new_empty(0, *base.shape)  # whoever looks for all rows here finds none


def _fetched(table: Tensor, places: Tensor, memory: Lent) -> Tensor:
    """The rows at some places `[rows]` of a table `[items, dim]`, `[rows, dim]`, on a CPU in memory that is lent."""
    if table.device.type != "cpu":
        return table.index_select(0, places)
    rows = memory.tensor((len(places), table.shape[1]), table.dtype)
    return torch.index_select(table, 0, places, out=rows)
