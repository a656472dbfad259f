"""Scores that are products of item embeddings with a vector of the client."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cgfedrec.kit.rows import bmm
from cgfedrec.memory import is_shared
from cgfedrec.wire.moved import laid_out


def linear(vectors: Tensor, tables: Tensor, moved: Tensor | None = None) -> Tensor:
    """Each client's vector . row of all items, `[clients, items]`.

    On a CPU in float32 every product is rounded alike, wherever its row lies and whoever scores beside the client.

    Args:
        vectors: `[clients, dim]`.
        tables: `[clients, items, dim]`: of each, or one that all share.
        moved: `[clients, items, dim]`, sparse: rows that stand in place of those of the table that all share.

    Raises:
        ValueError: if their shapes do not belong together.
    """
    vectors, tables = vectors.detach(), tables.detach()
    if vectors.shape != (len(tables), tables.shape[2]) or (moved is not None and moved.shape != tables.shape):
        raise ValueError(f"vectors {list(vectors.shape)} do not belong to tables {list(tables.shape)}")
    if tables.device.type != "cpu" or {vectors.dtype, tables.dtype} != {torch.float32}:
        if moved is not None:
            tables = laid_out(moved, tables[0])
        return bmm(vectors[:, None], tables.mT).squeeze(1)  # [clients, 1, dim] @ [clients, dim, items]
    from cgfedrec.kernels import scores as kernel  # here, since numba takes half a second to load

    clients, items, dim = tables.shape
    scores, plain = torch.empty(clients, items), vectors.contiguous().numpy()
    firsts = np.arange(clients) * items
    if is_shared(tables):
        tables, firsts = tables[:1], np.zeros(clients, np.int64)
    rows = tables.reshape(-1, dim).numpy()
    kernel.of_tables(rows, firsts, plain, scores.numpy())
    if moved is not None:
        owners, items_of = moved.indices().numpy()
        kernel.of_rows(moved.values().numpy(), owners, items_of, plain, scores.numpy())
    return scores
