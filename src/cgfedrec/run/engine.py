"""Fabric, as far as it is supported: 32 bits or bfloat16, on a CPU or GPUs, in one process or in several (DDP)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy

from cgfedrec.errors import InputError, check
from cgfedrec.processes import Processes

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Variables that tell a process its number, the first that is there, as Lightning reads them."""
PRECISIONS = (None, 32, "32", "32-true", "bf16-mixed")


def rank_of(settings: Namespace) -> int:
    """Which of the processes of a run this is, from 0, as whoever started it says: Lightning, torchrun or SLURM."""
    if no_crowd(settings, "") is None:
        return 0  # a task of a SLURM job has a number too where each does something else
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), 0)


def no_crowd(settings: Namespace, who: str) -> str | None:
    """What is wrong where somebody trains in one process, and settings ask for several."""
    if str(settings.fabric.devices) == "1" and str(settings.fabric.num_nodes) == "1":
        return None
    return f"fabric.devices, fabric.num_nodes: {who} trains in one process; leave both at 1"


def engine(arguments: dict[str, Any], callbacks: list[object]) -> tuple[Fabric, Processes]:
    """Fabric as the settings want it.

    Args:
        arguments: Of Fabric, but for its callbacks and loggers.
        callbacks: Fabric calls the hooks that they have, in this order.

    Returns:
        Fabric of this process alone, on its device: clients are private, and nothing of them may be averaged, as DDP
        would. And the processes that share the clients.

    Raises:
        InputError: for what is not supported or cannot be had on this machine.
    """
    if arguments["precision"] not in PRECISIONS:
        raise InputError(f"fabric.precision: {arguments['precision']} is not supported; choose 32-true or bf16-mixed")
    fabric, processes = _fabric(arguments, callbacks), Processes()
    strategy, problems = fabric.strategy, list[str]()
    if isinstance(strategy, DDPStrategy) and strategy._start_method == "popen":
        problems += _not_started(fabric, arguments)
        processes = Processes(fabric if fabric.world_size > 1 else None)
        alone = SingleDeviceStrategy(device=fabric.device)
        fabric = _fabric(dict(arguments, devices=1, num_nodes=1, strategy=alone), callbacks)
    elif not (isinstance(strategy, SingleDeviceStrategy) and fabric.world_size == 1):
        problems.append(
            f"fabric.strategy: {type(strategy).__name__} is not supported with {fabric.world_size} processes; choose "
            "ddp, from the command line or a script"
        )
    if strategy.precision.precision not in PRECISIONS:
        problems.append(
            f"fabric.plugins: the precision {strategy.precision.precision} is not supported; choose 32-true or "
            "bf16-mixed by fabric.precision"
        )
    check(*problems)
    kind = fabric.device.type
    if kind not in ("cpu", "cuda"):
        raise InputError(f"fabric.accelerator: {kind} is not supported; choose cpu or cuda")
    if kind == "cuda":  # a resumed run must end where the whole one would
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return fabric, processes


def _not_started(fabric: Fabric, arguments: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the processes that torchrun or SLURM has started; they would wait for others for ever."""
    devices, nodes, there = str(arguments["devices"]), str(arguments["num_nodes"]), fabric.world_size
    if devices.isdigit() and there != int(devices) * int(nodes):
        yield f"fabric.devices: {devices} on {nodes} nodes are asked for, and {there} processes were started"
    slurm = isinstance(getattr(fabric.strategy, "cluster_environment", None), SLURMEnvironment)
    if slurm and there > 1 and "SLURM_STEP_ID" not in os.environ:
        yield f"fabric.devices: SLURM has {there} tasks here, and only srun starts them; write srun before the command"


def alone(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same engine, in one process: to use what has been trained in several."""
    return {**arguments, "devices": 1, "num_nodes": 1, "strategy": "auto"}


def _fabric(arguments: dict[str, Any], callbacks: list[object]) -> Fabric:
    try:
        with warnings.catch_warnings():  # wherever SLURM is installed, even where nobody uses it
            warnings.filterwarnings("ignore", "The `srun` command is available")
            return Fabric(**arguments, callbacks=callbacks)
    except Exception as error:  # of Lightning, or of a plugin: it may be any
        defaults = {name: parameter.default for name, parameter in signature(Fabric).parameters.items()}
        given = [f"fabric.{name}" for name, value in arguments.items() if value not in (defaults[name], "cpu", 1)]
        raise InputError(f"{', '.join(given) or 'fabric'}: {error}") from error
