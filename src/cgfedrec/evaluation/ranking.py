"""Rank held-out items by any scorer, federated or not, and average the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import polars as pl
import torch
from torch import Tensor

from cgfedrec.data.candidates import RankingCohort
from cgfedrec.data.module import FederatedDataModule, Stage
from cgfedrec.evaluation.metrics import (
    METRICS,
    MISS,
    NO_RANK,
    check_numbers,
    each_users,
    is_compiled,
    rank,
    rank_sampled,
)
from cgfedrec.evaluation.recommended import Recommended
from cgfedrec.kernels import FEW

SHOWN = 10
"""Length of the list whose coverage and popularity are reported."""

AT_ONCE = 2**22
"""Scores of a cohort. Beyond some 16 MB memory comes anew from the system each time, and that takes longest."""
FEWEST = 16
"""Users of a cohort, however large the catalogue."""
USERS_AT_ONCE = 1024
"""Users of a cohort where nothing is trained or kept for them."""

Scorer = Callable[[Tensor], Tensor]
"""Users `[users]` to their scores of all items `[users, items]`."""


Cohort = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of some users what `Ranked` has of all, in its order."""


class Ranked(NamedTuple):
    """Where every user's held-out items stand, and what is recommended to them."""

    users: Tensor
    """`[users]`"""
    ranks: Tensor
    """`[users, relevant]`, from 1, `NO_RANK` where a user has fewer relevant items than another."""
    items: Tensor
    """`[users, relevant]`: which item has each rank, -1 where there is none."""
    shown: Tensor
    """`[lists, SHOWN]`: the items that head each list, best first, -1 where there is none."""


def evaluate(
    data: FederatedDataModule, stage: Stage, scorer: Scorer, cohort_size: int, each: Callable[..., Iterable[Any]] = map
) -> dict[str, float]:
    """Metrics of ``stage`` under the data's protocol, named like ``val/ndcg@10``.

    Args:
        data: Set up.
        stage: ``val`` or ``test``; the data must hold something out for it.
        scorer: Users `[users]` to scores `[users, items]`, on any device.
        cohort_size: How many users are scored in one call, at most; fewer of a large catalogue.
        each: Applies a function to every cohort; like ``map``, but may work in parallel.
    """
    return summarise(data, stage, ranked(data, stage, scorer, cohort_size, each))


def ranked(
    data: FederatedDataModule,
    stage: Stage,
    scorer: Scorer,
    cohort_size: int,
    each: Callable[..., Iterable[Any]] = map,
    among: Tensor | None = None,
) -> Ranked:
    """Rank the held-out items of all users who have some.

    Args:
        data: As of `evaluate`, like all others.
        stage: Likewise.
        scorer: Likewise.
        cohort_size: Likewise.
        each: Likewise.
        among: Of these users alone, `[all users]`, bool; by default of all.
    """

    def rank_cohort(users: Tensor) -> Cohort:
        scores, cohort = scorer(users).cpu(), data.ranking(users, stage)
        ranks = _ranks(scores, cohort)
        values, items = best(scores, cohort.candidates, min(SHOWN, data.num_items))
        return users, ranks, best_first(scores, cohort.relevant), items.masked_fill(values == -torch.inf, -1)

    return stacked(each(rank_cohort, data.ranked(stage, at_once(cohort_size, data.num_items), among)))


def stacked(cohorts: Iterable[Cohort]) -> Ranked:
    """Several cohorts as one."""
    users, ranks, relevant, shown = zip(*cohorts, strict=True)
    return Ranked(torch.cat(users), _stacked(ranks, NO_RANK), _stacked(relevant, -1), torch.cat(shown))


def at_once(cohort_size: int, num_items: int) -> int:
    """How many users are ranked together, where so many are scored in one call at most."""
    return min(cohort_size, max(FEWEST, AT_ONCE // max(1, num_items)))


def _ranks(scores: Tensor, cohort: RankingCohort) -> Tensor:
    """The ranks of what a cohort's users hold out, `[users, relevant]`, by scores `[users, items]`."""
    if cohort.sampled is None:
        ranks = rank(scores, cohort.relevant, cohort.candidates)
    else:
        ranks = rank_sampled(scores, cohort.relevant, cohort.sampled)
    return as_misses(ranks, cohort.misses)


def as_misses(ranks: Tensor, misses: Tensor | None) -> Tensor:
    """The ranks of held-out items, `[users, relevant]`, with `MISS` for those that nobody can recommend.

    Args:
        ranks: Ascending in each row. Where there may be misses, at a cut in time, each user holds out one item.
        misses: Of `RankingCohort`.
    """
    if misses is None:
        return ranks
    return ranks.masked_fill(misses, MISS)


def gains(metric: str, scores: Tensor, cohort: RankingCohort) -> Tensor:
    """What clients can say themselves of a ranking: each one's value of a metric by what it holds out.

    Args:
        metric: Such as ``ndcg@10``.
        scores: `[users, items]`.
        cohort: What these users hold out, and what it is ranked against.

    Returns:
        `[users]`, float64; 0 for those who hold nothing out.
    """
    return gains_of(metric, _ranks(scores, cohort))


def gains_of(metric: str, ranks: Tensor) -> Tensor:
    """`gains` where the ranks are known, `[users, relevant]`."""
    return each_users(metric, ranks).masked_fill((ranks == NO_RANK).all(1), 0)


def best_first(scores: Tensor, relevant: Tensor) -> Tensor:
    """Each user's relevant items in the order in which `rank` gives their ranks, the -1 of those with fewer last.

    Args:
        scores: `[users, items]`.
        relevant: `[users, relevant]`, as the result.
    """
    own = scores.gather(1, relevant.clamp_min(0)).masked_fill(relevant < 0, -torch.inf)  # [users, relevant]
    own = own.where(~own.isnan(), -torch.inf)
    return relevant.gather(1, own.argsort(dim=1, descending=True, stable=True))


def _stacked(cohorts: Sequence[Tensor], fill: int) -> Tensor:
    """Rows of several cohorts, `[users, relevant]` each, one under another, padded to the longest."""
    longest = max(rows.shape[1] for rows in cohorts)
    padding = (rows.new_full((len(rows), longest - rows.shape[1]), fill) for rows in cohorts)  # F.pad rounds `NO_RANK`
    return torch.cat([torch.cat(pair, dim=1) for pair in zip(cohorts, padding, strict=True)])


def rank_table(data: FederatedDataModule, ranked: Ranked, popular: Ranked) -> pl.DataFrame:
    """A row for each held-out item, users in the order of the data.

    Args:
        data: Whose items they are.
        ranked: Where they stand.
        popular: Where they stand by popularity.

    Returns:
        Columns ``user`` and ``item``, original ids, ``rank``, from 1, and ``popularity``, the rank by that.
    """
    by_popularity = _rank_table(data, popular).rename({"rank": "popularity"})
    return _rank_table(data, ranked).join(by_popularity, ["user", "item"], "left", maintain_order="left")


def _rank_table(data: FederatedDataModule, ranked: Ranked) -> pl.DataFrame:
    users, places = ranked.ranks.ne(NO_RANK).nonzero(as_tuple=True)
    numbers = ranked.users[users]
    order = numbers.argsort(stable=True)
    users, places, numbers = users[order], places[order], numbers[order]
    return pl.DataFrame(
        {
            "user": data.user_ids[numbers.numpy()],
            "item": data.item_ids[ranked.items[users, places].numpy()],
            "rank": ranked.ranks[users, places].numpy(),
        }
    )


def summarise(data: FederatedDataModule, stage: Stage, ranked: Ranked) -> dict[str, float]:
    """The metrics of what `ranked` found, named like ``val/ndcg@10``, each from 0 to 1, averaged over users."""
    cutoffs = data.protocol.cutoffs
    # All users' ranks are here already: processes that train together have put them together.
    alone = {"sync_on_compute": False}
    recommended = Recommended(data.popularity, min(SHOWN, data.num_items), **alone)
    recommended.update(ranked.shown)
    results: dict[str, Tensor] = {}
    for kind in METRICS.values():
        metric = kind(cutoffs, **alone)
        metric.update(ranked.ranks)
        results |= metric.compute()
    results |= recommended.compute()
    return {f"{stage}/{name}": value.item() for name, value in results.items()}


def no_metric(option: str, name: str, data: FederatedDataModule) -> str | None:
    """The problem with an option that must name a validation metric of the data's protocol."""
    names = [f"val/{metric}@{k}" for metric in METRICS for k in data.protocol.cutoffs]
    if name in names:
        return None
    return f"{option}: no {name!r}; choose one of {', '.join(names)}"


def best(scores: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best candidates of each user and their scores, best first; of equal ones the lower number first.

    Args:
        scores: `[users, items]`; one that is no number counts as the lowest.
        candidates: `[users, items]`, bool.
        k: How many, at most.

    Returns:
        Scores and item numbers, `[users, k]` each; the score is -inf where a user has fewer than ``k`` candidates.
    """
    check_numbers(scores, mask=candidates)
    k = min(k, scores.shape[1])
    if is_compiled(scores) and 0 < k <= FEW:
        from cgfedrec.kernels import ranks as kernel

        found = scores.new_full((len(scores), k), -torch.inf), torch.zeros(len(scores), k, dtype=torch.int64)
        kernel.best(scores.detach().numpy(), candidates.numpy(), *(one.numpy() for one in found))
        return found
    masked = torch.where(candidates, scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), -torch.inf)
    top = masked.topk(min(k + 1, masked.shape[1]))
    values, items = top.values[:, :k], top.indices[:, :k]
    # Which of equals come first is left open by `topk`. For users who have some among their best it is asked again.
    equal = top.values[:, 1:] == top.values[:, :-1]
    tied = (equal & (top.values[:, 1:] > -torch.inf)).any(1)
    if tied.any():
        items[tied] = _first_of_equals(masked[tied], k, values[tied][:, -1:])
        values[tied] = masked[tied].gather(1, items[tied])
    return values, items


def _first_of_equals(scores: Tensor, k: int, least: Tensor) -> Tensor:
    """The ``k`` best items of users by scores `[users, items]`, `[users, k]`; of equal ones the lower number first.

    Args:
        scores: None is no number.
        k: How many.
        least: `[users, 1]`: each one's k-th best.
    """
    equal = scores == least
    above = scores > least
    left = k - above.sum(1, keepdim=True)  # [users, 1]: how many of the equal ones are among the best
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= left))
    items = chosen.nonzero()[:, 1].view(len(scores), -1)  # [users, k], in ascending order
    return items.gather(1, scores.gather(1, items).argsort(dim=1, descending=True, stable=True))
