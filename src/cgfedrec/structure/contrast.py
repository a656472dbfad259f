"""The supervised contrastive alignment loss over all items of a client's table, exact and in closed form.

With f the L2-normalised rows, s_ij = f_i . f_j / T and P(i) the other items with i's label, the loss of anchor i is
-(T/T0) * mean over j in P(i) of [ s_ij - log( sum_{k != i} exp s_ik + eps * exp(1/T) ) ], and 0 where P(i) is empty;
the mean is over all items (Khosla et al. 2020, equation 2; CGFedRec, arXiv 2602.21957; eps = 1e-6 is the published
code's).

Positives need only the sum of each cluster. The gradient of the log-sum-exp needs products of the exponentiated
similarities with the rows; these similarities are symmetric, so tiles of one triangle serve both sides. They are kept
from the one to the other where that takes little memory, and computed twice where it would take more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from cgfedrec.structure.prototypes import EPSILON, Prototypes

Kind = Literal["exact", "prototypes"]
TILE = 512
"""Rows and columns of a tile: 1 MiB of float32 stays in a core's cache."""
KEPT = 64 * 2**20
"""Bytes up to which the tiles of a triangle are kept, on a CPU."""
GPU_KEPT = 2**30
"""The same on a GPU, which computes as many clients together as that allows; a CPU's thread takes one at a time."""


def contrast(
    table: Tensor, labels: Tensor, temperature: float = 0.1, base_temperature: float = 0.5, kind: Kind = "exact"
) -> Tensor:
    """Supervised contrastive loss of each client's item table, differentiable with respect to the table.

    Args:
        table: `[clients, items, dim]`.
        labels: `[items]`, int64: the cluster of each item, the same for all clients.
        temperature: T, which scales the similarities.
        base_temperature: T0, which scales the loss by T / T0.
        kind: ``exact``, or with ``prototypes`` in place of items; see `cgfedrec.structure.prototypes`.

    Returns:
        `[clients]`, the mean over all items, items without positives counting 0.
    """
    with torch.autocast(table.device.type, enabled=False):  # similarities near 1 need all of float32
        loss: Tensor = _Contrast.apply(table, labels, temperature, base_temperature, kind)  # type: ignore[no-untyped-call]
    return loss


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: Tensor, labels: Tensor, temperature: float, base_temperature: float, kind: Kind
    ) -> Tensor:
        one = table[:1].detach()
        part: Exact | Prototypes = (Exact if kind == "exact" else Prototypes)(labels, temperature, one)
        at_once = max(1, min(len(table), GPU_KEPT // part.nbytes)) if table.is_cuda else 1
        found = [part.loss_and_gradient(clients) for clients in table.split(at_once)]
        loss, gradient = map(torch.cat, zip(*found, strict=True))
        ctx.scale = temperature / base_temperature
        ctx.save_for_backward(gradient)
        scaled: Tensor = loss * ctx.scale
        return scaled

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (ctx.scale * upstream[0])[:, None, None], None, None, None, None


class Exact:
    """The exact loss of some clients: what it needs of the labels, and memory used for one client after another.

    Args:
        labels: `[items]`, int64.
        temperature: T.
        like: `[1, items, dim]`, of the type and on the device that the loss has.
    """

    def __init__(self, labels: Tensor, temperature: float, like: Tensor) -> None:
        items = len(labels)
        self.temperature = temperature
        self.members = torch.nn.functional.one_hot(labels).to(like)
        self.others = self.members.sum(0)[labels] - 1
        self.anchors = (self.others > 0).to(like)
        blocks = [slice(start, min(start + TILE, items)) for start in range(0, items, TILE)]
        self.places = [(rows, columns) for index, rows in enumerate(blocks) for columns in blocks[index:]]
        self.sizes = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in self.places]
        self.nbytes = sum(self.sizes) * like.itemsize
        """Of one client's triangle."""
        self.keeps = self.nbytes <= (GPU_KEPT if like.is_cuda else KEPT)
        self.memory = like.new_empty(0)

    def loss_and_gradient(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The loss without the factor T / T0, and its gradient.

        Args:
            table: `[clients, items, dim]`.

        Returns:
            `[clients]` and `[clients, items, dim]`.
        """
        norms = torch.linalg.vector_norm(table, dim=2, keepdim=True).clamp_min(1e-12)
        unit = table / norms
        pull = self.members @ (self.members.T @ unit) - unit
        pull *= (self.anchors / self.others.clamp_min(1))[:, None]

        total = torch.full_like(unit[..., 0], EPSILON)
        kept = []
        for rows, columns, tile in self._tiles(unit):
            total[:, rows] += tile.sum(2)
            if rows != columns:
                total[:, columns] += tile.sum(1)
            if self.keeps:
                kept.append((rows, columns, tile))
        terms = self.anchors * (total.log() + (1 - (unit * pull).sum(2)) / self.temperature)

        weight = (self.anchors / total)[..., None]
        stacked = torch.cat((unit, weight * unit), dim=2)
        product = torch.zeros_like(stacked)
        for rows, columns, tile in kept or self._tiles(unit):
            product[:, rows].baddbmm_(tile, stacked[:, columns])
            if rows != columns:
                product[:, columns].baddbmm_(tile.transpose(1, 2), stacked[:, rows])
        own, weighted = product.chunk(2, dim=2)
        # each pair of positives stands in the mean twice, once with either as its anchor
        slope = (weight * own + weighted - 2 * pull) / (self.temperature * unit.shape[1])
        return terms.mean(1), (slope - unit * (unit * slope).sum(2, keepdim=True)) / norms

    def _tiles(self, unit: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Compute exp(s_ij - 1/T), with a diagonal of zeros, tile after tile: rows, columns, `[clients, ...]`."""
        ones = torch.ones_like(unit[..., :1])
        left = torch.cat((unit, -ones), dim=2) * (1 / self.temperature)
        right = torch.cat((unit, ones), dim=2).transpose(1, 2)
        needed = len(unit) * (sum(self.sizes) if self.keeps else max(self.sizes))
        if len(self.memory) < needed:
            self.memory = unit.new_empty(needed)
        end = 0
        for (rows, columns), size in zip(self.places, self.sizes, strict=True):
            start = end if self.keeps else 0
            end = start + len(unit) * size
            tile = self.memory[start:end].view(len(unit), rows.stop - rows.start, columns.stop - columns.start)
            torch.bmm(left[:, rows], right[:, :, columns], out=tile).exp_()
            if rows == columns:
                tile.diagonal(dim1=1, dim2=2).zero_()
            yield rows, columns, tile
