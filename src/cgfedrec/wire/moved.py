"""Tables of some clients that are one table but for some rows: sparse tensors `[clients, items, dim]` beside a base.

A table that a cohort has trained by its rows is such a one (`cgfedrec.touched`). Entries are whole rows, one for each
client and item at most, clients after one another and items in ascending order: the tensor is coalesced.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cgfedrec.wire.sums import GRID


def of_rows(indices: Tensor, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Such tables, `[*shape]`, from rows `[rows, ...]` in order, and whose they are, of which item, `[2, rows]`."""
    return torch.sparse_coo_tensor(indices, rows, shape, is_coalesced=True, check_invariants=False)


def laid_out(moved: Tensor, base: Tensor) -> Tensor:
    """The tables in full, `[clients, items, dim]`.

    Args:
        moved: `[clients, items, dim]`, sparse: the rows that are not those of the base, or need not be.
        base: `[items, dim]`.
    """
    tables = base.to(moved.device, moved.dtype).repeat(len(moved), 1, 1)
    owners, items = moved.indices()
    tables[owners, items] = moved.values()
    return tables


def some(rows: Tensor, places: Tensor) -> Tensor:
    """The rows at some places `[places]` of `[clients, ...]`, dense or sparse and coalesced: `[places, ...]`."""
    if not rows.is_sparse:
        return rows.index_select(0, places.to(rows.device))
    if not len(places) or not places.equal(torch.arange(int(places[0]), int(places[0]) + len(places))):
        return rows.index_select(0, places.to(rows.device)).coalesce()
    # Those who stand next to each other have entries that do: nothing is searched or sorted.
    owners, first = rows.indices()[0], int(places[0])
    begin, end = torch.searchsorted(owners, torch.tensor([first, first + len(places)], device=rows.device)).tolist()
    indices = rows.indices()[:, begin:end].clone()
    indices[0] -= first
    shape = (len(places), *rows.shape[1:])
    return of_rows(indices, rows.values()[begin:end], shape)


def sum_beside(moved: Tensor, base: Tensor) -> Tensor:
    """What `cgfedrec.wire.sums.rounded_sum` is of the tables in full, `[items, dim]`, float64.

    Each of its rows is the base's as often as clients have it, and the rows of the others. Since all of these are
    multiples of 1 / `GRID`, it is the same number whatever is added up first.

    Args:
        moved: `[clients, items, dim]`, sparse.
        base: `[items, dim]`.
    """
    items, rows, number = moved.indices()[1], moved.values(), len(base)
    without = len(moved) - items.bincount(minlength=number)  # [items]: how many clients have the base's row
    whole_base = (base.to(moved.device).float() * GRID).round_().double()
    total = without[:, None] * whole_base + 0.0  # no negative zero, as in any sum
    if rows.is_cuda or rows.dtype == torch.bfloat16:  # which numpy does not know
        return total.index_add_(0, items, (rows.float() * GRID).round_().double()) / GRID
    from cgfedrec.kernels import sums as kernel  # here, since numba takes half a second to load

    kernel.add_rows(total.numpy(), rows.float().numpy(), items.numpy(), np.float32(GRID))
    return total / GRID
