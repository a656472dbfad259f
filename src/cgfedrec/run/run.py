"""A run: what the command line and Python start, resume, test and ask for recommendations."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl
import yaml
from jsonargparse import Namespace
from lightning.fabric.loggers import Logger
from rich.console import Console

from cgfedrec import __version__
from cgfedrec.centralized import Popularity
from cgfedrec.centralized.reference import Reference
from cgfedrec.data import FederatedDataModule
from cgfedrec.data.module import Stage
from cgfedrec.errors import InputError, RunError, check
from cgfedrec.evaluation.ranking import Ranked, evaluate, rank_table, summarise
from cgfedrec.files import file_digest, write_atomically, write_json
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.run.callbacks import EarlyStopping, Interrupt, ProgressBar
from cgfedrec.run.checkpoint import BEST, LAST, Checkpoint, Header, changed, copy, link_or_copy, read_checkpoint
from cgfedrec.run.console import quiet_console, show_data, tracker
from cgfedrec.run.engine import engine
from cgfedrec.run.folder import CLIENTS, CONFIG, METRICS, RANKS
from cgfedrec.run.loggers import Forgiving, History, WandbLogger
from cgfedrec.run.recommend import recommend, write
from cgfedrec.server import Server
from cgfedrec.settings.parser import dump, instantiate
from cgfedrec.simulation.store import ClientStore
from cgfedrec.wire.messages import NotFiniteError

PACKAGES = ("lightning", "torch", "torchmetrics", "wandb", "polars", "scikit-learn", "numpy")
SCORED_AT_ONCE = 256
"""Users whom a reference scores in one operation."""


class Run:
    """A federation with its data: trained by `fit`, opened by `load`.

    Args:
        settings: As parsed.
        directory: Where everything is written.
        callbacks: The user's.
        console: Where progress and results are shown.
        clients: The files of clients' state, where there are some already.
        to_train: Otherwise a state is only used, and takes no room.

    Attributes:
        loop: The federation.
        data: Its data.
        summary: What ``summary.json`` holds, once training has ended.
        interrupted: The signal that ended training early, or ``None``.
    """

    def __init__(
        self,
        settings: Namespace,
        directory: Path,
        callbacks: Sequence[Any] = (),
        console: Console | None = None,
        clients: Path | None = None,
        to_train: bool = True,
    ) -> None:
        parts = instantiate(settings)
        self.directory, self.console = directory, console or quiet_console()
        self.config = dump(settings)
        self.loop: FederatedLoop = parts.loop
        self.data: FederatedDataModule = parts.data
        self.method: Method | Reference = parts.method
        self.logger: Logger | None = parts.logger
        self.log = Forgiving(parts.logger)
        self.summary: dict[str, Any] = {}
        self.data.attach(parts.protocol, settings.seed_everything, tracker(self.console))
        self.data.setup()
        method = f"{type(self.method).__module__}.{type(self.method).__qualname__}"
        self.header = Header(uuid.uuid4().hex, self.config, method, self.data.fingerprint())
        self._interrupt = Interrupt()
        self._setup(parts, callbacks, clients, to_train)

    def _setup(self, parts: Namespace, callbacks: Sequence[Any], clients: Path | None, to_train: bool) -> None:
        self._checkpoint = Checkpoint(self.checkpoints, self.header)
        hooks = [
            History(self.directory / METRICS, self.log),
            EarlyStopping(),
            self._interrupt,
            ProgressBar(self.console),
            *callbacks,
            self._checkpoint,
        ]
        folder = clients or self.checkpoints / CLIENTS
        fabric = engine(vars(parts.fabric), hooks)
        try:
            self.loop.setup(fabric, self.data, parts.method, folder, to_train, parts.wire)
        except (MemoryError, RuntimeError, ArithmeticError) as error:
            raise InputError(f"method: cannot be set up with these settings: {error or 'no memory is left'}") from error

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.directory / "checkpoints"

    @property
    def interrupted(self) -> int | None:
        """The number of the signal that ended training early."""
        return self._interrupt.signal

    @property
    def history(self) -> pl.DataFrame:
        """A row for each evaluated round, as in ``metrics.csv``."""
        return pl.DataFrame(self.loop.history, infer_schema_length=None)

    @property
    def server(self) -> Server:
        """The server, as it is after the round that is loaded: the best one, once training has ended."""
        return self.loop.server

    @property
    def clients(self) -> ClientStore:
        """Every client's private state, after the same round."""
        return self.loop.store

    def restore(self, state: dict[str, Any], resumed: Path | None = None) -> None:
        """Go to where a checkpoint was written.

        Args:
            state: Of `read_checkpoint`.
            resumed: The checkpoint, if training is to go on from it; nothing may differ then on which its result
                depends.

        Raises:
            InputError: where it does not belong to this run.
        """
        check(
            f"ckpt_path: was trained with {state['method']}, this run uses {self.header.method}"
            if state["method"] != self.header.method
            else None,
            f"ckpt_path: was trained on other data than {self.data.path or 'the embedded set'}, or on another split"
            if state["fingerprint"] != self.header.fingerprint
            else None,
        )
        check(*changed(yaml.safe_load(state["config"]), yaml.safe_load(self.config), resumed is not None))
        self.header = self.header._replace(run=state["run"])
        if resumed:
            self._adopt_clients(resumed)
        try:
            self.loop.load_state_dict(state["loop"])
        except FileNotFoundError as error:
            raise InputError(f"ckpt_path: the clients' state is not beside it: no file {error.filename}") from error
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise InputError(f"ckpt_path: holds no state of this federation ({error})") from error

    def _adopt_clients(self, checkpoint: Path) -> None:
        """Copy the files of clients' state that a checkpoint in another folder refers to, if there are any."""
        theirs, ours = checkpoint.with_name(CLIENTS), self.checkpoints / CLIENTS
        if theirs.is_dir() and not (ours.exists() and ours.samefile(theirs)):
            for path in theirs.iterdir():
                copy(path, ours / path.name)

    def adopt(self, checkpoint: Path) -> None:
        """Make a checkpoint and the best round so far this run's own. Raises `InputError` if the best is nowhere.

        The best round comes first: a folder is a run's once it holds ``last.ckpt``, and can then be continued.
        """
        self._checkpoint.header = self.header
        best = self.loop.best
        adopted = {LAST: checkpoint}
        if best is not None:
            at_best = best["round"] == self.loop.round
            adopted = {BEST: checkpoint if at_best else checkpoint.with_name(BEST)} | adopted
            self._read_best(adopted[BEST], int(best["round"]))
        for name, source in adopted.items():
            target = self.checkpoints / name
            if not target.exists() or not source.samefile(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, target)

    def _read_best(self, path: Path, round: int) -> dict[str, Any]:
        """The checkpoint of the best round. Raises `InputError` if it is another, or another run's."""
        state = read_checkpoint(path)
        ours = (self.header.run, self.header.fingerprint, round)
        if (state["run"], state["fingerprint"], state["loop"].get("round")) != ours:
            raise InputError(f"ckpt_path: {path} is not round {round} of this run, the best so far")
        return state

    def fit(self) -> None:
        """Train, then test the best round once, and write ``ranks.parquet`` and ``summary.json``.

        Raises:
            RunError: if a loss or an upload is not finite.
        """
        show_data(self.console, self.data)
        self.console.print(self._intent(), highlight=False)
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory / CONFIG, self.config)
        if isinstance(self.logger, WandbLogger):
            self.logger.start(self.directory, yaml.safe_load(self.config))
        elif self.logger is not None:
            with suppress(NotImplementedError):  # not every logger keeps them
                self.logger.log_hyperparams(yaml.safe_load(self.config))
        status, started, before = "failed", time.perf_counter(), self.loop.seconds
        try:
            self.train()
            if not self.interrupted:
                self._finish(lambda: before + time.perf_counter() - started)
                status = "success"
        except NotFiniteError as error:
            clients = ", ".join(str(self.data.user_ids[client]) for client in error.clients[:5])
            raise RunError(
                f"round {self.loop.round}, client {clients}{' and others' if len(error.clients) > 5 else ''}: the "
                f"{error.what} is not finite; a lower learning rate or alignment may help. "
                + (f"The last good checkpoint is in {self.checkpoints}" if self.checkpoints.exists() else "")
            ) from error
        except MemoryError as error:
            raise RunError(
                f"round {self.loop.round}: no memory is left; smaller method.dim, data.batch_size, loop.cohort_size or "
                "method.local_epochs need less"
            ) from error
        finally:
            self.log.do(lambda logger: logger.finalize(status))

    def _intent(self) -> str:
        return f"{type(self.method).__name__}, {self.loop.rounds} rounds, in {self.directory}\n{self.loop.capacity}"

    def train(self) -> None:
        """Train and validate, and neither test nor write results; `fit` does all."""
        self.loop.fit()

    def ranked(self, stage: Stage) -> Ranked:
        """Where the state that is loaded ranks what is held out for ``stage``."""
        return self.loop.ranked(stage)

    def _finish(self, seconds: Callable[[], float]) -> None:
        best_path = self.checkpoints / BEST
        history, best = self.loop.history, self.loop.best
        if best is None:
            raise RunError(
                f"stopped after round {self.loop.round}, before the first evaluation: there is nothing to report"
            )
        last = history[-1]
        if best["round"] != self.loop.round:
            self.loop.open_state_dict(self._read_best(best_path, int(best["round"]))["loop"])
            self.loop.history = history
        protocol = self.data.protocol.to_dict()
        found = self.ranked("test") if self.data.holds_out("test") else None
        if found is not None:
            write(rank_table(self.data, found), self.directory / RANKS)
        written = [self.directory / name for name in (CONFIG, METRICS, RANKS)]
        self.summary = {
            "run": self.header.run,
            "round": int(best["round"]),
            "method": self.header.method,
            "best_round": int(best["round"]),
            "rounds": int(last["round"]),
            "protocol": protocol,
            "candidates": protocol["candidates"],
            "seed": self.data.seed,
            "users": self.data.num_users,
            "items": self.data.num_items,
            "seconds": seconds(),
            "files": {path.name: file_digest(path) for path in written if path.exists()},
            "versions": {
                "cgfedrec": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in PACKAGES},
            },
            **{name: value for name, value in best.items() if name.startswith(("train/", "val/", "clusters/"))},
            **{name: value for name, value in last.items() if name.startswith("bytes/")},
            "time/round": fmean(row["time/round"] for row in history),
            **(self._summarise(found) if found is not None else {}),
        }
        write_json(self.directory / "summary.json", self.summary)
        self.log.do(self._log_summary)

    def _log_summary(self, logger: Logger) -> None:
        if isinstance(logger, WandbLogger):
            logger.log_summary(self.loop.history, self.loop.monitor, self.summary, self.checkpoints / BEST)
            return
        tested = {name: value for name, value in self.summary.items() if name.startswith("test/")}
        logger.log_metrics(tested, step=self.loop.round)

    def test(self) -> dict[str, float]:
        """Test metrics of the state that is loaded and, as ``popularity/...``, of showing everybody what is popular."""
        return self._summarise(self.ranked("test")) if self.data.holds_out("test") else {}

    def _summarise(self, found: Ranked) -> dict[str, float]:
        popular = evaluate(self.data, "test", Popularity().fit(self.data).score, SCORED_AT_ONCE)
        return summarise(self.data, "test", found) | {f"popularity/{name}": value for name, value in popular.items()}

    def recommend(self, users: Sequence[Any] | None = None, top_k: int = 10) -> pl.DataFrame:
        """The best items for users, without those that they have; see `cgfedrec.run.recommend.recommend`."""
        return recommend(self.loop, users, top_k)
