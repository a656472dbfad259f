"""Federations whose rounds spend a budget of differential privacy: that of the step `Noised` of their wire."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.account import Account
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import Notice, check
from cgfedrec.failures import NONE, Failures
from cgfedrec.history import Row
from cgfedrec.method import Method
from cgfedrec.privacy.accountant import delta_of_drawing
from cgfedrec.privacy.spending import Spending
from cgfedrec.processes import Processes
from cgfedrec.random import shared_seed
from cgfedrec.sampling import Sampling
from cgfedrec.server import SPENT, Server
from cgfedrec.simulation.clients import Clients
from cgfedrec.wire.noised import Among, Noised
from cgfedrec.wire.wire import Wire


class Spends(Account):
    """What a federation keeps count of, and what its rounds have spent.

    Attributes:
        spending: Of each client, where the wire adds noise.
        drawn: How many numbers of noise all participants draw in a round.
        told_of_noise: What is worth knowing of it before the first round.
        noise_given: Whether the noise of a round would be the same with more rounds.
        cut_short: Why there are fewer rounds than wanted, if that is so.
    """

    sampling: Sampling
    data: FederatedDataModule
    failures: Failures
    server: Server
    processes: Processes
    round: int
    rounds: int
    attempt: int
    fabric: Fabric
    history: list[Row]
    clients: Clients
    record: Callable[[Tensor, Row, float], None]
    spending: Spending | None = None
    drawn = 0
    told_of_noise = ""
    noise_given = False
    cut_short = ""

    def with_noise(self, wire: Wire, method: Method, update: bool) -> Wire:
        """The same wire, whose noise is that of this federation.

        Args:
            wire: As given.
            method: Whose server there is.
            update: Whether it goes on from another run.

        Raises:
            InputError: where noise would not hide what it is to hide.
        """
        places = [place for place, step in enumerate(wire.steps) if isinstance(step, Noised)]
        if not places:
            return wire
        step = wire.steps[0]
        kind, fields = type(method).__name__, self.server.expects
        several = fails = spent = rolling = None
        if places != [0] or not isinstance(step, Noised):
            check("wire.steps: Noised clips and hides what clients send: it is the first step, and there is one")
        assert isinstance(step, Noised)
        if self.server.phase:
            several = f"wire.steps: Noised hides what is added up in one round, and the sums of {kind} span several"
            if hasattr(method, "privacy"):
                several += "; they have noise of their own: --method.privacy.epsilon"
        if not step.local and (self.failures.simulated or self.failures.refused):
            fails = (
                "loop.failures: with a client that fails its part of the noise is gone, and no sum can be opened; "
                "Noised with local: true bears that"
            )
        if update:
            spent = "update_from: what the run before has spent is not counted on with wire.steps: Noised; start again"
        if self.data.split == "rolling":
            rolling = (
                "data.split: rolling trains at every cut and chooses by what it has seen, and no budget of wire.steps: "
                "Noised pays for that; choose another split"
            )
        check(several, fails, spent, rolling)
        users = self.data.num_users
        step = step.among(Among(users, self.sampling.number(users), self._turns(), self.data.mark))
        numbers = sum(math.prod(field.shape) for field in fields.values())
        self.spending = Spending(step.price(numbers), step.noise, step.epsilon, step.at, users)
        if not self.spending.affords(torch.arange(users)):
            self.spending.charge(torch.arange(users))
            check(
                f"wire.steps: Noised.noise: one round with noise of {step.noise:g} times the norm spends epsilon "
                f"{self.spending.epsilon:.4g} at delta {step.at:.2g}, and Noised.epsilon allows {step.epsilon:g}"
            )
        self.told_of_noise, self.noise_given = step.told(numbers), step.given
        self.drawn = numbers * self.sampling.number(users)
        made = copy.copy(wire)
        made.steps = (step, *wire.steps[1:])
        return made

    def _drawn_in(self, round: int) -> Tensor:
        """Who takes part in a round, `[participants]`, where everybody is there."""
        users = self.data.num_users
        return self.sampling.draw(torch.arange(users), self.sampling.number(users), shared_seed(self.data.seed), round)

    def _turns(self) -> int:
        """In how many of all rounds one client takes part at most."""
        users = self.data.num_users
        if not self.sampling.resample or self.sampling.number(users) == users:
            return self.rounds
        times = torch.zeros(users, dtype=torch.int64)
        for round in range(1, self.rounds + 1):
            times[self._drawn_in(round)] += 1
        return int(times.max())

    def keep_to_budget(self) -> None:
        """End with the last round that the budget bears where everybody comes through, and say so."""
        if self.spending is None:
            return
        last = self.spending.last_round(self.round, self.rounds, self._drawn_in)
        if last < self.rounds:
            self._say_last(self.spending, last)
            self.rounds = last

    def affordable(self, rounds: int) -> int:
        """The last of so many rounds that the budget bears, with the noise that all those wanted so far have had."""
        if self.spending is None or not self.spending.bounded:
            return rounds
        return self.spending.last_round(self.rounds, rounds, self._drawn_in) if self.noise_given else self.rounds

    def pays(self, participants: Tensor) -> bool:
        """Count a round, or an attempt at it, of `[participants]`, before they are asked for anything.

        Returns:
            Whether the budget bears it. Attempts at rounds in which nobody came through spend too, and nobody knows
            before how many there will be. Where it does not, nothing is counted, and the round before is said to be the
            last.
        """
        if self.spending is None:
            return True
        if not self.spending.affords(participants):
            self._say_last(self.spending, self.round - 1)
            self._end_before()
            return False
        self.spending.charge(participants)
        return True

    def _end_before(self) -> None:
        """Make the round before this one the last, evaluate it if it was not, and tell what was spent since."""
        self.round, self.attempt = self.round - 1, 0
        self.rounds = self.round
        if self.history and self.history[-1]["round"] == self.round:
            self.history[-1] |= self.row(self.clients.bytes_scoring, self.failures != NONE)
        elif self.round:
            self.record(torch.empty(0, 0), {}, 0.0)
        if self.round:
            self.fabric.call("on_round_end", self)

    def _say_last(self, spending: Spending, last: int) -> None:
        self.cut_short = (
            f"privacy: the run ends after round {last} of {self.rounds}, since the next one would spend more than "
            f"epsilon {spending.budget:g} at delta {spending.delta:.2g} (wire.steps: Noised)"
        )
        if self.processes.first:
            warnings.warn(self.cut_short, Notice, stacklevel=4)

    def row(self, bytes_scoring: int, failures: bool) -> Row:
        row = super().row(bytes_scoring, failures)
        if self.spending is not None:
            epsilon = self.spending.epsilon
            # What drawing has lost so far, as under `method.privacy`.
            delta = self.spending.delta + delta_of_drawing(epsilon, self.drawn * self.round)
            row |= {f"{SPENT}epsilon": epsilon, f"{SPENT}delta": delta}
        return row

    def counts(self, bytes_scoring: int) -> dict[str, Any]:
        counts: dict[str, Any] = super().counts(bytes_scoring)
        if self.spending is not None:
            counts["spending"] = self.spending.state_dict()
        return counts

    def load_counts(self, state: Mapping[str, Any]) -> int:
        if self.spending is not None:
            self.spending.load_state_dict(state["spending"])
        return super().load_counts(state)
