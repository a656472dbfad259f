"""Clients that stop before the others: what the methods with many local epochs share."""

from __future__ import annotations

import torch
from torch import Tensor

from cgfedrec.client import Batch


class EarlyStop:
    """Which clients of a cohort go on: those whose mean loss still changes from epoch to epoch.

    ``active``, `[clients]`, bool, says it. A client that has stopped stays stopped until the round ends.

    Args:
        clients: How many.
        tolerance: The least change of the mean loss with which a client goes on.
        device: Where their losses are.
    """

    def __init__(self, clients: int, tolerance: float, device: torch.device) -> None:
        self.tolerance = tolerance
        self.active = torch.ones(clients, dtype=torch.bool, device=device)
        self._before = torch.full((clients,), torch.inf, device=device)  # so that nobody stops after the first epoch
        self._total, self._samples = torch.zeros(2, clients, device=device)  # of the epoch so far

    def observe(self, loss: Tensor, batch: Batch) -> None:
        """Take in the losses `[clients]` of a batch, and stop those who end an epoch that changed little.

        Clients whose batches are used up have left the cohort, the last ones first. What is kept is cut to those who
        are still there.
        """
        clients = len(loss)
        total = self._total[:clients] + loss * batch.sizes
        samples = self._samples[:clients] + batch.sizes
        mean, before = total / samples, self._before[:clients]  # means of the whole epoch where the batch ends one
        self.active = self.active[:clients] & ~(batch.ends & ((mean - before).abs() < self.tolerance))
        self._before = torch.where(batch.ends, mean, before)
        self._total, self._samples = total.masked_fill(batch.ends, 0), samples.masked_fill(batch.ends, 0)
