"""Half-lives: settings, candidates and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cgfedrec.forgetting import CANDIDATES, days_untold, fixed, half_lives, kept, not_half_life


def test_a_half_life_halves() -> None:
    days = [0.0, 3.5, 7.0, 70.0]
    expected = [1, 2**-0.5, 0.5, 2**-10]
    assert np.allclose(kept(np.array(days), 7.0), expected, rtol=1e-15)
    assert torch.allclose(kept(torch.tensor(days, dtype=torch.float64), 7.0), torch.tensor(expected).double())


def test_without_a_choice_nothing_is_forgotten() -> None:
    assert [fixed(value) for value in ("chosen", None, 30.0)] == [None, None, 30.0]
    assert half_lives("half_life", None) == half_lives("half_life", 30.0) == [{}]
    assert half_lives("recent", "chosen") == [{"recent": value} for value in CANDIDATES]
    assert CANDIDATES[0] is None


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, None),
        ("chosen", None),
        (0.5, None),
        (0, "o: 0 is not positive"),
        (float("nan"), "o: nan is no number"),
        ("chose", "o: chose is no number"),
    ],
)
def test_what_is_no_half_life(value: float, problem: str | None) -> None:
    assert not_half_life("o", value) == problem


def test_days_are_needed_where_days_are_asked_for() -> None:
    assert days_untold("o", 7.0, np.zeros(3)) is None
    assert days_untold("o", None, None) is None
    assert days_untold("o", "chosen", None) is None
    problem = days_untold("o", 7.0, None)
    assert problem is not None
    assert problem.startswith("o: the times of these data tell no days")
