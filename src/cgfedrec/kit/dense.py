"""Dense steps on item tables, in memory that is used again.

A cohort's tables are tens of megabytes. To get new memory for its gradient in every batch, and for Adam's averages in
every cohort, takes longer than to clear what is there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from cgfedrec.kit.optimisers import FactorAdam
from cgfedrec.lent import Scratch

AVERAGES = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of each parameter, by its own names."""


class Dense:
    """Makes sparse gradients dense for one optimiser that takes no others, just before it steps.

    Args:
        optimizer: As said.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._gradients: dict[nn.Parameter, Scratch] = {}
        self._averages: dict[nn.Parameter, tuple[Scratch, Scratch]] = {}

    def __call__(self, *_: Any) -> None:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is not None and gradient.is_sparse:
                    dense = _zeros(self._gradients.setdefault(parameter, Scratch()), parameter)
                    add_rows(dense, gradient)
                    parameter.grad = dense
                    if _is_plain_adam(self._optimizer, group) and not self._optimizer.state[parameter]:
                        self._begin(parameter, group)

    def _begin(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Give Adam its averages at 0, as it would make them itself."""
        lent = self._averages.setdefault(parameter, (Scratch(), Scratch()))
        # A fused step wants its count where the parameter is.
        device = parameter.device if group["fused"] or group["capturable"] else torch.device("cpu")
        self._optimizer.state[parameter] = {
            "step": torch.zeros((), device=device),
            **{name: _zeros(scratch, parameter) for name, scratch in zip(AVERAGES, lent, strict=True)},
        }


def _zeros(scratch: Scratch, example: Tensor) -> Tensor:
    """Zeros of the shape, type and device of an example, `[clients, ...]`."""
    return scratch.tensor(example.shape, example.dtype, example.device).zero_()


def _is_plain_adam(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    return type(optimizer) in (Adam, FactorAdam) and not group["amsgrad"]


def add_rows(tables: Tensor, sparse: Tensor, factor: float = 1.0) -> None:
    """Add sparse rows to tables in place. Rows that stand twice are added up in their order.

    The public methods want equal rows to be added up first, which means sorting them.

    Args:
        tables: `[clients, items, dim]`, in one piece.
        sparse: Likewise, of which clients and items are sparse; its values are changed.
        factor: Times these rows.
    """
    clients, items = sparse._indices()  # [clients * batch] each
    values = sparse._values()  # [clients * batch, dim]
    if factor != 1.0:
        values = values.mul_(factor)
    places = (clients * tables.shape[1] + items)[:, None].expand_as(values)  # in [clients * items, dim]
    tables.view(-1, tables.shape[2]).scatter_add_(0, places, values)
