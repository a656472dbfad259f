"""How accurate methods are by what they spend of a budget of differential privacy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
import yaml

from cgfedrec.server import SPENT
from cgfedrec.settings.layers import same_class
from cgfedrec.wire.noised import Noised

EPSILON, DELTA = f"{SPENT}epsilon", f"{SPENT}delta"
NONE = "none"
"""In place of an epsilon where no noise is drawn."""


class Budgeted(NamedTuple):
    """A method under several budgets, and without any if that is compared too.

    Attributes:
        name: Of the method without noise, if it is there and ends no other line; else of the first one with noise.
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
    groups: list[_Group] = []
    for name, epsilon, *values in means.iter_rows():
        if epsilon is None:
            continue
        spent = float(told(epsilon))
        alike, bare = _but_for_its_budget(settings[name]), _without_noise(settings[name])
        # Two with one budget differ in what is not shown, such as options of the data, and are two methods.
        free = (group for group in groups if group.alike == alike and spent not in group.runs)
        mine = next(free, None)
        if mine is None:
            groups.append(mine := _Group(alike, bare, {}))
        mine.runs[spent] = (name, *values)
    for name, epsilon, *values in means.iter_rows():
        if epsilon is not None:
            continue
        # Noise within one norm and within another are two methods, and this is what both would be without any.
        bare, joined = _without_noise(settings[name]), []
        for group in groups:
            if group.bare == bare and None not in group.runs and group.alike not in joined:
                joined.append(group.alike)
                group.runs[None] = (name, *values)
        if not joined:
            groups.append(_Group(_but_for_its_budget(settings[name]), bare, {None: (name, *values)}))
    found = []
    ends = [group.runs[None][0] for group in groups if None in group.runs]
    for group in groups:
        name = group.runs[None][0] if None in group.runs else ""
        if ends.count(name) != 1:  # a name of its own
            name = next(name for spent, (name, *_) in group.runs.items() if spent is not None)
        epsilons = sorted(group.runs, key=lambda spent: float("inf") if spent is None else spent)
        _, values, low, high = (list(column) for column in zip(*(group.runs[spent] for spent in epsilons), strict=True))
        found.append(Budgeted(name, epsilons, values, low, high))
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


class _Group(NamedTuple):
    """Methods that differ in nothing but their budget.

    Attributes:
        alike: The settings that they share.
        bare: The same without what draws noise.
        runs: By epsilon: a method's name, and the mean, lowest and highest value of its runs.
    """

    alike: object
    bare: object
    runs: dict[float | None, tuple[str, float, float, float]]


def _but_for_its_budget(settings: str) -> object:
    """All settings but those of a budget. A step keeps its norm, and whether each upload has noise of its own."""
    config, steps = _parts(settings)
    return config, [
        {k: v for k, v in step["init_args"].items() if k not in ("epsilon", "delta", "noise")}
        if _is_noised(step)
        else step
        for step in steps
    ]


def _without_noise(settings: str) -> object:
    """All settings but those of what draws noise: what is left is the method as it would be without any."""
    config, steps = _parts(settings)
    return config, [step for step in steps if not _is_noised(step)]


def _parts(settings: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings as the report shows them but for a budget of the method itself, and the steps of the wire."""
    config = yaml.safe_load(settings)
    arguments = config["method"].get("init_args") or {}
    config["method"] = {**config["method"], "init_args": {k: v for k, v in arguments.items() if k != "privacy"}}
    return config, config.pop("wire", {"steps": []})["steps"]


def _is_noised(step: Mapping[str, Any]) -> bool:
    return same_class(step["class_path"], f"{Noised.__module__}.{Noised.__name__}")
