"""Tables that come down to all of a cohort: a client trains the rows that its batches touch, and has no others.

A federation's catalogue has rows for all items, and a client's batches touch some hundreds of them. The other rows stay
what everybody has, through training, summing and storing. So nobody goes over them: neither an optimiser, nor what
adds uploads up (`cgfedrec.wire.sums`), nor the store of clients' state. Results are the same to the bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cgfedrec.client import Batch, Client, is_shared
from cgfedrec.errors import RunError
from cgfedrec.lent import Lent, Scratch

MULTIPLE = 16
"""Tables in training have a multiple of so many rows: then each client's share of one is a whole number of vectors, of
any processor (`cgfedrec.kit.rows.VECTOR`)."""


class Memory:
    """For one cohort after another. To get it anew from the system takes longer than to fill it.

    Attributes:
        tables: By name, for tables in training.
        lent: For what has been trained, until it is trained again.
    """

    def __init__(self) -> None:
        self.tables: defaultdict[str, Scratch] = defaultdict(Scratch)
        self.lent = Lent()


class Touched:
    """The rows of a cohort's tables that its batches touch. While there is one, the client has these alone.

    Args:
        client: Holds the cohort; some of its tables follow, and are shared by all.
        names: Of these tables.
        batches: Of the cohort.
        memory: For its tables.

    Attributes:
        batches: The same, whose items count among a client's rows.
    """

    def __init__(self, client: Client, names: Sequence[str], batches: Sequence[Batch], memory: Memory) -> None:
        self.client, self.names, self.memory = client, names, memory
        self._bases = {name: client.get_parameter(name).data[0] for name in names}  # [items, dim]
        clients, num_items = len(client.users), len(self._bases[names[0]])
        # All tables as one, `[clients * items]`: where each sample's item stands in it, and which are touched at all.
        places = [batch.items.cpu().numpy() + num_items * np.arange(len(batch.items))[:, None] for batch in batches]
        touched = np.zeros(clients * num_items, bool)
        for place in places:
            touched[place] = True
        found = touched.nonzero()[0]  # [rows], client after client
        counts = np.count_nonzero(touched.reshape(clients, num_items), axis=1)
        owners = np.arange(clients).repeat(counts)
        numbers = np.arange(len(found)) - (counts.cumsum() - counts).repeat(counts)  # [rows], from 0 for each client
        number_of = np.empty(len(touched), np.int64)  # of a row that is touched; of others anything
        number_of[found] = numbers
        self.batches = [
            batch._replace(items=torch.from_numpy(number_of[place]))
            for batch, place in zip(batches, places, strict=True)
        ]
        most = -(-int(counts.max()) // MULTIPLE) * MULTIPLE
        items, device = found - owners * num_items, client.device
        slots = np.zeros((clients, most), np.int64)  # the items of a client's rows; behind them item 0, which stays
        slots[owners, numbers] = items
        # [2, rows]: whose row of which item each is; and [rows]: where it stands among all `clients * most`.
        self._indices = torch.from_numpy(np.stack((owners, items))).to(device)
        self._slots = torch.from_numpy(owners * most + numbers).to(device)
        for name, base in self._bases.items():
            rows = memory.tables[name].tensor((slots.size, base.shape[1]), base.dtype, device)
            torch.index_select(base, 0, torch.from_numpy(slots).to(device).flatten(), out=rows)
            client.get_parameter(name).data = rows.view(clients, most, -1)

    @classmethod
    def by(cls, client: Client, batches: Sequence[Batch], memory: Memory) -> Touched | None:
        """What ``batches`` touch of the tables that follow; ``None`` where none of them is shared by the cohort."""
        names = [name for name in sorted(client.follows) if is_shared(client.get_parameter(name).data)]
        return cls(client, names, batches, memory) if names else None

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
            rows = self._trained(parameter.data.flatten(0, 1))
            shape = (len(parameter), *base.shape)
            self.client.bases[name], self.client.moved[name] = (
                base,
                torch.sparse_coo_tensor(self._indices, rows, shape, is_coalesced=True, check_invariants=False),
            )
            parameter.data = parameter.data.new_empty(0, *base.shape)  # whoever looks for all rows here finds none

    def _trained(self, table: Tensor) -> Tensor:
        """The rows that count, `[rows, dim]`, of a table in training, `[clients * most, dim]`."""
        if table.device.type != "cpu":
            return table.index_select(0, self._slots)
        rows = self.memory.lent.tensor((len(self._slots), table.shape[1]), table.dtype)
        return torch.index_select(table, 0, self._slots, out=rows)
