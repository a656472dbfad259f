"""How one client's private state lies in bytes: whole, or as what differs from tables that many clients share.

A record holds a client's tensors one after another; the tables, which have a row for each item, come last. A table that
is kept by what differs from a base is the numbers of the items (int32, ascending) and then their rows. Any other tensor
is its bytes. What differs is found by comparing bits, so that nothing is lost whatever a client did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.simulation.store.differing import Bytes, changed, lines_of, raw
from cgfedrec.wire.moved import of_rows

Rows = dict[str, Tensor]
"""Rows of each private tensor, by its name: `[clients, ...]`."""
SMALL = 4096
"""Bytes of a block, about: what a file system reads and writes at once. Smaller records take one block."""
MOST_BLOCKS = 256
"""Of one record: large ones have larger blocks, so that to list them takes little."""
ITEM = 4
"""Bytes of an item's number."""


class Packed(NamedTuple):
    """Records of some clients."""

    content: Bytes
    """`[blocks, block]`: each record begins a block; what is left of its last one is zeros."""
    on_base: Tensor
    """`[clients, tables]`, bool: which table is kept by what differs from its base."""
    numbers: Tensor
    """`[clients, tables]`, int64: how many rows of each table stand in the record; all of them where it is whole."""


class Layout:
    """Turns rows into records and back.

    Args:
        shapes: The shape of one row of each tensor.
        dtypes: The type in which each is kept.

    Attributes:
        tables: The names of the tensors that may be kept by what differs.
        block: Bytes of a block.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype]) -> None:
        self.shapes, self.dtypes = shapes, dtypes
        whole = {name: torch.Size(shape).numel() * dtypes[name].itemsize for name, shape in shapes.items()}
        self.whole = sum(whole.values())
        number = min(max(-(-self.whole // SMALL), 1), MOST_BLOCKS)
        # A whole record fills its blocks: none takes more room than its bytes.
        self.block = max(-(-self.whole // number), 1)
        self.tables = [name for name, shape in shapes.items() if number > 1 and len(shape) == 2 and whole[name]]
        # Of each table, `[tables]`: how many rows it has, and the bytes of one.
        self.items = torch.tensor([shapes[name][0] for name in self.tables], dtype=torch.int64)
        self.widths = torch.tensor([whole[name] // shapes[name][0] for name in self.tables], dtype=torch.int64)
        self._order = [name for name in shapes if name not in self.tables] + self.tables
        self._nbytes = {name: whole[name] for name in self._order}
        self._beside = self.whole - sum(whole[name] for name in self.tables)

    @classmethod
    def of(cls, example: Mapping[str, Tensor], dtype: str) -> Layout:
        """Of the records of clients with such private tensors, `[clients, ...]`, whose floats are kept in ``dtype``."""
        floats: torch.dtype = getattr(torch, dtype)
        dtypes = {name: floats if one.is_floating_point() else one.dtype for name, one in example.items()}
        return cls({name: tuple(one.shape[1:]) for name, one in example.items()}, dtypes)

    def lengths(self, on_base: Tensor, numbers: Tensor) -> Tensor:
        """How many blocks records take, `[clients]`; arguments as in `Packed`."""
        nbytes = self._beside + (numbers * (self.widths + ITEM * on_base)).sum(1)
        return (-(-nbytes // self.block)).clamp_min(1)

    def base_length(self, table: int) -> int:
        """How many blocks a base of a table takes."""
        return -(-self.base_nbytes(table) // self.block)

    def base_nbytes(self, table: int) -> int:
        """Bytes of a whole table."""
        return int(self.items[table] * self.widths[table])

    def table(self, name: str, content: Bytes) -> Tensor:
        """A base `[items, dim]` from its bytes."""
        return torch.from_numpy(content.copy()).view(self.dtypes[name]).view(self.shapes[name])

    def pack(self, clients: int, rows: Rows, bases: Mapping[str, Tensor]) -> Packed:
        """Records of clients.

        Args:
            clients: How many.
            rows: `[clients, ...]` of each tensor, in the types in which they are kept. A table may be sparse: it has
                entries for rows `[clients, items]`, and its other rows are the base's.
            bases: `[items, dim]`, likewise, by the name of the table. A table that it would not make smaller stays
                whole.
        """
        on_base = torch.zeros(clients, len(self.tables), dtype=torch.bool)
        numbers = self.items.repeat(clients, 1)
        most = int(self.lengths(on_base[:1], numbers[:1]).sum())  # blocks of a whole record
        content = np.empty((clients * most, self.block), np.uint8)
        here = {name: raw(rows[name]).reshape(clients, -1) for name in self._order if not rows[name].is_sparse}
        if not bases:
            lines = content.reshape(clients, -1)
            for name, part in self._parts():
                lines[:, part] = here[name]
            lines[:, self.whole :] = 0
            return Packed(content, on_base, numbers)
        flat, block = content.reshape(-1), 0
        differs = {name: changed(rows[name], bases[name]) for name in bases}
        for client in range(clients):
            at = block * self.block
            for name in self._order:
                if name in bases:
                    table, width = self.tables.index(name), self._nbytes[name] // self.shapes[name][0]
                    items, lines, places = differs[name][client]
                    if len(items) * (width + ITEM) < self._nbytes[name]:
                        on_base[client, table], numbers[client, table] = True, len(items)
                        flat[at : at + ITEM * len(items)] = items.view(np.uint8)
                        at += ITEM * len(items)
                        picked = flat[at : at + width * len(items)]
                        # They are there, so "clip" changes nothing; without it numpy would take a detour.
                        np.take(lines, places, 0, lines_of(picked, width), "clip")
                        at += len(picked)
                        continue
                if name in here:
                    one = here[name][client]
                else:
                    one = raw(bases[name]).copy()
                    lines_of(one, width)[items] = lines[places]
                flat[at : at + len(one)] = one
                at += len(one)
            block = max(-(-at // self.block), block + 1)
            flat[at : block * self.block] = 0
        return Packed(content[:block], on_base, numbers)

    def unpack(
        self,
        content: Bytes,
        bases: Tensor,
        numbers: Tensor,
        tables: Mapping[int, Bytes],
        into: Rows | None = None,
        without: Collection[str] = (),
        beside: Collection[str] = (),
    ) -> Rows:
        """Rows from records, `[clients, ...]` of each tensor.

        Args:
            content: As `pack` returned it.
            bases: `[clients, tables]`: the number of the base of each table, -1 where it is whole.
            numbers: As `pack` returned them.
            tables: The bytes of each base, `[bytes]`, by its number.
            into: Where to put them, in tensors of the types in which they are kept; by default in new ones.
            without: Tables that nobody needs: what is in theirs is left as it is.
            beside: Tables that all clients keep by what differs, of which this is wanted alone: sparse (`moved`).

        Raises:
            ValueError: if the numbers of items in a record are none.
        """
        clients = len(bases)
        given = (into or {}) | {name: torch.empty(clients, 0, dtype=self.dtypes[name]) for name in beside}
        differ: dict[str, list[tuple[NDArray[np.int32], NDArray[Any]]]] = {name: [] for name in beside}
        rows = {
            name: given[name] if name in given else torch.empty(clients, *self.shapes[name], dtype=self.dtypes[name])
            for name in self._order
        }
        places = {name: raw(rows[name]).reshape(clients, -1) for name in self._order}
        if not (bases >= 0).any():
            lines = content.reshape(clients, -1)
            for name, part in self._parts():
                if name not in without:
                    places[name][:] = lines[:, part]
            return {name: rows[name] for name in self.shapes}
        lengths = self.lengths(bases >= 0, numbers)
        flat, begins = content.reshape(-1), ((lengths.cumsum(0) - lengths) * self.block).tolist()
        for client, at in enumerate(begins):
            none = [-1] * (len(self._order) - len(self.tables))
            for name, base, number in zip(
                self._order, none + bases[client].tolist(), none + numbers[client].tolist(), strict=True
            ):
                target = places[name][client]
                if base < 0:
                    if name not in without:
                        target[:] = flat[at : at + len(target)]
                    at += len(target)
                    continue
                width = self._nbytes[name] // self.shapes[name][0]
                if name in without:
                    at += number * (width + ITEM)
                    continue
                items = flat[at : at + ITEM * number].view(np.int32)
                at += ITEM * number
                if number and not (
                    items[0] >= 0 and items[-1] < self.shapes[name][0] and (items[1:] > items[:-1]).all()
                ):
                    raise ValueError(f"the items of a client's {name} are no ascending numbers of items")
                lines = lines_of(flat[at : at + width * number], width)
                at += width * number
                if name in beside:
                    differ[name].append((items, lines))
                else:
                    target[:] = tables[base]
                    lines_of(target, width)[items] = lines
        for name, found in differ.items():
            rows[name] = self._sparse(name, found)
        return {name: rows[name] for name in self.shapes}

    def _sparse(self, name: str, found: Sequence[tuple[NDArray[np.int32], NDArray[Any]]]) -> Tensor:
        """A table of clients as what differs, `[clients, items, dim]`, from each one's items and lines."""
        items, lines = (np.concatenate(parts) for parts in zip(*found, strict=True))
        owners = np.arange(len(found)).repeat([len(mine) for mine, _ in found])
        values = torch.from_numpy(lines).view(self.dtypes[name])
        return of_rows(torch.from_numpy(np.stack((owners, items))), values, (len(found), *self.shapes[name]))

    def _parts(self) -> Iterator[tuple[str, slice]]:
        """Where each tensor lies in a record in which all are whole."""
        at = 0
        for name in self._order:
            yield name, slice(at, at + self._nbytes[name])
            at += self._nbytes[name]


def kept_as(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows `[clients, ...]`, dense or sparse, in memory that is no accelerator's and in the type that is kept."""
    if not rows.is_sparse:
        return rows.to("cpu", dtype)
    values = rows.values().to("cpu", dtype)
    indices = rows.indices().to("cpu")
    return of_rows(indices, values, rows.shape)
