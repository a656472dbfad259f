"""Fabric, as far as it is supported: one process, one device, 32 bits or bfloat16."""

from __future__ import annotations

import os
from inspect import signature
from typing import Any

import torch
from lightning import Fabric
from lightning.fabric.strategies import SingleDeviceStrategy

from cgfedrec.errors import InputError, check

PRECISIONS = (None, 32, "32", "32-true", "bf16-mixed")


def engine(arguments: dict[str, Any], callbacks: list[object]) -> Fabric:
    """Fabric as the settings want it.

    Args:
        arguments: Of Fabric, but for its callbacks and loggers.
        callbacks: Fabric calls the hooks that they have, in this order.

    Raises:
        InputError: for what is not supported or cannot be had on this machine.
    """
    if arguments["precision"] not in PRECISIONS:
        raise InputError(f"fabric.precision: {arguments['precision']} is not supported; choose 32-true or bf16-mixed")
    try:
        fabric = Fabric(**arguments, callbacks=callbacks)
    except Exception as error:  # of Lightning, or of a plugin: it may be any
        defaults = {name: parameter.default for name, parameter in signature(Fabric).parameters.items()}
        given = [f"fabric.{name}" for name, value in arguments.items() if value not in (defaults[name], "cpu", 1)]
        raise InputError(f"{', '.join(given) or 'fabric'}: {error}") from error
    strategy, problems = fabric.strategy, []
    if not (isinstance(strategy, SingleDeviceStrategy) and fabric.world_size == 1):
        problems.append(
            "fabric.devices, fabric.num_nodes, fabric.strategy: only one process and one device are supported, not "
            f"{type(strategy).__name__} with {fabric.world_size}; leave the strategy at auto"
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
    return fabric
