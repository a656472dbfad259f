"""A rolling evaluation: a run for each cut in time, of which the first only choose settings; all cases together."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
import yaml
from jsonargparse import Namespace
from rich.console import Console

from cgfedrec.data import FederatedDataModule
from cgfedrec.data.split import Part
from cgfedrec.errors import InputError, check
from cgfedrec.evaluation.intervals import paired_interval
from cgfedrec.evaluation.metrics import each_users
from cgfedrec.files import DamagedError, read_json, write_atomically, write_json
from cgfedrec.method import Recommender
from cgfedrec.run.checkpoint import LAST, read_checkpoint
from cgfedrec.run.choosing import Choice, Judged, choose
from cgfedrec.run.console import progress_bars, quiet_console, show_data, tracker
from cgfedrec.run.folder import CONFIG, METRICS, RANKS
from cgfedrec.run.opened import open_run
from cgfedrec.run.recommend import write
from cgfedrec.run.run import Run
from cgfedrec.run.summary import stated
from cgfedrec.settings.layers import merged
from cgfedrec.settings.parser import dump, instantiate, parse
from cgfedrec.settings.sources import said

SUMMARY = "summary.json"
CUTS, CHOOSING = "cuts", "choosing"
"""Folders of runs: at the cuts that are reported, and at those that only choose."""


class RollingRun:
    """What a run is under ``data.split: rolling``: one training after another, each in a folder of its own.

    What is finished in the folder is skipped and what was stopped is resumed, so that the same command goes on.

    Args:
        settings: As parsed; ``data.rolling.cut`` names none.
        directory: Where everything is written.
        callbacks: The user's, for every training.
        console: Where progress and results are shown.

    Attributes:
        data: All of it, which nothing is trained on.
        method: What the settings name.
        config: The settings as YAML, as in ``config.yaml``.
        monitor: The validation metric that chooses.
        summary: What ``summary.json`` holds, once all cuts are done.
        interrupted: The number of the signal that ended it early, or ``None``.

    Raises:
        InputError: for settings that do not fit the data, or a folder with a run of other settings.
    """

    def __init__(
        self,
        settings: Namespace,
        directory: Path,
        callbacks: Sequence[object] = (),
        console: Console | None = None,
    ) -> None:
        parts = instantiate(settings)
        self.directory, self.callbacks, self.console = directory, callbacks, console or quiet_console()
        self.config = dump(settings)
        self.data: FederatedDataModule = parts.data
        self.method: Recommender = parts.method
        self.monitor: str = parts.loop.monitor
        self.summary: dict[str, Any] = {}
        self.interrupted: int | None = None
        self.data.attach(parts.protocol, settings.seed_everything, tracker(self.console))
        self.data.setup()
        if self._stored() not in (None, yaml.safe_load(self.config)):
            raise InputError(f"run_dir: {directory} holds a rolling evaluation with other settings; choose another")

    def _stored(self) -> object:
        """The settings of the evaluation that the folder holds, if it holds one."""
        path = self.directory / CONFIG
        if not path.exists():
            return None
        return yaml.safe_load(path.read_text())

    @property
    def go_on(self) -> str:
        """How to go on where it was interrupted."""
        return f"the same command with --run_dir {self.directory} goes on"

    def fit(self) -> None:
        """Train at the cuts that choose, then at those that are reported, and write what was found.

        Raises:
            RunError: if a training fails; what was finished stays.
        """
        started = time.perf_counter()
        show_data(self.console, self.data)
        rolling = self.data.rolling
        alternatives = self.method.alternatives
        choosing, reported = rolling.num_choosing, rolling.number - rolling.num_choosing
        self.console.print(
            f"{type(self.method).__name__} at {rolling.number} cuts: {choosing} choose settings"
            f"{_among(len(alternatives)) if choosing else ''}, {reported} are reported; in {self.directory}",
            highlight=False,
            soft_wrap=True,
        )
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory / CONFIG, self.config)
        with progress_bars(self.console, "what") as progress:
            task = progress.add_task("trainings", total=choosing * len(alternatives) + reported, what="")
            choice, told = Choice(0.0), list[dict[str, Any]]()
            if choosing:
                of_each = []
                for number, overrides in enumerate(alternatives):
                    judged = list[Judged]()
                    for cut in range(1, choosing + 1):
                        progress.update(task, what=f"choosing, cut {cut}")
                        judged.append(self._judged(cut, number, overrides))
                        if self.interrupted:
                            return
                        progress.advance(task)
                    of_each.append((overrides, judged))
                choice = choose(self.method, self.monitor, of_each)
                self._print(f"chosen at the first {choosing} cuts: {choice.named}; {self.monitor} {choice.value:.4f}")
            for cut in range(choosing + 1, rolling.number + 1):
                progress.update(task, what=f"cut {cut}")
                told.append(self._reported(cut, choice))
                if self.interrupted:
                    return
                self._print(_line(told[-1], rolling.number))
                progress.advance(task)
        self._finish(choice, told, started)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def _judged(self, cut: int, number: int, overrides: Mapping[str, Any]) -> Judged:
        """What a cut that only chooses says of one alternative."""
        folder = self.directory / CHOOSING / f"{cut:02}-{number}"
        summary = self._trained(folder, cut, self._settings(cut, overrides))
        rows = pl.read_csv(folder / METRICS, infer_schema_length=None).to_dicts() if summary else []
        present = [{name: value for name, value in row.items() if value is not None} for row in rows]
        return Judged(int(summary.get("cases", 0)), present)

    def _reported(self, cut: int, choice: Choice) -> dict[str, Any]:
        """The summary of the run at a cut that is reported, with what the cut is; empty if it was interrupted."""
        settings = self._settings(cut, choice.method, choice.rounds)
        summary = self._trained(self.directory / CUTS / f"{cut:02}", cut, settings)
        return summary | {"cut": cut, "time": self.data.cut_times[cut - 1]}

    def _settings(self, cut: int, method: Mapping[str, Any], rounds: int | None = None) -> Namespace:
        """The settings of the run at a cut, with these of the method in place of its own."""
        config: dict[str, Any] = yaml.safe_load(self.config)
        over: dict[str, Any] = {"data": {"init_args": {"rolling": {"cut": cut}}}, "logger": None}
        if method:
            over["method"] = {"init_args": dict(method)}
        if rounds is not None:
            over["loop"] = {"rounds": rounds, "evaluate_every": rounds, "patience": None}
        return parse(said([merged(config, over)], environment={}))

    def _trained(self, folder: Path, cut: int, settings: Namespace) -> dict[str, Any]:
        """The summary of the run in a folder, which is trained if it is not finished; empty if it was interrupted."""
        settings.run_dir = str(folder)
        config = yaml.safe_load(dump(settings))
        state = checkpoint = None
        if folder.exists():
            if summary := _finished(folder, config):
                return summary
            checkpoint = folder / "checkpoints" / LAST
            try:
                state = read_checkpoint(checkpoint)
            except InputError:  # there is none, or it is damaged
                checkpoint = None
                shutil.rmtree(folder)
        settings.ckpt_path = checkpoint and str(checkpoint)
        with open_run(settings, state, checkpoint, self.callbacks) as run:
            del state
            run.fit()
        self.interrupted = run.interrupted
        if self.interrupted:
            return {}
        return run.summary

    def _finish(self, choice: Choice, told: Sequence[Mapping[str, Any]], started: float) -> None:
        """Put the cases of all reported cuts together, and write what was found."""
        cases = pl.concat(
            pl.read_parquet(self.directory / CUTS / f"{one['cut']:02}" / RANKS).with_columns(cut=pl.lit(one["cut"]))
            for one in told
        )
        write(cases, self.directory / RANKS)
        rows = [{name: value for name, value in one.items() if _is_shown(name, value)} for one in told]
        write_atomically(self.directory / METRICS, pl.DataFrame(rows, infer_schema_length=None).write_csv())
        self.summary = {
            **stated(uuid.uuid4().hex, f"{type(self.method).__module__}.{type(self.method).__qualname__}", self.data),
            **pooled(told),
            **over_popularity(cases, self.monitor.removeprefix("val/"), self.method),
            "cases": len(cases),
            "cuts": self.data.rolling.number,
            "choosing": self.data.rolling.num_choosing,
            "chosen": choice.named,
            "rounds": max(int(one["rounds"]) for one in told),
            "seconds": time.perf_counter() - started,
        }
        write_json(self.directory / SUMMARY, self.summary)
