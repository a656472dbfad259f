"""What a run leaves behind: a CSV of its own, and Weights & Biases or another logger beside it."""

from __future__ import annotations

import netrc
import os
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as theirs
import polars as pl
import torch
from lightning.fabric.loggers import Logger

from cgfedrec.errors import check
from cgfedrec.files import append, write_atomically
from cgfedrec.history import Row
from cgfedrec.run.training import Training

MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""What Weights & Biases takes for ``WANDB_MODE``."""
_NOT_IN_PROJECTS = "/\\#?%:"
INIT_TIMEOUT = 20.0
"""Seconds that Weights & Biases may take to answer before a run goes on offline."""


class Forgiving:
    """A logger of somebody else's, whose failure is said once and ends nothing: ``metrics.csv`` holds all.

    Beside the methods of Lightning's loggers, a logger may have some of a run's own: ``start(directory, config)``,
    ``log_histograms(values, round)``, ``log_summary(history, monitor, summary, best)`` and ``abandon()``. Those that
    it has are called.

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

    def on_federation_start(self, training: Training) -> None:
        """Write anew what a resumed run had before: a killed part may have left a row too many, or half of one."""
        if training.history:
            self._write(training.history)

    def on_round_end(self, training: Training) -> None:
        """Add the row of this round, if it was evaluated. Raises `RunError` where the disk is full."""
        if not training.history or training.history[-1]["round"] != training.round:
            return
        row = training.history[-1]
        if row.keys() <= set(self.columns):
            cells = pl.DataFrame([{name: row.get(name) for name in self.columns}])
            append(self.path, cells.write_csv(include_header=False))
        else:  # the first row, or one with a new column: the header changes, so all is written
            self._write(training.history)
        self.logger.call("log_metrics", row, step=training.round)
        self.logger.call("log_histograms", training.histograms(), training.round)

    def _write(self, rows: list[Row]) -> None:
        table = pl.DataFrame(rows, infer_schema_length=None)
        self.columns = table.columns
        write_atomically(self.path, table.write_csv())


class WandbLogger(theirs.WandbLogger):
    """Lightning's logger of Weights & Biases, for runs that know their folder and may have no network.

    It is online where a key is configured, else offline (``wandb sync`` uploads such a run later). A run that cannot
    reach the service soon goes on offline. A run that is resumed in its folder goes on as the same W&B run. No table of
    a client is uploaded unless asked for; the settings are, and with them the seed of the run.

    Args:
        project: Under which project the run is filed.
        name: Of the run; by default, its directory.
        offline: By default, true unless a key is configured.
        log_checkpoint: Upload the best checkpoint as an artifact. It holds every client's private table.

    Raises:
        InputError: for names that Weights & Biases does not take.
    """

    def __init__(
        self,
        project: str = "cgfedrec",
        name: str | None = None,
        offline: bool | None = None,
        log_checkpoint: bool = False,
    ) -> None:
        mode = os.environ.get("WANDB_MODE") or "online"
        problems = []
        if not 0 < len(project) <= 128 or set(project) & set(_NOT_IN_PROJECTS):
            refused = " ".join(_NOT_IN_PROJECTS)
            problems.append(f"logger.project: {project!r} must have from 1 to 128 characters, and none of {refused}")
        if name == "":
            problems.append("logger.name: is empty")
        if mode not in MODES:
            problems.append(f"WANDB_MODE: no {mode!r}; choose one of {', '.join(MODES)}")
        check(*problems)
        if offline is None:
            offline = not _has_key()
        self.offline = offline
        self.log_checkpoint = log_checkpoint
        super().__init__(name=name, project=project, offline=offline)

    def start(self, directory: Path, config: Mapping[str, object]) -> None:
        """Begin or, where ``directory`` holds the identity of an earlier part, continue a W&B run.

        Args:
            directory: The run's folder; W&B writes into ``wandb`` in it.
            config: The settings, as shown in W&B.
        """
        import wandb  # 1 s to import: only for those who use it

        identity = directory / "wandb" / "run-id"
        identity.parent.mkdir(parents=True, exist_ok=True)
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:8])
        settings: dict[str, Any] = {
            "project": self._project,
            "name": self._name or str(directory),
            "id": identity.read_text(),
            "resume": "allow",
            "dir": str(directory.absolute()),  # its service may have another working directory
            "config": dict(config),
        }
        # Lightning's own logger takes over a run that the caller has open, as in a notebook. That one stays theirs.
        quiet = wandb.Settings(silent=True, init_timeout=INIT_TIMEOUT, reinit="create_new")
        mode: Any = os.environ.get("WANDB_MODE") or ("offline" if self.offline else "online")
        try:
            self._experiment = wandb.init(**settings, mode=mode, settings=quiet)
        except wandb.Error as error:
            warnings.warn(f"Weights & Biases does not answer ({error}); this run is logged offline", stacklevel=2)
            self.offline = True
            identity.write_text(uuid.uuid4().hex[:8])  # the first one is taken by the attempt
            self._experiment = wandb.init(**settings | {"id": identity.read_text()}, mode="offline", settings=quiet)
        self.experiment.define_metric("round")
        self.experiment.define_metric("*", step_metric="round")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values of round ``step``: here the axis is the round, where Lightning's logger has a global step."""
        self.experiment.log({**metrics, "round": step})

    def log_histograms(self, values: Mapping[str, torch.Tensor], step: int) -> None:
        """Log how values, `[any]` by name, are distributed in round ``step``."""
        import wandb

        for name, found in values.items():
            self.experiment.log({name: wandb.Histogram(found.tolist()), "round": step})

    def log_summary(self, history: list[Row], monitor: str, summary: Mapping[str, object], best: Path) -> None:
        """Log the table of final metrics, the curve of the monitored metric against bytes, and what was asked for.

        Args:
            history: A row for each evaluated round.
            monitor: The metric of the curve; there is none where the history lacks it or the bytes.
            summary: Of the run; its numbers are shown.
            best: The best checkpoint, which may not be there.
        """
        import wandb

        final = {k: v for k, v in summary.items() if isinstance(v, int | float)}
        self.experiment.summary.update(final)
        rows = [[name, float(value)] for name, value in final.items()]
        self.experiment.log({"final": wandb.Table(columns=["metric", "value"], data=rows)})
        # Rounds that only prepared have no metric, and a reference has no bytes.
        points_of = [[row["bytes/total"], row[monitor]] for row in history if {monitor, "bytes/total"} <= row.keys()]
        if points_of:
            points = wandb.Table(columns=["bytes/total", monitor], data=points_of)
            curve = wandb.plot.line(points, "bytes/total", monitor, f"{monitor} against bytes")
            self.experiment.log({"against bytes": curve})
        if self.log_checkpoint and best.exists():
            artifact = wandb.Artifact(f"best-{self.version}", type="model")
            artifact.add_file(str(best))
            self.experiment.log_artifact(artifact)

    def abandon(self) -> None:
        """Let go of a service that has failed, or it would be called once more when the process ends."""
        import wandb

        wandb.teardown(1)

    def finalize(self, status: str) -> None:
        """End the W&B run, as failed unless ``status`` is ``success``. Lightning's logger leaves that to the caller."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)


def _has_key() -> bool:
    """Whether the user ever logged in to Weights & Biases on this machine."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
