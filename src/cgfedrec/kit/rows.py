"""What every method's step is made of: gather the rows of a batch, score them linearly, step on them alone.

All of it is batched over clients. Gradients are written out by hand: these operations are so small that autograd would
take longer to keep track of them than they take.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from cgfedrec.client import Batch
from cgfedrec.kit.dense import Dense, add_rows
from cgfedrec.kit.optimisers import STEPS_OF_SGD
from cgfedrec.memory import VECTOR


def rows_of(table: Tensor, items: Tensor, gathered: Tensor | None = None) -> Tensor:
    """Each client's rows of its own items. The table's gradient is sparse: it holds the rows of the batch, no others.

    Args:
        table: `[clients, items, dim]`; or all clients' rows one after another, `[1, rows, dim]`, among which ``items``
            count (`cgfedrec.touched`).
        items: `[clients, batch]`.
        gathered: The same rows, where an earlier step on this batch has fetched them and the table has not changed.

    Returns:
        `[clients, batch, dim]`
    """
    rows: Tensor = _RowsOf.apply(table, items, gathered)  # type: ignore[no-untyped-call]
    return rows


class _RowsOf(torch.autograd.Function):
    """Indexing would make the gradient a whole table, mostly zeros; this one stays as small as the batch."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, items: Tensor, gathered: Tensor | None) -> Tensor:
        ctx.save_for_backward(items)
        ctx.shape = table.shape
        if gathered is not None:
            return gathered.view_as(gathered)  # autograd wants a new tensor; a view costs nothing
        # All tables as one, [clients * items, dim], of which one call fetches the rows of all clients.
        return torch.embedding(table.flatten(0, 1), _flat(items, table))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (items,) = ctx.saved_tensors  # [clients, batch]
        clients = torch.arange(ctx.shape[0], device=items.device)[:, None].expand_as(items)
        places = torch.stack((clients.flatten(), items.flatten()))  # [2, clients * batch]
        values = upstream[0].flatten(0, 1)  # [clients * batch, dim]
        return torch.sparse_coo_tensor(places, values, ctx.shape, check_invariants=False), None, None


def baddbmm(added: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`torch.baddbmm`, in which one client alone is rounded as it would be among others.

    For one pair of matrices torch may take another kernel than for several, namely where one of the two is a vector.
    That kernel rounds in another way. So a client that is alone is computed twice, as two clients that are alike, and
    one of the results is kept.

    Args:
        added: `[clients, rows, columns]`, or what expands to that along the last two axes.
        left: `[clients, rows, inside]`.
        right: `[clients, inside, columns]`.

    Returns:
        `[clients, rows, columns]`
    """
    if len(left) != 1:
        return torch.baddbmm(added, left, right)
    added, left, right = (one.expand(2, -1, -1) for one in (added, left, right))
    return torch.baddbmm(added, left, right)[:1]


def bmm(left: Tensor, right: Tensor) -> Tensor:
    """`torch.bmm`, in which one client alone is rounded as it would be among others: see `baddbmm`.

    Args:
        left: `[clients, rows, inside]`.
        right: `[clients, inside, columns]`.

    Returns:
        `[clients, rows, columns]`
    """
    if len(left) != 1:
        return torch.bmm(left, right)
    return torch.bmm(left.expand(2, -1, -1), right.expand(2, -1, -1))[:1]


def linear_loss(rows: Tensor, weight: Tensor, bias: Tensor | None, batch: Batch) -> Tensor:
    """Binary cross-entropy of sigmoid(weight . row + bias), the mean over each client's batch.

    Args:
        rows: `[clients, batch, dim]`.
        weight: `[clients, dim]`.
        bias: `[clients]`, or none.
        batch: Targets and weights.

    Returns:
        `[clients]`
    """
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    loss: Tensor = _LinearLoss.apply(rows, weight, bias, batch.targets, batch.weights)  # type: ignore[no-untyped-call]
    return loss


class _LinearLoss(torch.autograd.Function):
    """The loss's slope in the logits is sigmoid(logit) - target: all three gradients are products with it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        # [clients, 1, 1] + [clients, 1, dim] @ [clients, dim, batch]
        logits = baddbmm(bias[:, None, None], weight[:, None], rows.mT).squeeze(1).float()  # [clients, batch]
        ctx.save_for_backward(rows, weight, (logits.sigmoid() - targets).mul_(weights))
        return F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="none").sum(1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, slope = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        slope = slope * upstream[0][:, None]  # [clients, batch]
        of_rows = of_weight = of_bias = None
        if wants_rows:
            of_rows = slope[:, :, None] * weight[:, None]  # [clients, batch, dim]
        if wants_weight:
            # Under mixed precision rows may have been computed in 16 bits, and here nothing is cast by itself.
            of_weight = bmm(slope[:, None], rows.to(slope.dtype))[:, 0]  # [clients, dim]
        if wants_bias:
            of_bias = slope.sum(1)  # [clients]
        return of_rows, of_weight, of_bias, None, None


def by_rows(optimizer: Optimizer) -> Optimizer:
    """The same optimiser, which steps only on the rows of a sparse gradient where that makes no difference.

    Plain SGD is such a case. Momentum, decay and adaptive steps move every row in every step, so optimisers that have
    them are given dense gradients. Adam is told to do its step in one pass over all rows (``fused``); by default it
    takes a dozen. An Adam that was made with ``fused`` or ``foreach`` keeps what it was told.
    """
    groups = optimizer.param_groups
    steps_as_sgd = type(optimizer) in STEPS_OF_SGD
    if steps_as_sgd and not any(g["momentum"] or g["weight_decay"] or g["maximize"] for g in groups):
        return RowSGD([{"params": group["params"], "lr": group["lr"]} for group in groups])
    if isinstance(optimizer, Adam):
        _fuse(groups)
    optimizer.register_step_pre_hook(Dense(optimizer))
    return optimizer


def dense_copies(optimizer: Optimizer) -> int:
    """How many tensors as large as its parameters an optimiser of `by_rows` works with.

    These are the gradient as it comes, the gradient made dense, and the optimiser's own state. An optimiser that steps
    on rows alone needs none. One that cannot be made anew to be looked at is taken to have as much state as Adam.
    """
    if isinstance(optimizer, RowSGD):
        return 0
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    try:
        trial = type(optimizer)([parameter], **optimizer.defaults)
        trial.step()
    except (TypeError, ValueError, RuntimeError):
        return 2 + 2
    own = trial.state[parameter].values()
    return 2 + sum(isinstance(value, Tensor) and value.shape == parameter.shape for value in own)


def leaves_alone(optimizer: Optimizer) -> bool:
    """Whether an optimiser leaves rows where they are that have had no gradient yet. With decay it does not.

    One that cannot be made anew to be tried is taken not to.
    """
    if any(group.get("weight_decay") for group in optimizer.param_groups):
        return False  # however little that is
    for group in optimizer.param_groups:
        parameter = nn.Parameter(torch.ones(2))
        settings = {name: value for name, value in group.items() if name != "params"}
        try:
            trial = type(optimizer)([{**settings, "params": [parameter]}], **optimizer.defaults)
            for _ in range(3):
                parameter.grad = torch.tensor([1.0, 0.0])
                trial.step()
        except (TypeError, ValueError, RuntimeError):
            return False
        if parameter[1] != 1:
            return False
    return True


def _fuse(groups: list[dict[str, Any]]) -> None:
    """Let Adam do its step in one pass on the parameters for which that changes no result.

    The fused step goes through a parameter vector by vector of the CPU. The last numbers, if they do not fill a vector,
    are computed by other instructions, which round differently. Which client these belong to depends on the cohort. So
    a parameter is fused only if each client's share of it is a whole number of vectors.
    """
    for group in list(groups):
        if (group["fused"], group["foreach"], group["differentiable"]) != (None, None, False):
            continue
        whole = [one for one in group["params"] if one.shape[1:].numel() % VECTOR == 0]
        rest = [one for one in group["params"] if one.shape[1:].numel() % VECTOR]
        if whole and rest:
            group["params"] = rest
            groups.append({**group, "params": whole, "fused": True})
        elif whole:
            group["fused"] = True


class RowSGD(SGD):
    """Plain SGD on item tables `[clients, items, dim]`. Rows that stand in a batch twice are added up in its order."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for table in group["params"]:
                gradient = table.grad
                if gradient is None:
                    continue
                if gradient.is_sparse:
                    add_rows(table, gradient, -group["lr"])
                else:
                    table.add_(gradient, alpha=-group["lr"])


def _flat(items: Tensor, table: Tensor) -> Tensor:
    """Where each client's items, `[clients, batch]`, stand in all tables as one, `[clients * items, dim]`."""
    clients, num_items = table.shape[:2]
    return items + torch.arange(0, clients * num_items, num_items, device=items.device)[:, None]
