"""What a run does besides training: it stops early, and shows how far it is.

A callback is any object with some of `on_federation_start(loop)`, `on_cohort_end(loop, users)`,
`on_round_end(loop)` and `on_federation_end(loop)`; Fabric calls those that it has, in the order in which they were
given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from torch import Tensor

from cgfedrec.history import Row
from cgfedrec.loop import FederatedLoop
from cgfedrec.run.console import LONG, progress_bars
from cgfedrec.server import CLIENTS, READINGS
from cgfedrec.simulation.capacity import gib
from cgfedrec.simulation.machine import resident
from cgfedrec.units import duration


class EarlyStopping:
    """Ends training when the monitored metric has not improved for ``loop.patience`` evaluations."""

    def on_federation_start(self, loop: FederatedLoop) -> None:
        """A run may go on from a round after which it had stopped; it must not train another."""
        self.on_round_end(loop)

    def on_round_end(self, loop: FederatedLoop) -> None:
        """Judge by the history alone, so that a resumed run stops where the whole one would have."""
        if loop.patience is not None and loop.since_best >= loop.patience:
            loop.should_stop = True


class Pace:
    """Says after the first round that it sees how long rounds take and what is taken, beside what was expected."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._told = False
        self._ends: list[float] = []  # seconds after which each cohort of the first round had ended

    def on_federation_start(self, loop: FederatedLoop) -> None:
        """Note the time, and what the next round is for."""
        self._started, self._seconds, self._phase = time.perf_counter(), loop.seconds, loop.server.phase

    def on_cohort_end(self, loop: FederatedLoop, users: Tensor) -> None:
        """Note when the cohort `[clients]` ended."""
        if not self._told:
            self._ends.append(time.perf_counter() - self._started)

    def on_round_end(self, loop: FederatedLoop) -> None:
        """Tell it once."""
        if self._told or not self._ends:
            return
        self._told, took, capacity = True, loop.seconds - self._seconds, loop.clients.capacity
        training = expected(self._ends, loop.clients.workers.number)
        what = f"round {loop.round}"
        if self._phase:
            what += f" ({self._phase})"
        told = f"{what} took {duration(took)}; by its first cohorts, {duration(training)} of training were expected"
        left = loop.rounds - loop.round
        if loop.round < loop.server.alike_from:
            told += f"; rounds from {loop.server.alike_from} on do more, and their time is not known yet"
        elif left > 0 and not self._phase:  # rounds of a phase tell nothing of others
            told += f"; {left:,} more: about {duration(left * took)} or less, since the first one sets things up"
        told += f"; {gib(resident())} of memory are taken, {gib(capacity.memory)} were expected"
        self.console.print(told, highlight=False, soft_wrap=True)


def expected(ends: Sequence[float], workers: int) -> float:
    """The seconds that all cohorts of a round take, by those of the first two of each worker.

    The very first ones are slower, since everything is done for the first time.

    Args:
        ends: When each cohort has ended, in their order; only the first ones are looked at.
        workers: How many train side by side.
    """
    turns = math.ceil(len(ends) / workers)
    first = ends[min(workers, len(ends)) - 1]
    if len(ends) < 2 * workers:
        return first * turns
    return first + (ends[2 * workers - 1] - first) * (turns - 1)


class ProgressBar:
    """Shows rounds, clients and the monitored metric: bars on a terminal, a line an evaluated round elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = progress_bars(console, "metric")

    def on_federation_start(self, loop: FederatedLoop) -> None:
        """Show the bars, as far as a resumed run is already."""
        self.progress.start()
        self.rounds = self.progress.add_task("rounds", total=loop.rounds, completed=loop.round, metric="")
        self.phase = loop.server.phase
        self.clients = self.progress.add_task("clients", total=len(loop.sample()), metric=self.phase)
        self._from = (loop.round, loop.seconds)

    def on_cohort_end(self, loop: FederatedLoop, users: Tensor) -> None:
        """Count these clients, `[clients]`, as done in this round."""
        self.progress.advance(self.clients, len(users))

    def on_round_end(self, loop: FederatedLoop) -> None:
        """Count the round and, if it was evaluated, say what it found."""
        if loop.round < loop.server.alike_from:
            self._from = (loop.round, loop.seconds)
        self._tell(loop)
        self.phase = loop.server.phase  # what the next round is for
        self.progress.reset(self.clients, metric=self.phase)

    def _tell(self, loop: FederatedLoop) -> None:
        if not loop.history or loop.history[-1]["round"] != loop.round:  # this round was not evaluated
            self.progress.update(self.rounds, completed=loop.round)
            return
        row, metric = loop.history[-1], ""
        if loop.monitor in row:
            metric = f"{loop.monitor} {row[loop.monitor]:.4f}"
        self.progress.update(self.rounds, completed=loop.round, metric=metric)
        if not self.console.is_terminal:
            told = [f"round {loop.round}/{loop.rounds}", *self._told(loop, row), metric]
            told += [f"{row['time/round']:.2f} s", self._left(loop)]
            self.console.print("  ".join(part for part in told if part), highlight=False, soft_wrap=True)

    def _told(self, loop: FederatedLoop, row: Row) -> Iterator[str]:
        """What a line says of a round beside its metric."""
        if self.phase:
            yield self.phase
        for name, value in row.items():
            if name.startswith(CLIENTS):
                yield f"{name.removeprefix(CLIENTS)}: {int(value)} clients"
        readings = {name: value for name, value in row.items() if name.startswith(READINGS)}
        if readings:
            yield max(readings, key=readings.__getitem__).removeprefix(READINGS)
        if "train/loss" in row:
            loss = f"train/loss {row['train/loss']:.4f}"
            seen = [f"{name} {row[f'train/{name}']:.4f}" for name in loop.clients.reports if row[f"train/{name}"]]
            if seen:
                loss += f" ({', '.join(seen)})"
            yield loss

    def _left(self, loop: FederatedLoop) -> str:
        """How long the other rounds take by those since this run began, as far as they are like them.

        Training may stop before, for want of better ones. Nothing where that is soon or not known yet, and in phases,
        which end by themselves.
        """
        rounds, seconds = loop.round - self._from[0], loop.seconds - self._from[1]
        left = (loop.rounds - loop.round) * seconds / max(rounds, 1)
        if left < LONG or loop.server.phase or self.phase:
            return ""
        return f"at most {duration(left)} left"

    def on_federation_end(self, loop: FederatedLoop) -> None:
        """Take the bars away."""
        self.progress.stop()
