"""A basis of few columns, a row for each item, that comes to span the low frequencies of a graph of items."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from cgfedrec.client import shared_start
from cgfedrec.data.histories import History

NOISE = 1e-6
"""Eigenvalues below this share of the largest are rounding of the float32 numbers that were sent."""


@lru_cache(maxsize=2)
def first_basis(seed: int, num_items: int, rank: int) -> Tensor:
    """The basis with which all begin, orthonormal and random, `[items, rank]`; drawn once, and never changed."""
    basis: Tensor = torch.linalg.qr(shared_start(seed, 1.0, num_items, rank)).Q
    return basis


def projected(history: History, weights: Tensor, basis: Tensor) -> Tensor:
    """The sums of basis rows over clients' items, `[clients, rank]`, float64.

    Args:
        history: Of the clients.
        weights: Of each item, `[items]`.
        basis: `[items, rank]`.
    """
    clients, items, _ = (part.to(basis.device) for part in history.entries())
    rows = weights[items, None].double() * basis[items]  # [entries, rank]
    # Each client's own entries, one after another: so it does not show with whom it shares a cohort.
    return rows.new_zeros(len(history.items), basis.shape[1]).index_add_(0, clients, rows)


def orthonormal(product: Tensor) -> tuple[Tensor, Tensor]:
    """The next basis from the graph times this one, G V, `[items, rank]`, and G's eigenvalues as far as that tells
    them, `[rank]`, the largest first.

    Where G has fewer directions than there are columns, the columns that are left are zero.
    """
    left, values, _ = torch.linalg.svd(product.double(), full_matrices=False)
    real = values > NOISE * values[0]
    # The library gives columns one after another; a checkpoint holds rows.
    return (left * real).float().contiguous(), (values * real).float()
