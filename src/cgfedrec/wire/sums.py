"""Uploads added up: exactly, in whatever order and grouping they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cgfedrec.errors import RunError
from cgfedrec.processes import Processes

GRID = 2.0**40
"""Numbers that are no whole ones are rounded to multiples of 1 / `GRID` before they are added up.

A float32 of at least 2^-17 is such a multiple already. In float64 their sum is then exact in whatever order they come,
and so the same in any number of cohorts, threads and processes."""
EXACT = 2.0**53
"""Up to here float64 holds every whole number."""


@dataclass(frozen=True)
class Sum:
    """Uploads added up. A server that needs no single upload is given this.

    Args:
        values: Named sums over clients, `[...]`: of whole numbers with bounds exact, in int64; of all others float64,
            multiples of 1 / `GRID`, and so exact as well up to `EXACT` of them. A cohort's may be sparse, of those
            `[rows, ...]` that are not all zero.
        clients: Over how many.
        told: What is worth logging of how it was made, by name.

    >>> two, one = Sum({"table": torch.tensor([1.0, 5.0])}, clients=2), Sum({"table": torch.tensor([2.0, 0.0])}, 1)
    >>> both = two.dense()
    >>> both += one
    >>> both.values["table"] / both.clients
    tensor([1.0000, 1.6667])
    """

    values: Mapping[str, Tensor]
    clients: int
    told: Mapping[str, float] = field(default_factory=dict)

    def dense(self) -> Sum:
        """The same, laid out in full in memory of its own."""
        values = {}
        for name, value in self.values.items():
            values[name] = value.clone() if value.layout == torch.strided else value.to_dense()
        return Sum(values, self.clients, self.told)

    def __iadd__(self, other: Sum) -> Self:
        """As the sum over the clients of both, in the memory of this one, which is `dense`."""
        for name, value in self.values.items():
            value.add_(other.values[name])
        return replace(self, clients=self.clients + other.clients)

    def over_processes(self, processes: Processes) -> Sum:
        """The sum over the clients of all processes that train together.

        Raises:
            RunError: where numbers are so large that it would not be exact.
        """
        values = {}
        for name, value in self.values.items():
            if value.dtype == torch.int64:
                values[name] = processes.sum(value)
                continue
            whole = value * GRID
            if processes.any(bool(whole.abs().max() >= EXACT) if whole.numel() else False):
                raise RunError(
                    f"the sum of {name} is beyond {EXACT / GRID:g}, and cannot be added up exactly over processes; "
                    "train in one"
                )
            values[name] = processes.sum(whole.long()).double() / GRID
        return Sum(values, int(processes.sum(torch.tensor(self.clients))))


def whole_sum(value: Tensor) -> Tensor:
    """The exact sum over clients in int64, `[clients, rows, ...]` to `[rows, ...]`.

    It is sparse where clients have so few rows that laying out all would take longer than adding them.
    """
    if value.layout == torch.strided:
        return value.sum(0, dtype=torch.int64)
    rows, entries = value.indices()[1], value.values()  # [entries], [entries, columns]
    if len(rows) < value.shape[1]:
        # A row stands there as often as clients have it: whoever adds it up counts it so often.
        return torch.sparse_coo_tensor(rows[None], entries, value.shape[1:], check_invariants=False)
    return entries.new_zeros(value.shape[1:]).index_add_(0, rows, entries)


def rounded_sum(value: Tensor) -> Tensor:
    """The sum over clients of multiples of 1 / `GRID`, in float64, `[clients, ...]` to `[...]`."""
    if value.is_cuda or value.dtype == torch.bfloat16:  # which numpy does not know
        return (value.float() * GRID).round_().sum(0, dtype=torch.float64) / GRID
    from cgfedrec.kernels import sums as kernel  # here, since numba takes half a second to load

    total = np.zeros(value.shape[1:])
    kernel.add(total.reshape(-1), value.float().reshape(len(value), total.size).numpy(), np.float32(GRID))
    return torch.from_numpy(total) / GRID
