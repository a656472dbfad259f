"""Tables of which only the rows travel that are not all zero: first the numbers of their items, then the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from cgfedrec.wire.kind import Kind
from cgfedrec.wire.tensors import packed, unpacked
from cgfedrec.wire.values import DTYPES, Field, SparseRows

ITEM = 4
"""Bytes of the number of an item."""


class SparseKind(Kind[SparseRows]):
    """Sparse rows `[items, dim]`. Their header has the axes (items, dim, count), where ``count`` rows follow."""

    too_many = "has more rows than there are items"

    def code(self, field: Field) -> int:
        return 128 + DTYPES.index(field.dtype)

    def most(self, field: Field) -> int:
        return field.shape[0]

    def encode(self, value: SparseRows, field: Field) -> tuple[bytes, int]:
        touched = value.touched  # [items]
        items = touched.nonzero().squeeze(1).int()
        return packed(items) + packed(value.values[touched]), len(items)

    def size(self, field: Field, count: int) -> int:
        return count * (ITEM + row_nbytes(field))

    def decode(self, payload: bytes, field: Field, count: int) -> SparseRows:
        items = unpacked(payload[: ITEM * count], torch.int32).long()
        rows = unpacked(payload[ITEM * count :], field.dtype).reshape(count, field.shape[1])
        return SparseRows(scatter_rows(field, torch.zeros_like(items), items, rows, 1)[0])


def row_nbytes(field: Field) -> int:
    """The bytes of one row's values."""
    return field.shape[1] * field.dtype.itemsize


def scatter_rows(field: Field, owners: Tensor, items: Tensor, rows: Tensor, clients: int) -> Tensor:
    """The tables of which some rows arrived, zeros elsewhere.

    Args:
        field: What one client's table is like.
        owners: `[rows]`, int64, rising: whose each row is, a number below ``clients``.
        items: `[rows]`, int64: of which item.
        rows: `[rows, dim]`.
        clients: How many tables.

    Returns:
        `[clients, items, dim]`

    Raises:
        ValueError: where the rows of a client are not those of different items in ascending order.
    """
    num_items = field.shape[0]
    places = owners * num_items + items  # in all tables, one under another
    # Places that rise mean both: within a client its items rise, and clients come one after another.
    if len(items) and not ((items >= 0).all() and (items < num_items).all() and (places.diff() > 0).all()):
        raise ValueError("its rows are not those of different items, in ascending order")
    tables = rows.new_zeros(clients * num_items, field.shape[1]).index_copy_(0, places, rows)
    return tables.view(clients, *field.shape)
