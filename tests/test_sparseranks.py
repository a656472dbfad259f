"""Ranking where few scores differ from everybody's: the same ranks as by looking at every item."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from cgfedrec.data.candidates import RankingCohort
from cgfedrec.evaluation.metrics import rank, ranks_behind
from cgfedrec.structure import sparseranks
from cgfedrec.structure.sparseranks import Beside, Others, SparseRanks, gained

CLIENTS, ITEMS, RELEVANT = 40, 300, 3


@pytest.fixture
def near() -> csr_array:
    """What neighbours score: few items, in few steps, so that many are equal; some entries are 0."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((CLIENTS, ITEMS)) < 0.03, rng.integers(-2, 5, (CLIENTS, ITEMS)) / 4, 0)
    found = csr_array(dense.astype(np.float32))
    found.data[::7] = 0
    return found


@pytest.fixture
def cohort() -> RankingCohort:
    """Some hold out fewer than others, one nothing, and relevant items are candidates or not."""
    rng = torch.Generator().manual_seed(1)
    relevant = torch.stack([torch.randperm(ITEMS, generator=rng)[:RELEVANT] for _ in range(CLIENTS)])
    relevant[0], relevant[1, 1:], relevant[2, 2] = -1, -1, -1
    candidates = torch.rand(CLIENTS, ITEMS, generator=rng) > 0.1
    candidates[3] = False
    return RankingCohort(torch.arange(CLIENTS), relevant, candidates, None)


def besides() -> list[Beside]:
    """Popularities in few steps, nothing at all, and numbers that are all different."""
    rng = torch.Generator().manual_seed(2)
    steps = torch.randint(0, 4, (ITEMS,), generator=rng) / 4
    return [Beside.of(steps), Beside.of(torch.zeros(ITEMS)), Beside.of(torch.rand(ITEMS, generator=rng))]


@pytest.mark.parametrize("which", range(3))
def test_ranks_are_those_of_looking_at_every_item(near: csr_array, cohort: RankingCohort, which: int) -> None:
    beside = besides()[which]
    scores = torch.from_numpy(near.toarray() + beside.values)
    better = SparseRanks(near, Others(cohort)).better(beside)
    assert ranks_behind(better, cohort.relevant < 0).equal(rank(scores, cohort.relevant, cohort.candidates))


def test_both_ways_tell_the_same(near: csr_array, cohort: RankingCohort, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(sparse_from: int) -> list[torch.Tensor]:
        monkeypatch.setattr(sparseranks, "SPARSE", sparse_from)
        return list(gained("ndcg@10", [(near, besides())], cohort))

    looked_at_all = told(10**9)
    few = told(0)
    assert len(few) == 3
    assert all(one.equal(other) for one, other in zip(few, looked_at_all, strict=True))
    assert few[0][0] == 0  # who holds nothing out
    assert 0 < few[2].mean() < 1
