"""A rolling evaluation: at each cut in time a training, with the settings that did best at all earlier cuts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import polars as pl
import yaml
from jsonargparse import Namespace
from torch import Tensor

from cgfedrec.centralized import Popularity
from cgfedrec.centralized.reference import Reference
from cgfedrec.data.arguments import is_embedded, origin
from cgfedrec.data.module import Stage
from cgfedrec.errors import InputError, check
from cgfedrec.evaluation.metrics import each_users
from cgfedrec.evaluation.ranking import Ranked
from cgfedrec.files import DamagedError, read_json, write_json
from cgfedrec.history import Evaluations, Row
from cgfedrec.run.checkpoint import LAST, read_checkpoint
from cgfedrec.run.choosing import Choice, Judged, choose
from cgfedrec.run.console import progress_bars
from cgfedrec.run.engine import no_crowd
from cgfedrec.run.folder import CONFIG, METRICS, RANKS
from cgfedrec.run.opened import data_of, open_run
from cgfedrec.run.pooled import MEASURED, pooled
from cgfedrec.run.recommend import write
from cgfedrec.run.records import History, rows_of
from cgfedrec.run.run import Run
from cgfedrec.run.summary import by_how_much, stated
from cgfedrec.run.training import Training
from cgfedrec.settings.layers import UNLOGGED, merged
from cgfedrec.settings.own import changed_files
from cgfedrec.settings.parser import dump, parse
from cgfedrec.settings.sources import said

SUMMARY = "summary.json"
CUTS, CHOOSING = "cuts", "choosing"
"""Folders of runs: at the cuts that are reported, and at those that only choose."""


def is_rolling(settings: Namespace) -> bool:
    """Whether a run is at several cuts in time, one after another."""
    data = settings.data.init_args
    return bool(data.split == "rolling" and data.rolling.cut is None)


class Cuts(Evaluations):
    """What trains in a `RollingRun`: one run after another, each in a folder of its own.

    What is finished there is skipped, and what was stopped is resumed.

    Args:
        run: For whom.
        monitor: The validation metric that chooses.
        callbacks: The user's, for every training.
        log: Keeps the rows.
    """

    def __init__(self, run: RollingRun, monitor: str, callbacks: Sequence[object], log: History) -> None:
        super().__init__(monitor)
        self.run, self.callbacks, self.log = run, callbacks, log
        self.rounds = run.data.rolling.number
        self.round = 0
        self.seconds = 0.0
        self.bytes_scoring = 0
        self.interrupted: int | None = None
        self.choice = Choice()
        self.fingerprints: dict[tuple[int, int], str] = {}
        self.summaries: list[dict[str, Any]] = []  # of the cuts that are reported

    def fit(self) -> None:
        """Train at every cut: with all that is to choose among, for later cuts; then with what earlier ones chose.

        Raises:
            RunError: if a training fails; what was finished stays.
        """
        run, first = self.run, self.run.data.rolling.num_choosing
        alternatives = run.alternatives
        judging = 0
        if first and self._has_choice():
            judging = self.rounds - 1  # the last cut chooses for none
        judged: list[list[Judged]] = [[] for _ in alternatives]
        with progress_bars(run.console, "what") as progress:
            task = progress.add_task("trainings", total=judging * len(alternatives) + self.rounds - first, what="")

            def trained(cut: int, folder: str, settings: Namespace) -> dict[str, Any]:
                progress.update(task, what=f"cut {cut}")
                summary = self._trained(run.directory / folder, settings)
                progress.advance(task)
                return summary

            for cut in range(1, self.rounds + 1):
                if cut > first:
                    if judging:
                        self.choice = choose(run.method, self.monitor, list(zip(alternatives, judged, strict=True)))
                    summary = trained(cut, f"{CUTS}/{cut:02}", self._settings(cut))
                    if self.interrupted:
                        return
                    self._report(cut, summary)
                if cut > judging:
                    continue
                started = time.perf_counter()
                for number, overrides in enumerate(alternatives):
                    folder = f"{CHOOSING}/{cut:02}-{number}"
                    summary = trained(cut, folder, self._settings(cut, overrides))
                    if self.interrupted:
                        return
                    judged[number].append(Judged(summary["cases"], rows_of(run.directory / folder / METRICS)))
                took = time.perf_counter() - started
                run.say(f"cut {cut} of {self.rounds}: judged what there is to choose from, {took:.1f} s")

    def _has_choice(self) -> bool:
        """Whether there is anything to choose: alternatives, readings, rounds, or what a reference finds by itself."""
        method = self.run.method
        if not isinstance(method, Reference):
            return True
        settles = type(method).settled is not Reference.settled
        return len(self.run.alternatives) > 1 or len(method.readings) > 1 or settles

    def _settings(self, cut: int, judged: Mapping[str, Any] | None = None) -> Namespace:
        """The settings of the training at a cut: with those that were chosen, or with others that are to be judged."""
        rolling: dict[str, Any] = {"cut": cut}
        method, rounds = self.choice.method, self.choice.rounds
        if judged is not None:
            rolling["choosing"], method, rounds = cut, judged, None
        over: dict[str, Any] = {"data": {"init_args": {"rolling": rolling}}} | UNLOGGED | {"callbacks": None}
        if method:
            over["method"] = {"init_args": dict(method)}
        if rounds is not None:
            over["loop"] = {"rounds": rounds, "evaluate_every": rounds, "patience": None}
        return parse(said([merged(yaml.safe_load(self.run.config), over)], environment={}))

    def _trained(self, folder: Path, settings: Namespace) -> dict[str, Any]:
        """The summary of the run in a folder, which is trained if it is not finished; empty if it was interrupted."""
        code = self.run.header.code
        if (summary := _finished(folder, yaml.safe_load(dump(settings)))) is not None:
            data = settings.data.init_args.path, settings.data.class_path
            # Embedded data follow from the settings.
            if not is_embedded(*data) and summary.get("data") != self._fingerprint(settings):
                _refuse(folder, "on other data", origin(*data))
            _refuse(folder, "by other code", *changed_files(summary.get("code", {}), code))
            self.seconds += summary["seconds"]  # of an earlier call
            return summary
        settings.run_dir, checkpoint, state = str(folder), folder / "checkpoints" / LAST, None
        if folder.exists():
            try:
                state = read_checkpoint(checkpoint)
                settings.ckpt_path = str(checkpoint)
            except InputError:  # there is none, or it is damaged
                shutil.rmtree(folder)
            else:
                _refuse(folder, "by other code", *changed_files(state["code"], code))
        with open_run(settings, state, checkpoint, self.callbacks) as run:
            del state
            run.fit()
        self.interrupted = run.interrupted
        return run.summary

    def _fingerprint(self, settings: Namespace) -> str:
        """Of the data of a training as they are now: read once for all that is judged at a cut."""
        rolling = settings.data.init_args.rolling
        key = rolling.cut, rolling.choosing
        if key not in self.fingerprints:
            self.fingerprints[key] = data_of(settings).fingerprint()
        return self.fingerprints[key]

    def _report(self, cut: int, summary: dict[str, Any]) -> None:
        """Keep what was found at a cut, and say it."""
        self.round = cut
        self.summaries.append(summary | {"cut": cut, "chosen": self.choice.named})
        row: Row = {"round": cut, "time": float(self.run.data.cut_times[cut - 1])}
        row |= {name: summary[name] for name in ("users", "items", "cases", "rounds")}
        row |= {name: value for name, value in summary.items() if name.startswith(MEASURED)}
        self.history.append(row | {"seconds": summary["seconds"]})
        self.log.on_round_end(self)
        metric = self.monitor.removeprefix("val/")
        told = "nobody is asked"
        if summary["cases"]:
            mine, popular = (summary[f"{name}test/{metric}"] for name in ("", "popularity/"))
            told = f"{summary['cases']:,} cases, test/{metric} {mine:.4f} (popularity {popular:.4f})"
        text = f"cut {cut} of {self.rounds}: {summary['users']:,} users, {told}, {summary['seconds']:.1f} s"
        if self.choice.named:
            text += f"; by earlier cuts: {self.choice.named}"
        self.run.say(text)

    def score(self, users: Tensor) -> Tensor:
        """Scores, `[users, items]`, that are not to be had: there is a model for each cut, in a folder of its own."""
        raise InputError("a rolling evaluation has a model for each cut; open the checkpoint of one")

    def ranked(self, stage: Stage) -> Ranked:
        """Not to be had: see `score`."""
        raise InputError("a rolling evaluation has a model for each cut; open the checkpoint of one")

    def histograms(self) -> dict[str, Tensor]:
        """Values `[any]` by name: none."""
        return {}


class RollingRun(Run):
    """What a run is under ``data.split: rolling`` where no cut is named. Arguments are those of `Run`."""

    GO_ON = "the same command with its --run_dir goes on where it was"

    def _build(
        self, parts: Namespace, settings: Namespace, callbacks: Sequence[object], clients: Path | None, to_train: bool
    ) -> Training:
        check(no_crowd(settings, "a rolling evaluation"))
        path = self.directory / CONFIG
        if path.exists() and yaml.safe_load(path.read_text()) != yaml.safe_load(self.config):
            raise InputError(f"run_dir: {self.directory} holds a rolling evaluation with other settings")
        return Cuts(self, parts.loop.monitor, callbacks, History(self.directory / METRICS, self.log))

    @property
    def _cuts(self) -> Cuts:
        return cast(Cuts, self.training)

    @property
    def alternatives(self) -> Sequence[Mapping[str, Any]]:
        """Settings of the method to choose among; none, so that nothing is forgotten, where times tell no days."""
        if self.data.days is None:
            return ({},)
        return self.method.alternatives

    @property
    def interrupted(self) -> int | None:
        return self._cuts.interrupted

    @property
    def go_on(self) -> str:
        return f"stopped; the same command with --run_dir {self.directory} goes on"

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def _intent(self) -> str:
        rolling, alternatives = self.data.rolling, len(self.alternatives)
        told = (
            f"{type(self.method).__name__} at {rolling.number} cuts, of which {rolling.number - rolling.num_choosing}"
        )
        told += " are reported"
        if rolling.num_choosing:
            told += " with the settings that did best at all earlier ones"
            if alternatives > 1:
                told += f" ({alternatives} alternatives)"
        if self.data.days is None and len(self.method.alternatives) > 1:
            told += "; its times are an order, so nothing is forgotten"
        return f"{told}; in {self.directory}"

    def _finish(self, started: float) -> None:
        """Put the cases of all reported cuts together, and write what was found."""
        told, metric = self._cuts.summaries, self.training.monitor.removeprefix("val/")
        asked = [one for one in told if one["cases"]]
        found: dict[str, float] = {}
        if asked:
            cases = pl.concat(
                pl.read_parquet(self.directory / CUTS / f"{one['cut']:02}" / RANKS).with_columns(cut=pl.lit(one["cut"]))
                for one in asked
            )
            write(cases, self.directory / RANKS)
            found = pooled(asked)
            if not isinstance(self.method, Popularity):
                mine, theirs = (
                    each_users(metric, cases[name].to_torch()[:, None]).numpy() for name in ("rank", "popularity")
                )
                found |= by_how_much(mine, theirs, metric)
        self.summary = {
            **stated(self.header, self.data, self.directory),
            **found,
            "cases": sum(one["cases"] for one in told),
            "cuts": self.data.rolling.number,
            "choosing": self.data.rolling.num_choosing,
            "chosen": {str(one["cut"]): one["chosen"] for one in told},
            "seconds": time.perf_counter() - started + self.training.seconds,
        }
        self._write_page()
        write_json(self.directory / SUMMARY, self.summary)
        shown = {name: value for name, value in found.items() if name.startswith("test/")}
        self.log.call("log_metrics", shown, step=self.training.round)


def _finished(folder: Path, config: object) -> dict[str, Any] | None:
    """The summary of a run in a folder, if it is finished and was of these settings."""
    with suppress(FileNotFoundError, DamagedError, yaml.YAMLError):
        summary = read_json(folder / SUMMARY)
        if yaml.safe_load((folder / CONFIG).read_text()) == config:
            return summary
    return None


def _refuse(folder: Path, which: str, *names: str) -> None:
    told = "holds has changed; remove it, or choose another"  # since all cuts are told as one result
    check(*(f"run_dir: {folder} has results {which}: what {name} {told}" for name in names))
