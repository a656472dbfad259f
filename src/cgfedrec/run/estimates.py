"""What an estimate tells: of rounds that are alike, and of phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cgfedrec.structure.ahead import Phase


@dataclass(frozen=True)
class Rehearsed:
    """What a phase takes.

    Args:
        phase: As it is known ahead.
        down: Bytes that come down to a client in it, in the mean, without what comes down once.
        clients: Seconds that all its clients take together.
        server: Seconds in which the server makes something of the sum.
    """

    phase: Phase
    down: float
    clients: float
    server: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a federation would need.

    Args:
        participants: How many clients take part in a round.
        rounds: How many rounds there are, at most.
        cohorts: How many cohorts they train in.
        workers: How many of these train at a time.
        once: Bytes that come down to each client when it first takes part.
        scoring: Bytes that come down to a client for each evaluation.
        evaluation: Seconds of an evaluation; 0 where nothing is held out.
        evaluations: How many there are.
    """

    participants: int
    rounds: int
    cohorts: int
    workers: int
    once: int
    scoring: float
    evaluation: float
    evaluations: int


@dataclass(frozen=True, kw_only=True)
class Alike(Estimate):
    """Of rounds that are alike, but for the first one.

    Args:
        up: Bytes that a client sends in a round, the first and every later one, in the mean over a cohort.
        down: Bytes that come down to it, likewise.
        varies: Whether ``up`` and ``down`` depend on who clients are: only the rows of their items travel, or some
            receive what is for them alone.
        training: Seconds of a round's training.
    """

    up: tuple[float, float]
    down: tuple[float, float]
    varies: bool
    training: float

    @property
    def all_up(self) -> float:
        """Bytes that all clients send in all rounds."""
        return self.participants * (self.up[0] + (self.rounds - 1) * self.up[1])

    @property
    def all_down(self) -> float:
        """Bytes that come down to all of them in training, without what comes down once."""
        return self.participants * (self.down[0] + (self.rounds - 1) * self.down[1])

    @property
    def seconds(self) -> float:
        """Of all rounds."""
        return self.rounds * self.training + self.evaluations * self.evaluation


@dataclass(frozen=True, kw_only=True)
class InTurn(Estimate):
    """Of phases, in each of which every client adds to a sum.

    Args:
        phases: In order.
        enrolled: How many clients will ever take part.
    """

    phases: Sequence[Rehearsed]
    enrolled: int

    @property
    def seconds(self) -> float:
        """Of all phases and the evaluation at their end."""
        return sum(phase.clients + phase.server for phase in self.phases) + self.evaluations * self.evaluation
