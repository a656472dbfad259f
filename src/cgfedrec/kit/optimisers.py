"""Optimisers with the rates with which methods begin.

A default that is a class of its own can be written to a config and read back, which a function around one cannot. All
other options are torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, Optimizer

OptimizerCallable = Callable[[Iterable[nn.Parameter]], Optimizer]
"""What an option ``optimizer`` holds: it makes an optimiser of some parameters."""


class TableSGD(SGD):
    """SGD for a head and, at a rate of its own, an item table.

    Args:
        params: What it moves.
        lr: Learning rate.
        kwargs: As of `torch.optim.SGD`.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.1, **kwargs: Any) -> None:
        super().__init__(params, lr, **kwargs)


class LowRankSGD(SGD):
    """SGD for a user vector and a factor of low rank.

    Args:
        params: What it moves.
        lr: Learning rate.
        weight_decay: Weight of half the squared norm of all that it moves.
        kwargs: As of `torch.optim.SGD`.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 0.5, weight_decay: float = 5e-4, **kwargs: Any
    ) -> None:
        super().__init__(params, lr, weight_decay=weight_decay, **kwargs)


class FactorAdam(Adam):
    """Adam for a user vector and an item table.

    Args:
        params: What it moves.
        lr: Learning rate.
        kwargs: As of `torch.optim.Adam`.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.01, **kwargs: Any) -> None:
        super().__init__(params, lr, **kwargs)


STEPS_OF_SGD = (SGD, TableSGD, LowRankSGD)
"""Optimisers that step as `torch.optim.SGD` does. A subclass that a user wrote may do anything."""
