"""An approximation of the alignment loss that costs items x clusters in place of items x items.

It differs from `cgfedrec.structure.contrast` only in the sum over all other items. There, every item of a cluster is
taken to stand where the mean of that cluster's unit rows stands: its prototype. An anchor is left out of the prototype
of its own cluster. exp is convex, so each cluster's part of the sum is never above the exact one. It equals the
exact one where all rows of the cluster are the same. What pulls positives together is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgfedrec.memory import VECTOR
from cgfedrec.structure.exact import EPSILON
from cgfedrec.structure.passes import passes_for

CACHED = 2**19
"""Bytes of similarities of one client at a time, on a CPU."""
FEWEST = 64
"""Items at a time, at least."""


class Prototypes:
    """What the loss of every client needs of the labels.

    Args:
        labels: `[items]`, int64.
        temperature: T.
        like: `[1, items, dim]`, of the type and on the device that the loss has.
    """

    def __init__(self, labels: Tensor, temperature: float, like: Tensor) -> None:
        self.labels, self.temperature = labels, temperature
        clusters = -(-(int(labels.max()) + 1) // VECTOR) * VECTOR  # with some that are empty, to go on in whole vectors
        self.sizes = labels.bincount(minlength=clusters).to(like)  # [clusters]
        # [items]: 1 for an item with positives, 0 for one that is alone
        self.anchors = (self.sizes[labels] > 1).to(like)
        self.shares = 1 / self.sizes[labels]  # [items]: of each item in its prototype
        self.passes = passes_for(like)
        # A CPU takes as many items at a time as a core's cache holds the similarities of.
        at_once = len(labels) if like.is_cuda else max(FEWEST, CACHED // (clusters * like.itemsize))
        self.blocks = [slice(start, start + at_once) for start in range(0, len(labels), at_once)]
        self.nbytes = 3 * min(len(labels), at_once) * clusters * like.itemsize
        """Of what one client needs in between."""

    def loss_and_gradient(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of some clients without the factor T / T0, and its gradient.

        Args:
            table: `[clients, items, dim]`.

        Returns:
            `[clients]` and `[clients, items, dim]`.
        """
        unit, norms = self.passes.unit_rows(table)  # [clients, items, dim], [clients, items, 1]
        sums = self.passes.by_label(unit, self.labels, len(self.sizes))
        prototypes = sums / self.sizes[:, None].clamp_min(1)  # [clients, clusters, dim]
        scaled = prototypes.mT / self.temperature  # [clients, dim, clusters]
        terms, gradient, of_prototypes = torch.empty_like(norms[..., 0]), torch.empty_like(unit), torch.zeros_like(sums)
        for rows in self.blocks:
            slope = torch.bmm(unit[:, rows], scaled)  # [clients, rows, clusters]: similarities as yet
            mine = self.labels[rows], self.sizes, self.temperature, EPSILON, len(self.labels)
            positive, total = self.passes.against_prototypes(slope, *mine)  # [clients, rows] each
            terms[:, rows] = self.anchors[rows] * (total.log() + 1 / self.temperature - positive)
            # A row takes part as an anchor, and as a share of its cluster's prototype.
            gradient[:, rows] = torch.bmm(slope, prototypes)
            of_prototypes.baddbmm_(slope.mT, unit[:, rows])
        self.passes.add_of_label(gradient, of_prototypes, self.labels, self.shares)
        self.passes.across(gradient, unit, norms)
        return terms.mean(1), gradient
