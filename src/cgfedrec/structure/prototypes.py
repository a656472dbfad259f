"""An approximation of the alignment loss that costs items x clusters in place of items x items.

It differs from `cgfedrec.structure.contrast` only in the sum over all other items. There, every item of a cluster is
taken to stand where the mean of that cluster's unit rows stands: its prototype. An anchor is left out of the prototype
of its own cluster. exp is convex, so each cluster's part of the sum is never above the exact one. It equals the
exact one where all rows of the cluster are the same. What pulls positives together is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgfedrec.structure.exact import EPSILON


class Prototypes:
    """What the loss of every client needs of the labels.

    Args:
        labels: `[items]`, int64.
        temperature: T.
        like: `[1, items, dim]`, of the type and on the device that the loss has.
    """

    def __init__(self, labels: Tensor, temperature: float, like: Tensor) -> None:
        members = torch.nn.functional.one_hot(labels).to(like)  # [items, clusters]
        sizes = members.sum(0)  # [clusters]
        others = sizes[labels] - 1  # [items]: how many positives each anchor has
        self.temperature = temperature
        self.anchors = (others > 0).to(like)  # [items]: 1 for an item with positives, 0 for one that is alone
        self.others = others.clamp_min(1)
        self.shares = members / sizes.clamp_min(1)  # [items, clusters]: of each item in its prototype
        # For how many items a prototype stands; an anchor does not count itself.
        self.counts = torch.where(members > 0, others[:, None], sizes)  # [items, clusters]
        self.nbytes = 3 * members.nbytes
        """Of what one client needs in between."""
        self.labels = labels

    def loss_and_gradient(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of some clients without the factor T / T0, and its gradient.

        Args:
            table: `[clients, items, dim]`.

        Returns:
            `[clients]` and `[clients, items, dim]`.
        """
        norms = torch.linalg.vector_norm(table, dim=2, keepdim=True).clamp_min(1e-12)  # [clients, items, 1]
        unit = table / norms  # [clients, items, dim]
        prototypes = self.shares.T @ unit  # [clients, clusters, dim]
        similarity = torch.bmm(unit, prototypes.mT / self.temperature)  # [clients, items, clusters]

        # An anchor is no part of its own prototype. Without it, that similarity is the mean over its positives.
        own = self.labels[:, None].expand(len(table), -1, 1)  # [clients, items, 1]: the anchor's own cluster
        ratio = 1 + 1 / self.others  # [items]
        with_itself = similarity.gather(2, own).squeeze(2)
        positive = self.anchors * (with_itself * ratio - 1 / (self.others * self.temperature))  # [clients, items]
        similarity.scatter_(2, own, positive[..., None])

        # Each cluster's part of the sum, in the memory of the similarities, which are needed no more. 1/T, the largest
        # that there can be, is taken away so that no exponential overflows.
        parts = similarity.sub_(1 / self.temperature).exp_().mul_(self.counts)  # [clients, items, clusters]
        del similarity
        total = parts.sum(2) + EPSILON  # [clients, items]
        terms = self.anchors * (total.log() + 1 / self.temperature - positive)  # [clients, items]

        # How the mean loss changes with each similarity, in the same memory again: a cluster's share of the sum, and
        # for the anchor's own cluster less the pull of its positives.
        scale = self.anchors / (self.temperature * table.shape[1])  # [items]
        slope = parts.mul_((scale / total)[..., None])  # [clients, items, clusters]
        del parts
        of_positive = (slope.gather(2, own).squeeze(2) - scale) * ratio  # [clients, items]
        slope.scatter_(2, own, of_positive[..., None])
        # A row takes part as an anchor, and as a share of its cluster's prototype.
        gradient = torch.bmm(slope, prototypes) + self.shares @ torch.bmm(slope.mT, unit)  # [clients, items, dim]
        # What points along a row cannot change its direction, so normalising takes it out of the gradient.
        return terms.mean(1), (gradient - unit * (unit * gradient).sum(2, keepdim=True)) / norms
