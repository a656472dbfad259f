"""Options: the ways to read neighbours that need no training, among which clients choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cgfedrec.forgetting import DECAYS, RECENT_WEIGHTS

POPULARITIES = (0.0, 0.1, 0.3, 1.0, 3.0)
"""beta: how much an item's popularity counts beside its neighbours."""


ALONE = 1000.0
"""The beta beside which neighbours only decide between items that are equally popular."""


class Option(NamedTuple):
    """A way to read that nothing needs to be trained for."""

    decay: float
    """rho."""
    weight: float
    """beta."""
    recent: float | None = None
    """Half-life in days of the popularity of late that beta weighs; ``None``: it weighs popularity as it always was."""

    @property
    def named(self) -> str:
        """In a word or two."""
        if self.weight == ALONE:
            return "popularity alone"
        name = f"rho {self.decay:g}, beta {self.weight:g}"
        if self.recent is not None:
            name += f" of {self.recent:g} days"
        return name


def options_with(recents: Sequence[float]) -> list[Option]:
    """All of them, with popularities of late of these half-lives in days; those with the same rho side by side."""
    found = []
    for decay in DECAYS:
        found += [Option(decay, weight) for weight in POPULARITIES]
        found += [Option(decay, weight, recent) for recent in recents for weight in RECENT_WEIGHTS]
    return found
