"""Optimisers whose default rates are those of the methods. Everything else is as torch has it.

They are classes so that a method can name one as its default. A class can be written to a config and read back; a
function around one cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from cgfedrec.errors import LARGEST, InputError, check, not_between

OptimizerCallable = Callable[[Iterable[nn.Parameter]], Optimizer]
"""What an option ``optimizer`` holds: something that makes an optimiser of some parameters."""


class TableSGD(SGD):
    """SGD for a head or a network. A table beside it has a rate of its own, far higher."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.1, **kwargs: Any) -> None:
        super().__init__(params, lr, **kwargs)


class LowRankSGD(SGD):
    """SGD for a user vector and a factor of low rank."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 0.5, weight_decay: float = 5e-4, **kwargs: Any
    ) -> None:
        super().__init__(params, lr, weight_decay=weight_decay, **kwargs)


class FactorAdam(Adam):
    """Adam for a user vector and an item table."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.01, **kwargs: Any) -> None:
        super().__init__(params, lr, **kwargs)


STEPS_OF_SGD = (SGD, TableSGD, LowRankSGD)
"""Optimisers that step as `torch.optim.SGD` does. A subclass that a user wrote may do anything."""


def check_elementwise(optimizer: OptimizerCallable, where: str = "method") -> Optimizer:
    """Make sure that an optimiser cannot mix clients: two trained together must end where each ends alone.

    Args:
        optimizer: As given by the user.
        where: Whose setting it is.

    Returns:
        One, made for a trial.

    Raises:
        InputError: for an optimiser that mixes, cannot be made, or needs more than gradients.
    """
    gradients = torch.linspace(-1, 2, 36).sin().reshape(3, 2, 3, 2)  # [steps, clients, 3, 2]

    def trial(clients: slice) -> tuple[Tensor, Optimizer]:
        parameter = nn.Parameter(torch.linspace(-1, 1, 12).reshape(2, 3, 2)[clients].clone())
        made = optimizer([parameter])
        for gradient in gradients:
            parameter.grad = gradient[clients].clone()
            made.step()
        return parameter.data, made

    try:
        together, made = trial(slice(0, 2))
        check(
            *(
                not_between(f"{where}.optimizer.{name}", value, -LARGEST)
                for name, value in made.defaults.items()
                if isinstance(value, float)
            )
        )
        alone = torch.cat([trial(slice(client, client + 1))[0] for client in range(2)])
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{where}.optimizer: {error}") from error
    if not torch.allclose(together, alone, rtol=1e-5, atol=1e-7):
        check(
            f"{where}.optimizer: {type(made).__name__} computes over all clients of a cohort at once; choose one that "
            "treats every element alone, such as SGD, Adam, AdamW or Adagrad"
        )
    return made
