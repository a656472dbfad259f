"""The ranks of single users, which comparisons are built on."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.evaluation import metrics
from cgfedrec.evaluation.ranking import best, rank_table, ranked


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_the_table_of_ranks_names_each_held_out_item(make_data: Callable[..., FederatedDataModule], split: str) -> None:
    """Against a count by hand, where users hold out different numbers of items, too."""
    data = make_data(split=split, synthetic=Synthetic(users=80, items=100, groups=6, interactions=12))
    scores = torch.rand(data.num_users, data.num_items, generator=torch.Generator().manual_seed(0))
    found = ranked(data, "test", lambda users: scores[users], cohort_size=7)
    table = rank_table(data, found, found)
    users, items = data.user_ids.search_sorted(table["user"]), data.item_ids.search_sorted(table["item"])
    everyone = data.ranking(torch.arange(data.num_users), "test")
    assert len(table) == (everyone.relevant >= 0).sum()
    assert (np.diff(users) >= 0).all()
    for user, item, rank in zip(users, items, table["rank"], strict=True):
        assert item in everyone.relevant[user]
        assert rank == (scores[user, everyone.candidates[user]] >= scores[user, item]).sum()


@given(
    seed=st.integers(0, 2**31),
    users=st.integers(1, 4),
    num_items=st.integers(1, 700),
    k=st.integers(1, 12),
    levels=st.sampled_from([2, 40, 10**6]),
    open_share=st.sampled_from([0.02, 0.9]),
    loaded=st.booleans(),
)
def test_the_best_are_those_of_a_stable_sort(
    seed: int, users: int, num_items: int, k: int, levels: int, open_share: float, loaded: bool
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (users, num_items), generator=drawn) / levels
    for odd in torch.nan, torch.inf, -torch.inf:
        scores[torch.rand(users, num_items, generator=drawn) < 0.02] = odd
    candidates = torch.rand(users, num_items, generator=drawn) < open_share
    k = min(k, num_items)
    ordered = torch.where(candidates & ~scores.isnan(), scores, -torch.inf).sort(dim=1, descending=True, stable=True)
    with patch.object(metrics, "is_loaded", lambda: loaded):
        values, items = best(scores, candidates, k)
    assert values.equal(ordered.values[:, :k])
    there = values > -torch.inf
    assert items[there].equal(ordered.indices[:, :k][there])
