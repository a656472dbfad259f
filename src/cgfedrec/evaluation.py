"""Rank held-out items by any scorer, federated or not, and average the metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from cgfedrec.data.module import FederatedDataModule, Stage
from cgfedrec.metrics import MRR, NDCG, HitRate, Recommended, rank, rank_sampled

SHOWN = 10
"""Length of the list whose coverage and popularity are reported."""

Scorer = Callable[[Tensor], Tensor]
"""Users `[users]` to their scores of all items `[users, items]`."""


def evaluate(data: FederatedDataModule, stage: Stage, scorer: Scorer, cohort_size: int) -> dict[str, float]:
    """Metrics of ``stage`` under the data's protocol, named like ``val/ndcg@10``."""
    cutoffs = data.protocol.cutoffs
    ranking = MetricCollection([HitRate(cutoffs), NDCG(cutoffs), MRR(cutoffs)], compute_groups=False)
    recommended = Recommended(data.popularity, min(SHOWN, data.num_items))
    for cohort in data.ranking(stage, cohort_size):
        scores = scorer(cohort.users).cpu()
        if cohort.sampled is None:
            ranking.update(rank(scores, cohort.relevant, cohort.candidates))
        else:
            ranking.update(rank_sampled(scores, cohort.relevant, cohort.sampled))
        values, items = best(scores, cohort.candidates, recommended.k)
        recommended.update(items[values.isfinite()])
    results = ranking.compute() | recommended.compute()
    return {f"{stage}/{name}": value.item() for name, value in results.items()}


def best(scores: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best candidates of each user and their scores, `[users, k]`, best first."""
    top = torch.where(candidates, scores.nan_to_num(nan=-torch.inf), -torch.inf).topk(k)
    return top.values, top.indices
