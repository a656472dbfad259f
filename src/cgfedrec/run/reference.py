"""The training of a reference: one fit in one place, told as a run of one round."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Fabric
from rich.console import Console
from torch import Tensor

from cgfedrec.centralized.reference import Reference
from cgfedrec.centralized.vectors import SCORED_AT_ONCE
from cgfedrec.data.module import FederatedDataModule, Stage
from cgfedrec.errors import check
from cgfedrec.evaluation.ranking import Ranked, gains, no_metric, ranked, summarise
from cgfedrec.history import Evaluations, Row, rows_of
from cgfedrec.run.console import LONG, progress_bars, quiet_console
from cgfedrec.server import READINGS
from cgfedrec.units import duration

EVERY = 10.0
"""Seconds between two lines of epochs, where there is no terminal for a bar."""


class EpochBar:
    """Shows epochs and their metric: a bar on a terminal, elsewhere a line every so often. It is a `Watch`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = progress_bars(console, "metric")
        self.metric = ""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show what is told meanwhile; nothing where there are no epochs."""
        self.started = time.perf_counter()
        self.next = self.started + LONG
        try:
            yield
        finally:
            if self.progress.tasks:
                self.progress.stop()

    def __call__(self, epoch: int, epochs: int, found: Row) -> None:
        if not self.progress.tasks:
            self.progress.start()
            self.progress.add_task("epochs", total=epochs, metric="")
        for name, value in found.items():
            self.metric = f"{name} {value:.4f}"
        self.progress.update(self.progress.tasks[0].id, completed=epoch, metric=self.metric)
        now = time.perf_counter()
        if self.console.is_terminal or now < self.next or epoch == epochs:
            return
        self.next = now + EVERY
        left = f"at most {duration((now - self.started) / epoch * (epochs - epoch))} left"
        told = (f"epoch {epoch}/{epochs}", self.metric, left)
        self.console.print("  ".join(part for part in told if part), highlight=False, soft_wrap=True)


class ReferenceFit(Evaluations):
    """What stands in a run in place of a federation's loop where the method is a `Reference`.

    It ends with one row in ``metrics.csv`` and sends nothing. Fabric calls ``on_round_end`` once it is fitted, and no
    other hook.

    Args:
        reference: What is fitted.
        data: Set up.
        fabric: Says on which device it computes.
        monitor: The validation metric by which it is compared, and which chooses among several readings.
        console: Where epochs are shown; by default nowhere.

    Raises:
        InputError: for settings that do not fit the data.
    """

    rounds = 1

    def __init__(
        self,
        reference: Reference,
        data: FederatedDataModule,
        fabric: Fabric,
        monitor: str,
        console: Console | None = None,
    ) -> None:
        check(no_metric("loop.monitor", monitor, data))
        reference.check(data)
        reference.device = fabric.device
        super().__init__(monitor)
        self.reference, self.data, self.fabric = reference, data, fabric
        self.epochs = reference.watch = EpochBar(console or quiet_console())
        self.round = 0
        self.seconds = 0.0
        self.reading = ""
        self.bytes_scoring = 0  # nobody downloads anything

    def fit(self) -> None:
        """Fit the reference, choose how it is read, and rank what is held out for validation.

        Raises:
            RunError: if fitting fails.
        """
        if not self.round:  # otherwise a checkpoint holds it whole
            self._fit()
        self.fabric.call("on_round_end", self)

    def _fit(self) -> None:
        started = time.perf_counter()
        with self.epochs.shown():
            self.reference.fit(self.data)
        judged = self._by_reading()
        self.reading = next(iter(self.reference.readings))
        if judged:
            self.reading = max(judged, key=judged.__getitem__)
            self.reference.read_by(self.reading)
        self.seconds = time.perf_counter() - started
        found: Row = {f"{READINGS}{name}": value for name, value in judged.items()}
        if self.data.holds_out("val"):
            found |= summarise(self.data, "val", self.ranked("val"))
        self.round = 1
        self.history = [{"round": 1, **self.reference.report(), **found, "time/round": self.seconds}]

    def _by_reading(self) -> Row:
        """The monitored metric by each reading; nothing where there is one alone, or nothing to choose by."""
        if len(self.reference.readings) == 1 or not self.data.holds_out("val"):
            return {}
        total, asked = dict[str, float](), 0
        for users in self.data.ranked("val", SCORED_AT_ONCE):
            cohort = self.data.ranking(users, "val")
            asked += len(users)
            for name, scores in self.reference.read_all(users):
                gain = gains(self.monitor.removeprefix("val/"), scores.cpu(), cohort).sum().item()
                total[name] = total.get(name, 0) + gain
        return {name: gain / asked for name, gain in total.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that was found, by which `load_state_dict` becomes what this one is."""
        learned = {name: value.cpu().contiguous() for name, value in self.reference.learned().items()}
        of_fit = {"round": self.round, "history": self.table(), "seconds": self.seconds}
        return {**of_fit, "reading": self.reading, "learned": learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Be as after the fit whose `state_dict` that was.

        Raises:
            ValueError, KeyError, TypeError: if it was taken elsewhere.
        """
        if state["round"] != self.rounds:
            raise ValueError("a reference is fitted in one round")
        self.reference.recall(self.data, state["learned"])
        self.reference.read_by(state["reading"])
        self.reading, self.seconds = state["reading"], float(state["seconds"])
        self.round, self.history = self.rounds, rows_of(state["history"])

    def score(self, users: Tensor) -> Tensor:
        """Scores of all items, `[users, items]`, for users `[users]`."""
        return self.reference.score(users)

    def ranked(self, stage: Stage) -> Ranked:
        """Where the fitted reference ranks what is held out for ``stage``."""
        return ranked(self.data, stage, self.score, SCORED_AT_ONCE)

    def histograms(self) -> dict[str, Tensor]:
        """Values `[any]` by name: none, since nothing is discovered in rounds."""
        return {}
