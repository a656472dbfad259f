"""How accurate methods are by what they spend of a budget of differential privacy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl
import yaml

from cgfedrec.server import SPENT

EPSILON, DELTA = f"{SPENT}epsilon", f"{SPENT}delta"
NONE = "none"
"""In place of an epsilon where no noise is drawn."""


class Budgeted(NamedTuple):
    """A method under several budgets, and without any if that is compared too.

    Attributes:
        name: Of the method without noise, if it is there; else of the first one.
        epsilons: `[budgets]`, rising; ``None``, without noise, is the last.
        values, low, high: `[budgets]`: the mean of a test metric over seeds, and its range.
    """

    name: str
    epsilons: list[float | None]
    values: list[float]
    low: list[float]
    high: list[float]

    @property
    def kept(self) -> list[tuple[float, float]]:
        """Each epsilon, the largest first, and the share that is left of what there is without noise, if any."""
        if self.epsilons[-1] is not None:
            return []
        pairs = zip(self.epsilons[:-1], self.values[:-1], strict=True)
        return [(float(epsilon or 0), value / self.values[-1]) for epsilon, value in pairs][::-1]


def budgeted(runs: pl.DataFrame, settings: Mapping[str, str], metric: str) -> list[Budgeted]:
    """Methods that differ in nothing but their budget, together. Nothing where no run spends any.

    Args:
        runs: Finished ones on one data set, as of `cgfedrec.experiments.compare.results.Results.runs`.
        settings: By method, as the report shows them.
        metric: A column of them.
    """
    if EPSILON not in runs.columns or runs[EPSILON].is_null().all():
        return []
    value = pl.col(metric)
    means = (
        runs.filter(pl.col("kind") == "federated")
        .group_by("method", maintain_order=True)
        .agg(pl.col(EPSILON).mean(), value.mean(), low=value.min(), high=value.max())
    )
    groups: list[tuple[object, list[tuple[float | None, str, float, float, float]]]] = []
    for name, epsilon, mean, low, high in means.iter_rows():
        spent = None if epsilon is None else float(told(epsilon))
        alike = _but_for_its_budget(settings[name])
        # Two with one budget differ in what is not shown, such as steps of the wire, and are two methods.
        free = (group for key, group in groups if key == alike and spent not in [one[0] for one in group])
        mine = next(free, None)
        if mine is None:
            groups.append((alike, mine := []))
        mine.append((spent, name, mean, low, high))
    found = []
    for _, group in groups:
        first = next((name for spent, name, *_ in group if spent is None), group[0][1])
        group.sort(key=lambda one: float("inf") if one[0] is None else one[0])
        epsilons, _, values, lowest, highest = (list(column) for column in zip(*group, strict=True))
        found.append(Budgeted(first, epsilons, values, lowest, highest))
    return found


def told(epsilon: float | None) -> str:
    """An epsilon as it is printed: what is spent is less than what was given by a hair."""
    return NONE if epsilon is None else f"{epsilon:.3g}"


def at_ticks(epsilons: Sequence[float]) -> tuple[list[float], float]:
    """Where a logarithmic axis has ticks, and how far right no noise is drawn.

    Args:
        epsilons: Of all that is drawn, one or more.
    """
    low, high = min(epsilons), max(epsilons)
    none = high * max(2.0, (high / low) ** 0.3)
    ticks: list[float] = []
    for epsilon in sorted(set(epsilons)):
        if not ticks or epsilon / ticks[-1] > (none / low) ** 0.1:  # or one number would stand on the other
            ticks.append(epsilon)
    return [*ticks, none], none


def _but_for_its_budget(settings: str) -> object:
    """All settings but those of a budget."""
    config = yaml.safe_load(settings)
    arguments = config["method"].get("init_args") or {}
    config["method"] = {**config["method"], "init_args": {k: v for k, v in arguments.items() if k != "privacy"}}
    return config
