"""A run: settings and data, what trains on them, and everything that is kept of it in one folder."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from jsonargparse import Namespace
from lightning.fabric.loggers import Logger
from rich.console import Console

from cgfedrec.centralized.reference import Reference
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError, RunError, check
from cgfedrec.evaluation.ranking import rank_table
from cgfedrec.files import write_atomically, write_json
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.processes import Processes
from cgfedrec.run.callbacks import EarlyStopping, Pace, ProgressBar
from cgfedrec.run.checkpoint import BEST, LAST, Header, State
from cgfedrec.run.console import quiet_console, show_unfinished, tracker
from cgfedrec.run.describe import show_data
from cgfedrec.run.engine import alone, engine, rank_of
from cgfedrec.run.explained import explained
from cgfedrec.run.folder import CLIENTS, CONFIG, METRICS, RANKS
from cgfedrec.run.interrupt import Interrupt
from cgfedrec.run.page import PAGE, page_of, pictures
from cgfedrec.run.recommend import write
from cgfedrec.run.records import History, Loggers
from cgfedrec.run.reference import ReferenceFit
from cgfedrec.run.resume import Checkpoints, made_of
from cgfedrec.run.structure import Shown, shown
from cgfedrec.run.summary import popular_ranks, summary_of, tested
from cgfedrec.run.trained import Trained
from cgfedrec.run.training import Training
from cgfedrec.run.update import BEFORE, HISTORIES, Update, before_beside, forget, keep, told
from cgfedrec.settings.hooks import unheeded
from cgfedrec.settings.own import code_of, going_on
from cgfedrec.settings.parser import dump, instantiate


class Run(Trained):
    """A federation, or a reference, with its data: trained by `fit`, opened by `load`.

    Args:
        settings: As parsed.
        directory: Where everything is written.
        callbacks: The user's; a reference has no rounds, and calls none of them.
        console: Where progress and results are shown.
        clients: The files of clients' state, where there are some already.
        to_train: Otherwise a state is only used, and takes no room.
        update: From where it goes on with other data.

    Attributes:
        processes: That share the clients; often this one alone.
        config: The settings as YAML, as in ``config.yaml``.
        logger: What the settings name beside the CSV, if anything; ``loggers`` may list more.
        log: All loggers, together.
        summary: What ``summary.json`` holds, once training has ended.
        structure: What was discovered, as far as a page shows it, once training has ended.

    Raises:
        InputError: for settings that do not fit the data or the machine, naming all of them where that can be.
    """

    def __init__(
        self,
        settings: Namespace,
        directory: Path,
        callbacks: Sequence[object] = (),
        console: Console | None = None,
        clients: Path | None = None,
        to_train: bool = True,
        update: Update | None = None,
    ) -> None:
        parts = instantiate(settings)
        self.directory, self.console = directory, console or quiet_console()
        self.config = dump(settings)
        self.data: FederatedDataModule = parts.data
        self.method: Method | Reference = parts.method
        self.logger: Logger | None = parts.logger
        self.summary: dict[str, Any] = {}
        self.structure: Shown | None = None
        self._update = update
        before = update.before if update else before_beside(clients.parent if clients else self.checkpoints)
        track, made = tracker(self.console), made_of(self.config)
        self.data.attach(parts.protocol, settings.seed_everything, track, before, made)
        self.data.setup()
        if to_train and self.data.cut is None:
            _ = self.data.titles  # what is wrong with them is said now, and not after training
        method = f"{type(self.method).__module__}.{type(self.method).__qualname__}"
        if update:
            update.check(method, self.config)
        header = Header(uuid.uuid4().hex, self.config, method, self.data.fingerprint(), code_of(self.config))
        self.processes = Processes()
        self.log = Loggers([self.logger, *parts.loggers])
        self._interrupt = Interrupt(self._stands)
        self._saved = Checkpoints(self.checkpoints, header)
        check(*(problem for one in callbacks for problem in unheeded(one)))
        self.training = self._build(parts, settings, [*callbacks, *parts.callbacks], clients, to_train)

    def _build(
        self, parts: Namespace, settings: Namespace, callbacks: Sequence[object], clients: Path | None, to_train: bool
    ) -> Training:
        """What trains; arguments are those of the class, and the components that the settings name."""
        history = History(self.directory / METRICS, self.log)
        if isinstance(self.method, Reference):
            fabric, processes = engine(vars(parts.fabric), [history])
            alone_only = "fabric.devices: a reference is trained in one process"
            no_rounds = "callbacks: a reference has no rounds, and calls none"
            check(None if processes.number == 1 else alone_only, no_rounds if parts.callbacks else None)
            return ReferenceFit(self.method, self.data, fabric, parts.loop.monitor, self.console)
        # Fabric calls them in this order: a round is in the CSV and judged before it is saved, and the user's come
        # before the checkpoint, which heeds their `should_stop`.
        hooks = [
            EarlyStopping(),
            self._interrupt,
            ProgressBar(self.console),
            Pace(self.console),
            *callbacks,
            self._saved,
        ]
        if not rank_of(settings):
            hooks.insert(0, history)
        loop: FederatedLoop = parts.loop
        wanted = vars(parts.fabric)
        fabric, self.processes = engine(wanted if to_train else alone(wanted), hooks)
        try:
            folder, earlier = clients or self.checkpoints / CLIENTS, self._update and self._update.state["loop"]
            loop.setup(fabric, self.data, self.method, folder, to_train, parts.wire, earlier, self.processes)
        except (MemoryError, RuntimeError, ArithmeticError) as error:
            raise InputError(f"method: cannot be set up with these settings: {error or 'no memory is left'}") from error
        return loop

    @property
    def header(self) -> Header:
        """Which run of which method on which data this is."""
        return self._saved.header

    @property
    def going_on(self) -> str:
        """The command that goes on from the last checkpoint."""
        return going_on(self.checkpoints / LAST, self.config)

    @property
    def go_on(self) -> str:
        """How to go on where training was interrupted."""
        return f"stopped after round {self.training.round}; go on with: {self.going_on}"

    def _stands(self, round: int) -> str:
        """What is left where a round is given up."""
        if not (self.checkpoints / LAST).exists():
            return f"round {round} is given up; nothing has been saved yet"
        return f"round {round} is given up, and the last checkpoint stands; go on with: {self.going_on}"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.directory / "checkpoints"

    @property
    def interrupted(self) -> int | None:
        """The number of the signal that ended training early, or ``None``."""
        return self._interrupt.signal

    @property
    def history(self) -> pl.DataFrame:
        """A row for each evaluated round, as in ``metrics.csv``."""
        return pl.DataFrame(self.training.history, infer_schema_length=None)

    def restore(self, state: State, resumed: Path | None = None) -> None:
        """Go to where a checkpoint was written.

        Args:
            state: Of `read_checkpoint`.
            resumed: The checkpoint, if training is to go on from it; nothing may differ then on which its result
                depends. It becomes this run's own.

        Raises:
            InputError: where it does not belong to this run, or that of the best round is nowhere.
        """
        training = self.training
        assert isinstance(training, FederatedLoop | ReferenceFit)
        self._saved.restore(training, state, resumed)
        if resumed and isinstance(training, FederatedLoop) and self.processes.first:
            self._saved.adopt(training, resumed)

    def fit(self) -> None:
        """Train, then test the best round once, and write ``ranks.parquet`` and ``summary.json``.

        Raises:
            RunError: if a loss or an upload is not finite, or no memory is left.
        """
        show_data(self.console, self.data)
        if self.data.changes:
            self.console.print(told(self.data.changes, self.server.updates), highlight=False, soft_wrap=True)
        self.console.print(self._intent(), highlight=False, soft_wrap=True)
        self._join()
        with self.processes.agreed():
            if self.processes.first:
                self._begin()
        status = "failed"
        started = time.perf_counter() - self.training.seconds  # as if earlier parts had run just before
        try:
            with explained(self.training, self.data, self.checkpoints):
                self.training.fit()
                # A rolling evaluation fits a reference many times, and uses none of them.
                if isinstance(self.training, ReferenceFit) and self.data.cut is None:
                    self._saved.keep(self.training)
                if not self.interrupted:
                    self._finish(started)
                    status = "success"
        finally:
            if self.processes.first:
                self.log.call("finalize", status)
            self._interrupt.over()

    def _join(self) -> None:
        """Start the other processes. They go on with the folder and the name of the first one's run."""
        self.processes.launch()
        folder, run = self.processes.texts(f"{self.directory.absolute()}\n{self.header.run}")[0].split("\n")
        if not self.processes.first:
            self.directory = Path(folder)
            self._saved.belong_to(self.checkpoints, run)

    def _begin(self) -> None:
        """Write what is known before the first round."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory / CONFIG, self.config)
        if self._update:
            self.checkpoints.mkdir(exist_ok=True)
            keep(self._update.before, self.checkpoints, BEFORE)
        self.log.start(self.directory, yaml.safe_load(self.config))

    def _intent(self) -> str:
        name = type(self.method).__name__
        if isinstance(self.training, FederatedLoop):
            loop, among = self.training, ""
            if self.processes.number > 1:
                among = f", by {self.processes.number} processes"
            rounds = f"{loop.rounds} rounds"
            if loop.server.phase:  # it ends by itself, once all has been counted
                rounds = f"at most {rounds}"
            noise = loop.told_of_noise and f"\n{loop.told_of_noise}"
            return f"{name}, {rounds}{among}, in {self.directory}\n{loop.clients.capacity}{noise}"
        return f"{name}, a reference that sees everyone's data, in {self.directory}"

    def _write_page(self) -> None:
        """Write ``report.html``, and each chart as an SVG for a paper; not for a cut of a rolling evaluation."""
        if self.data.cut is None:
            if isinstance(self.training, FederatedLoop):
                self.structure = shown(self.training)
            known = self.data, self.config, self.directory, self.structure
            write_atomically(self.directory / PAGE, page_of(self.summary, self.training, *known))
            for name, text in pictures(self.training, self.structure).items():
                write_atomically(self.directory / name, text)

    def _finish(self, started: float) -> None:
        """Go to the best round, test it, and write what was found."""
        training, unfinished = self.training, ""
        if training.best is None:
            raise RunError(
                f"stopped after round {training.round}, before the first evaluation: there is nothing to report"
            )
        if isinstance(training, FederatedLoop):
            unfinished = "" if training.should_stop else training.server.phase
            if unfinished:
                show_unfinished(self.console, unfinished, training.round, self.going_on)
            self._saved.go_to_best(training)
            if training.server.updates != "never" and self.processes.first:
                keep(self.data.to_keep(), self.checkpoints, HISTORIES)
                if training.server.finished or not training.server.phase:
                    forget(self.data, self.checkpoints)
        before = training.bytes_scoring
        with self.console.status(f"testing round {training.round}"):  # on a terminal: it may take minutes
            found, popular = self.ranked(), popular_ranks(self.data)
        if not self.processes.first:
            return
        if found is not None and popular is not None:
            write(rank_table(self.data, found, popular), self.directory / RANKS)
        tests = tested(self.data, found, popular, self.method, training.monitor)
        self.summary = summary_of(training, self.header, self.data, tests, self.directory)
        if "bytes/scoring" in self.summary:  # of all evaluations so far, and of this test
            self.summary["bytes/scoring"] += training.bytes_scoring - before
        self.summary["seconds"] = time.perf_counter() - started
        if unfinished:
            self.summary["unfinished"] = unfinished
        self._write_page()
        write_json(self.directory / "summary.json", self.summary)  # last: a run with a summary is finished
        shown = {name: value for name, value in tests.items() if name.startswith("test/")}
        if shown:
            self.log.call("log_metrics", shown, step=training.round)
        self.log.call("log_found", self)
        self.log.call("log_summary", training.history, training.monitor, self.summary, self.checkpoints / BEST)
