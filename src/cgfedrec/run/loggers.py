"""Weights & Biases, as it is used: online where there is a key, a run for each folder, the round as its axis."""

from __future__ import annotations

import netrc
import os
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch.loggers as theirs
import polars as pl
import torch

from cgfedrec.data.arguments import origin
from cgfedrec.errors import check, no_count
from cgfedrec.history import Row
from cgfedrec.pages.render import alone
from cgfedrec.run.export import nothing_yet
from cgfedrec.run.page import PAGE
from cgfedrec.run.structure import named

if TYPE_CHECKING:
    import wandb

    from cgfedrec.run.run import Run

MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""What Weights & Biases takes for ``WANDB_MODE``."""
_NOT_IN_PROJECTS = "/\\#?%:"
LONGEST_TAG = 64
EXAMPLE_ITEMS = 10
"""That are recommended to an example user, and of those that it had last."""
INIT_TIMEOUT = 20.0
"""Seconds that Weights & Biases may take to answer before a run goes on offline."""


class WandbLogger(theirs.WandbLogger):
    """Lightning's logger of Weights & Biases, for runs that know their folder and may have no network.

    It is online where a key is configured, else offline (``wandb sync`` uploads such a run later). A run that cannot
    reach the service soon goes on offline. A run that is resumed in its folder goes on as the same W&B run: online as
    one, offline as a second record of the same id, whose steps go on. No table of a client is uploaded unless asked
    for; the settings are, and with them the seed of the run.

    Args:
        project: Under which project the run is filed.
        name: Of the run; by default, its directory.
        group: Of runs that belong together; a comparison and a search give their own.
        tags: Beside the method, the data and the protocol, which always are.
        job_type: What the run is part of; a comparison and a search give their own.
        offline: By default, true unless a key is configured.
        log_checkpoint: Upload the best checkpoint as an artifact. It holds every client's private table.
        examples: Upload what is recommended to so many of the users, with what they had last. Both are private.

    Raises:
        InputError: for names that Weights & Biases does not take.
    """

    def __init__(
        self,
        project: str = "cgfedrec",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        job_type: str = "fit",
        offline: bool | None = None,
        log_checkpoint: bool = False,
        examples: int = 0,
    ) -> None:
        mode = os.environ.get("WANDB_MODE") or "online"
        problems: list[str | None] = [no_count("logger.examples", examples, least=0)]
        problems += [f"logger.tags: {tag!r} must have from 1 to 64 characters" for tag in tags or [] if not _fits(tag)]
        if not 0 < len(project) <= 128 or set(project) & set(_NOT_IN_PROJECTS):
            refused = " ".join(_NOT_IN_PROJECTS)
            problems.append(f"logger.project: {project!r} must have from 1 to 128 characters, and none of {refused}")
        for option, text in (("name", name), ("group", group), ("job_type", job_type)):
            if text == "":
                problems.append(f"logger.{option}: is empty")
        if mode not in MODES:
            problems.append(f"WANDB_MODE: no {mode!r}; choose one of {', '.join(MODES)}")
        check(*problems)
        if offline is None:
            offline = not has_key()
        self.offline = offline
        self.log_checkpoint = log_checkpoint
        self.group, self.job_type, self.tags = group, job_type, list(tags or [])
        self.examples = examples
        self._step = 0  # the latest: W&B takes none that lies before it
        super().__init__(name=name, project=project, offline=offline)

    def start(self, directory: Path, config: Mapping[str, object]) -> None:
        """Begin or, where ``directory`` holds the identity of an earlier part, continue a W&B run.

        Args:
            directory: The run's folder; W&B writes into ``wandb`` in it.
            config: The settings, as shown in W&B.
        """
        identity = directory / "wandb" / "run-id"
        identity.parent.mkdir(parents=True, exist_ok=True)
        _without_home(identity.parent.absolute())

        import wandb  # 1 s to import: only for those who use it

        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:8])
        settings: dict[str, Any] = {
            "project": self._project,
            "name": self._name or str(directory),
            "group": self.group,
            "job_type": self.job_type,
            "tags": [*_tags_of(config), *self.tags],
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
        self.experiment.define_metric("bytes/total")
        self.experiment.define_metric("*", step_metric="round")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values of round ``step``: here the axis is the round, where Lightning's logger has a global step."""
        self._log(metrics, step)

    def _log(self, values: Mapping[str, Any], round: int | None = None) -> None:
        """Log values of a round, or of the end. A second record of a run that went on has steps behind the first's."""
        if round is None:
            self.experiment.log(dict(values), step=self._step)
            return
        if round < self._step:
            # Such as the test of the best round. It must not change the row of the last one, and a row of its own would
            # take the step of the round with which the run may go on: W&B takes each step once.
            self.experiment.summary.update(dict(values))
            return
        self._step = round
        self.experiment.log({**values, "round": round}, step=round)

    def log_histograms(self, values: Mapping[str, torch.Tensor], step: int) -> None:
        """Log how values, `[any]` by name, are distributed in round ``step``."""
        import wandb

        self._log({name: wandb.Histogram(found.tolist()) for name, found in values.items()}, step)

    def log_found(self, run: Run) -> None:
        """Log the page of the run, what its server discovered and, where asked for, what it recommends to some users.

        Args:
            run: That has come to its end.
        """
        import wandb

        page = run.directory / PAGE
        if page.exists():
            self._log({"page": wandb.Html(page.read_text(encoding="utf-8"))})
        found = run.structure
        if found is not None:
            self._log(
                {
                    "structure/map": wandb.Html(alone(found.map)),
                    "structure/clusters": _table(["items", "which most users have"], found.clusters),
                    "structure/neighbours": _table(["item", "neighbours"], found.neighbours),
                }
            )
            if found.theta:
                self._log({"structure/theta": wandb.Html(alone(found.theta))})
        if self.examples and not nothing_yet(run.scorer):
            table = self._examples(run)
            self._log({"examples": _table(table.columns, table.rows())})

    def _examples(self, run: Run) -> pl.DataFrame:
        """What is recommended to users who stand evenly among all, and the items that they had last."""
        data = run.data
        places = torch.linspace(0, data.num_users - 1, min(self.examples, data.num_users)).long()  # [examples]
        table = run.recommend([data.user_ids[place] for place in places.tolist()], EXAMPLE_ITEMS)
        last = {}
        for place, items in zip(places.tolist(), data.histories(places).items, strict=True):
            own = items[items >= 0][:EXAMPLE_ITEMS].tolist()
            last[data.user_ids[place]] = "; ".join(named(data, own))
        return table.with_columns(pl.Series("had last", [last[user] for user in table["user"]]))

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
        self._log({"final": _table(["metric", "value"], [[name, float(value)] for name, value in final.items()])})
        # Rounds that only prepared have no metric, and a reference has no bytes.
        points_of = [[row["bytes/total"], row[monitor]] for row in history if {monitor, "bytes/total"} <= row.keys()]
        if points_of:
            points = wandb.Table(columns=["bytes/total", monitor], data=points_of)
            curve = wandb.plot.line(points, "bytes/total", monitor, f"{monitor} against bytes")
            self._log({"against bytes": curve})
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


def _without_home(folder: Path) -> None:
    """Let W&B write below this folder what it would write into the user's, where that cannot be.

    Its service prints all that it cannot log there, and artifacts, which hold tables, are prepared there.
    """
    usual = (("WANDB_CACHE_DIR", "XDG_CACHE_HOME", ".cache"), ("WANDB_DATA_DIR", "XDG_DATA_HOME", ".local/share"))
    for variable, base, below in usual:
        if os.environ.get(variable):
            continue
        home = os.environ.get("HOME")
        place = Path(os.environ.get(base) or Path(home or "/dev/null") / below) / "wandb"
        try:
            place.mkdir(parents=True, exist_ok=True)
            usable = os.access(place, os.W_OK | os.X_OK)
        except OSError:
            usable = False
        if not usable:
            os.environ[variable] = str(folder)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> wandb.Table:
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def _tags_of(config: Mapping[str, Any]) -> list[str]:
    """The method, the data and the protocol of a run's settings, as tags."""
    method = str(config["method"]["class_path"]).rpartition(".")[2]
    path = (config["data"].get("init_args") or {}).get("path")
    data = Path(path).stem if path else origin(None, config["data"]["class_path"])
    tags = [method, data, f"{config['protocol']['name']} protocol"]
    return [tag[:LONGEST_TAG] for tag in tags if tag]


def _fits(tag: str) -> bool:
    return 0 < len(tag) <= LONGEST_TAG


def has_key() -> bool:
    """Whether the user ever logged in to Weights & Biases on this machine."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
