"""Forgetting: what is longer ago counts less, by a half-life in days."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.errors import not_positive

HalfLife = float | None | Literal["chosen"]
"""A setting: days after which an interaction counts half; ``None``: never; ``chosen``: one of `CANDIDATES`."""
CANDIDATES: Sequence[float | None] = (None, 365.0, 90.0, 30.0, 7.0, 2.0)
"""The half-lives that ``chosen`` stands for. The first never forgets: so does whoever has nothing to choose by."""
DECAYS = (0.0, 0.25, 0.5, 1.0)
"""rho, to choose among: an item of age a, in items, counts (1 + a)^-rho. 0 reads all of a history alike."""
RECENTS = (365.0, 30.0, 14.0, 7.0, 2.0)
"""Half-lives in days of a popularity of late, to choose among."""
RECENT_WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Weights of it, to choose among."""
Days = TypeVar("Days", NDArray[Any], Tensor)


def not_half_life(option: str, value: HalfLife) -> str | None:
    """The problem with a setting that must be a half-life, ``None`` or ``chosen``."""
    if value == "chosen":
        return None
    return not_positive(option, value, or_none=True)


def days_untold(option: str, value: HalfLife, days: NDArray[Any] | None) -> str | None:
    """The problem with a half-life for data whose times tell no days.

    Args:
        option: Names the setting.
        value: It.
        days: Those of the data: `[training interactions]`, or ``None``.
    """
    if days is not None or fixed(value) is None:
        return None
    return f"{option}: the times of these data tell no days, and {value} needs them; null never forgets"


def fixed(value: HalfLife) -> float | None:
    """The half-life that a setting means where nothing chooses: the first of `CANDIDATES` for ``chosen``."""
    if value == "chosen":
        return CANDIDATES[0]
    return value


def half_lives(name: str, value: HalfLife) -> Sequence[Mapping[str, float | None]]:
    """Settings to choose among, as `cgfedrec.method.Recommender.alternatives` wants them.

    >>> half_lives("half_life", 7.0)
    [{}]
    >>> half_lives("half_life", "chosen")[:2]
    [{'half_life': None}, {'half_life': 365.0}]
    """
    if value == "chosen":
        return [{name: one} for one in CANDIDATES]
    return [{}]


def kept(days: Days, half_life: float) -> Days:
    """How much of each interaction is left: 2^(-days / half-life), `[interactions]`.

    >>> import numpy as np
    >>> kept(np.array([0.0, 7.0, 14.0]), 7)
    array([1.  , 0.5 , 0.25])
    """
    return 2.0 ** (-days / half_life)
