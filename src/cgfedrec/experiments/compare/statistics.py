"""How sure a comparison is: intervals over seeds, paired tests over users, correction, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy import stats

from cgfedrec.evaluation.metrics import METRICS, NO_RANK

Values = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean and its interval."""

    mean: float
    half: float | None
    """Half of the interval's width; ``None`` for a single value, of which nobody knows how much it varies."""
    n: int
    """How many values the mean is over."""

    @property
    def low(self) -> float:
        """The lower end; the mean where there is no interval."""
        return self.mean - (self.half or 0)

    @property
    def high(self) -> float:
        """The upper end; the mean where there is no interval."""
        return self.mean + (self.half or 0)


def interval(values: Sequence[float] | Values, level: float = 0.95) -> Interval:
    """The mean of independent values and its interval by Student's t.

    Args:
        values: `[n]`, one or more.
        level: How often such an interval holds the true mean.
    """
    array = np.asarray(values, float)
    if len(array) < 2:
        return Interval(float(array.mean()), None, len(array))
    half = stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5
    return Interval(float(array.mean()), float(half), len(array))


def paired_test(first: Values, second: Values, kind: Literal["t", "wilcoxon"] = "t") -> float:
    """The two-sided p-value of the assumption that pairs differ only by chance; 1 where no pair differs.

    Args:
        first: `[users]`.
        second: `[users]`, of the same users in the same order.
        kind: ``t``, of the mean difference; ``wilcoxon``, of the signed ranks of those that differ.
    """
    if len(first) < 2 or np.array_equal(first, second):
        return 1.0
    if kind == "t":
        return float(stats.ttest_rel(first, second).pvalue)
    return float(stats.wilcoxon(first, second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values so that the chance of any false alarm among all tests stays at the level (Holm 1979).

    Args:
        p_values: `[tests]`.

    Returns:
        `[tests]`, in the same order, each at most 1.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(value) for value in corrected]


def pareto(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """The Pareto front, by rising cost: a point is on it if whatever gains as much costs more.

    Args:
        costs: `[points]`.
        gains: `[points]`.

    Returns:
        The places of the points on the front.
    """
    front: list[int] = []
    # From cheap to dear, a point belongs to the front if it gains more than all that are cheaper.
    for place in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if not front or gains[place] > gains[front[-1]]:
            front.append(place)
    return front


def per_user(ranks: pl.DataFrame, metric: str, by: Sequence[str] = ()) -> pl.DataFrame:
    """Each user's value of a metric: columns ``by``, ``user``, ``value``.

    Args:
        ranks: A row for each held-out item: columns ``user``, ``rank`` (from 1) and those of ``by``.
        metric: Such as ``ndcg@10``; as `cgfedrec.evaluation.metrics` defines it.
        by: Columns that tell one run from another.
    """
    name, _, cutoff = metric.partition("@")
    k = int(cutoff)
    # No formula looks behind place k of a user's own ranks, of which a split by time may give thousands.
    best = pl.col("rank").sort().head(k)
    users = ranks.group_by(*by, "user", maintain_order=True).agg(best)
    found = users["rank"].list.len().to_torch()
    padded = torch.full((len(users), k), NO_RANK)  # [users, k]
    padded[torch.arange(k) < found[:, None]] = users["rank"].explode().cast(pl.Int64).to_torch()
    values = METRICS[name].gain(padded, k).double()
    return users.drop("rank").with_columns(pl.Series("value", values.numpy()))
