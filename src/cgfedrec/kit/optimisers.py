"""Optimisers whose default rates are those of the methods. Everything else is as torch has it.

They are classes so that a method can name one as its default. A class can be written to a config and read back; a
function around one cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, Optimizer

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
