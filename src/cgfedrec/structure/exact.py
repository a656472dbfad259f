"""The alignment loss of `cgfedrec.structure.contrast` as it is defined, without ever holding items x items numbers.

What pulls positives together needs only the sum of each cluster's rows. What pushes the others apart needs the
exponentiated similarity of every pair of items. These similarities are symmetric, so only one triangle is computed, in
tiles that fit a cache, and each tile serves both sides. They are needed twice, for the loss and then for its gradient.
Where they take little memory they are kept in between, and otherwise computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

EPSILON = 1e-6
"""What the published code adds to the sum over all other items, relative to the largest term that it could have."""
TILE = 512
"""Rows and columns of a tile: 1 MiB of float32 stays in a core's cache."""
KEPT = 64 * 2**20
"""Bytes up to which the tiles of a triangle are kept, on a CPU."""
GPU_KEPT = 2**30
"""The same on a GPU, which computes as many clients together as that allows; a CPU's thread takes one at a time."""

Tile = tuple[slice, slice, Tensor]
"""Rows and columns, and `[clients, rows, columns]`."""


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
        self.members = torch.nn.functional.one_hot(labels).to(like)  # [items, clusters]
        self.others = self.members.sum(0)[labels] - 1  # [items]: how many positives each anchor has
        self.anchors = (self.others > 0).to(like)  # [items]: 1 for an item with positives, 0 for one that is alone
        blocks = [slice(start, min(start + TILE, items)) for start in range(0, items, TILE)]
        self.places = [(rows, columns) for index, rows in enumerate(blocks) for columns in blocks[index:]]
        self.sizes = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in self.places]
        self.nbytes = sum(self.sizes) * like.itemsize
        """Of one client's triangle."""
        most = KEPT
        if like.is_cuda:
            most = GPU_KEPT
        self.keeps = self.nbytes <= most
        self.memory = like.new_empty(0)

    def loss_and_gradient(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The loss without the factor T / T0, and its gradient.

        Args:
            table: `[clients, items, dim]`.

        Returns:
            `[clients]` and `[clients, items, dim]`.
        """
        norms = torch.linalg.vector_norm(table, dim=2, keepdim=True).clamp_min(1e-12)  # [clients, items, 1]
        unit = table / norms  # [clients, items, dim]
        # The mean of each anchor's positives: its cluster's sum without itself.
        pull = self.members @ (self.members.T @ unit) - unit  # [clients, items, dim]
        pull *= (self.anchors / self.others.clamp_min(1))[:, None]

        # All similarities are reduced by 1/T, the largest that there can be, so that no exponential overflows.
        total = torch.full_like(unit[..., 0], EPSILON)  # [clients, items]: the sum over all other items
        kept: list[Tile] = []
        for rows, columns, tile in self._tiles(unit):
            total[:, rows] += tile.sum(2)
            if rows != columns:  # a tile off the diagonal stands for its mirror image too
                total[:, columns] += tile.sum(1)
            if self.keeps:
                kept.append((rows, columns, tile))
        terms = self.anchors * (total.log() + (1 - (unit * pull).sum(2)) / self.temperature)  # [clients, items]

        tiles: Iterable[Tile] = kept
        if not self.keeps:
            tiles = self._tiles(unit)
        # An anchor is pushed from each other item, in proportion to that one's part in its sum; and each other item
        # pushes it once more, as an anchor with a sum of its own. One product with both gives the two sums.
        weight = (self.anchors / total)[..., None]  # [clients, items, 1]
        stacked = torch.cat((unit, weight * unit), dim=2)  # [clients, items, 2 * dim]
        product = torch.zeros_like(stacked)
        for rows, columns, tile in tiles:
            product[:, rows].baddbmm_(tile, stacked[:, columns])
            if rows != columns:
                product[:, columns].baddbmm_(tile.transpose(1, 2), stacked[:, rows])
        as_anchor, as_other = product.chunk(2, dim=2)  # [clients, items, dim] each
        # Each pair of positives stands in the mean twice, once with either as its anchor.
        slope = (weight * as_anchor + as_other - 2 * pull) / (self.temperature * unit.shape[1])
        # What points along a row cannot change its direction, so normalising takes it out of the gradient.
        return terms.mean(1), (slope - unit * (unit * slope).sum(2, keepdim=True)) / norms

    def _tiles(self, unit: Tensor) -> Iterator[Tile]:
        """Compute exp(s_ij - 1/T) tile by tile, with zeros where i = j, from unit rows `[clients, items, dim]`.

        Tiles that are not kept share one piece of memory: each is overwritten by the next.
        """
        # One more column, -1 times 1, subtracts the 1/T within the product and saves a pass over the tile.
        ones = torch.ones_like(unit[..., :1])
        left = torch.cat((unit, -ones), dim=2) * (1 / self.temperature)  # [clients, items, dim + 1]
        right = torch.cat((unit, ones), dim=2).transpose(1, 2)  # [clients, dim + 1, items]
        room = max(self.sizes)
        if self.keeps:
            room = sum(self.sizes)
        if len(self.memory) < len(unit) * room:
            self.memory = unit.new_empty(len(unit) * room)
        start = 0
        for (rows, columns), size in zip(self.places, self.sizes, strict=True):
            end = start + len(unit) * size
            tile = self.memory[start:end].view(len(unit), rows.stop - rows.start, columns.stop - columns.start)
            torch.bmm(left[:, rows], right[:, :, columns], out=tile).exp_()
            if rows == columns:
                tile.diagonal(dim1=1, dim2=2).zero_()
            yield rows, columns, tile
            if self.keeps:
                start = end
