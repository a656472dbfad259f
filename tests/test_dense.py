"""Optimisers that are given dense gradients in memory that is used again step as with new memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Adam, AdamW, Optimizer

from cgfedrec.client import empty_parameter
from cgfedrec.kit.optimisers import FactorAdam, TableSGD
from cgfedrec.kit.rows import by_rows, rows_of
from cgfedrec.train import forget

ITEMS, DIM = 50, 16
COHORTS = ((6, 6, 4), (6, 2, 2), (7, 7, 7), (3, 3, 1))
"""How many clients each cohort has in each of its steps: cohorts of several sizes, whose last clients leave."""


def trained(optimizer: Optimizer, table: nn.Parameter, clients: tuple[int, ...], items: Tensor) -> Tensor:
    """A cohort's tables after its steps, `[clients, items, dim]`, from zeros that differ by client."""
    whole = torch.linspace(-1, 1, clients[0] * ITEMS * DIM).view(clients[0], ITEMS, DIM).clone()
    table.grad = None
    table.data = whole
    forget([optimizer])
    for step, active in enumerate(clients):
        table.data = whole[:active]
        for state in optimizer.state.values():
            for name, value in state.items():
                if value.ndim:
                    state[name] = value[:active]
        rows_of(table, items[step, :active]).sin().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return whole


@pytest.mark.parametrize(
    "make",
    [
        FactorAdam,
        lambda p: Adam(p, lr=0.1, weight_decay=0.01),
        lambda p: Adam(p, lr=0.1, amsgrad=True),
        lambda p: AdamW(p, lr=0.1),
        lambda p: Adagrad(p, lr=0.1),
        lambda p: TableSGD(p, momentum=0.9),
    ],
)
def test_memory_that_is_used_again_begins_as_new_memory(
    make: Callable[[Iterable[nn.Parameter]], Optimizer],
) -> None:
    torch.manual_seed(0)
    items = torch.randint(ITEMS, (3, 7, 8))  # some twice in a batch
    table = empty_parameter(ITEMS, DIM)
    again = by_rows(make([table]))
    for clients in COHORTS:
        new_table = empty_parameter(ITEMS, DIM)
        anew = by_rows(make([new_table]))
        assert trained(again, table, clients, items).equal(trained(anew, new_table, clients, items))


def test_a_dense_step_is_torchs_own() -> None:
    """Of a gradient that was dense from the start, within rounding."""
    torch.manual_seed(0)
    items = torch.randint(ITEMS, (3, 7, 8))
    table, plain = empty_parameter(ITEMS, DIM), empty_parameter(ITEMS, DIM)
    ours = trained(by_rows(FactorAdam([table])), table, (5, 5, 5), items)
    theirs = Adam([plain], lr=0.01)
    plain.data = torch.linspace(-1, 1, 5 * ITEMS * DIM).view(5, ITEMS, DIM).clone()
    for step in range(3):
        plain[torch.arange(5)[:, None], items[step, :5]].sin().sum().backward()
        theirs.step()
        theirs.zero_grad()
    torch.testing.assert_close(ours, plain.data)
