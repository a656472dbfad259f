"""An approximation of the alignment loss that costs items x clusters in place of items x items.

It differs from `cgfedrec.structure.contrast` only in the sum over all other items. There, every item of a cluster is
taken to stand where the mean of that cluster's unit rows stands: its prototype. An anchor is left out of the prototype
of its own cluster. exp is convex, so each cluster's part of the sum is never above the exact one. It equals the
exact one where all rows of the cluster are the same. What pulls positives together is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgfedrec.client import VECTOR
from cgfedrec.structure.exact import EPSILON
from cgfedrec.structure.passes import passes_for


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
        self.nbytes = 3 * len(labels) * len(self.sizes) * like.itemsize
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
        slope = torch.bmm(unit, prototypes.mT / self.temperature)  # [clients, items, clusters]: similarities as yet
        found = self.passes.against_prototypes(slope, self.labels, self.sizes, self.temperature, EPSILON)
        positive, total = found  # [clients, items] each
        terms = self.anchors * (total.log() + 1 / self.temperature - positive)
        # A row takes part as an anchor, and as a share of its cluster's prototype.
        gradient = torch.bmm(slope, prototypes)  # [clients, items, dim]
        self.passes.add_of_label(gradient, torch.bmm(slope.mT, unit), self.labels, self.shares)
        self.passes.across(gradient, unit, norms)
        return terms.mean(1), gradient
