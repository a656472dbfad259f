"""Nystroem: a factor of the items' co-occurrence from its product with a few columns.

G = sum over clients of x x^T, with x a client's history of zeros and ones, is `[items, items]` and never made. Sums of
what clients send are G C for columns C that everybody knows. From these G is recovered, exactly on what C spans (Tropp
et al. 2017, arXiv 1706.05736).
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-6
"""Eigenvalues below this share of the largest are rounding, and are left out."""
COORDINATES = 64
"""Singular directions of the factor in which items are clustered, at most."""


def factor(columns: Tensor, sketch: Tensor, least: float = 0.0) -> Tensor:
    """F with G about F F^T.

    Args:
        columns: C, `[rows, columns]`, float64.
        sketch: G C, `[rows, columns]`, float64.
        least: Eigenvalues below it are noise, and left out but for the largest.

    Returns:
        `[rows, rank]`, float64: G C V e^-1/2, from the eigenvalues e and eigenvectors V of C^T G C.
    """
    core = columns.T @ sketch  # [columns, columns]
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    smallest = SMALLEST * values.max().clamp_min(0)
    if least > 0:
        smallest = values.max().clamp(0, least) * (1 - 1e-9)
    kept = values > smallest
    made: Tensor = sketch @ vectors[:, kept] * values[kept] ** -0.5
    return made


def coordinates(factor: Tensor) -> Tensor:
    """Where items lie, to be clustered, `[rows, at most COORDINATES]`, float64: rows of length 1, or 0.

    They are the factor's left singular vectors times their singular values.
    """
    left, sizes, _ = torch.linalg.svd(factor, full_matrices=False)
    places = left[:, :COORDINATES] * sizes[:COORDINATES]
    made: Tensor = places / places.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return made
