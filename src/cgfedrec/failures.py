"""Clients that fail: with whom a round goes on without, drawn from the seed of the run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from cgfedrec.errors import Notice, RunError, check, not_between, not_positive
from cgfedrec.random import Stream, normal, uniform

MOST_ATTEMPTS = 100
"""How often a round is tried in which nobody comes through."""
NAMED = 5
"""Of how many refused uploads is said whose they are."""
SHARES = ("before", "during", "after")


class Fate(IntEnum):
    """What becomes of a client in a round."""

    WELL = 0
    ABSENT = 1
    """Nothing comes down to it."""
    STOPPED = 2
    """What comes down has reached it. It sends nothing."""
    LOST = 3
    """It trains and sends, and what it sends is lost or too late."""


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Clients that fail in a simulation, and how many refused uploads a round may have.

    Who fails is drawn for each round and client, from the seed of the run. Nothing of a client that fails is added up.
    It goes on from the state of the round before, and its bytes are those that it has really received and sent.
    """

    before: float = 0.0
    """Share of a round's participants that are gone before it begins: nothing comes down to them."""
    during: float = 0.0
    """Share that fails in training: the broadcast has come down, and nothing goes up."""
    after: float = 0.0
    """Share whose upload is lost on its way: it has been sent, and nothing of it arrives."""
    deadline: float | None = None
    """When a round closes, in units of the median time that a client takes. What comes later is lost."""
    spread: float = 0.5
    """Standard deviation of the logarithm of a client's time; half of its variance is the device, which stays slow."""
    refused: float = 0.0
    """Share of a round's participants whose uploads may be refused; more stop the run. With 0 the first one does."""

    def __post_init__(self) -> None:
        """Check the settings. Raises `InputError` with everything that is wrong with them."""
        check(*self._problems())

    def _problems(self) -> Iterator[str | None]:
        wrong = [not_between(f"loop.failures.{name}", getattr(self, name), 0, 1) for name in SHARES]
        yield from wrong
        if not any(wrong) and sum(getattr(self, name) for name in SHARES) >= 1:
            yield "loop.failures: before, during and after add up to 1 or more, and nobody is left"
        yield not_positive("loop.failures.deadline", self.deadline, or_none=True)
        yield not_between("loop.failures.spread", self.spread, 0, 10)
        yield not_between("loop.failures.refused", self.refused, 0, 1)

    @property
    def simulated(self) -> bool:
        """Whether any client is to fail."""
        return self.deadline is not None or any(getattr(self, name) for name in SHARES)

    def fates(self, seed: int, users: Tensor, round: int, attempt: int = 0) -> Tensor:
        """What becomes of clients `[clients]` in a round: a `Fate` each, `[clients]`, int64.

        Args:
            seed: The shared one.
            users: `[clients]`, int64.
            round: From 1.
            attempt: At the round, from 0.
        """
        if not self.simulated:
            return torch.zeros_like(users)
        clients = users.numpy()
        drawn = uniform(seed, Stream.FAILURES, round, attempt, clients)  # [clients]
        ends = np.cumsum([getattr(self, name) for name in SHARES])
        fates = np.searchsorted(ends, drawn, side="right") + 1
        fates[fates > len(SHARES)] = Fate.WELL
        if self.deadline is not None:
            late = self.times(seed, clients, round, attempt) > self.deadline
            fates[late & (fates == Fate.WELL)] = Fate.LOST
        return torch.from_numpy(fates.astype(np.int64))

    def times(self, seed: int, clients: np.ndarray, round: int, attempt: int = 0) -> np.ndarray:
        """How long clients `[clients]` take, `[clients]`, in units of the median; log-normal. Arguments as `fates`."""
        device = normal(seed, Stream.DEVICES, clients)
        luck = normal(seed, Stream.DELAYS, round, attempt, clients)
        return np.asarray(np.exp(self.spread * (device + luck) / np.sqrt(2)))

    def tell(self, round: int, participants: int, refused: Mapping[str, str], aloud: bool) -> None:
        """Say whose uploads of a round were refused.

        Args:
            round: Which one.
            participants: How many were asked.
            refused: By the names of clients, why.
            aloud: Whether this process is the one that speaks.

        Raises:
            RunError: if more were refused than may be.
        """
        if not refused:
            return
        named = [f"client {client}: {why}" for client, why in refused.items()]
        told = f"round {round}: {len(refused)} of {participants} uploads are refused; {'; '.join(named[:NAMED])}"
        if len(named) > NAMED:
            told += f"; and {len(named) - NAMED} more"
        if len(refused) > self.refused * participants:
            raise RunError(f"{told}. That is more than the share {self.refused:g} (loop.failures.refused)")
        if aloud:
            warnings.warn(told, Notice, stacklevel=2)


def check_attempt(round: int, attempt: int, aloud: bool) -> None:
    """Say that nobody came through.

    Args:
        round: Which one.
        attempt: How often it has been tried by now.
        aloud: Whether this process is the one that speaks.

    Raises:
        RunError: after `MOST_ATTEMPTS`.
    """
    if attempt == MOST_ATTEMPTS:
        raise RunError(f"round {round}: in {attempt} attempts nobody came through (loop.failures)")
    if aloud:
        warnings.warn(f"round {round}: nobody came through; it is tried again", Notice, stacklevel=2)


NONE = Failures()
"""Nobody fails."""
