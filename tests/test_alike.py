"""Ranks where everybody has the same scores."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor

from cgfedrec.data import FederatedDataModule
from cgfedrec.data.layout import Format
from cgfedrec.evaluation.alike import ranked_alike
from cgfedrec.evaluation.ranking import ranked
from cgfedrec.protocol import Protocol
from cgfedrec.testing import prepared


def rated(path: Path, split: str, protocol: Protocol) -> FederatedDataModule:
    """People of many and of few items, some of which they dislike; the last one knows nearly all."""
    drawn = torch.Generator().manual_seed(3)
    rows = []
    for user in range(60):
        number = 37 if user == 59 else int(torch.randint(4, 20, (), generator=drawn))
        for time, item in enumerate(torch.randperm(40, generator=drawn)[:number].tolist()):
            rows.append((user, item, int(torch.randint(1, 6, (), generator=drawn)), time))
    pl.DataFrame(rows, ["user", "item", "rating", "timestamp"], orient="row").write_csv(path)
    format = Format(rating_column="rating", threshold=2)
    return prepared(path=str(path), format=format, split=split, negatives=1, protocol=protocol)


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
@pytest.mark.parametrize("candidates", ["full", "sampled"])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_it_is_what_scoring_everybody_gives(tmp_path: Path, split: str, candidates: str, stage: str) -> None:
    data = rated(tmp_path / "t.csv", split, Protocol(candidates=candidates, num_candidates=3))  # type: ignore[arg-type]
    scores = torch.arange(data.num_items).remainder(7).double() / 7  # many are equal

    def alike(users: Tensor) -> Tensor:
        return scores.expand(len(users), -1)

    wanted = ranked(data, stage, alike, 16)  # type: ignore[arg-type]
    found = ranked_alike(data, stage, scores)  # type: ignore[arg-type]
    if split == "temporal":
        assert (wanted.items < 0).any(), "some have fewer relevant items than others"
    else:
        assert (wanted.shown < 0).any(), "the last one is left with few"
    for one, other in zip(found, wanted, strict=True):
        assert one.equal(other)
