"""Rank held-out items by any scorer, federated or not, and average the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cgfedrec.data.module import FederatedDataModule, Stage
from cgfedrec.metrics import MRR, NDCG, NO_RANK, HitRate, Recommended, rank, rank_sampled

SHOWN = 10
"""Length of the list whose coverage and popularity are reported."""

Scorer = Callable[[Tensor], Tensor]
"""Users `[users]` to their scores of all items `[users, items]`."""


class Ranked(NamedTuple):
    """Where every user's held-out items stand, and what is recommended to them."""

    users: Tensor
    """`[users]`"""
    ranks: Tensor
    """`[users, relevant]`, from 1, `NO_RANK` where a user has fewer relevant items than another."""
    shown: Tensor
    """`[shown]`: the items that head all lists, one list after another."""


def evaluate(
    data: FederatedDataModule, stage: Stage, scorer: Scorer, cohort_size: int, each: Callable[..., Iterable[Any]] = map
) -> dict[str, float]:
    """Metrics of ``stage`` under the data's protocol, named like ``val/ndcg@10``; ``each`` may work in parallel."""
    return summarise(data, stage, ranked(data, stage, scorer, cohort_size, each))


def ranked(
    data: FederatedDataModule, stage: Stage, scorer: Scorer, cohort_size: int, each: Callable[..., Iterable[Any]] = map
) -> Ranked:
    """Rank the held-out items of all users who have some."""

    def ranks_and_shown(users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, cohort = scorer(users).cpu(), data.ranking(users, stage)
        ranks = (
            rank(scores, cohort.relevant, cohort.candidates)
            if cohort.sampled is None
            else rank_sampled(scores, cohort.relevant, cohort.sampled)
        )
        values, items = best(scores, cohort.candidates, min(SHOWN, data.num_items))
        return users, ranks, items[values.isfinite()]

    users, ranks, shown = zip(*each(ranks_and_shown, data.ranked(stage, cohort_size)), strict=True)
    longest = max(one.shape[1] for one in ranks)
    padded = [F.pad(one, (0, longest - one.shape[1]), value=NO_RANK) for one in ranks]
    return Ranked(torch.cat(users), torch.cat(padded), torch.cat(shown))


def summarise(data: FederatedDataModule, stage: Stage, ranked: Ranked) -> dict[str, float]:
    """The metrics of what `ranked` found."""
    cutoffs = data.protocol.cutoffs
    recommended = Recommended(data.popularity, min(SHOWN, data.num_items))
    recommended.update(ranked.shown)
    results: dict[str, Tensor] = {}
    for metric in (HitRate(cutoffs), NDCG(cutoffs), MRR(cutoffs)):
        metric.update(ranked.ranks)
        results |= metric.compute()
    results |= recommended.compute()
    return {f"{stage}/{name}": value.item() for name, value in results.items()}


def best(scores: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best candidates of each user and their scores, `[users, k]`, best first."""
    top = torch.where(candidates, scores.nan_to_num(nan=-torch.inf), -torch.inf).topk(k)
    return top.values, top.indices
