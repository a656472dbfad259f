"""What a structure is worth, as far as the server can tell that found it: a few numbers a round, to be drawn as curves.

They come from sums and from what was made of them, and so cost no client anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cgfedrec.structure.discover import Found
from cgfedrec.structure.neighbours import Neighbours
from cgfedrec.structure.structure import Structure
from cgfedrec.wire.values import Value, Weights

MEASURED, THETA = "structure/", "theta/"
"""What begins the names of these numbers, and of how clients read a history."""


def quality(found: Found, sent: Mapping[str, Value], before: Weights | None) -> dict[str, float]:
    """What there is to say of a new structure.

    Args:
        found: What it was made from.
        sent: What goes down.
        before: The neighbours of the structure before it, if there was one. Its rows are the first of these, and their
            candidates are the same.

    Returns:
        ``structure/items``: how many have a row. ``structure/rank``: that of the factor.
        ``structure/explained``: the share of what items count by themselves that the factor reaches.
        ``structure/confirmed``: the share of candidate pairs that any client has, where pairs are counted. Of
        neighbours, ``structure/neighbours``: how many an item has in the mean; ``structure/same``: the share of them
        that were neighbours before.
    """
    lengths, diagonal = found.factor.square().sum(1), found.rows.diagonal
    told: dict[str, float] = {"items": len(lengths), "rank": found.factor.shape[1]}
    told["explained"] = float(lengths.sum() / diagonal.sum())
    if found.pairs is not None and found.counts is not None:
        told["confirmed"] = _share(found.counts > 0, found.pairs >= 0)
    weights = sent.get("weights")
    if isinstance(weights, Weights):
        told["neighbours"] = float(weights.kept.sum(1).double().mean())
        if before is not None:
            rows, most = before.kept.shape
            told["same"] = _share(weights.kept[:rows, :most] & before.kept, weights.kept)
    return {f"{MEASURED}{name}": value for name, value in told.items()}


def theta(structure: Structure, reading: int) -> dict[str, float]:
    """How a history is read: ``theta/rho``, by which older items count less, and ``theta/beta``, popularity beside it.

    Empty for other structures, and where clients have trained what each age counts.
    """
    if not isinstance(structure, Neighbours) or reading >= len(structure.options):
        return {}
    option = structure.options[reading]
    return {f"{THETA}rho": option.decay, f"{THETA}beta": option.weight}


def _share(some: Tensor, of: Tensor) -> float:
    """The share of entries of one mask that are in another, too; 0 where it has none."""
    return float((some & of[: len(some), : some.shape[1]]).sum() / of.sum().clamp_min(1))
