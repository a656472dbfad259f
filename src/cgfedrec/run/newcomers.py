"""A federation measured on people who were not in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from rich.console import Console
from torch import Tensor

from cgfedrec.centralized import Popularity
from cgfedrec.data.newcomers import Newcomers
from cgfedrec.data.split import Part
from cgfedrec.errors import InputError
from cgfedrec.evaluation.metrics import MISS, NO_RANK
from cgfedrec.evaluation.ranking import Ranked, ranked
from cgfedrec.loop import FederatedLoop
from cgfedrec.run.beyond import show_beyond
from cgfedrec.run.console import NEWCOMERS, show_metrics, show_standing
from cgfedrec.run.summary import beside_popularity, both_beyond, over_popularity


def tested_on(loop: FederatedLoop, newcomers: Newcomers) -> dict[str, float]:
    """Test metrics of people who were not in training, by their histories and what comes down to everybody.

    Args:
        loop: A federation.
        newcomers: Set up, with something held out.

    Returns:
        As `cgfedrec.run.summary.tested`, with ``bytes/scoring``. Popularity is that among the trained clients.

    Raises:
        InputError: where nothing is held out that is in the catalogue, and as `FederatedLoop.score_newcomers`.
    """
    if not newcomers.part_size(Part.TEST):
        raise InputError(f"data.path: {newcomers.path} has nothing to hold out for a test that is in the catalogue")
    before = loop.bytes_scoring

    def scored(users: Tensor) -> Tensor:
        return loop.score_newcomers(newcomers, users)

    misses = torch.from_numpy(newcomers.misses)
    mine, theirs = (
        with_misses(ranked(newcomers, "test", scorer, loop.clients.cohort_size, loop.clients.workers.map), misses)
        for scorer in (scored, Popularity().fit(loop.data).score)
    )
    metric = loop.monitor.removeprefix("val/")
    tests = beside_popularity(loop.data, mine, theirs) | over_popularity(mine, theirs, metric)
    tests |= both_beyond(loop.data, newcomers, mine, theirs, metric)
    return tests | {"bytes/scoring": loop.bytes_scoring - before}


def with_misses(found: Ranked, misses: Tensor) -> Ranked:
    """The same, with the rank `MISS` for every held-out item that is not in the catalogue.

    Args:
        found: Where the others stand.
        misses: `[all users]`, int64: how many such items each user has.
    """
    width = found.ranks.shape[1]
    ranks = torch.full((len(misses), width + int(misses.max())), NO_RANK)
    items = torch.full_like(ranks, -1)
    ranks[found.users, :width], items[found.users, :width] = found.ranks, found.items
    # Behind each user's own, which are in ascending order and then `NO_RANK`.
    places = torch.arange(ranks.shape[1]) - ranks.ne(NO_RANK).sum(1, keepdim=True)
    ranks[(places >= 0) & (places < misses[:, None])] = MISS
    users = ranks.ne(NO_RANK).any(1).nonzero().squeeze(1)
    return Ranked(users, ranks[users], items[users], found.shown)


def show_newcomers(
    console: Console,
    newcomers: Newcomers,
    found: Mapping[str, float],
    trained: Mapping[str, float],
    monitor: str,
) -> None:
    """Test metrics of people who were not in training, beside those of the clients who were.

    Args:
        console: Where to.
        newcomers: These people.
        found: Their metrics, of `tested_on`.
        trained: Those of the trained clients; empty where nothing is held out.
        monitor: As of `show_standing`.
    """
    beside = {f"{NEWCOMERS}{name}": value for name, value in found.items()}
    show_metrics(console, dict(trained) | beside, newcomers.protocol)
    show_beyond(console, dict(trained) | beside, monitor.removeprefix("val/"))
    told = (
        f"newcomers, from {newcomers.path}: {newcomers.num_users:,} users, {newcomers.part_size(Part.TRAIN):,} "
        "interactions as history"
    )
    if missed := int(newcomers.misses.sum()):
        told += f"; {missed:,} held-out items are not in the catalogue, and count as misses"
    console.print(told, highlight=False, soft_wrap=True)
    if not trained:
        console.print("of the trained clients nothing is held out, and so nothing can be told")
    show_standing(console, found, monitor)
