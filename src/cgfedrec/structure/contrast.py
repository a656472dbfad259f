"""The supervised contrastive alignment loss over all items of a client's table, exact and in closed form.

With f the L2-normalised rows, s_ij = f_i . f_j / T and P(i) the other items with i's label, the loss of anchor i is
-(T/T0) * mean over j in P(i) of [ s_ij - log( sum_{k != i} exp s_ik + eps * exp(1/T) ) ], and 0 where P(i) is empty;
the mean is over all items (Khosla et al. 2020, equation 2; CGFedRec, arXiv 2602.21957; eps = 1e-6 is the published
code's).

Positives need only the sum of each cluster. The gradient of the log-sum-exp needs products of the exponentiated
similarities with the rows; these similarities are symmetric, so tiles of one triangle serve both sides, and no more
than one triangle of a few clients exists at a time. On a CPU clients are shared out among threads, each of which works
alone: threads that share one small product wait for each other more than they work.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
TILE = 512
"""Rows and columns of a tile: 1 MiB of float32 stays in a core's cache."""
GPU_CLIENTS = 32
"""Clients whose tiles a GPU computes in one call; a CPU's thread takes one at a time."""


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
        table = table.detach()  # threads do not share that no gradients are wanted
        clusters = int(labels.max()) + 1
        members = torch.nn.functional.one_hot(labels, clusters).to(table.dtype)
        others = members.sum(0)[labels] - 1
        loss = table.new_empty(len(table))
        gradient = torch.empty_like(table)

        def work(clients: range) -> None:
            tiles = _Tiles(table, len(clients) if table.is_cuda else 1)
            for start in range(0, len(clients), tiles.clients):
                part = slice(clients[start], clients[start] + min(tiles.clients, len(clients) - start))
                loss[part], gradient[part] = _loss_and_gradient(table[part], members, others, temperature, tiles)

        _share_out(work, len(table), table.is_cuda)
        scale = temperature / base_temperature
        ctx.save_for_backward(gradient.mul_(scale))
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0][:, None, None], None, None, None


def _share_out(work: Any, clients: int, on_gpu: bool) -> None:
    """Call ``work`` on ranges of clients: on a GPU one after another, on a CPU each in a thread of its own."""
    if on_gpu:
        for start in range(0, clients, GPU_CLIENTS):
            work(range(start, min(start + GPU_CLIENTS, clients)))
        return
    threads = torch.get_num_threads()
    bounds = [clients * thread // threads for thread in range(threads + 1)]
    list(_pool(threads).map(work, (range(*pair) for pair in pairwise(bounds))))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "contrast", initializer=lambda: torch.set_num_threads(1))


class _Tiles:
    """Memory for the tiles of one triangle of the similarities, used again for one client after another.

    Args:
        table: `[clients, items, dim]`, whose type and device they have.
        clients: How many clients' tiles there are at a time.
    """

    def __init__(self, table: Tensor, clients: int) -> None:
        self.clients = clients
        items = table.shape[1]
        blocks = [slice(start, min(start + TILE, items)) for start in range(0, items, TILE)]
        self.places = [(rows, columns) for index, rows in enumerate(blocks) for columns in blocks[index:]]
        shapes = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in self.places]
        self.memory = [table.new_empty(clients, *shape) for shape in shapes]

    def fill(self, unit: Tensor, temperature: float) -> Iterator[tuple[slice, slice, Tensor]]:
        """Compute exp(s_ij - 1/T), with a diagonal of zeros, tile after tile: rows, columns, `[clients, ...]`."""
        ones = torch.ones_like(unit[..., :1])
        left = torch.cat((unit, -ones), dim=2) * (1 / temperature)
        right = torch.cat((unit, ones), dim=2).transpose(1, 2)
        for (rows, columns), memory in zip(self.places, self.memory, strict=True):
            tile = memory[: len(unit)]
            torch.bmm(left[:, rows], right[:, :, columns], out=tile).exp_()
            if rows == columns:
                tile.diagonal(dim1=1, dim2=2).zero_()
            yield rows, columns, tile


def _loss_and_gradient(
    table: Tensor, members: Tensor, others: Tensor, temperature: float, tiles: _Tiles
) -> tuple[Tensor, Tensor]:
    """The loss of some clients without the factor T / T0, and its gradient.

    Args:
        table: `[clients, items, dim]`.
        members: `[items, clusters]`, one-hot labels.
        others: `[items]`, how many other items have the same label.
        temperature: T.
        tiles: Memory.

    Returns:
        `[clients]` and `[clients, items, dim]`.
    """
    norms = torch.linalg.vector_norm(table, dim=2, keepdim=True).clamp_min(1e-12)
    unit = table / norms
    anchors = (others > 0).to(unit.dtype)
    pull = members @ (members.T @ unit) - unit
    pull *= (anchors / others.clamp_min(1))[:, None]

    total = torch.full_like(unit[..., 0], EPSILON)
    filled = []
    for rows, columns, tile in tiles.fill(unit, temperature):
        total[:, rows] += tile.sum(2)
        if rows != columns:
            total[:, columns] += tile.sum(1)
        filled.append((rows, columns, tile))
    terms = anchors * (total.log() + (1 - (unit * pull).sum(2)) / temperature)

    weight = (anchors / total)[..., None]
    stacked = torch.cat((unit, weight * unit), dim=2)
    product = torch.zeros_like(stacked)
    for rows, columns, tile in filled:
        product[:, rows].baddbmm_(tile, stacked[:, columns])
        if rows != columns:
            product[:, columns].baddbmm_(tile.transpose(1, 2), stacked[:, rows])
    own, weighted = product.chunk(2, dim=2)
    # each pair of positives stands in the mean twice, once with either as its anchor
    slope = (weight * own + weighted - 2 * pull) / (temperature * unit.shape[1])
    return terms.mean(1), (slope - unit * (unit * slope).sum(2, keepdim=True)) / norms
