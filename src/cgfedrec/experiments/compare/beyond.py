"""What a comparison tells of its methods beside their accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl

from cgfedrec.evaluation.beyond import GROUPS
from cgfedrec.run.beyond import groups_told, titled, within


class Beyond(NamedTuple):
    """Of all methods on one data set.

    Attributes:
        titles: Of each test metric, by its name.
        by_method: By method and name: means over seeds; nothing where no run tells.
        groups: Who is in the groups of users and items, in a sentence; empty where no run tells.
    """

    titles: Mapping[str, str]
    by_method: Mapping[str, Mapping[str, float]]
    groups: str


def beyond_of(runs: pl.DataFrame, methods: Sequence[str], popularity: str, metric: str) -> Beyond:
    """Collect it from finished runs on one data set.

    Args:
        runs: As of `cgfedrec.experiments.compare.results.Results.runs`.
        methods: That are shown.
        popularity: The one among them that every run measures beside its method, if no run is its own.
        metric: That of the groups, such as ``ndcg@10``.
    """
    told = means(runs)
    titles = titled(within(told, "test/"), metric)
    values = {}
    for method in methods:
        mine, prefix = means(runs.filter(pl.col("method") == method)), "test/"
        if not mine and method == popularity:
            mine, prefix = told, "popularity/test/"
        values[method] = {name: mine[prefix + name] for name in titles if prefix + name in mine}
    sizes = within(told, GROUPS)
    return Beyond(titles, values, groups_told(sizes) if sizes else "")


def means(runs: pl.DataFrame) -> dict[str, float]:
    """Of each column of numbers, where there are any."""
    found = runs.select(pl.selectors.numeric().mean()).to_dicts()
    return {name: value for name, value in found[0].items() if value is not None} if found else {}
