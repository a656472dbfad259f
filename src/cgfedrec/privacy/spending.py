"""What rounds with noise have spent of a budget, client by client: it only ever grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cgfedrec.privacy.accountant import epsilon_of
from cgfedrec.privacy.budget import rho_within

ROUNDING = 1e-12
"""Share of a budget that adding up in float64 may round."""


class Spending:
    """The rho of zCDP that has been spent of each client.

    Who takes part in a round is drawn from the seed, and not from anybody's data. So a client spends in the rounds in
    which it takes part and in no others, which is counted, and nothing else is claimed of the draw. The epsilon that is
    told is that of the client who has spent most.

    Args:
        price: What a round spends of a client who takes part in it.
        noise: Standard deviation of the noise, in units of the norm: what makes the price.
        epsilon: What each client may spend in all; ``None`` for as much as there is.
        delta: At which epsilon is told.
        clients: How many there are.

    Attributes:
        spent: `[clients]`, float64.
    """

    def __init__(self, price: float, noise: float, epsilon: float | None, delta: float, clients: int) -> None:
        self.price, self.noise, self.budget, self.delta = price, noise, epsilon, delta
        self.limit = math.inf
        if epsilon is not None:
            self.limit = rho_within(epsilon, delta) * (1 + ROUNDING)
        self.spent = torch.zeros(clients, dtype=torch.float64)

    @property
    def epsilon(self) -> float:
        """Of the client who has spent most."""
        return epsilon_of(float(self.spent.max()), self.delta)

    @property
    def bounded(self) -> bool:
        """Whether there is an end to what may be spent."""
        return self.limit < math.inf

    def affords(self, users: Tensor) -> bool:
        """Whether clients `[participants]` can take part in another round."""
        return not len(users) or float(self.spent[users].max()) + self.price <= self.limit

    def charge(self, users: Tensor) -> None:
        """Count a round in which clients `[participants]` take part. It is counted before anything is learnt of it."""
        self.spent[users] += self.price

    def last_round(self, round: int, rounds: int, drawn: Callable[[int], Tensor]) -> int:
        """The last of ``rounds`` that can be afforded, where ``round`` have been.

        Args:
            round: The last one that has ended.
            rounds: How many are wanted.
            drawn: Who takes part in a round, `[participants]`.
        """
        ahead = Spending(self.price, self.noise, None, self.delta, 0)
        ahead.limit, ahead.spent = self.limit, self.spent.clone()
        for one in range(round + 1, rounds + 1):
            users = drawn(one)
            if not ahead.affords(users):
                return one - 1
            ahead.charge(users)
        return rounds

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""
        return {"spent": self.spent.clone(), "noise": self.noise}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from where `state_dict` was taken.

        Raises:
            ValueError: if these are no such numbers, or are of another noise. What a round has told with one noise, it
                must not tell again with another.
        """
        spent, noise = state["spent"], state["noise"]
        if type(noise) is not float or not math.isclose(noise, self.noise, rel_tol=1e-9):
            raise ValueError(
                f"a round's noise is {self.noise:.4g} times the norm, and was {noise}; where it follows from epsilon "
                "and loop.rounds, these must stay as they were"
            )
        if spent.dtype != torch.float64 or spent.shape != self.spent.shape or not (spent >= 0).all():
            raise ValueError("what clients have spent are no numbers")
        self.spent = torch.maximum(self.spent, spent)  # whatever state it goes back to, what was told was told
