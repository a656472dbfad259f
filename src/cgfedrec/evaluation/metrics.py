"""Ranking metrics as `torchmetrics.Metric`, computed from the ranks of the relevant items.

Ties count against the model: an item is ranked behind every candidate with the same score, so a model that scores all
items alike does not beat chance. A score that is not a number ranks last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from cgfedrec.kernels import is_loaded

NO_RANK = torch.iinfo(torch.int64).max
"""Stands where a user has fewer relevant items than another."""
MISS = NO_RANK - 1
"""The rank of an item that nobody can recommend, since it is not in the catalogue."""

LARGE = 10_000
"""Items from which on it pays to load compiled loops, in half a second: they go over scores in a fortieth of the time.

Where something has loaded them already, such as training, they go over all scores.
"""


def rank(scores: Tensor, relevant: Tensor, candidates: Tensor) -> Tensor:
    """The rank of each relevant item among the candidates and the other relevant items, best first.

    Args:
        scores: `[users, items]`.
        relevant: `[users, relevant]`, item numbers, -1 where a user has fewer.
        candidates: `[users, items]`, bool; relevant items may be marked or not.

    Returns:
        `[users, relevant]`, int64, from 1, ascending; `NO_RANK` where there is no item.

    Raises:
        IndexError: for items that there are not.

    Example:
        Item 2 has the second score. Item 1 has the same score as item 0, and ties count against it.

        >>> scores = torch.tensor([[0.9, 0.1, 0.5], [0.3, 0.3, 0.2]])
        >>> rank(scores, torch.tensor([[2], [1]]), torch.ones(2, 3, dtype=torch.bool))
        tensor([[2],
                [2]])
    """
    missing = relevant < 0
    check_numbers(scores, relevant.clamp_min(0), mask=candidates)
    if is_compiled(scores):
        from cgfedrec.kernels import ranks as kernel

        counts = torch.empty_like(relevant)
        kernel.ahead(scores.detach().numpy(), candidates.numpy(), relevant.numpy(), counts.numpy())
        return ranks_behind(counts, missing)
    # A user with fewer relevant items unmarks a column that is added for it and cut off again.
    nowhere = candidates.shape[1]
    others = F.pad(candidates, (0, 1)).scatter(1, relevant.masked_fill(missing, nowhere), False)[:, :nowhere]
    ranks = torch.empty_like(relevant)
    # One relevant item of everybody at a time: all at once would take `[users, relevant, items]`.
    for column, items in enumerate(relevant.clamp_min(0).T):
        target = scores.gather(1, items[:, None])  # [users, 1]
        # "not below" and not "at least": a score that is no number compares as false, and so ranks last.
        ranks[:, column] = (~(scores < target) & others).sum(1)
    return ranks_behind(ranks, missing)


def is_compiled(scores: Tensor) -> bool:
    """Whether a compiled loop goes over scores `[users, items]` (`LARGE`)."""
    if scores.device.type != "cpu" or scores.dtype not in (torch.float32, torch.float64):
        return False
    return scores.shape[1] >= LARGE or is_loaded()


def rank_sampled(scores: Tensor, relevant: Tensor, sampled: Tensor) -> Tensor:
    """As `rank`, against a list of sampled candidates in place of a mask.

    Args:
        scores: `[users, items]`.
        relevant: `[users, relevant]`, item numbers, -1 where a user has fewer.
        sampled: `[users, candidates]`, item numbers, none of them relevant.

    Returns:
        `[users, relevant]`, int64, from 1, ascending; `NO_RANK` where there is no item.

    Raises:
        IndexError: for items that there are not.

    Example:
        Among items 0 and 3 alone, item 2 is first.

        >>> scores = torch.tensor([[0.4, 0.9, 0.5, 0.1]])
        >>> rank_sampled(scores, torch.tensor([[2]]), torch.tensor([[0, 3]]))
        tensor([[1]])
    """
    missing = relevant < 0
    check_numbers(scores, relevant.clamp_min(0), sampled)
    if is_compiled(scores):
        from cgfedrec.kernels import ranks as kernel

        counts = torch.empty_like(relevant)
        kernel.ahead_among(scores.detach().numpy(), sampled.numpy(), relevant.numpy(), counts.numpy())
        return ranks_behind(counts, missing)
    target = scores.gather(1, relevant.clamp_min(0))  # [users, relevant]
    ranks = (~(scores.gather(1, sampled)[:, None] < target[:, :, None])).sum(2)  # summed: [users, relevant, candidates]
    return ranks_behind(ranks, missing)


def check_numbers(scores: Tensor, *items: Tensor, mask: Tensor | None = None) -> None:
    """Refuse items that there are not: loops look at nothing themselves, and torch lets some pass.

    Args:
        scores: `[users, items]`.
        items: `[users, any]` each: numbers of items.
        mask: `[users, items]`.

    Raises:
        IndexError: for numbers of no items, and for what has other users or items.
    """
    users, number = scores.shape
    for one in items:
        if len(one) != users or (one.numel() and not 0 <= int(one.min()) <= int(one.max()) < number):
            raise IndexError(f"there are {users} users and {number} items, and others are asked for")
    if mask is not None and (mask.shape != scores.shape or mask.dtype != torch.bool):
        raise IndexError(f"candidates {list(mask.shape)} ({mask.dtype}) are no mask of scores {list(scores.shape)}")


def ranks_behind(better: Tensor, missing: Tensor) -> Tensor:
    """Ranks from the number of other candidates that stand before each relevant item, `[users, relevant]`.

    Relevant items were left out of those numbers; each also stands behind the relevant ones that are better.

    Args:
        better: `[users, relevant]`, int64.
        missing: `[users, relevant]`, bool: where there is no item.
    """
    better = better.masked_fill(missing, NO_RANK - better.shape[1]).sort(1).values
    ranks = better + torch.arange(1, better.shape[1] + 1, device=better.device)
    return ranks.masked_fill(better >= NO_RANK - better.shape[1], NO_RANK)


class RankingMetric(Metric):
    """Mean over users of a function of their relevant items' ranks, at several cut-offs.

    Args:
        cutoffs: The lengths k of the recommended list.
    """

    full_state_update = False
    higher_is_better = True
    name: str
    total: Tensor
    users: Tensor

    def __init__(self, cutoffs: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cutoffs = tuple(cutoffs)
        self.add_state("total", torch.zeros(len(self.cutoffs), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("users", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ranks: Tensor) -> None:
        """Add users.

        Args:
            ranks: `[users, relevant]` as returned by `rank`; a user without any relevant item is not counted.
        """
        ranks = ranks[(ranks != NO_RANK).any(1)]
        self.total += torch.stack([self.gain(ranks, k).double().sum() for k in self.cutoffs])
        self.users += len(ranks)

    def compute(self) -> dict[str, Tensor]:
        """The metric at each cut-off, `[]`, named like ``hr@10``; not a number where no user was added."""
        return {f"{self.name}@{k}": self.total[i] / self.users for i, k in enumerate(self.cutoffs)}

    @staticmethod
    def gain(ranks: Tensor, k: int) -> Tensor:
        """Each user's value at one cut-off: the formula, which stands here alone.

        Args:
            ranks: `[users, relevant]` as returned by `rank`, ascending; the first k columns suffice.
            k: The length of the recommended list.

        Returns:
            `[users]`. A user without any relevant item has no meaningful value.
        """
        raise NotImplementedError


class HitRate(RankingMetric):
    """HR@k: 1 if any relevant item is among the first k. With one relevant item this is recall.

    Example:
        >>> metric = HitRate([1, 10])
        >>> metric.update(torch.tensor([[1], [4]]))
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'hr@1': 0.5, 'hr@10': 1.0}
    """

    name = "hr"

    @staticmethod
    def gain(ranks: Tensor, k: int) -> Tensor:
        """Whether the best rank is among the first k: `[users]`, bool."""
        return ranks[:, 0] <= k


class NDCG(RankingMetric):
    """NDCG@k: sum of 1 / log2(1 + rank) over the relevant items among the first k, relative to the best possible.

    Example:
        One user's item is second, worth 1 / log2(3) of the best; the other's is first.

        >>> metric = NDCG([10])
        >>> metric.update(torch.tensor([[2], [1]]))
        >>> round(metric.compute()["ndcg@10"].item(), 4)
        0.8155
    """

    name = "ndcg"

    @staticmethod
    def gain(ranks: Tensor, k: int) -> Tensor:
        """The discounted gain relative to the best possible: `[users]`, float64, from 0 to 1."""
        discounts = 1 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64, device=ranks.device))
        # The best possible list begins with all the relevant items that there are, as far as k goes.
        best = discounts.cumsum(0)[(ranks != NO_RANK).sum(1).clamp_max(k) - 1]
        return torch.where(ranks <= k, discounts[ranks.clamp_max(k) - 1], 0.0).sum(1) / best


class MRR(RankingMetric):
    """MRR@k: 1 / rank of the first relevant item if it is among the first k, else 0.

    Example:
        >>> metric = MRR([5])
        >>> metric.update(torch.tensor([[4], [6]]))
        >>> metric.compute()["mrr@5"].item()
        0.125
    """

    name = "mrr"

    @staticmethod
    def gain(ranks: Tensor, k: int) -> Tensor:
        """The inverse of the best rank, as far as k goes: `[users]`, float64, from 0 to 1."""
        return torch.where(ranks[:, 0] <= k, 1 / ranks[:, 0].double(), 0.0)


METRICS: dict[str, type[RankingMetric]] = {"hr": HitRate, "ndcg": NDCG, "mrr": MRR}
"""By the name that stands before the ``@`` in ``ndcg@10``."""


def is_metric(name: str) -> bool:
    """Whether this is a metric with its cut-off, such as ``ndcg@10``."""
    kind, _, k = name.partition("@")
    return kind in METRICS and k.isdigit()


def parsed(metric: str) -> tuple[type[RankingMetric], int]:
    """The formula and the cut-off that a metric such as ``ndcg@10`` names."""
    name, _, cutoff = metric.partition("@")
    return METRICS[name], int(cutoff)


def each_users(metric: str, ranks: Tensor) -> Tensor:
    """Each user's value of a metric: `[users]`, float64, whose mean is the metric.

    Args:
        metric: Such as ``ndcg@10``.
        ranks: `[users, relevant]` as returned by `rank`; every user has a relevant item.
    """
    kind, k = parsed(metric)
    return kind.gain(ranks, k).double()
