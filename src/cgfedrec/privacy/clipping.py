"""Clipping: what a client sends is made so small that everybody knows beforehand how much it can tell at most."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-12
"""Share of a norm that float64 may round."""


def clipped(values: Tensor, norm: float, norms: Tensor | None = None) -> Tensor:
    """Each client's values, `[clients, ...]`, made smaller together where their norm is above ``norm``.

    Args:
        values: As said, float64.
        norm: The largest that stays, but for what float64 rounds; the budget leaves more than that aside.
        norms: `[clients]`: theirs, where they are known exactly.
    """
    if norms is None:
        norms = values.flatten(1).norm(dim=1)
    factors = torch.where(norms <= norm * (1 + ROUNDING), 1.0, norm / norms)
    made: Tensor = values * factors.view(-1, *[1] * (values.ndim - 1))
    return made
