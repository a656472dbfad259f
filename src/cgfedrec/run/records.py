"""What a run leaves behind as it goes: a CSV of its own, and whatever loggers stand beside it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl
from lightning.fabric.loggers import Logger

from cgfedrec.files import append, write_atomically
from cgfedrec.history import Row
from cgfedrec.run.training import Training


class Forgiving:
    """A logger of somebody else's, whose failure is said once and ends nothing: ``metrics.csv`` holds all.

    Beside the methods of Lightning's loggers, a logger may have some of a run's own: ``start(directory, config)``,
    ``log_histograms(values, round)``, ``log_found(run)`` and ``log_summary(history, monitor, summary, best)`` at the
    end, and ``abandon()``. Those that it has are called.

    Args:
        logger: Anything with Lightning's logger interface, or none.
    """

    def __init__(self, logger: Logger | None) -> None:
        self.logger = logger
        self.failed = False

    def start(self, directory: Path, config: dict[str, object]) -> None:
        """Begin a run with these settings, in this folder.

        What fails here is not forgiven: nothing has been trained yet, and the settings can be mended.
        """
        start = getattr(self.logger, "start", None)
        if start is not None:
            start(directory, config)
        elif self.logger is not None:
            with suppress(NotImplementedError):  # not every logger keeps them
                self.logger.log_hyperparams(config)

    def call(self, method: str, *arguments: object, **named: object) -> None:
        """Call a method of the logger, unless there is none, it has no such method, or has failed before."""
        wanted = getattr(self.logger, method, None)
        if wanted is None or self.failed:
            return
        try:
            wanted(*arguments, **named)
        except Exception as error:  # of a service or a library: it may be any
            self.failed = True
            warnings.warn(
                f"{type(self.logger).__name__} has failed ({type(error).__name__}: {error}) and is not used any more; "
                "the run goes on, and metrics.csv holds all",
                stacklevel=2,
            )
            abandon = getattr(self.logger, "abandon", None)
            if abandon is not None:
                with suppress(Exception):
                    abandon()


def rows_of(path: Path) -> list[Row]:
    """The rows of a ``metrics.csv``, without what a row does not hold."""
    rows = pl.read_csv(path, infer_schema_length=None).to_dicts()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


class Loggers:
    """All loggers of a run, each by itself a `Forgiving` one: that one fails is nothing to the others.

    Args:
        loggers: Anything with Lightning's logger interface, or none.
    """

    def __init__(self, loggers: Sequence[Logger | None]) -> None:
        self._each = [Forgiving(logger) for logger in loggers]

    def start(self, directory: Path, config: dict[str, object]) -> None:
        """`Forgiving.start` of each."""
        for one in self._each:
            one.start(directory, config)

    def call(self, method: str, *arguments: object, **named: object) -> None:
        """`Forgiving.call` of each."""
        for one in self._each:
            one.call(method, *arguments, **named)


class History:
    """Keeps ``metrics.csv``, a row an evaluated round, and hands each new row to the logger.

    A row is appended as it comes, so that a round's cost does not grow with those before it. What a killed run left
    half written is cut off when training goes on, since the checkpoint holds all rows of before.

    Args:
        path: Of the CSV.
        logger: The run's, one or all.
    """

    def __init__(self, path: Path, logger: Forgiving | Loggers) -> None:
        self.path = path
        self.logger = logger
        self.columns: list[str] = []
        self._round = 0

    def on_federation_start(self, training: Training) -> None:
        """Write anew what a resumed run had before: a killed part may have left a row too many, or half of one."""
        if training.history:
            self._write(training.history)

    def on_round_end(self, training: Training) -> None:
        """Add the row of this round, if it was evaluated. Raises `RunError` where the disk is full."""
        if not training.history or training.history[-1]["round"] != training.round:
            return
        row, before = training.history[-1], self._round
        self._round = training.round
        if row.keys() <= set(self.columns) and before != training.round:
            cells = pl.DataFrame([{name: row.get(name) for name in self.columns}])
            append(self.path, cells.write_csv(include_header=False))
        else:  # the first row, one with a new column, or the same round told anew: all is written
            self._write(training.history)
        self.logger.call("log_metrics", row, step=training.round)
        self.logger.call("log_histograms", training.histograms(), training.round)

    def _write(self, rows: list[Row]) -> None:
        table = pl.DataFrame(rows, infer_schema_length=None)
        self.columns = table.columns
        write_atomically(self.path, table.write_csv())
