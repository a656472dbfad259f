"""Curves of a comparison: what a method reaches, round by round or cut by cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl


@dataclass(frozen=True)
class Curve:
    """Means over seeds, round by round, as far as all seeds went; or cut by cut.

    Attributes:
        rounds, bytes: `[rounds]`, what it took so far; the bytes up and down of all clients together. Of cuts, their
            numbers, and how many cases each has.
        values, low, high: `[rounds]`, the monitored validation metric, or at cuts the test metric, and its range over
            seeds.
    """

    rounds: list[float]
    bytes: list[float]
    values: list[float]
    low: list[float]
    high: list[float]

    @property
    def best(self) -> int:
        """The place of the highest mean; the first one, where several are equal."""
        return max(range(len(self.values)), key=self.values.__getitem__)


def curve_of(paths: Sequence[Path], cost: str, metric: str) -> Curve | None:
    """The curve of a method over several runs.

    Args:
        paths: Of the ``metrics.csv`` of each.
        cost: The column of what it took.
        metric: The column of what is drawn. Rows without it, such as those of rounds that only prepare, do not count.

    Returns:
        ``None`` where there is nothing to draw.
    """
    needed = ["round", cost, metric]
    histories = []
    for path in paths:
        history = pl.read_csv(path, infer_schema_length=None)
        if not set(needed) <= set(history.columns):
            return None
        histories.append(history.select(needed).drop_nulls(metric))
    if not histories:
        return None
    values = pl.col(metric)
    means = (
        pl.concat(histories, how="vertical_relaxed")
        .group_by("round")
        .agg(pl.len(), pl.col(cost).mean(), values.mean(), low=values.min(), high=values.max())
        .filter(pl.col("len") == len(histories))  # a mean over fewer seeds would jump where one stopped
        .sort("round")
    )
    if means.is_empty():
        return None
    return Curve(*(means[name].cast(pl.Float64).to_list() for name in ("round", cost, metric, "low", "high")))
