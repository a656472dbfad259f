"""What a comparison adds to `cgfedrec.evaluation.intervals`: paired tests over users, correction, the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
import torch
from scipy import stats

from cgfedrec.evaluation.intervals import Values
from cgfedrec.evaluation.metrics import NO_RANK, each_users, parsed


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
    _, k = parsed(metric)
    # No formula looks behind place k of a user's own ranks, of which a split by time may give thousands.
    best = pl.col("rank").sort().head(k)
    users = ranks.group_by(*by, "user", maintain_order=True).agg(best)
    found = users["rank"].list.len().to_torch()
    padded = torch.full((len(users), k), NO_RANK)  # [users, k]
    padded[torch.arange(k) < found[:, None]] = users["rank"].explode().cast(pl.Int64).to_torch()
    values = each_users(metric, padded)
    return users.drop("rank").with_columns(pl.Series("value", values.numpy()))
