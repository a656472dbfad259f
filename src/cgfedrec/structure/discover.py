"""Discover, then verify: item-item weights from a factor of the co-occurrence, and from exact counts of a few pairs.

Both are EASE's (Steck 2019, arXiv 1905.03375). Nothing here is `[items, items]`: memory is linear in the items.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cgfedrec.structure.rows import Rows
from cgfedrec.wire.values import Weights

CELLS = 2**22
"""Numbers that a block of rows may hold at a time."""


class Found(NamedTuple):
    """What the sums have told the server."""

    factor: Tensor
    """F, `[rows, rank]`, float64, with G about F F^T."""
    rows: Rows
    """The items, with the clients of all who have been counted."""
    pairs: Tensor | None
    """`[rows, most]`: candidates, where the structure needs any."""
    counts: Tensor | None
    """`[rows, most]`: how many clients have both, as much as that still counts, where it was counted."""
    seed: int
    """The shared one."""


def closed_form(factor: Tensor, clients: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """EASE's weights with G = F F^T + diag(n - |F|^2), where the diagonal is known exactly.

    P = (G + penalty I)^-1 = D^-1 - D^-1 F (I + F^T D^-1 F)^-1 F^T D^-1 with D = diag(n + penalty - |F|^2), kept above
    half the penalty. Outside the diagonal P = -A A^T, and the weight of item j for target i is -P_ij / P_ii.

    Args:
        factor: F, `[rows, rank]`, float64.
        clients: n, `[rows]`: how many have each item.
        penalty: EASE's lambda.

    Returns:
        A, `[rows, rank]`, and the diagonal of P, `[rows]`: the weight of j for i is (A_i . A_j) / P_ii.
    """
    diagonal = (clients + penalty - factor.square().sum(1)).clamp_min(penalty / 2)
    scaled = factor / diagonal[:, None]
    core = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device) + factor.T @ scaled  # [rank, rank]
    half = scaled @ torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(core)))
    return half, 1 / diagonal - half.square().sum(1)


def candidates(half: Tensor, sizes: Tensor) -> Tensor:
    """The items with the largest weights for each target item.

    Args:
        half: A of `closed_form`, `[rows, rank]`.
        sizes: `[rows]`, int64: how many each target has.

    Returns:
        `[rows, most]`, int64: the rows of each target's candidates, ascending, then -1.
    """
    most = int(sizes.max())
    half = half.float()  # enough to tell which are large, in half the time
    found = torch.empty(len(half), most, dtype=torch.int64, device=half.device)
    block = max(1, CELLS // len(half))
    for start in range(0, len(half), block):
        targets = torch.arange(start, min(start + block, len(half)), device=half.device)
        weights = half[targets] @ half.T  # [block, rows]; P_ii does not change a target's order
        weights[torch.arange(len(targets), device=half.device), targets] = -torch.inf  # an item is none of its own
        found[targets] = weights.topk(most, dim=1).indices
    beyond = torch.arange(most, device=half.device) >= sizes[:, None]
    # Ids beyond a list's size sort to its end, where they become -1.
    found = found.masked_fill(beyond, len(half)).sort(dim=1).values
    return found.masked_fill(found == len(half), -1)


def spread(pairs: Tensor, most: int, before: int = 0) -> Tensor:
    """Candidates none of which stands in too many lists: clients would take such lists to be aimed at it.

    An item may be a candidate of ``most`` times as many items as it has candidates itself. In a large catalogue a few
    stand in more. They leave the lists of the rarest items, whose factors say least.

    Args:
        pairs: `[rows, longest]`, int64: the rows of each target's candidates, ascending, then -1.
        most: As above.
        before: The lists of so many rows stay as they are, since their pairs have been counted already.

    Returns:
        `[rows, longest]`, as ``pairs``.
    """
    rows = len(pairs)
    found = pairs.clone()
    while True:
        sizes = (found >= 0).sum(1)
        lists = torch.bincount(found[found >= 0], minlength=rows)
        beyond = lists - most * sizes.clamp_min(1)
        shorter = False
        for row in (beyond > 0).nonzero().squeeze(1).tolist():
            targets, places = (found[before:] == row).nonzero(as_tuple=True)
            dropped = slice(max(0, len(targets) - int(beyond[row])), None)
            found[before + targets[dropped], places[dropped]] = -1
            shorter |= bool(len(targets))
        if not shorter:
            break
    found = found.masked_fill(found < 0, rows).sort(dim=1).values  # what has left sorts to the end
    return found.masked_fill(found == rows, -1)


def pair_weights(half: Tensor, diagonal: Tensor, pairs: Tensor) -> Tensor:
    """What the factor alone says of candidate pairs, `[rows, most]`: the weights of `closed_form`, 0 where no pair is.

    Args:
        half: `[rows, rank]`, of `closed_form`.
        diagonal: `[rows]`, likewise.
        pairs: `[rows, most]`, of `candidates`.
    """
    weights = torch.zeros(pairs.shape, dtype=half.dtype, device=half.device)
    block = max(1, CELLS // (pairs.shape[1] * max(1, half.shape[1])))
    for start in range(0, len(half), block):
        part = slice(start, start + block)
        others = half[pairs[part].clamp_min(0)]  # [block, most, rank]
        weights[part] = (others @ half[part, :, None]).squeeze(2) / diagonal[part, None]
    return weights.masked_fill(pairs < 0, 0)


def verified(factor: Tensor, clients: Tensor, pairs: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Weights of candidate pairs from how many clients have both, exactly.

    For each target i with candidates N: w = (F_N F_N^T with n on the diagonal, not below |F|^2, + penalty I)^-1 g.

    Args:
        factor: F, `[rows, rank]`, float64.
        clients: n, `[rows]`.
        pairs: N, `[rows, most]`, of `candidates`.
        counts: g, `[rows, most]`: how many clients have the target and the candidate.
        penalty: EASE's lambda.

    Returns:
        `[rows, most]`, float64; 0 where there is no pair, or nobody has both.
    """
    lengths = factor.square().sum(1)
    diagonal = torch.maximum(clients.to(factor.dtype), lengths) + penalty  # [rows]
    weights = torch.zeros(pairs.shape, dtype=factor.dtype, device=factor.device)
    most = pairs.shape[1]
    block = max(1, CELLS // (most * max(most, factor.shape[1])))
    for start in range(0, len(factor), block):
        part = slice(start, start + block)
        chosen, there = pairs[part].clamp_min(0), pairs[part] >= 0  # [block, most]
        rows = factor[chosen] * there[:, :, None]  # [block, most, rank]; a place without a pair is 0
        system = rows @ rows.mT  # [block, most, most]
        system.diagonal(dim1=1, dim2=2).copy_(diagonal[chosen])
        known = counts[part].to(factor.dtype) * there
        # Positive definite: the diagonal is raised, by the penalty at least.
        weights[part] = torch.cholesky_solve(known[:, :, None], torch.linalg.cholesky(system)).squeeze(2)
    return weights.masked_fill((pairs < 0) | (counts == 0), 0)


def quantised(weights: Tensor, sizes: Tensor, keep: float, bits: int) -> Weights:
    """The largest weights of each row, in few bits.

    Args:
        weights: `[rows, most]`, float64; 0 where nothing is.
        sizes: `[rows]`, int64: how many each row has.
        keep: The share of a row's entries that may stay; of these only positive ones do.
        bits: Of a weight.
    """
    order = weights.argsort(dim=1, descending=True)
    places = torch.empty_like(order).scatter_(1, order, torch.arange(weights.shape[1]).expand_as(order))
    kept = (places < (sizes * keep).ceil()[:, None]) & (weights > 0)
    # Rounded up to what a half can hold, so that the largest weight never needs a level too many.
    scales = (weights * kept).amax(1) / (2**bits - 1)
    halves = scales.half()
    halves = (halves.view(torch.int16) + (halves.double() < scales)).view(torch.float16)  # the next one above
    levels = (weights / halves.double().clamp_min(1e-12)[:, None]).round().clamp(0, 2**bits - 1).long() * kept
    return Weights(kept & (levels > 0), levels, halves, sizes, bits)
