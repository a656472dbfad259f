"""All steps on a batch in one compiled loop, for the clients that most methods build on (`Client.fused`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Adam, Optimizer

from cgfedrec.client import Batch, Fused, StepOutput
from cgfedrec.kernels import Samples
from cgfedrec.kit.dense import Dense
from cgfedrec.kit.optimisers import STEPS_OF_SGD, FactorAdam
from cgfedrec.kit.rows import RowSGD
from cgfedrec.lent import Scratch

_PLAIN = {"weight_decay": 0, "maximize": False, "differentiable": False}
"""Settings of an optimiser that the loops have not."""


def plain_rate(optimizer: Optimizer) -> float | None:
    """The learning rate of an optimiser that does p -= rate * gradient and nothing else; ``None`` for any other."""
    if type(optimizer) not in (RowSGD, *STEPS_OF_SGD) or not _is_plain(optimizer, momentum=0):
        return None
    return float(optimizer.param_groups[0]["lr"])


def linear(
    table: Tensor, head: Tensor, bias: Tensor, optimizers: Sequence[Optimizer], ends: NDArray[np.int64] | None
) -> Fused | None:
    """Plain SGD on a head, and then on a table: what a `TableClient` does on a batch.

    Args:
        table: `[clients, items, dim]`, or `[1, rows, dim]` as `Client.follows` has it.
        head: `[clients, dim]`.
        bias: `[clients]`.
        optimizers: Of the head with its bias, and of the table.
        ends: As of `Client.fused`.

    Returns:
        ``None`` where one of the optimisers does something else.
    """
    rates = [plain_rate(optimizer) for optimizer in optimizers]
    if None in rates:
        return None
    from cgfedrec.kernels import linear as kernel  # here, since numba takes half a second, and most commands need none

    head_rate, table_rate = np.array(rates, np.float32)
    rows, heads, biases = table.flatten(0, 1).numpy(), head.numpy(), bias.numpy()
    _, firsts = _places(table, ends)

    def step(batch: Batch) -> StepOutput:
        samples = _samples(batch, firsts)
        kernel.step(rows, heads, biases, samples, head_rate, table_rate)
        return _output(batch, samples)

    return step


def factors(
    table: Tensor, user: Tensor, optimizer: Optimizer, ends: NDArray[np.int64] | None, memory: Sequence[Scratch]
) -> Fused | None:
    """Adam on a user vector and a table: what FedMF's client does on a batch.

    Args:
        table: `[clients, items, dim]`, or `[1, rows, dim]` as `Client.follows` has it.
        user: `[clients, dim]`.
        optimizer: Of both, before its first step.
        ends: As of `Client.fused`.
        memory: For Adam's averages of the table and of the user vector.

    Returns:
        ``None`` where the optimiser does something else.
    """
    if type(optimizer) not in (Adam, FactorAdam) or not _is_plain(optimizer, amsgrad=False):
        return None
    from cgfedrec.kernels import adam as kernel  # here, as above

    group = optimizer.param_groups[0]
    betas = [float(beta) for beta in group["betas"]]
    rows, users = table.flatten(0, 1).numpy(), user.numpy()
    averages = [
        scratch.tensor((len(values), 2, values.shape[1]), torch.float32, table.device).zero_().numpy()
        for scratch, values in zip(memory, (rows, users), strict=True)
    ]
    bounds, firsts = _places(table, ends)
    steps = 0

    def step(batch: Batch) -> StepOutput:
        nonlocal steps
        steps += 1
        samples = _samples(batch, firsts)
        mean, square = (1 - beta**steps for beta in betas)  # what the averages of so many steps add up to
        rates = np.array([float(group["lr"]) / mean, square**0.5, group["eps"], *betas], np.float32)
        kernel.step(rows, users, averages[0], averages[1], bounds, samples, *rates)
        return _output(batch, samples)

    return step


def _is_plain(optimizer: Optimizer, **settings: Any) -> bool:
    """Whether all its parameters have these settings and those of `_PLAIN`, and nobody meddles with its steps."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    alike = all({**group, "fused": None} == {**groups[0], "fused": None} for group in groups)
    plain = all(groups[0].get(name, value) == value for name, value in (_PLAIN | settings).items())
    return alike and plain and all(isinstance(hook, Dense) for hook in hooks)


def _places(table: Tensor, ends: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each client's rows end, and what makes a row of an item of its batches, `[clients]` each."""
    if ends is not None:
        return ends, np.zeros(len(ends), np.int64)
    firsts = np.arange(len(table)) * table.shape[1]
    return firsts + table.shape[1], firsts


def _samples(batch: Batch, firsts: NDArray[np.int64]) -> Samples:
    rows = batch.items.numpy() + firsts[: len(batch.items), None]
    targets, weights = (np.ascontiguousarray(values.numpy()) for values in (batch.targets, batch.weights))
    return Samples(rows, targets, weights, np.empty(rows.shape, np.float32))


def _output(batch: Batch, samples: Samples) -> StepOutput:
    logits = torch.from_numpy(samples.logits)
    losses = F.binary_cross_entropy_with_logits(logits, batch.targets, batch.weights, reduction="none")
    return StepOutput(losses.sum(1))
