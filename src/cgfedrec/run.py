"""A run: what the command line and Python start, resume, test and ask for recommendations."""

from __future__ import annotations

import json
import os
import pickle
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl
import torch
import yaml
from jsonargparse import Namespace
from lightning import Fabric
from rich.console import Console

from cgfedrec import __version__
from cgfedrec.callbacks import Checkpoint, EarlyStopping, Interrupt, ProgressBar
from cgfedrec.centralized.popularity import Popularity
from cgfedrec.config import Config, as_options, checkpoint_in, dump, instantiate, parse
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError, RunError, check
from cgfedrec.evaluation import evaluate
from cgfedrec.logging import History, WandbLogger, write_atomically
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.recommend import recommend
from cgfedrec.report import show_data
from cgfedrec.server import NotFiniteError, Server
from cgfedrec.store import ClientStore

FORMAT = 1
"""Of checkpoints; one of another format is refused."""
PACKAGES = ("lightning", "torch", "torchmetrics", "wandb", "polars", "scikit-learn", "numpy")
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
    return start(as_options(configs), callbacks, console, isinstance(configs[0], Mapping) if configs else True)


def start(
    options: Sequence[str], callbacks: Sequence[Any] = (), console: Console | None = None, on_defaults: bool = False
) -> Run:
    """Train as command-line options say. ``on_defaults``: they override the quickstart, whatever configs they name."""
    checkpoint = checkpoint_in(options)
    state = read_checkpoint(checkpoint) if checkpoint else None
    settings = parse(options, yaml.safe_load(state["config"]) if state else None, on_defaults)
    run = Run(settings, _directory(settings), callbacks, console or Console(quiet=True))
    if state:
        run.restore(state, resume=True)
    run.fit()
    return run


def load(ckpt_path: str | Path, *configs: Config, options: Sequence[str] = ()) -> Run:
    """Open a checkpoint, to test it or to ask for recommendations.

    Args:
        ckpt_path: A checkpoint of `fit`.
        configs: Overrides of the config that it was trained with: where the data now lie, say.
        options: The same as command-line options.

    Raises:
        InputError: if the checkpoint cannot be read, or the data are not those that it was trained on.
    """
    path = Path(ckpt_path)
    state = read_checkpoint(path)
    given = [*as_options([*configs, {"logger": None}]), *options]
    run = Run(parse(given, yaml.safe_load(state["config"]), True), _run_of(path))
    run.restore(state)
    return run


def open_data(options: Sequence[str]) -> FederatedDataModule:
    """The data that the options of a run name, read and split. Raises `InputError` where they cannot serve."""
    settings = parse(options)
    parts = instantiate(settings)
    data: FederatedDataModule = parts.data
    data.attach(parts.protocol, settings.seed_everything)
    data.setup()
    return data


class Run:
    """A federation with its data: trained by `fit`, opened by `load`.

    Args:
        settings: As parsed.
        directory: Where everything is written.
        callbacks: The user's.
        console: Where progress and results are shown.

    Attributes:
        loop: The federation.
        data: Its data.
        summary: What ``summary.json`` holds, once training has ended.
        interrupted: The signal that ended training early, or ``None``.
    """

    def __init__(
        self, settings: Namespace, directory: Path, callbacks: Sequence[Any] = (), console: Console | None = None
    ) -> None:
        parts = instantiate(settings)
        self.directory, self.console = directory, console or Console(quiet=True)
        self.config = dump(settings)
        self.loop: FederatedLoop = parts.loop
        self.data: FederatedDataModule = parts.data
        self.method: Method = parts.method
        self.logger = parts.logger
        self.summary: dict[str, Any] = {}
        self.data.attach(parts.protocol, settings.seed_everything)
        self.data.setup()
        self.header = {
            "format": FORMAT,
            "config": self.config,
            "method": f"{type(self.method).__module__}.{type(self.method).__qualname__}",
            "fingerprint": self.data.fingerprint(),
        }
        self._interrupt = Interrupt()
        hooks = [
            History(self.directory / "metrics.csv", self.logger),
            EarlyStopping(),
            self._interrupt,
            ProgressBar(self.console),
            *callbacks,
            Checkpoint(self.checkpoints, self.header),
        ]
        self.loop.setup(_fabric(vars(parts.fabric), hooks), self.data, self.method)

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

    def restore(self, state: dict[str, Any], resume: bool = False) -> None:
        """Go to where a checkpoint was written. Raises `InputError` where it does not belong to this run."""
        check(
            f"ckpt_path: was trained with {state['method']}, this run uses {self.header['method']}"
            if state["method"] != self.header["method"]
            else None,
            f"ckpt_path: was trained on other data than {self.data.path or 'the embedded set'}, or on another split"
            if state["fingerprint"] != self.header["fingerprint"]
            else None,
        )
        if resume:
            check(*_changed(yaml.safe_load(state["config"]), yaml.safe_load(self.config)))
        self.loop.load_state_dict(state["loop"])

    def fit(self) -> None:
        """Train, then test the best round once, and write ``summary.json``.

        Raises:
            RunError: if a loss or an upload is not finite.
        """
        show_data(self.console, self.data)
        self.console.print(
            f"{type(self.method).__name__}, {self.loop.rounds} rounds, in {self.directory}", highlight=False
        )
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory / "config.yaml", self.config)
        if isinstance(self.logger, WandbLogger):
            self.logger.start(self.directory, yaml.safe_load(self.config))
        elif self.logger is not None:
            self.logger.log_hyperparams(yaml.safe_load(self.config))
        status = "failed"
        try:
            self.loop.fit()
            if not self.interrupted:
                self._finish()
                status = "success"
        except NotFiniteError as error:
            clients = ", ".join(str(self.data.user_ids[client]) for client in error.clients[:5])
            raise RunError(
                f"round {self.loop.round}, client {clients}{' and others' if len(error.clients) > 5 else ''}: the "
                f"{error.what} is not finite; lower the learning rate (method.optimizer, method.table_lr). "
                f"The last good checkpoint is in {self.checkpoints}"
            ) from error
        finally:
            if self.logger is not None:
                self.logger.finalize(status)

    def _finish(self) -> None:
        best_path = self.checkpoints / "best.ckpt"
        history, best, seconds = self.loop.history, self.loop.best, self.loop.seconds
        assert best is not None
        last = history[-1]
        if best["round"] != self.loop.round:
            self.loop.load_state_dict(read_checkpoint(best_path)["loop"])
            self.loop.history = history
        protocol = self.data.protocol.to_dict()
        self.summary = {
            "method": self.header["method"],
            "best_round": int(best["round"]),
            "rounds": int(last["round"]),
            "protocol": protocol,
            "candidates": protocol["candidates"],
            "seed": self.data.seed,
            "users": self.data.num_users,
            "items": self.data.num_items,
            "seconds": seconds,
            "versions": {
                "cgfedrec": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in PACKAGES},
            },
            **{name: value for name, value in best.items() if name.startswith(("train/", "val/", "clusters/"))},
            **{name: value for name, value in last.items() if name.startswith("bytes/")},
            "time/round": fmean(row["time/round"] for row in history),
            **self.test(),
        }
        write_atomically(self.directory / "summary.json", json.dumps(self.summary, indent=2) + "\n")
        if isinstance(self.logger, WandbLogger):
            self.logger.log_summary(history, self.loop.monitor, self.summary, best_path)
        elif self.logger is not None:
            self.logger.log_metrics(
                {k: v for k, v in self.summary.items() if k.startswith("test/")}, step=self.loop.round
            )

    def test(self) -> dict[str, float]:
        """Test metrics of the state that is loaded and, as ``popularity/...``, of showing everybody what is popular."""
        if not self.data.holds_out("test"):
            return {}
        popular = evaluate(self.data, "test", Popularity().fit(self.data).score, self.loop.cohort_size)
        return self.loop.evaluate("test") | {f"popularity/{name}": value for name, value in popular.items()}

    def recommend(self, users: Sequence[Any] | None = None, top_k: int = 10) -> pl.DataFrame:
        """The best items for users, without those that they have; see `cgfedrec.recommend.recommend`."""
        return recommend(self.loop, users, top_k)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `Checkpoint` wrote; nothing in the file is executed. Raises `InputError` if it is none."""
    if not path.is_file():
        raise InputError(f"ckpt_path: no file {path}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise InputError(f"ckpt_path: {path} is no checkpoint, or is cut off") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"ckpt_path: {path} is no checkpoint of this version of cgfedrec")
    return state


def _fabric(arguments: dict[str, Any], callbacks: list[Any]) -> Fabric:
    check(
        None
        if arguments["precision"] in PRECISIONS
        else f"fabric.precision: {arguments['precision']} is not supported; choose 32-true or bf16-mixed"
    )
    try:
        fabric = Fabric(**arguments, callbacks=callbacks)
    except (ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"fabric: {error}") from error
    check("fabric.devices: only one process and one device are supported" if fabric.world_size > 1 else None)
    return fabric


def _directory(settings: Namespace) -> Path:
    """Where a run goes: where it is told to, beside the checkpoint that it continues, or the next free number."""
    if settings.run_dir:
        directory = Path(settings.run_dir)
        check(
            f"run_dir: {directory} already holds a run; choose another, or continue it with --ckpt_path"
            if not settings.ckpt_path and (directory / "checkpoints" / "last.ckpt").exists()
            else None,
            f"run_dir: {directory} is a file" if directory.is_file() else None,
        )
        return directory
    if settings.ckpt_path:
        return _run_of(Path(settings.ckpt_path))
    files = [Path(str(config)) for config in settings.config or [] if config is not None]
    root = Path("runs") / (files[0].stem if files else "quickstart")
    numbers = [int(path.name) for path in root.glob("*") if path.name.isdigit()] if root.is_dir() else []
    return root / str(max(numbers, default=-1) + 1)


def _run_of(checkpoint: Path) -> Path:
    return Path(os.path.relpath(checkpoint.absolute().parents[1]))


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a resumed run must not change, but does."""
    free = ("path", "format")
    was, becomes = (
        {
            "seed_everything": config["seed_everything"],
            "protocol": config["protocol"],
            "method": config["method"],
            "data": {k: v for k, v in config["data"]["init_args"].items() if k not in free},
            "loop": {
                k: config["loop"][k] for k in ("participation", "participants", "resample", "evaluate_every", "monitor")
            },
        }
        for config in (before, now)
    )
    return [
        f"{key}: a resumed run cannot change this from {was[key]} to {becomes[key]}"
        for key in was
        if was[key] != becomes[key]
    ]
