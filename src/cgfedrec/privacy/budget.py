"""A budget of differential privacy: its settings, and what of it each sum may spend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from cgfedrec.errors import not_positive
from cgfedrec.privacy.accountant import rho_of

FRACTION = 2**14
"""A number of 1 travels as so many whole ones."""
SHARES = {"bounds": 0.05, "sketch": 0.30, "labels": 0.15, "verify": 0.45, "choose": 0.05}
"""What each sum may spend of the budget. METHODS.md's, less what clients' choice of a reading costs."""
MOST_SIGMA = 2.0**18
"""The same at most. A client alone would then add more noise to a number than 16 clients can add to it."""
MOST_DELTA = 0.1
"""The chance with which a budget promises nothing at all; more is no privacy."""
LEAST_SIGMA = 4.0
"""Of a client's own noise, in the units that travel. With less, sums of discrete noise cost more than a Gaussian."""


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Differential privacy of one person's whole history, whatever it holds, in all that comes of a run."""

    epsilon: float
    """What all sums together may spend. 8 protects little against one who knows all others; 1 protects well."""
    delta: float | None = None
    """At which epsilon is told; by default clients^-1.1."""

    def problems(self) -> Iterator[str | None]:
        """What is wrong with these settings."""
        yield not_positive("method.privacy.epsilon", self.epsilon, 1000)
        yield not_positive("method.privacy.delta", self.delta, 0.5, or_none=True)

    def at(self, clients: int) -> float:
        """Delta for so many clients."""
        return self.delta if self.delta is not None else clients**-1.1

    def sigma(self, name: str, norm: float, clients: int) -> float:
        """Standard deviation of the noise of a whole sum, in its own units.

        Args:
            name: Of the sum.
            norm: The largest Euclidean norm of what one client adds, in the same units.
            clients: How many add to it.
        """
        return norm / math.sqrt(2 * SHARES[name] * rho_within(self.epsilon, self.at(clients)))

    def own_sigma(self, name: str, norm: float, clients: int) -> float:
        """The same of one client's part of it, in parts of `FRACTION`."""
        return FRACTION * self.sigma(name, norm, clients) / math.sqrt(clients)


@lru_cache(64)
def rho_within(epsilon: float, delta: float) -> float:
    """The rho that a budget of so much may spend."""
    # A little less than all: what it costs that sums of discrete noise are no discrete noise is far smaller.
    return rho_of(epsilon, delta) * (1 - 1e-9)
