"""One cohort's local training in one round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from lightning import Fabric
from lightning.fabric.plugins.precision import Precision
from torch import Tensor
from torch.optim import Optimizer

from cgfedrec.client import STEPS, Batch, Client, CompiledSteps, StepOutput
from cgfedrec.errors import RunError
from cgfedrec.lent import Lent
from cgfedrec.touched import Touched
from cgfedrec.wire.messages import NotFiniteError


class Stepping(Protocol):
    """A client as Fabric has wrapped it."""

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """`Client.training_step`, in the precision that Fabric was given."""


class Worker(NamedTuple):
    """What one thread trains with."""

    client: Client
    module: Stepping
    """The client as set up by Fabric, which owns device and precision."""
    optimizers: Sequence[Any]
    """Its optimisers, likewise."""
    memory: Lent
    """For tables of which it trains some rows."""


def train(fabric: Fabric, worker: Worker, batches: Sequence[Batch]) -> Tensor:
    """Train a cohort on its batches, in order. On each batch every optimiser takes one step.

    Args:
        fabric: Owns device and precision.
        worker: Its client holds the cohort; its optimisers start afresh.
        batches: Of one round, in order.

    Returns:
        `[clients, 1 + reports]`: each client's mean loss, and the means of what it reports (`Client.reports`). They are
        weighted by batch length, and are what the last optimiser saw. What no step has reported is 0. Without batches
        there is nothing to tell: `[clients, 0]`.

    Raises:
        NotFiniteError: naming the clients whose loss is not finite.
        RunError: for a step whose loss is not one for each client, or that reports what `Client.reports` does not name.
    """
    if not batches:
        return torch.empty(len(worker.client.users), 0)
    forget(worker.optimizers)
    touched = Touched.by(worker.client, batches, worker.memory)
    if touched is not None:
        batches = touched.batches
    compiled = _compiled(fabric, worker, touched)
    cohort = worker.client.private()
    # [clients]: sums over all batches, and how many samples they had
    losses, seen = torch.zeros(2, len(worker.client.users), device=fabric.device)
    reported = {name: torch.zeros_like(losses) for name in worker.client.reports}
    active = len(seen)
    for batch in fabric.to_device(batches):
        # Clients come with the longest histories first. One whose batches are used up leaves, so that neither momentum
        # nor decay moves it any more.
        if len(batch.items) < active:
            active = len(batch.items)
            narrow(worker.client, worker.optimizers, active, touched)
        output = _steps(fabric, worker, batch, touched) if compiled is None else compiled(batch)
        seen[:active] += batch.sizes
        losses[:active] += output.loss.detach() * batch.sizes
        for name in output.reported:
            reported[name][:active] += output.reported[name].detach() * batch.sizes
        del output  # the last name of it: else its graph would hold on to the shapes that parameters have now
    # Those who left come back: what they had when they did is in these tensors, which training changed in place.
    worker.client.load(worker.client.users, cohort)
    if touched is not None:
        touched.leave()
    means: Tensor = (torch.stack((losses, *reported.values()), dim=1) / seen[:, None]).cpu()
    if not means.isfinite().all():
        raise NotFiniteError("training loss", worker.client.users[~means.isfinite().all(1)].tolist())
    return means


def _compiled(fabric: Fabric, worker: Worker, touched: Touched | None) -> CompiledSteps | None:
    """What takes a cohort's steps in a compiled loop, where nobody has asked for anything that it does not do."""
    if fabric.device.type != "cpu" or type(fabric.strategy.precision) is not Precision:  # that of float32
        return None
    if "training_step" in vars(worker.client) or worker.client.replaced(*STEPS):
        return None
    for optimizer in worker.optimizers:
        if any(callable(getattr(one, "on_after_optimizer_step", None)) for one in optimizer._callbacks):
            return None
    ends = touched.ends if touched is not None else None
    return worker.client.compiled_steps([optimizer.optimizer for optimizer in worker.optimizers], ends)


def _steps(fabric: Fabric, worker: Worker, batch: Batch, touched: Touched | None) -> StepOutput:
    """Let every optimiser take its step on a batch; what the last one saw."""
    for step, optimizer in enumerate(worker.optimizers):
        with fabric.autocast():
            output = worker.module.training_step(batch, step)
        _check(worker.client, output, len(batch.items))
        fabric.backward(output.loss.sum())  # a sum, so that each client's gradient is as if it were alone
        if touched is not None:
            touched.check_gradients()
        optimizer.step()
        optimizer.zero_grad()
    return output


def _check(client: Client, output: StepOutput, clients: int) -> None:
    """Refuse the first mistakes that one makes in writing a client."""
    name = type(client).__name__
    if output.loss.shape != (clients,):
        raise RunError(
            f"{name}.training_step returned a loss of shape {list(output.loss.shape)}; it must be [clients], here "
            f"[{clients}]: one for each client, and never a mean over them"
        )
    for reported in output.reported:
        if reported not in client.reports:
            raise RunError(f"{name}.training_step reports {reported!r}, which {name}.reports does not name")


def narrow(client: Client, optimizers: Iterable[Optimizer], clients: int, touched: Touched | None = None) -> None:
    """Go on with the first ``clients`` of a cohort alone. The others take no more steps."""
    of_rows = {client.get_parameter(name) for name in touched.names} if touched is not None else set()

    def first(value: Tensor, parameter: Tensor) -> Tensor:
        if parameter in of_rows and touched is not None:  # all clients' rows, [1, rows, dim]
            return value[:, : touched.rows(clients)]
        return value[:clients]

    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim:  # one without axes counts steps, which all share
                    state[name] = first(value, parameter)
    for parameter in client.parameters():
        parameter.data = first(parameter.data, parameter)


def forget(optimizers: Iterable[Optimizer]) -> None:
    """Clear the optimisers' state, since they start afresh in every round and for every cohort."""
    for optimizer in optimizers:
        optimizer.state.clear()
