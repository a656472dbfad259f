from __future__ import annotations

import math
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from cgfedrec.evaluation import metrics
from cgfedrec.evaluation.metrics import MRR, NDCG, NO_RANK, HitRate, RankingMetric, rank, rank_sampled
from cgfedrec.evaluation.recommended import Recommended

CUTOFFS = (1, 3, 10)


@pytest.fixture(params=[False, True], ids=["torch", "compiled"], scope="module", autouse=True)
def _either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    with patch.object(metrics, "is_loaded", lambda: request.param):
        yield


def a_ranking(seed: int, users: int = 12, items: int = 25) -> tuple[Tensor, Tensor, Tensor]:
    """Tie-free scores in (0, 1), one to three relevant items a user, and candidates."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.stack([torch.randperm(items, generator=generator) for _ in range(users)]).double().add(1) / (
        items + 2
    )
    order = torch.stack([torch.randperm(items, generator=generator) for _ in range(users)])
    number = torch.randint(1, 4, (users, 1), generator=generator)
    relevant = order[:, :3].masked_fill(torch.arange(3) >= number, -1)
    candidates = torch.rand(users, items, generator=generator) < 0.7
    return scores, relevant, candidates


@pytest.mark.parametrize(
    ("metric", "reference"), [(HitRate, RetrievalHitRate), (NDCG, RetrievalNormalizedDCG), (MRR, RetrievalMRR)]
)
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_torchmetrics_where_there_are_no_ties(
    metric: type[RankingMetric], reference: type, seed: int
) -> None:
    scores, relevant, candidates = a_ranking(seed)
    ours = metric(CUTOFFS)
    for half in (slice(0, 5), slice(5, None)):
        ours.update(rank(scores[half], relevant[half], candidates[half]))
    target = torch.zeros_like(candidates).scatter(1, relevant.clamp_min(0), relevant >= 0)
    target |= (
        torch.nn.functional.one_hot(relevant.clamp_min(0), scores.shape[1])
        .bool()
        .logical_and((relevant >= 0)[..., None])
        .any(1)
    )
    ranked = candidates | target
    users = torch.arange(len(scores))[:, None].expand_as(scores)
    for k in CUTOFFS:
        theirs = reference(top_k=k)
        theirs.update(scores[ranked], target[ranked], indexes=users[ranked])
        assert ours.compute()[f"{metric.name}@{k}"].item() == pytest.approx(theirs.compute().item(), abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_ranks_are_those_of_a_stable_sort_with_ties_against_the_model(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(4, (6, 15), generator=generator).double()
    relevant = torch.stack([torch.randperm(15, generator=generator)[:2] for _ in range(6)])
    relevant[torch.rand(6, generator=generator) < 0.3, 1] = -1
    candidates = torch.rand(6, 15, generator=generator) < 0.6
    found = rank(scores, relevant, candidates)
    for row, items, allowed, ranks in zip(scores, relevant.tolist(), candidates, found.tolist(), strict=True):
        mine = [item for item in items if item >= 0]
        ranked = sorted((i for i in range(15) if allowed[i] or i in mine), key=lambda i: (-row[i], i in mine))
        expected = sorted(ranked.index(item) + 1 for item in mine)
        assert ranks == expected + [NO_RANK] * (2 - len(mine))


def test_items_that_there_are_not_are_refused() -> None:
    """A loop would read beyond its memory."""
    scores, everything = torch.rand(2, 5), torch.ones(2, 5, dtype=torch.bool)
    relevant, sampled = torch.tensor([[4], [-1]]), torch.tensor([[0, 1], [2, 3]])
    rank(scores, relevant, everything)
    rank_sampled(scores, relevant, sampled)
    for wrong in sampled - 1, sampled + 2, sampled[:1]:
        with pytest.raises(IndexError):
            rank_sampled(scores, relevant, wrong)
    for none in relevant + 1, relevant[:1].repeat(3, 1):
        with pytest.raises(IndexError):
            rank_sampled(scores, none, sampled)
        with pytest.raises(IndexError):
            rank(scores, none, everything)
    for narrow in everything[:, :4], everything[:1]:
        with pytest.raises(IndexError):
            rank(scores, relevant, narrow)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 10), st.floats(-5, 5))
def test_only_the_order_of_scores_matters(seed: int, scale: float, shift: float) -> None:
    scores, relevant, candidates = a_ranking(seed)
    assert rank(scores, relevant, candidates).equal(rank(scores * scale + shift, relevant, candidates))


@pytest.mark.parametrize("score", [0.0, math.nan, -math.inf])
def test_a_scorer_without_opinion_ranks_last(score: float) -> None:
    candidates = torch.ones(3, 100, dtype=torch.bool)
    relevant = torch.tensor([[5], [0], [99]])
    assert rank(torch.full((3, 100), score), relevant, candidates).tolist() == [[100]] * 3
    assert (
        rank_sampled(torch.full((3, 100), score), relevant, torch.arange(10, 60).expand(3, -1)).tolist() == [[51]] * 3
    )


def test_a_score_that_is_no_number_ranks_last() -> None:
    scores = torch.tensor([[0.5, math.nan, 0.1]])
    candidates = torch.ones(1, 3, dtype=torch.bool)
    assert rank(scores, torch.tensor([[1]]), candidates).item() == 3
    assert rank(scores, torch.tensor([[0]]), candidates).item() == 2


def test_sampled_ranking_is_full_ranking_over_the_sample() -> None:
    scores, relevant, _ = a_ranking(3)
    relevant = relevant[:, :1]
    sampled = torch.stack([torch.tensor([i for i in range(25) if i != r][:9]) for r in relevant[:, 0].tolist()])
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(1, sampled, True)
    assert rank_sampled(scores, relevant, sampled).equal(rank(scores, relevant, mask))


def test_users_without_relevant_items_are_not_counted() -> None:
    metric = HitRate((1,))
    metric.update(torch.tensor([[1, NO_RANK], [NO_RANK, NO_RANK]]))
    assert metric.compute()["hr@1"] == 1


def test_one_relevant_item_by_hand() -> None:
    ranks = torch.tensor([[1], [2], [4], [11]])
    values: dict[str, Tensor] = {}
    for metric in (HitRate((10,)), NDCG((10,)), MRR((10,))):
        metric.update(ranks)
        values |= metric.compute()
    assert values["hr@10"].item() == 0.75
    assert values["ndcg@10"].item() == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(5)) / 4)
    assert values["mrr@10"].item() == pytest.approx((1 + 1 / 2 + 1 / 4) / 4)


def test_what_is_recommended() -> None:
    metric = Recommended(torch.tensor([0.5, 0.1, 0.0, 0.0]), k=2)
    metric.update(torch.tensor([[0, 1], [0, 1]]))
    metric.update(torch.tensor([[0, 2]]))
    values = metric.compute()
    assert values["coverage@2"].item() == 0.75
    assert values["popularity@2"].item() == pytest.approx((3 * 0.5 + 2 * 0.1) / 6)
