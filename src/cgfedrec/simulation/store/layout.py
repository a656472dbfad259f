"""How one client's private state lies in bytes: whole, or as what differs from tables that many clients share.

A record holds a client's tensors one after another; the tables, which have a row for each item, come last. A table that
is kept by what differs from a base is the numbers of the items (int32, ascending) and then their rows. Any other tensor
is its bytes. What differs is found by comparing bits, so that nothing is lost whatever a client did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.wire.moved import of_rows

Rows = dict[str, Tensor]
"""Rows of each private tensor, by its name: `[clients, ...]`."""
Bytes = NDArray[np.uint8]
SMALL = 4096
"""Bytes of a block, about: what a file system reads and writes at once. Smaller records take one block."""
MOST_BLOCKS = 256
"""Of one record: large ones have larger blocks, so that to list them takes little."""
ITEM = 4
"""Bytes of an item's number."""
_CACHE = 2**18
"""Numbers that are compared at a time."""


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
        changed = {name: _changed(rows[name], bases[name]) for name in bases}
        for client in range(clients):
            at = block * self.block
            for name in self._order:
                if name in bases:
                    table, width = self.tables.index(name), self._nbytes[name] // self.shapes[name][0]
                    items, lines, places = changed[name][client]
                    if len(items) * (width + ITEM) < self._nbytes[name]:
                        on_base[client, table], numbers[client, table] = True, len(items)
                        flat[at : at + ITEM * len(items)] = items.view(np.uint8)
                        at += ITEM * len(items)
                        picked = flat[at : at + width * len(items)]
                        # They are there, so "clip" changes nothing; without it numpy would take a detour.
                        np.take(lines, places, 0, _lines(picked, width), "clip")
                        at += len(picked)
                        continue
                if name in here:
                    one = here[name][client]
                else:
                    one = raw(bases[name]).copy()
                    _lines(one, width)[items] = lines[places]
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
    ) -> Rows:
        """Rows from records, `[clients, ...]` of each tensor.

        Args:
            content: As `pack` returned it.
            bases: `[clients, tables]`: the number of the base of each table, -1 where it is whole.
            numbers: As `pack` returned them.
            tables: The bytes of each base, `[bytes]`, by its number.
            into: Where to put them, in tensors of the types in which they are kept; by default in new ones.
            without: Tables that nobody needs: what is in theirs is left as it is.

        Raises:
            ValueError: if the numbers of items in a record are none.
        """
        clients = len(bases)
        given = into or {}
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
            beside = [-1] * (len(self._order) - len(self.tables))
            for name, base, number in zip(
                self._order, beside + bases[client].tolist(), beside + numbers[client].tolist(), strict=True
            ):
                target = places[name][client]
                if base < 0:
                    if name not in without:
                        target[:] = flat[at : at + len(target)]
                    at += len(target)
                    continue
                width = len(target) // self.shapes[name][0]
                if name in without:
                    at += number * (width + ITEM)
                    continue
                target[:] = tables[base]
                items = flat[at : at + ITEM * number].view(np.int32)
                at += ITEM * number
                if number and not (items[0] >= 0 and items[-1] < self.shapes[name][0] and (np.diff(items) > 0).all()):
                    raise ValueError(f"the items of a client's {name} are no ascending numbers of items")
                _lines(target, width)[items] = _lines(flat[at : at + width * number], width)
                at += width * number
        return {name: rows[name] for name in self.shapes}

    def _parts(self) -> Iterator[tuple[str, slice]]:
        """Where each tensor lies in a record in which all are whole."""
        at = 0
        for name in self._order:
            yield name, slice(at, at + self._nbytes[name])
            at += self._nbytes[name]


class Changed(NamedTuple):
    """What of one client's table is not as in a base, bit for bit."""

    items: NDArray[np.int32]
    """`[rows]`, ascending: the items of these rows."""
    lines: NDArray[Any]
    """Bytes of rows, as `_lines`."""
    places: NDArray[np.int64]
    """`[rows]`: where these rows stand among them."""


def _changed(tables: Tensor, base: Tensor) -> list[Changed]:
    """What of each client's table, `[clients, items, dim]`, dense or sparse, is not as in a base `[items, dim]`."""
    width, found = base.shape[1] * base.itemsize, []
    if not tables.is_sparse:
        mask = differing(tables, base)  # [clients, items]
        for table, differs in zip(raw(tables).reshape(len(tables), -1), mask, strict=True):
            places = differs.nonzero()[0]
            found.append(Changed(places.astype(np.int32), _lines(table, width), places))
        return found
    owners, items = tables.indices().numpy()
    lines = _lines(raw(tables.values()), width)
    differs = (lines != _lines(raw(base), width)[items]).any(1).nonzero()[0]  # [rows]
    ends = np.searchsorted(owners[differs], np.arange(len(tables) + 1))
    for begin, end in pairwise(ends):
        places = differs[begin:end]
        found.append(Changed(items[places].astype(np.int32), lines, places))
    return found


def _lines(content: Bytes, width: int) -> NDArray[Any]:
    """Bytes as rows of so many each, `[rows, numbers]`, of the widest numbers that fit."""
    kind = np.int32 if width % 4 == 0 else np.uint8
    return content.view(kind).reshape(-1, width // np.dtype(kind).itemsize)


def differing(tables: Tensor, base: Tensor) -> NDArray[np.bool_]:
    """Which rows are not those of a base, bit for bit, `[clients, items]`.

    Args:
        tables: `[clients, items, dim]`
        base: `[items, dim]`, of the same type.
    """
    words = torch.int64 if base.shape[1] * base.itemsize % 8 == 0 else torch.uint8
    # [.., items, words]
    ours, theirs = (torch.from_numpy(raw(one)).view(words).reshape(*one.shape[:-1], -1) for one in (tables, base))
    differs = torch.empty(tables.shape[:2], dtype=torch.bool)
    # A few clients at a time, so that what is found lies in the cache when it is read again.
    few = max(_CACHE // max(theirs.numel(), 1), 1)
    for start in range(0, len(ours), few):
        found = ours[start : start + few] != theirs
        if found.shape[2] % 8 == 0:
            found = found.view(torch.int64)  # eight at a time: several times as fast
        torch.any(found, 2, out=differs[start : start + few])
    mask: NDArray[np.bool_] = differs.numpy()
    return mask


def raw(rows: Tensor) -> Bytes:
    """The bytes of rows, `[bytes]`, not copied where they lie next to each other. Numpy has no bfloat16; all is bytes.

    Args:
        rows: `[...]`
    """
    there = rows.detach().contiguous()
    # Torch leaves the stride of an axis of length 1 as it is: it may be that of an expanded one.
    flat = there.as_strided((there.numel(),), (1,), there.storage_offset())
    content: Bytes = flat.view(torch.uint8).numpy()
    return content


def kept_as(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows `[clients, ...]`, dense or sparse, in memory that is no accelerator's and in the type that is kept."""
    if not rows.is_sparse:
        return rows.to("cpu", dtype)
    values = rows.values().to("cpu", dtype)
    indices = rows.indices().to("cpu")
    return of_rows(indices, values, rows.shape)
