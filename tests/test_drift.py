"""Embedded data in which what is popular changes: drawn as described, and there to be found by those who forget."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import cgfedrec
from cgfedrec.data import Interactions, Synthetic, synthetic
from cgfedrec.errors import InputError

DAY = 86_400
SEASON = 120
SMALL: dict[str, Any] = {"users": 400, "items": 400, "groups": 20, "skew": 0.5, "interactions": 25}
MANY: dict[str, Any] = {"users": 3000, "items": 300, "groups": 10, "interactions": 40}


def digest(data: Interactions) -> str:
    found = hashlib.sha256()
    for values in (data.users, data.items, data.times):
        found.update(np.asarray(values, "<i8").tobytes())
    return found.hexdigest()[:16]


def taken(data: Interactions, items: int, first: float, last: float) -> NDArray[np.int64]:
    """How often each item was taken between two days, `[items]`."""
    assert data.times is not None
    days = data.times / DAY
    original = data.item_ids.to_numpy()[data.items] - 1
    return np.bincount(original[(days >= first) & (days < last)], minlength=items)


def alike(data: Interactions, one: float, other: float) -> float:
    """How well what is taken in the ten days after one day foretells what is taken after another."""
    counts = [taken(data, MANY["items"], day, day + 10) for day in (one, other)]
    return float(np.corrcoef(counts[0], counts[1])[0, 1])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SMALL, "a92b8ae42f8275b7"),
        ({"users": 500, "items": 200, "groups": 10, "skew": 0.8, "interactions": 20}, "f5bac34b6929915b"),
    ],
)
def test_without_drift_the_bits_are_what_they_were_before_there_was_any(
    settings: dict[str, Any], expected: str
) -> None:
    assert digest(Synthetic(**settings).draw(3)) == expected
    assert digest(Synthetic(**settings, drift=0.0).draw(3)) == expected


def test_with_drift_they_stay_the_same_too() -> None:
    assert digest(Synthetic(**SMALL, drift=1.0).draw(3)) == "504865ec4991f020"


def test_the_same_seed_draws_the_same_however_many_users_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Synthetic(drift=1.0)
    data = made.draw(3)
    assert digest(made.draw(3)) == digest(data)
    assert digest(made.draw(4)) != digest(data)
    monkeypatch.setattr(synthetic, "DRAWN_AT_ONCE", 7 * made.items)
    assert digest(made.draw(3)) == digest(data)


def test_who_takes_how_much_and_when_is_as_without_drift_and_nothing_is_taken_twice() -> None:
    still, moving = Synthetic(), Synthetic(drift=3.0, focus=1.0)
    before, data = still.draw(3), moving.draw(3)
    assert np.array_equal(before.users, data.users)
    assert np.array_equal(before.times, data.times)  # type: ignore[arg-type]
    assert len(set(zip(data.users.tolist(), data.items.tolist(), strict=True))) == len(data.users)
    assert np.array_equal(still.item_groups(3), moving.item_groups(3))


def test_users_keep_to_their_groups() -> None:
    made = Synthetic(users=500, items=200, groups=10, interactions=15, drift=1.0)
    data = made.draw(3)
    groups = made.item_groups(3)[data.item_ids.to_numpy()[data.items] - 1]
    shares = np.zeros((500, 10))
    np.add.at(shares, (data.users, groups), 1)
    assert (np.sort(shares, axis=1)[:, -2:].sum(1) / np.bincount(data.users)).mean() > 0.8


def test_what_is_popular_early_is_not_late_and_comes_again_after_a_season() -> None:
    still, moving = Synthetic(**MANY).draw(3), Synthetic(**MANY, drift=1.0).draw(3)
    half, whole = 25 + SEASON / 2, 25 + SEASON
    assert alike(still, 25, half) > 0.5
    assert alike(moving, 25, 35) > 0.6
    assert alike(moving, 25, half) < 0
    assert alike(moving, 25, whole) > 0.6


@pytest.mark.parametrize(("drift", "expected"), [(0.25, 1.12), (0.5, 1.42), (1.0, 2.17)])
def test_drift_is_as_strong_as_its_description_says(drift: float, expected: float) -> None:
    """The mean of w^2 over the square of the mean of w, for w = exp(2 drift cos x): I0(4 drift) / I0(2 drift)^2."""
    made = Synthetic(users=6000, items=600, groups=1, tastes=1, focus=0, skew=0, interactions=10, drift=drift)
    counts = taken(made.draw(0), 600, 20, 25)
    total = counts.sum()
    found = 600 * (counts * (counts - 1)).sum() / (total * (total - 1))
    assert found - 1 == pytest.approx(expected - 1, rel=0.15)


def test_drift_that_cannot_be_is_refused() -> None:
    for drift in (-1.0, 11.0, float("nan")):
        with pytest.raises(InputError, match=r"data\.synthetic\.drift"):
            Synthetic(drift=drift)


BASE: dict[str, Any] = {
    "data.split": "rolling",
    "data.rolling": {"cuts": 2, "first": 0.5, "last": 0.7},
    "data.min_interactions": 1,
    "data.synthetic": {"users": 200, "items": 100, "groups": 5, "focus": 0.5, "interactions": 15, "seed": 1},
    "data.synthetic.drift": 1.0,
    "logger": None,
}


def test_what_is_popular_of_late_beats_what_always_was(tmp_path: Path) -> None:
    given = {**BASE, "method": "cgfedrec.centralized.Popularity"}
    found = {}
    for drift in (0.0, 1.0):
        for half_life in (None, 7.0):
            more = {"data.synthetic.drift": drift, "method.half_life": half_life}
            run = cgfedrec.fit({**given, **more, "run_dir": str(tmp_path / f"{drift} {half_life}")})
            found[drift, half_life] = run.summary["test/ndcg@10"]
    assert found[1.0, 7.0] > 1.5 * found[1.0, None]
    assert found[0.0, 7.0] < 1.1 * found[0.0, None]


def test_cgfedco_chooses_to_forget(tmp_path: Path) -> None:
    run = cgfedrec.fit({**BASE, "method": "CGFedCo", "run_dir": str(tmp_path / "run")})
    chosen = run.summary["chosen"]["2"]
    days = [float(number) for number in re.findall(r"(?:half_life |of )(\d+)", chosen)]
    assert min(days) <= 30, chosen  # without drift it is 90 or 365: chance decides between those and never
    assert run.summary["over_popularity/test/ndcg@10/low"] > 0
