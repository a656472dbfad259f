"""A run: what the command line and Python start, resume, test and ask for recommendations."""

from __future__ import annotations

import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl
import torch
import yaml
from jsonargparse import Namespace
from lightning import Fabric
from lightning.fabric.loggers import Logger
from lightning.fabric.strategies import SingleDeviceStrategy
from rich.console import Console

from cgfedrec import __version__
from cgfedrec.callbacks import EarlyStopping, Interrupt, ProgressBar
from cgfedrec.centralized import Popularity
from cgfedrec.centralized.reference import Reference
from cgfedrec.checkpoint import BEST, LAST, Checkpoint, Header, changed, copy, link_or_copy, read_checkpoint
from cgfedrec.config import checkpoint_in, dump, instantiate, is_reference, parse, refuse_of_fit, settings_in
from cgfedrec.data import FederatedDataModule
from cgfedrec.data.module import Stage
from cgfedrec.errors import InputError, RunError, check
from cgfedrec.evaluation import Ranked, evaluate, no_metric, rank_table, ranked, summarise
from cgfedrec.files import LOCK, file_digest, locked, no_folder, remove_leftovers, write_atomically, write_json
from cgfedrec.logging import Forgiving, History, WandbLogger
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.recommend import recommend, write
from cgfedrec.report import quiet_console, show_data, tracker
from cgfedrec.server import NotFiniteError, Server
from cgfedrec.sources import Config, Said, said
from cgfedrec.store import ClientStore

PACKAGES = ("lightning", "torch", "torchmetrics", "wandb", "polars", "scikit-learn", "numpy")
CLIENTS = "clients"
"""The folder of clients' state, beside the checkpoints that refer to it."""
CONFIG, METRICS, RANKS = "config.yaml", "metrics.csv", "ranks.parquet"
"""The settings, the history, and where each user's held-out items stand; the summary holds their checksums."""
SCORED_AT_ONCE = 256
"""Users whom a reference scores in one operation."""
PRECISIONS = (None, 32, "32", "32-true", "bf16-mixed")


def fit(*configs: Config, callbacks: Sequence[Any] = (), console: Console | None = None) -> Run:
    """Train, as `cgfedrec fit` does.

    Args:
        configs: YAML files and mappings of options, later ones overriding earlier ones. Where the first is a mapping,
            it overrides the quickstart. ``ckpt_path`` and ``run_dir`` are options too.
        callbacks: Objects with some of the hooks that `cgfedrec.callbacks` names.
        console: Where progress and results are shown; by default nowhere.

    Raises:
        InputError: if anything that was given cannot be used, naming all of it; nothing has been written then.
        RunError: if training fails; the last good checkpoint is kept.
    """
    return start(said(configs), callbacks, console, not configs or isinstance(configs[0], Mapping))


def start(
    given: Said, callbacks: Sequence[Any] = (), console: Console | None = None, on_quickstart: bool | None = None
) -> Run:
    """Train as is said. ``on_quickstart``: see `parse`."""
    checkpoint = checkpoint_in(given)
    state = read_checkpoint(checkpoint) if checkpoint else None
    settings = parse(given, settings_in(state["config"], given) if state else None, on_quickstart)
    with run_folder(settings) as directory:
        to_train = not (state and _is_finished(state, settings))
        run = open_run(settings, directory, callbacks, console, to_train=to_train)
        if state and checkpoint:
            run.restore(state, checkpoint)
            run.adopt(checkpoint)
        del state  # it maps the checkpoint
        run.fit()
    return run


def _is_finished(state: Mapping[str, Any], settings: Namespace) -> bool:
    """Whether the last round is behind a checkpoint, so that all that is left is to report."""
    round = state["loop"].get("round")
    return isinstance(round, int) and round >= settings.loop.rounds


def load(ckpt_path: str | Path, *configs: Config, options: Sequence[str] = (), console: Console | None = None) -> Run:
    """Open a checkpoint, to test it or to ask for recommendations.

    It is read as data: it imports nothing but what `cgfedrec.trust` lists and what these overrides name.

    Args:
        ckpt_path: A checkpoint of `fit`.
        configs: Overrides of the config that it was trained with: where the data now lie, say.
        options: The same as command-line options.
        console: Where it is said which data are read; by default nowhere.

    Raises:
        InputError: if the checkpoint cannot be read, or the data are not those that it was trained on.
    """
    path = Path(ckpt_path)
    state = read_checkpoint(path)
    given = said([*configs, {"logger": None}], options)
    refuse_of_fit(given, "a checkpoint that is only used")
    settings = parse(given, settings_in(state["config"], given))
    if console:
        console.print(f"data: {settings.data.init_args.path or 'embedded data'}", highlight=False, soft_wrap=True)
    run = open_run(settings, path.parent, console=console, clients=path.parent / CLIENTS, to_train=False)
    run.restore(state)
    return run


def open_run(settings: Namespace, directory: Path, *arguments: Any, **named: Any) -> Run:
    """The `Run`, or where the settings name a reference the `ReferenceRun`, of these arguments."""
    return (ReferenceRun if is_reference(settings) else Run)(settings, directory, *arguments, **named)


def open_data(options: Sequence[str], console: Console | None = None) -> FederatedDataModule:
    """The data that the options of a run name, read and split. Raises `InputError` where they cannot serve."""
    given = said(options=options)
    refuse_of_fit(given, "data describe")
    settings = parse(given)
    parts = instantiate(settings)
    data: FederatedDataModule = parts.data
    data.attach(parts.protocol, settings.seed_everything, tracker(console or quiet_console()))
    data.setup()
    return data


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
        fabric = _fabric(vars(parts.fabric), hooks)
        try:
            self.loop.setup(fabric, self.data, parts.method, folder, to_train)
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
        """The best items for users, without those that they have; see `cgfedrec.recommend.recommend`."""
        return recommend(self.loop, users, top_k)


class ReferenceRun(Run):
    """A run of a `Reference`: one fit in one place, so one row in ``metrics.csv``, nothing sent and no checkpoint.

    Of the loop's options it heeds ``monitor`` alone; callbacks are not called, since there are no rounds.
    """

    def _setup(self, parts: Namespace, callbacks: Sequence[Any], clients: Path | None, to_train: bool) -> None:
        self.reference: Reference = parts.method
        self.reference.device = _fabric(vars(parts.fabric), []).device
        self.loop.rounds = 1
        check(no_metric("loop.monitor", self.loop.monitor, self.data))
        self.reference.check(self.data)

    def _intent(self) -> str:
        return f"{type(self.method).__name__}, a reference that sees everyone's data, in {self.directory}"

    def train(self) -> None:
        started = time.perf_counter()
        self.reference.fit(self.data)
        seconds = time.perf_counter() - started
        found = summarise(self.data, "val", self.ranked("val")) if self.data.holds_out("val") else {}
        self.loop.round, self.loop.seconds = 1, seconds
        self.loop.history = [{"round": 1, **self.reference.report(), **found, "time/round": seconds}]
        write_atomically(self.directory / METRICS, self.history.write_csv())
        self.log.do(lambda logger: logger.log_metrics(self.loop.history[-1], step=1))

    def ranked(self, stage: Stage) -> Ranked:
        return ranked(self.data, stage, self.reference.score, SCORED_AT_ONCE)

    def restore(self, state: dict[str, Any], resumed: Path | None = None) -> None:
        raise InputError(f"ckpt_path: was trained with {state['method']}; {self.header.method} has no checkpoints")

    def recommend(self, users: Sequence[Any] | None = None, top_k: int = 10) -> pl.DataFrame:
        raise InputError(f"method: {self.header.method} is a reference, which is to be measured and not used")


def _fabric(arguments: dict[str, Any], callbacks: list[Any]) -> Fabric:
    check(
        None
        if arguments["precision"] in PRECISIONS
        else f"fabric.precision: {arguments['precision']} is not supported; choose 32-true or bf16-mixed"
    )
    try:
        fabric = Fabric(**arguments, callbacks=callbacks)
    except Exception as error:  # of Lightning, or of a plugin: it may be any
        defaults = {name: parameter.default for name, parameter in signature(Fabric).parameters.items()}
        given = [f"fabric.{name}" for name, value in arguments.items() if value not in (defaults[name], "cpu", 1)]
        raise InputError(f"{', '.join(given) or 'fabric'}: {error}") from error
    strategy = fabric.strategy
    check(
        None
        if isinstance(strategy, SingleDeviceStrategy) and fabric.world_size == 1
        else f"fabric.devices, fabric.num_nodes, fabric.strategy: only one process and one device are supported, not "
        f"{type(strategy).__name__} with {fabric.world_size}; leave the strategy at auto",
        None
        if strategy.precision.precision in PRECISIONS
        else f"fabric.plugins: the precision {strategy.precision.precision} is not supported; choose 32-true or "
        "bf16-mixed by fabric.precision",
    )
    kind = fabric.device.type
    check(
        None if kind in ("cpu", "cuda") else f"fabric.accelerator: {kind} is not supported; choose cpu or cuda",
    )
    if kind == "cuda":  # a resumed run must end where the whole one would
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return fabric


@contextmanager
def run_folder(settings: Namespace) -> Iterator[Path]:
    """The folder of a run, held against any other run; as it was before, if nothing comes of this one.

    Raises:
        InputError: if it holds a run that is not to be continued, or one is at work in it.
    """
    directory = _directory(settings)
    existed = directory.exists()
    before = {path.name for path in directory.glob("*")}
    try:
        with locked(directory, f"run_dir: a run is at work in {directory}; wait for it, or choose another"):
            _check_free(directory, settings)
            remove_leftovers(directory)
            remove_leftovers(directory / "checkpoints")
            yield directory
    except BaseException as error:
        if not isinstance(error, RunError | KeyboardInterrupt):
            _remove_begun(directory, before)
        if not existed or settings.run_dir is None:
            _remove_empty(directory)
        raise


def _remove_begun(directory: Path, before: Collection[str]) -> None:
    """Remove what a run wrote that did not come to the end of a round, and that was not there ``before``."""
    if not (directory / "checkpoints" / LAST).exists() and not (directory / METRICS).exists():
        for name in {"config.yaml", "wandb", "checkpoints"} - set(before):
            path = directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _remove_empty(directory: Path) -> None:
    """Remove the folder of a run that wrote nothing, with the empty folders above it."""
    if {path.name for path in directory.glob("*")} <= {LOCK}:
        (directory / LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            os.removedirs(directory)


def _directory(settings: Namespace) -> Path:
    """Where a run goes: where it is told to, or beside the checkpoint that it continues, or in the next free number,
    whose folder is made at once.
    """
    if settings.run_dir:
        directory = Path(settings.run_dir)
        check(no_folder("run_dir", directory))
        return directory
    if settings.ckpt_path:
        own = _folder_of(settings.ckpt_path)
        check(
            None
            if own
            else f"run_dir: {settings.ckpt_path} is in no run's folder checkpoints; say where the run is to go"
        )
        return Path(os.path.relpath(str(own)))
    root = Path("runs") / (Path(settings.config[0]).stem if settings.config else "quickstart")
    number = max((int(path.name) for path in root.glob("*") if path.name.isdigit()), default=-1) + 1
    root.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            (root / str(number)).mkdir()
            return root / str(number)
        except FileExistsError:  # another run has just taken it
            number += 1


def _folder_of(checkpoint: str) -> Path | None:
    """The folder of the run that a checkpoint belongs to, by where it lies."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == "checkpoints" else None


def _check_free(directory: Path, settings: Namespace) -> None:
    """Raise `InputError` for a folder that holds a run other than the one that is to be continued."""
    continued = _folder_of(settings.ckpt_path) if settings.ckpt_path else None
    left = (directory / "checkpoints" / LAST, directory / "summary.json")
    check(
        f"run_dir: {directory} already holds a run; choose another, or continue it with --ckpt_path"
        if any(path.exists() for path in left) and directory.absolute() != continued
        else None
    )
