"""What of clients' tables is not as in a base, bit for bit, and tables as bytes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]
_CACHE = 2**18
"""Numbers that are compared at a time."""


class Changed(NamedTuple):
    """What of one client's table is not as in a base, bit for bit."""

    items: NDArray[np.int32]
    """`[rows]`, ascending: the items of these rows."""
    lines: NDArray[Any]
    """Bytes of rows, as `lines_of`."""
    places: NDArray[np.int64]
    """`[rows]`: where these rows stand among them."""


def changed(tables: Tensor, base: Tensor) -> list[Changed]:
    """What of each client's table, `[clients, items, dim]`, dense or sparse, is not as in a base `[items, dim]`."""
    width, found = base.shape[1] * base.itemsize, []
    if not tables.is_sparse:
        mask = differing(tables, base)  # [clients, items]
        for table, differs in zip(raw(tables).reshape(len(tables), -1), mask, strict=True):
            places = differs.nonzero()[0]
            found.append(Changed(places.astype(np.int32), lines_of(table, width), places))
        return found
    owners, items = tables.indices().numpy()
    lines = lines_of(raw(tables.values()), width)
    differs = (lines != lines_of(raw(base), width)[items]).any(1).nonzero()[0]  # [rows]
    ends = np.searchsorted(owners[differs], np.arange(len(tables) + 1))
    for begin, end in pairwise(ends):
        places = differs[begin:end]
        found.append(Changed(items[places].astype(np.int32), lines, places))
    return found


def lines_of(content: Bytes, width: int) -> NDArray[Any]:
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
