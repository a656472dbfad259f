"""What the alignment loss does beside products of matrices: in torch, which defines it, and compiled for a CPU.

Both are used by `cgfedrec.structure.exact` and `cgfedrec.structure.prototypes`, which multiply the matrices. Compiled
ones go once over numbers that a core's cache holds, where torch goes over them once for each operation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEAST = 1e-12
"""A row that is shorter is taken to be as long as this."""


class Passes:
    """In torch."""

    def unit_rows(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Rows `[clients, items, dim]` of length 1, and how long they were, `[clients, items, 1]`."""
        norms = torch.linalg.vector_norm(table, dim=2, keepdim=True).clamp_min(LEAST)
        return table / norms, norms

    def by_label(self, rows: Tensor, labels: Tensor, clusters: int) -> Tensor:
        """The sum of each cluster's `rows` `[clients, items, dim]`, `[clients, clusters, dim]`.

        Args:
            rows: As said.
            labels: `[items]`.
            clusters: How many.
        """
        members = rows.new_zeros(len(labels), clusters).scatter_(1, labels[:, None], 1)  # [items, clusters]
        return members.T @ rows  # and no index_add_, whose order is open on a GPU

    def add_of_label(self, rows: Tensor, sums: Tensor, labels: Tensor, shares: Tensor) -> None:
        """Add to rows `[clients, items, dim]` a share `[items]` of their clusters' sums `[clients, clusters, dim]`."""
        rows += shares[:, None] * sums[:, labels]

    def exponentials(self, tile: Tensor, bound: float, of_rows: Tensor, of_columns: Tensor) -> None:
        """Let each number s of a tile `[clients, rows, columns]` be exp(s - bound), where s is at most ``bound``.

        Sums are added to ``of_rows`` `[clients, rows]` and ``of_columns`` `[clients, columns]`.
        """
        tile.sub_(bound).exp_()
        of_rows += tile.sum(2)
        of_columns += tile.sum(1)

    def weigh(self, tile: Tensor, of_rows: Tensor, of_columns: Tensor) -> None:
        """Multiply a tile `[clients, rows, columns]` by weights of rows `[clients, rows]` plus those of columns."""
        tile *= of_rows[:, :, None] + of_columns[:, None]

    def across(self, slope: Tensor, unit: Tensor, norms: Tensor) -> None:
        """Let a slope in rows of length 1, `[clients, items, dim]`, be that in the rows that they came from.

        What points along a row cannot change its direction, so it is taken out.

        Args:
            slope: As said.
            unit: `[clients, items, dim]`.
            norms: `[clients, items, 1]`.
        """
        slope -= unit * (unit * slope).sum(2, keepdim=True)
        slope /= norms

    def against_prototypes(
        self, similarity: Tensor, labels: Tensor, sizes: Tensor, temperature: float, epsilon: float, items: int
    ) -> tuple[Tensor, Tensor]:
        """Let each similarity to a prototype be the loss's slope in it. An anchor's own prototype is without itself.

        Args:
            similarity: `[clients, rows, clusters]`, over the temperature, of some of the items.
            labels: `[rows]`.
            sizes: `[clusters]`: how many items each has.
            temperature: T.
            epsilon: Added to each anchor's sum.
            items: How many there are in all, over which the loss is a mean.

        Returns:
            `[clients, rows]` each: an anchor's similarity to its own prototype, and the sum over all other items. Both
            are of no use for an item that is alone in its cluster.
        """
        others = sizes[labels] - 1  # [items]: how many positives each anchor has
        anchors = (others > 0).to(similarity)  # [items]: 1 for an item with positives, 0 for one that is alone
        ratio = 1 + 1 / others.clamp_min(1)  # [items]
        own = labels[:, None].expand(len(similarity), -1, 1)  # [clients, items, 1]: the anchor's own cluster
        # The mean over its positives.
        positive = similarity.gather(2, own).squeeze(2) * ratio - (ratio - 1) / temperature  # [clients, items]
        similarity.scatter_(2, own, positive[..., None])
        # Each cluster's part of the sum: for how many items a prototype stands. An anchor does not count itself.
        counts = sizes.repeat(len(labels), 1).scatter_(1, labels[:, None], others[:, None])  # [items, clusters]
        similarity.sub_(1 / temperature).exp_().mul_(counts)
        total = similarity.sum(2) + epsilon  # [clients, items]
        # A cluster's share of the sum, and for the anchor's own cluster less the pull of its positives.
        scale = anchors / (temperature * items)  # [items]
        similarity.mul_((scale / total)[..., None])
        of_own = (similarity.gather(2, own).squeeze(2) - scale) * ratio
        similarity.scatter_(2, own, of_own[..., None])
        return positive, total


class CompiledPasses(Passes):
    """Compiled, on a CPU and in float32, for one client after another."""

    def __init__(self) -> None:
        from cgfedrec.kernels import alignment  # here, since numba takes half a second to load

        self._do = alignment

    def unit_rows(self, table: Tensor) -> tuple[Tensor, Tensor]:
        unit, norms = torch.empty(table.shape), torch.empty(*table.shape[:2], 1)
        for one in _each(table, unit, norms.squeeze(2)):
            self._do.unit_rows(one[0], np.float32(LEAST), *one[1:])
        return unit, norms

    def by_label(self, rows: Tensor, labels: Tensor, clusters: int) -> Tensor:
        sums = torch.zeros(len(rows), clusters, rows.shape[2])
        for mine, total in _each(rows, sums):
            self._do.add_by_label(mine, labels.numpy(), total)
        return sums

    def add_of_label(self, rows: Tensor, sums: Tensor, labels: Tensor, shares: Tensor) -> None:
        for mine, total in _each(rows, sums):
            self._do.add_of_label(mine, total, labels.numpy(), shares.numpy())

    def exponentials(self, tile: Tensor, bound: float, of_rows: Tensor, of_columns: Tensor) -> None:
        for one in _each(tile, of_rows, of_columns):
            self._do.exponentials(one[0], np.float32(bound), *one[1:])

    def weigh(self, tile: Tensor, of_rows: Tensor, of_columns: Tensor) -> None:
        for one in _each(tile, of_rows, of_columns):
            self._do.weigh(*one)

    def across(self, slope: Tensor, unit: Tensor, norms: Tensor) -> None:
        for one in _each(slope, unit, norms.squeeze(2)):
            self._do.across(*one)

    def against_prototypes(
        self, similarity: Tensor, labels: Tensor, sizes: Tensor, temperature: float, epsilon: float, items: int
    ) -> tuple[Tensor, Tensor]:
        positives, totals = torch.empty(2, *similarity.shape[:2])
        numbers = np.float32(temperature), np.float32(epsilon), np.float32(items)
        for mine, *found in _each(similarity, positives, totals):
            self._do.against_prototypes(mine, labels.numpy(), sizes.numpy(), *numbers, *found)
        return positives, totals


def passes_for(like: Tensor) -> Passes:
    """Those for tensors of the type and on the device of an example `[...]`."""
    if like.device.type == "cpu" and like.dtype == torch.float32:
        return CompiledPasses()
    return Passes()


def _each(*tensors: Tensor) -> zip[tuple[np.ndarray, ...]]:
    """Tensors of all clients as arrays of one after another."""
    return zip(*(tensor.numpy() for tensor in tensors), strict=True)
