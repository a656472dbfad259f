"""References that know time: what they forget, what they read first, and what they must not see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.centralized import EASE, MF, Popularity, SASRec
from cgfedrec.centralized.reference import Reference
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError
from cgfedrec.evaluation.ranking import evaluate
from cgfedrec.forgetting import CANDIDATES
from cgfedrec.history import Row
from cgfedrec.run.reference import ReferenceFit
from tests.timed import LAYOUT, at_cut, drawn, timed

EVERYONE = torch.arange(40)


@pytest.fixture
def data(tmp_path: Path) -> FederatedDataModule:
    return at_cut(tmp_path / "ratings.csv", drawn(), chooses=True)


def known(data: FederatedDataModule) -> list[tuple[int, int, float]]:
    """What `drawn` has before the cut, by the numbers of the data."""
    users, items = ([str(one) for one in ids] for ids in (data.user_ids, data.item_ids))
    return [(users.index(f"u{user}"), items.index(f"i{item}"), days) for user, item, days in drawn() if days > 0]


def table(data: FederatedDataModule, half_life: float) -> Tensor:
    """`[users, items]`: what is left of each interaction, one by one; days as the file has them, in whole seconds."""
    left = torch.zeros(data.num_users, data.num_items, dtype=torch.float64)
    for user, item, days in known(data):
        left[user, item] = 0.5 ** (round(days * 86_400) / 86_400 / half_life)
    return left


def fitted(reference: Reference, data: FederatedDataModule) -> ReferenceFit:
    fit = ReferenceFit(reference, data, Fabric(accelerator="cpu", devices=1), "val/ndcg@10")
    fit.fit()
    return fit


def test_popularity_forgets(data: FederatedDataModule) -> None:
    expected = table(data, 7).sum(0) / data.num_users
    assert torch.allclose(Popularity(half_life=7).fit(data).score(EVERYONE[:2]), expected.expand(2, -1), rtol=1e-12)


def test_without_a_half_life_all_is_as_if_there_were_no_time(data: FederatedDataModule) -> None:
    """To the bit. A very long one is as good as none."""
    assert Popularity().fit(data).score(EVERYONE)[0].equal(data.popularity)
    assert Popularity(half_life="chosen").fit(data).score(EVERYONE)[0].equal(data.popularity)
    x = torch.from_numpy(data.training_matrix().toarray())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(x.T @ x + 9 * torch.eye(len(x.T))))
    weights = inverse / -inverse.diagonal()
    weights.fill_diagonal_(0)
    scores = EASE(lambda_=9).fit(data).score(EVERYONE)
    assert scores.equal(x @ weights)
    unchosen = EASE(lambda_=9, half_life="chosen", decay="chosen", recent="chosen", recent_weight="chosen")
    assert unchosen.fit(data).score(EVERYONE).equal(scores)
    for reference in (Popularity, EASE):
        never, hardly = (reference(half_life=one).fit(data).score(EVERYONE) for one in (None, 1e9))
        assert torch.allclose(never, hardly, rtol=0, atol=1e-6)
        assert not never.equal(hardly)


def test_ease_forgets(data: FederatedDataModule) -> None:
    """Against ridge regressions, item by item, whose co-occurrence of two items forgets with the half-life."""
    x = table(data, 14).sqrt().numpy()
    gram, lambda_ = x.T @ x, 3.0
    weights = np.zeros((30, 30))
    for item in range(30):
        others = np.arange(30) != item
        weights[others, item] = np.linalg.solve(gram[np.ix_(others, others)] + lambda_ * np.eye(29), gram[others, item])
    read = (x > 0).astype(float)  # what is read counts in full
    assert np.allclose(EASE(lambda_=lambda_, half_life=14).fit(data).score(EVERYONE), read @ weights, atol=1e-12)


def test_ease_reads_the_newest_first_beside_what_is_popular_of_late(data: FederatedDataModule) -> None:
    settings: dict[str, Any] = {"decay": 0.5, "recent": 7.0, "recent_weight": 0.3}
    found = EASE(lambda_=3, **settings).fit(data)
    counts = torch.zeros(40, 30, dtype=torch.float64)
    by_user: dict[int, list[tuple[float, int]]] = {}
    for user, item, days in known(data):
        by_user.setdefault(user, []).append((days, item))
    for user, history in by_user.items():
        for age, (_, item) in enumerate(sorted(history)):
            counts[user, item] = (1 + age) ** -0.5
    popularity = table(data, 7).sum(0).log1p()
    expected = counts @ EASE(lambda_=3).fit(data).weights + 0.3 * popularity / popularity.max()
    assert torch.allclose(found.score(EVERYONE), expected, atol=1e-12)


def test_validation_chooses_the_reading(data: FederatedDataModule) -> None:
    """Each column is what a reference with these settings has; the best is what scores, and the first without."""
    reference = EASE(lambda_=3, decay="chosen", recent="chosen", recent_weight="chosen")
    fit = fitted(reference, data)
    (row,) = fit.history
    judged = {name: value for name, value in row.items() if name.startswith("readings/")}
    assert list(judged) == [f"readings/{name}" for name in reference.readings]
    assert len(judged) == 4 * (1 + 5 * 5)
    alone = {name: EASE(lambda_=3, **settings).fit(data) for name, settings in reference.readings.items()}
    for name, settled in alone.items():
        assert len(settled.readings) == 1
        assert judged[f"readings/{name}"] == pytest.approx(evaluate(data, "val", settled.score, 64)["val/ndcg@10"])
    best = max(judged, key=judged.__getitem__).removeprefix("readings/")
    assert best != next(iter(alone))
    assert fit.score(EVERYONE).equal(alone[best].score(EVERYONE))
    assert row["val/ndcg@10"] == judged[f"readings/{best}"]
    assert fitted(EASE(lambda_=3), data).history[0].keys().isdisjoint(judged)


def test_without_validation_the_first_reading_stands(tmp_path: Path) -> None:
    data = at_cut(tmp_path / "ratings.csv", drawn())
    chosen, plain = (fitted(EASE(decay=decay), data) for decay in ("chosen", 0.0))
    assert not any(name.startswith("readings/") for name in chosen.history[0])
    assert chosen.score(EVERYONE).equal(plain.score(EVERYONE))


def test_earlier_cuts_settle_the_epochs() -> None:
    rows: list[Row] = [{"train/epochs": epochs} for epochs in (5, 100, 20)]
    assert MF().settled(rows) == SASRec().settled(rows) == {"epochs": 20}
    assert MF().settled(rows[:2]) == {"epochs": 52}  # 52.5, to the even one
    assert EASE().settled(rows) == Popularity().settled(rows) == {}


def test_earlier_cuts_choose_among_half_lives() -> None:
    references: list[Reference] = [Popularity(half_life="chosen"), EASE(half_life="chosen")]
    for reference in references:
        assert [one["half_life"] for one in reference.alternatives] == list(CANDIDATES)
    references = [Popularity(half_life=7), EASE(recent="chosen"), MF()]
    assert all(list(reference.alternatives) == [{}] for reference in references)
    assert list(EASE(recent_weight="chosen", decay=1).readings) == ["rho 1"]
    assert next(iter(EASE(recent=7, recent_weight="chosen", decay=1).readings)) == "rho 1, 0.1 x recent 7 days"


@pytest.mark.parametrize(
    "reference",
    [Popularity(half_life=7), EASE(half_life=7, decay=0.5, recent=7), SASRec(epochs=2, dim=8)],
    ids=["Popularity", "EASE", "SASRec"],
)
def test_nothing_after_the_cut_is_read(tmp_path: Path, reference: Reference) -> None:
    """What all do later changes no score, and what was done before does."""
    before = drawn()
    user, item, days = next(one for one in before if one[2] > 0)
    scores = [
        reference.fit(at_cut(tmp_path / "ratings.csv", interactions)).score(EVERYONE)
        for interactions in (
            before,
            [*before, *((user, item, -20.5) for user in range(40) for item in range(30) if (user + item) % 3)],
            [one for one in before if one != (user, item, days)],
        )
    ]
    assert scores[0].equal(scores[1])
    assert not scores[0].equal(scores[2])


def test_data_that_tell_no_days_are_refused(tmp_path: Path) -> None:
    """Those whose times are a mere order. Where ``chosen`` has nothing to choose from, it is off."""
    ordered = [(user, item, days / 1000) for user, item, days in drawn()]  # all within a day
    data = timed(tmp_path / "ratings.csv", ordered)
    assert data.days is None
    with pytest.raises(InputError, match=r"method\.half_life: the times of these data tell no days, and 7 needs them"):
        Popularity(half_life=7).fit(data)
    with pytest.raises(InputError, match=r"method.half_life: the times .*\nmethod.recent: the times .* 2 needs them"):
        fitted(EASE(half_life=7, recent=2, decay=1), data)
    reference = EASE(recent="chosen", recent_weight="chosen", half_life="chosen", decay="chosen")
    (row,) = fitted(reference, data).history
    names = [name.removeprefix("readings/") for name in row if name.startswith("readings/")]
    assert names == ["rho 0", "rho 0.25", "rho 0.5", "rho 1"]


def test_data_without_times_are_refused_where_the_newest_count_more(tmp_path: Path) -> None:
    timeless = timed(tmp_path / "ratings.csv", drawn(), format=replace(LAYOUT, timestamp_column=None), split="random")
    with pytest.raises(InputError, match=r"method\.decay: the data have no times, and 0\.5 needs them; 0 reads all"):
        fitted(EASE(decay=0.5), timeless)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"half_life": 0, "recent": -1}, "method.half_life: 0 is not positive\nmethod.recent: -1 is not positive"),
        ({"decay": -1, "recent_weight": None}, "method.decay: -1 is below 0\nmethod.recent_weight: null is no number"),
        ({"decay": "chose"}, "method.decay: chose is no number"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EASE(**settings)
