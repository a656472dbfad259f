"""All steps on a batch in one compiled loop, for the clients that most methods build on (`Client.compiled_steps`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim import optimizer as hooks_of_all

from cgfedrec.client import Batch, CompiledSteps, StepOutput
from cgfedrec.errors import RunError
from cgfedrec.kernels import Samples
from cgfedrec.kit.dense import Dense
from cgfedrec.kit.optimisers import STEPS_OF_SGD, FactorAdam
from cgfedrec.kit.rows import RowSGD
from cgfedrec.lent import Scratch
from cgfedrec.touched import NO_ITEM

_PLAIN = {"weight_decay": 0, "maximize": False, "differentiable": False}
"""Settings of an optimiser that the loops know nothing of."""


def plain_rate(optimizer: Optimizer, *parameters: nn.Parameter) -> float | None:
    """The learning rate of an optimiser that does p -= rate * gradient on these parameters, and nothing else.

    Args:
        optimizer: As said.
        parameters: `[clients, ...]` each.

    Returns:
        ``None`` for any other.
    """
    if type(optimizer) not in (RowSGD, *STEPS_OF_SGD) or not _is_plain(optimizer, parameters, momentum=0):
        return None
    return float(optimizer.param_groups[0]["lr"])


def linear(
    table: nn.Parameter,
    head: nn.Parameter,
    bias: nn.Parameter,
    optimizers: Sequence[Optimizer],
    ends: NDArray[np.int64] | None,
) -> CompiledSteps | None:
    """Plain SGD on a head, and then on a table: what a `TableClient` does on a batch.

    Args:
        table: `[clients, items, dim]`, or `[1, rows, dim]` as `Client.follows` has it.
        head: `[clients, dim]`.
        bias: `[clients]`.
        optimizers: Of the head with its bias, and of the table.
        ends: As of `Client.compiled_steps`.

    Returns:
        ``None`` where one of the optimisers does something else.
    """
    rates = plain_rate(optimizers[0], head, bias), plain_rate(optimizers[1], table)
    if None in rates:
        return None
    from cgfedrec.kernels import linear as kernel  # here, since numba takes half a second, and most commands need none

    head_rate, table_rate = np.array(rates, np.float32)
    rows, heads, biases = _rows(table), head.data.numpy(), bias.data.numpy()
    places = Places(table, ends)

    def step(batch: Batch) -> StepOutput:
        samples = places.samples(batch)
        kernel.step(rows, heads, biases, samples, head_rate, table_rate)
        return _output(batch, samples)

    return step


def factors(
    table: nn.Parameter,
    user: nn.Parameter,
    optimizer: Optimizer,
    ends: NDArray[np.int64] | None,
    memory: Sequence[Scratch],
) -> CompiledSteps | None:
    """Adam on a user vector and a table: what FedMF's client does on a batch.

    Args:
        table: `[clients, items, dim]`, or `[1, rows, dim]` as `Client.follows` has it.
        user: `[clients, dim]`.
        optimizer: Of both, before its first step.
        ends: As of `Client.compiled_steps`.
        memory: For Adam's averages of the table and of the user vector.

    Returns:
        ``None`` where the optimiser does something else.
    """
    if type(optimizer) not in (Adam, FactorAdam) or not _is_plain(optimizer, (user, table), amsgrad=False):
        return None
    from cgfedrec.kernels import adam as kernel  # here, as above

    group = optimizer.param_groups[0]
    rate, (beta_1, beta_2) = float(group["lr"]), map(float, group["betas"])
    rows, users = _rows(table), user.data.numpy()
    averages = [
        scratch.tensor((len(values), 2, values.shape[1]), torch.float32, table.device).zero_().numpy()
        for scratch, values in zip(memory, (rows, users), strict=True)
    ]
    places = Places(table, ends)
    steps = 0

    def step(batch: Batch) -> StepOutput:
        nonlocal steps
        steps += 1
        samples = places.samples(batch)
        mean, square = 1 - beta_1**steps, 1 - beta_2**steps  # what the weights in the averages of so many steps come to
        numbers = np.array([rate / mean, square**0.5, group["eps"], 1 - beta_1, beta_2, 1 - beta_2], np.float32)
        kernel.step(rows, users, averages[0], averages[1], places.ends, samples, *numbers)
        return _output(batch, samples)

    return step


def _is_plain(optimizer: Optimizer, parameters: Sequence[nn.Parameter], **settings: Any) -> bool:
    """Whether an optimiser has these parameters with these settings and those of `_PLAIN`, and nobody meddles."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(held) != len(parameters) or {id(one) for one in held} != {id(one) for one in parameters}:
        return False
    if not all({**group, "fused": None} == {**groups[0], "fused": None} for group in groups):
        return False
    if not all(groups[0].get(name, value) == value for name, value in (_PLAIN | settings).items()):
        return False
    for one in parameters:
        if one.dtype != torch.float32 or not one.requires_grad or one._backward_hooks:
            return False
        if getattr(one, "_post_accumulate_grad_hooks", None):
            return False
    before = [*optimizer._optimizer_step_pre_hooks.values(), *hooks_of_all._global_optimizer_pre_hooks.values()]
    after = [*optimizer._optimizer_step_post_hooks.values(), *hooks_of_all._global_optimizer_post_hooks.values()]
    return not after and "step" not in vars(optimizer) and all(isinstance(hook, Dense) for hook in before)


def _rows(table: nn.Parameter) -> NDArray[np.float32]:
    """All clients' rows as one table `[rows, dim]`, in place."""
    found: NDArray[np.float32] = table.data.view(-1, table.shape[2]).numpy()
    return found


class Places:
    """Where clients' rows are in one table of all.

    Args:
        table: `[clients, items, dim]`, or `[1, rows, dim]` as `Client.follows` has it.
        ends: As of `Client.compiled_steps`.

    Attributes:
        starts: `[clients]`: where each one's rows begin.
        ends: `[clients]`: and where they end.
    """

    def __init__(self, table: nn.Parameter, ends: NDArray[np.int64] | None) -> None:
        self.starts = np.arange(len(table)) * table.shape[1]
        self.ends = self.starts + table.shape[1]
        self._added = self.starts  # to an item of a batch, to find its row
        if ends is not None:
            self.starts, self.ends, self._added = np.append(0, ends[:-1]), ends, np.zeros_like(ends)

    def samples(self, batch: Batch) -> Samples:
        """A batch, `[clients, batch]`, for a loop, which looks at nothing itself.

        Raises:
            RunError: for items that there are not, and for a batch whose parts do not belong together.
        """
        clients = len(batch.items)
        if not (batch.items.shape == batch.targets.shape == batch.weights.shape) or clients > len(self.starts):
            raise RunError(f"a batch has parts of other shapes, or more than {len(self.starts)} clients")
        rows = batch.items.numpy() + self._added[:clients, None]
        outside = (rows < self.starts[:clients, None]) | (rows >= self.ends[:clients, None])
        if outside.any():
            raise RunError(NO_ITEM)
        targets, weights = (
            np.ascontiguousarray(values.numpy(), np.float32) for values in (batch.targets, batch.weights)
        )
        return Samples(rows, targets, weights, np.empty(rows.shape, np.float32))


def _output(batch: Batch, samples: Samples) -> StepOutput:
    logits = torch.from_numpy(samples.logits)
    losses = F.binary_cross_entropy_with_logits(logits, batch.targets, batch.weights, reduction="none")
    return StepOutput(losses.sum(1))
