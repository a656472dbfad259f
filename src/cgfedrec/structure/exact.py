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

from cgfedrec.structure.passes import passes_for

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
        self.temperature, self.labels = temperature, labels
        sizes = labels.bincount().to(like)  # [clusters]
        self.clusters = len(sizes)
        others = sizes[labels] - 1  # [items]: how many positives each anchor has
        self.anchors = (others > 0).to(like)  # [items]: 1 for an item with positives, 0 for one that is alone
        self.shares = self.anchors / others.clamp_min(1)  # [items]: of each positive in the mean over them
        self.passes = passes_for(like)
        blocks = [slice(start, min(start + TILE, items)) for start in range(0, items, TILE)]
        self.places = [(rows, columns) for index, rows in enumerate(blocks) for columns in blocks[index:]]
        self.sizes = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in self.places]
        self.nbytes = (sum(self.sizes) + max(self.sizes, default=0)) * like.itemsize
        """Of one client's triangle, and of a tile beside it."""
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
        unit, norms = self.passes.unit_rows(table)  # [clients, items, dim], [clients, items, 1]
        # The mean of each anchor's positives: its cluster's sum without itself.
        pull = unit * -self.shares[:, None]  # [clients, items, dim]
        sums = self.passes.by_label(unit, self.labels, self.clusters)
        self.passes.add_of_label(pull, sums, self.labels, self.shares)

        total = torch.full_like(unit[..., 0], EPSILON)  # [clients, items]: the sum over all other items
        kept: list[Tile] = []
        for rows, columns, tile in self._tiles(unit, total):
            if self.keeps:
                kept.append((rows, columns, tile))
        terms = self.anchors * (total.log() + (1 - (unit * pull).sum(2)) / self.temperature)  # [clients, items]

        tiles: Iterable[Tile] = kept
        if not self.keeps:
            tiles = self._tiles(unit, torch.empty_like(total))
        # An anchor is pushed from each other item, in proportion to that one's part in its sum; and each other item
        # pushes it once more, as an anchor with a sum of its own. What two items do to each other is symmetric.
        weight = self.anchors / total  # [clients, items]
        mirrored = unit.mT.contiguous()  # [clients, dim, items]
        push, push_of_columns = torch.zeros_like(unit), torch.zeros_like(mirrored)
        for rows, columns, tile in tiles:
            self.passes.weigh(tile, weight[:, rows], weight[:, columns])
            push[:, rows].baddbmm_(tile, unit[:, columns])
            if rows != columns:  # a tile off the diagonal stands for its mirror image too
                push_of_columns[:, :, columns].baddbmm_(mirrored[:, :, rows], tile)
        push += push_of_columns.mT
        # Each pair of positives stands in the mean twice, once with either as its anchor.
        slope = push.sub_(pull, alpha=2).div_(self.temperature * unit.shape[1])
        self.passes.across(slope, unit, norms)
        return terms.mean(1), slope

    def _tiles(self, unit: Tensor, total: Tensor) -> Iterator[Tile]:
        """Compute exp(s_ij - 1/T) tile by tile, with nothing where i = j, and add up each item's.

        1/T is the largest similarity that there can be, so no exponential overflows. Tiles that are not kept share one
        piece of memory: each is overwritten by the next.

        Args:
            unit: `[clients, items, dim]`, of length 1.
            total: `[clients, items]`, to which each item's sum over all others is added.
        """
        scaled, others = unit / self.temperature, unit.mT  # [clients, items, dim], [clients, dim, items]
        room = max(self.sizes)
        if self.keeps:
            room = sum(self.sizes)
        if len(self.memory) < len(unit) * room:
            self.memory = unit.new_empty(len(unit) * room)
        start = 0
        for (rows, columns), size in zip(self.places, self.sizes, strict=True):
            end = start + len(unit) * size
            tile = self.memory[start:end].view(len(unit), rows.stop - rows.start, columns.stop - columns.start)
            torch.bmm(scaled[:, rows], others[:, :, columns], out=tile)
            of_columns = total[:, columns]
            if rows == columns:
                tile.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
                of_columns = torch.empty_like(of_columns)  # its rows tell the same
            self.passes.exponentials(tile, 1 / self.temperature, total[:, rows], of_columns)
            yield rows, columns, tile
            if self.keeps:
                start = end
