"""What a run leaves behind: a CSV of its own, and Weights & Biases or another logger beside it."""

from __future__ import annotations

import netrc
import os
import uuid
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning.fabric.loggers import Logger

from cgfedrec.errors import check
from cgfedrec.files import append, write_atomically
from cgfedrec.history import Row
from cgfedrec.loop import FederatedLoop

MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""What Weights & Biases takes for ``WANDB_MODE``."""
_NOT_IN_PROJECTS = "/\\#?%:"
INIT_TIMEOUT = 20.0
"""Seconds that Weights & Biases may take to answer before a run goes on offline."""


class Forgiving:
    """A logger of somebody else's, whose failure is said once and ends nothing: ``metrics.csv`` holds all.

    Args:
        logger: Anything with Lightning's logger interface, or none.
    """

    def __init__(self, logger: Logger | None) -> None:
        self.logger = logger
        self.failed = False

    def do(self, call: Callable[[Any], object]) -> None:
        """Let ``call`` use the logger, unless there is none or it has failed before."""
        if self.logger is None or self.failed:
            return
        try:
            call(self.logger)
        except Exception as error:  # of a service or a library: it may be any
            self.failed = True
            warnings.warn(
                f"{type(self.logger).__name__} has failed ({type(error).__name__}: {error}) and is not used any more; "
                "the run goes on, and metrics.csv holds all",
                stacklevel=2,
            )
            if isinstance(self.logger, WandbLogger):
                self.logger.abandon()


class History:
    """Keeps ``metrics.csv``, a row an evaluated round, and hands each new row to the logger.

    A row is appended as it comes, so that a round's cost does not grow with those before it. What a killed run left
    half written is cut off when training goes on, since the checkpoint holds all rows of before.

    Args:
        path: Of the CSV.
        logger: The run's.
    """

    def __init__(self, path: Path, logger: Forgiving) -> None:
        self.path = path
        self.logger = logger
        self.columns: list[str] = []

    def on_federation_start(self, loop: FederatedLoop) -> None:
        if loop.history:
            self._write(loop)

    def on_round_end(self, loop: FederatedLoop) -> None:
        if not loop.history or loop.history[-1]["round"] != loop.round:
            return
        row = loop.history[-1]
        if row.keys() <= set(self.columns):
            append(
                self.path,
                pl.DataFrame([{name: row.get(name) for name in self.columns}]).write_csv(include_header=False),
            )
        else:
            self._write(loop)
        self.logger.do(lambda logger: self._log(logger, loop))

    def _log(self, logger: Logger, loop: FederatedLoop) -> None:
        logger.log_metrics(loop.history[-1], step=loop.round)
        if isinstance(logger, WandbLogger):
            for name, values in loop.server.histograms().items():
                logger.log_histogram(name, values, loop.round)

    def _write(self, loop: FederatedLoop) -> None:
        table = pl.DataFrame(loop.history, infer_schema_length=None)
        self.columns = table.columns
        write_atomically(self.path, table.write_csv())


class WandbLogger(Logger):
    """Weights & Biases: online where a key is configured, else offline (``wandb sync`` uploads such a run later).

    A run that cannot reach the service soon goes on offline. Nothing private is uploaded unless asked for.

    Args:
        project: Under which project the run is filed.
        name: Of the run; by default, its directory.
        offline: By default, true unless a key is configured.
        log_checkpoint: Upload the best checkpoint as an artifact. It holds every client's private table.
    """

    def __init__(
        self,
        project: str = "cgfedrec",
        name: str | None = None,
        offline: bool | None = None,
        log_checkpoint: bool = False,
    ) -> None:
        mode = os.environ.get("WANDB_MODE") or "online"
        check(
            f"logger.project: {project!r} must have from 1 to 128 characters, and none of {' '.join(_NOT_IN_PROJECTS)}"
            if not 0 < len(project) <= 128 or set(project) & set(_NOT_IN_PROJECTS)
            else None,
            "logger.name: is empty" if name == "" else None,
            None if mode in MODES else f"WANDB_MODE: no {mode!r}; choose one of {', '.join(MODES)}",
        )
        self.project = project
        self._name = name
        self.offline = not _has_key() if offline is None else offline
        self.log_checkpoint = log_checkpoint
        self.run: Any = None

    @property
    def name(self) -> str | None:
        return self._name

    @property
    def version(self) -> str | None:
        return None if self.run is None else str(self.run.id)

    @property
    def experiment(self) -> Any:
        """The W&B run, once started."""
        return self.run

    def start(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Begin or, where ``directory`` holds the identity of an earlier part, continue a W&B run."""
        import wandb  # 1 s to import: only for those who use it

        self._name = self._name or str(directory)
        identity = directory / "wandb" / "run-id"
        identity.parent.mkdir(parents=True, exist_ok=True)
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:8])
        settings: dict[str, Any] = {
            "project": self.project,
            "name": self._name,
            "id": identity.read_text(),
            "resume": "allow",
            "dir": str(directory.absolute()),  # its service may have another working directory
            "config": dict(config),
        }
        # A run that the caller has open, as in a notebook, stays the caller's.
        quiet = wandb.Settings(silent=True, init_timeout=INIT_TIMEOUT, reinit="create_new")
        mode: Any = os.environ.get("WANDB_MODE") or ("offline" if self.offline else "online")
        try:
            self.run = wandb.init(**settings, mode=mode, settings=quiet)
        except wandb.Error as error:
            warnings.warn(f"Weights & Biases does not answer ({error}); this run is logged offline", stacklevel=2)
            self.offline = True
            identity.write_text(uuid.uuid4().hex[:8])  # the first one is taken by the attempt
            self.run = wandb.init(**settings | {"id": identity.read_text()}, mode="offline", settings=quiet)
        self.run.define_metric("round")
        self.run.define_metric("*", step_metric="round")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run.log({**metrics, "round": step})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self.run.config.update(params if isinstance(params, dict) else vars(params))

    def log_histogram(self, name: str, values: torch.Tensor, step: int) -> None:
        """Log how ``values`` are distributed in a round."""
        import wandb

        self.run.log({name: wandb.Histogram(values.tolist()), "round": step})

    def log_summary(self, history: list[Row], monitor: str, summary: Mapping[str, Any], best: Path) -> None:
        """Log the table of final metrics, the curve of the monitored metric against bytes, and what was asked for."""
        import wandb

        final = {k: v for k, v in summary.items() if isinstance(v, int | float)}
        self.run.summary.update(final)
        self.run.log(
            {"final": wandb.Table(columns=["metric", "value"], data=[[k, float(v)] for k, v in final.items()])}
        )
        if history and {monitor, "bytes/total"} <= history[-1].keys():
            points = wandb.Table(
                columns=["bytes/total", monitor], data=[[row["bytes/total"], row[monitor]] for row in history]
            )
            self.run.log({"against bytes": wandb.plot.line(points, "bytes/total", monitor, f"{monitor} against bytes")})
        if self.log_checkpoint and best.exists():
            artifact = wandb.Artifact(f"best-{self.run.id}", type="model")
            artifact.add_file(str(best))
            self.run.log_artifact(artifact)

    def abandon(self) -> None:
        """Let go of a service that has failed, or it would be called once more when the process ends."""
        import wandb

        self.run = None
        with suppress(Exception):
            wandb.teardown(1)

    def finalize(self, status: str) -> None:
        """End the W&B run, as failed unless ``status`` is ``success``."""
        if self.run is not None:
            self.run.finish(exit_code=0 if status == "success" else 1)
            self.run = None


def _has_key() -> bool:
    """Whether the user ever logged in to Weights & Biases on this machine."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
