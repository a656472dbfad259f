"""An approximation of the alignment loss that costs items x clusters in place of items x items.

It differs from `cgfedrec.structure.contrast` in the sum over all other items alone: every item of a cluster stands
where the mean of that cluster's unit rows (without the anchor) stands, its prototype. exp being convex, each
cluster's part of the sum is never above the exact one, and equals it where the cluster has shrunk to a point. What
pulls positives together is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6
"""The published code's, as in the exact loss."""


class Prototypes:
    """What the loss of every client needs of the labels.

    Args:
        labels: `[items]`, int64.
        temperature: T.
        like: `[1, items, dim]`, of the type and on the device that the loss has.
    """

    def __init__(self, labels: Tensor, temperature: float, like: Tensor) -> None:
        members = torch.nn.functional.one_hot(labels).to(like)
        sizes = members.sum(0)
        others = sizes[labels] - 1
        self.temperature = temperature
        self.anchors = (others > 0).to(like)
        self.others = others.clamp_min(1)
        self.shares = members / sizes.clamp_min(1)
        self.counts = torch.where(members > 0, others[:, None], sizes)
        self.nbytes = 3 * members.nbytes
        """Of what one client needs in between."""
        self.own = labels + torch.arange(0, members.numel(), members.shape[1], device=labels.device)

    def loss_and_gradient(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of some clients without the factor T / T0, and its gradient.

        Args:
            table: `[clients, items, dim]`.

        Returns:
            `[clients]` and `[clients, items, dim]`.
        """
        norms = torch.linalg.vector_norm(table, dim=2, keepdim=True).clamp_min(1e-12)
        unit = table / norms
        prototypes = self.shares.T @ unit
        similarity = torch.bmm(unit, prototypes.mT / self.temperature)
        own = similarity.flatten(1)  # the same memory

        # an anchor is no part of its own prototype: without it, that similarity is the mean over its positives
        ratio = 1 + 1 / self.others
        positive = self.anchors * (own[:, self.own] * ratio - 1 / (self.others * self.temperature))
        own[:, self.own] = positive
        parts = similarity.sub_(1 / self.temperature).exp_().mul_(self.counts)
        total = parts.sum(2) + EPSILON
        terms = self.anchors * (total.log() + 1 / self.temperature - positive)

        scale = self.anchors / (self.temperature * table.shape[1])
        slope = parts.mul_((scale / total)[..., None])
        own[:, self.own] = (own[:, self.own] - scale) * ratio
        gradient = torch.bmm(slope, prototypes) + self.shares @ torch.bmm(slope.mT, unit)
        return terms.mean(1), (gradient - unit * (unit * gradient).sum(2, keepdim=True)) / norms
