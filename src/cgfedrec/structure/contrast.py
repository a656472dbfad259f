"""The supervised contrastive alignment loss over all items of a client's table, exact and in closed form.

With f the L2-normalised rows, s_ij = f_i . f_j / T and P(i) the other items with i's label, the loss of anchor i is
-(T/T0) * mean over j in P(i) of [ s_ij - log( sum_{k != i} exp s_ik + eps * exp(1/T) ) ], and 0 where P(i) is empty;
the mean is over all items (Khosla et al. 2020, equation 2; CGFedRec, arXiv 2602.21957; eps = 1e-6 is the published
code's).

Positives need only the sum of each cluster. The gradient of the log-sum-exp needs products of the exponentiated
similarities with the rows; these similarities are symmetric, so tiles of one triangle serve both sides, and
no more than one triangle of one client exists at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
TILE = 512


def contrast(table: Tensor, labels: Tensor, temperature: float = 0.1, base_temperature: float = 0.5) -> Tensor:
    """Supervised contrastive loss of each client's item table, differentiable with respect to the table.

    Args:
        table: `[clients, items, dim]`.
        labels: `[items]`, int64: the cluster of each item, the same for all clients.
        temperature: T, which scales the similarities.
        base_temperature: T0, which scales the loss by T / T0.

    Returns:
        `[clients]`, the mean over all items, items without positives counting 0.
    """
    with torch.autocast(table.device.type, enabled=False):  # similarities near 1 need all of float32
        loss: Tensor = _Contrast.apply(table, labels, temperature, base_temperature)  # type: ignore[no-untyped-call]
    return loss


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, labels: Tensor, temperature: float, base_temperature: float) -> Tensor:
        clusters = int(labels.max()) + 1
        sizes = torch.bincount(labels, minlength=clusters)[labels].to(table.dtype)
        has_positives = sizes > 1
        positives = torch.where(has_positives, sizes - 1, 1.0)
        loss = table.new_empty(len(table))
        gradient = torch.empty_like(table) if ctx.needs_input_grad[0] else None
        for client, rows in enumerate(table):  # one at a time: two tables' triangles would leave the cache
            norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
            unit = rows / norms
            sums = unit.new_zeros(clusters, unit.shape[1]).index_add_(0, labels, unit)[labels]
            pull = (sums - unit) / positives[:, None]
            log_sum, push = _log_sum_exp(unit, has_positives, temperature)
            terms = log_sum - (unit * pull).sum(1) / temperature
            loss[client] = torch.where(has_positives, terms, 0.0).mean()
            if gradient is not None:
                # both the anchor's and its positives' share: each pair stands in the mean twice
                slope = (push - 2 * torch.where(has_positives[:, None], pull, 0.0)) / (temperature * len(unit))
                gradient[client] = (slope - unit * (unit * slope).sum(1, keepdim=True)) / norms
        scale = temperature / base_temperature
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(scale))
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0][:, None, None], None, None, None


def _log_sum_exp(unit: Tensor, anchors: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The log-sum-exp of every anchor, and T times the gradient of their sum with respect to the unit rows.

    Args:
        unit: `[items, dim]`, rows of length 1.
        anchors: `[items]`, bool: whose log-sum-exp counts in the gradient.
        temperature: T.

    Returns:
        `[items]` and `[items, dim]`.
    """
    tiles = [(rows, columns, _similarities(unit, rows, columns, temperature)) for rows, columns in _triangle(len(unit))]
    total = torch.full_like(unit[:, 0], EPSILON)
    for rows, columns, tile in tiles:
        total[rows] += tile.sum(1)
        if rows != columns:
            total[columns] += tile.sum(0)
    weight = torch.where(anchors, 1 / total, 0.0)[:, None]
    stacked = torch.cat((unit, weight * unit), dim=1)
    product = torch.zeros_like(stacked)
    for rows, columns, tile in tiles:
        product[rows].addmm_(tile, stacked[columns])
        if rows != columns:
            product[columns].addmm_(tile.T, stacked[rows])
    own, weighted = product.chunk(2, dim=1)
    return total.log() + 1 / temperature, weight * own + weighted


def _similarities(unit: Tensor, rows: slice, columns: slice, temperature: float) -> Tensor:
    """exp(s_ij - 1/T) without the diagonal, a tile of the symmetric matrix."""
    scaled = unit[rows] * (1 / temperature)
    tile = torch.addmm(unit.new_full((1, 1), -1 / temperature), scaled, unit[columns].T).exp_()
    return tile.fill_diagonal_(0.0) if rows == columns else tile


def _triangle(items: int) -> Iterator[tuple[slice, slice]]:
    blocks = [slice(start, min(start + TILE, items)) for start in range(0, items, TILE)]
    for index, rows in enumerate(blocks):
        for columns in blocks[index:]:
            yield rows, columns
