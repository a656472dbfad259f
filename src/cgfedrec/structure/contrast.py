"""The supervised contrastive alignment loss over all items of a client's table, with its gradient in closed form.

With f the L2-normalised rows, s_ij = f_i . f_j / T and P(i) the other items with i's label, the loss of anchor i is
-(T/T0) * mean over j in P(i) of [ s_ij - log( sum_{k != i} exp s_ik + eps * exp(1/T) ) ], and 0 where P(i) is empty;
the mean is over all items (Khosla et al. 2020, equation 2; CGFedRec, arXiv 2602.21957; eps = 1e-6 is the published
code's).

`cgfedrec.structure.exact` computes it as it stands, `cgfedrec.structure.prototypes` an approximation.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from cgfedrec.memory import VECTOR
from cgfedrec.structure.exact import GPU_KEPT, Exact
from cgfedrec.structure.prototypes import Prototypes

TOGETHER = 8 * 2**20
"""Bytes of similarities of some clients together, on a CPU: what its cores share holds them."""
Kind = Literal["exact", "prototypes"]


def contrast(
    table: Tensor, labels: Tensor, temperature: float = 0.1, base_temperature: float = 0.5, kind: Kind = "exact"
) -> Tensor:
    """Supervised contrastive loss of each client's item table, differentiable with respect to the table.

    Args:
        table: `[clients, items, dim]`.
        labels: `[items]`, int64: the cluster of each item, the same for all clients.
        temperature: T, which scales the similarities.
        base_temperature: T0, which scales the loss by T / T0.
        kind: ``exact``, or with ``prototypes`` in place of items.

    Returns:
        `[clients]`, the mean over all items, items without positives counting 0.

    Two clients, three items, of which the first two have one label. For the first client these two are alike:

    >>> table = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    >>> contrast(table, torch.tensor([0, 0, 1])).round(decimals=4)
    tensor([0.0000, 0.7136])
    """
    with torch.autocast(table.device.type, enabled=False):  # similarities near 1 need all of float32
        loss: Tensor = _Contrast.apply(table, labels, temperature, base_temperature, kind)  # type: ignore[no-untyped-call]
    return loss


def loss_and_gradient(
    table: Tensor, labels: Tensor, temperature: float = 0.1, base_temperature: float = 0.5, kind: Kind = "exact"
) -> tuple[Tensor, Tensor]:
    """What `contrast` is, and its gradient: they share most of their work. Arguments as there.

    Returns:
        `[clients]` and `[clients, items, dim]`.
    """
    one = table[:1]
    part: Exact | Prototypes
    if kind == "exact":
        part = Exact(labels, temperature, one)
    else:
        part = Prototypes(labels, temperature, one)
    at_once = 1  # a CPU takes one client at a time, whose values then stay in its cache
    if table.is_cuda:
        at_once = max(1, min(len(table), GPU_KEPT // max(1, part.nbytes)))
    elif kind == "prototypes" and table.shape[2] % VECTOR == 0:
        # Or several, where rows of each begin as a tensor of its own would: then a product rounds none otherwise.
        at_once = max(1, min(len(table), TOGETHER // max(1, part.nbytes)))
    found = [part.loss_and_gradient(clients) for clients in table.split(at_once)]
    loss, gradient = map(torch.cat, zip(*found, strict=True))
    scale = temperature / base_temperature
    return loss * scale, gradient.mul_(scale)


class _Contrast(torch.autograd.Function):
    """The gradient is computed with the loss, and kept for `backward`."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, labels: Tensor, temperature: float, base_temperature: float, kind: Kind
    ) -> Tensor:
        loss, gradient = loss_and_gradient(table.detach(), labels, temperature, base_temperature, kind)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0][:, None, None], None, None, None, None
