"""Where few items rank among a whole catalogue, if a client's scores differ from everybody's in few.

A score is what an item's neighbours in the history add, and what is added for all clients alike. The first is nothing
for most items. These rank by the second alone, so a sorted list tells how many of them lie above a score. In a large
catalogue that is much faster than looking at each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from cgfedrec.data.candidates import RankingCohort
from cgfedrec.evaluation.metrics import ranks_behind
from cgfedrec.evaluation.ranking import gains, gains_of

Numbers = NDArray[np.float32]
Places = NDArray[Any]

SPARSE = 16
"""Worth while where neighbours score less than one in so many items."""


class Beside(NamedTuple):
    """What is added to every client's scores."""

    values: Numbers
    """`[items]`"""
    ascending: Numbers
    """`[items]`: the same, sorted."""

    @classmethod
    def of(cls, values: Tensor) -> Beside:
        """Of `[items]`, float32."""
        numbers = values.cpu().numpy()
        return cls(numbers, np.sort(numbers))


class Others:
    """What clients' relevant items are ranked against, `[clients, items]`, and what is left out of it.

    Args:
        cohort: What is held out, and what it is ranked against.
    """

    def __init__(self, cohort: RankingCohort) -> None:
        self.missing = cohort.relevant < 0
        self.relevant = cohort.relevant.clamp_min(0).numpy()  # [clients, relevant]
        others = cohort.candidates.clone()
        held = torch.arange(len(others))[:, None].expand_as(cohort.relevant)[~self.missing]
        others[held, cohort.relevant[~self.missing]] = False
        self.marked = others.numpy()  # [clients, items], bool
        # Whose each item is that is left out, and which, `[left out]` each.
        self.without, self.left_out = np.divmod(np.flatnonzero(~self.marked), self.marked.shape[1])


class SparseRanks:
    """How many others stand before what clients hold out, under what neighbours score.

    Args:
        near: `[clients, items]`, float32: what neighbours score.
        others: Among whom.
    """

    def __init__(self, near: csr_array, others: Others) -> None:
        self.near, self.others, self.clients = near, others, near.shape[0]
        owners = np.repeat(np.arange(self.clients), np.diff(near.indptr))
        of_others = others.marked[owners, near.indices]
        # The entries of `near` that are of others, `[entries]` each.
        self.owners, self.items, self.scores = owners[of_others], near.indices[of_others], near.data[of_others]

    def better(self, beside: Beside) -> Tensor:
        """How many others score at least as much as each relevant item, `[clients, relevant]`, int64."""
        others, everyone = self.others, np.arange(self.clients)
        of_entries, of_left_out = beside.values[self.items], beside.values[others.left_out]
        scores = self.scores + of_entries
        found = np.empty(others.relevant.shape, dtype=np.int64)
        for column, items in enumerate(others.relevant.T):
            target = self.near[everyone, items].astype(np.float32) + beside.values[items]  # [clients]
            above = len(beside.ascending) - np.searchsorted(beside.ascending, target)
            mine, theirs = target[self.owners], target[others.without]
            # Of those that beside alone would put there, what is left out goes, and entries are judged by their scores.
            above -= self._counted(others.without[of_left_out >= theirs])
            above -= self._counted(self.owners[of_entries >= mine])
            above += self._counted(self.owners[scores >= mine])
            found[:, column] = above
        return torch.from_numpy(found)

    def _counted(self, owners: Places) -> Places:
        return np.bincount(owners, minlength=self.clients)


def gained(
    metric: str, readings: Iterable[tuple[csr_array, Sequence[Beside]]], cohort: RankingCohort
) -> Iterator[Tensor]:
    """What clients say of one ranking after another (`cgfedrec.evaluation.ranking.gains`).

    Args:
        metric: Such as ``ndcg@10``.
        readings: What neighbours score, `[clients, items]`, float32, each with what may be added to that.
        cohort: What is held out, and what it is ranked against.

    Yields:
        `[clients]`, float64, for each of what may be added.
    """
    others: Others | None = None
    for near, besides in readings:
        if cohort.sampled is not None or SPARSE * near.nnz >= near.shape[0] * near.shape[1]:
            scores = torch.from_numpy(near.toarray())
            for beside in besides:
                yield gains(metric, scores + torch.from_numpy(beside.values), cohort)
            continue
        if others is None:
            others = Others(cohort)
        ranks = SparseRanks(near, others)
        for beside in besides:
            yield gains_of(metric, ranks_behind(ranks.better(beside), others.missing))
