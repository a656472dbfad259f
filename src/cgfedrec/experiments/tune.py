"""Search for settings by validation alone, with a budget that is stated and can be the same for every method."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml
from jsonargparse import Namespace
from rich.console import Console

from cgfedrec.data.split import Part
from cgfedrec.errors import InputError, RunError, check
from cgfedrec.experiments.checks import check_space, check_users
from cgfedrec.experiments.logged import grouped
from cgfedrec.experiments.space import distribution, holds, parsed, read_space, value_of, with_values
from cgfedrec.experiments.study import open_study, save_study, value_of_trial
from cgfedrec.files import locked, no_folder, remove_leftovers, write_atomically
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.run.console import progress_bars, quiet_console
from cgfedrec.run.engine import no_crowd
from cgfedrec.run.run import Run
from cgfedrec.settings.layers import UNLOGGED
from cgfedrec.settings.opening import refuse_of_fit
from cgfedrec.settings.parser import dump, parse
from cgfedrec.settings.sources import said
from cgfedrec.wire.messages import NotFiniteError

if TYPE_CHECKING:
    import optuna

STARTUP = 5
"""Trials that are drawn at random, before the sampler learns from them; none of these is pruned."""
WARM_UP = 0.2
"""The share of the rounds that every trial trains at least, before it may be pruned."""


def tune(
    options: Sequence[str],
    space: str | Path,
    trials: int,
    output: str | Path,
    prune: bool = False,
    console: Console | None = None,
) -> Path:
    """Try settings, as ``cgfedrec tune`` does, and write the best as a config that ``fit --config`` takes.

    A trial is scored by the best round's monitored validation metric; no trial ever ranks a test item. The first trial
    is the config's own settings where the space holds them; the others come from Optuna's TPE sampler, seeded by the
    config's ``seed_everything`` and the trial's number. Trials that fail or are pruned count. A study that was stopped
    goes on where it was, and comes to the same trials. Where a logger is asked for (the default one is not), it has a
    run for each trial, below ``trials`` in the folder.

    Args:
        options: Of `cgfedrec fit`: the config and what overrides it.
        space: A YAML file of dotted options, each with a list of choices or with ``low``, ``high`` and, if wanted,
            ``log`` or ``step``: of ``method``, of ``loop`` and of ``data``, as far as trials can be compared then.
        trials: How many in all.
        output: Where the study, ``trials.csv`` and ``best.yaml`` go.
        prune: Whether trials below the median of the others at the same round end early.
        console: Where progress is shown; by default nowhere.

    Returns:
        The path of ``best.yaml``.

    Raises:
        InputError: if anything given cannot be used, or the folder holds a study of something else.
        RunError: if no trial came to an end.
    """
    if trials < 1:
        check(f"--trials: {trials} is not positive")
    console, folder, optuna = console or quiet_console(), Path(output), _optuna()
    check(no_folder("--output", folder))
    spec = read_space(Path(space))
    given = said(options=options)
    refuse_of_fit(given, "tune")
    settings = parse(given)
    check(no_crowd(settings, "each trial of a study"))
    own: dict[str, Any] = yaml.safe_load(dump(settings))
    check_space(spec, own)
    run = _open(own, folder)
    if not run.data.part_size(Part.VAL):
        check("data.split: holds nothing out for validation")
    check_users(spec, own, run.header.fingerprint)
    # What all trials of a study have in common; a study of something else is not gone on with.
    budget = {"config": own, "space": spec, "prune": prune, "data": run.header.fingerprint}
    budget |= {"code": dict(run.header.code)} if run.header.code else {}
    logged = any(given.value(option) for option in UNLOGGED)
    pruner = optuna.pruners.NopPruner()
    if prune:
        pruner = optuna.pruners.MedianPruner(STARTUP, int(WARM_UP * run.training.rounds))
    with locked(folder, f"--output: another search is at work in {folder}"):
        remove_leftovers(folder)
        shutil.rmtree(folder / "trial", ignore_errors=True)  # of a trial that was killed
        return _search(open_study(folder, budget, pruner), budget, run, trials, folder, console, logged)


def _search(
    study: optuna.Study,
    budget: dict[str, Any],
    run: Run,
    trials: int,
    folder: Path,
    console: Console,
    logged: bool,
) -> Path:
    """Make the trials that are missing, each saved as it ends, and write what they found."""
    import optuna

    own, spec, prune = budget["config"], budget["space"], budget["prune"]
    save_study(study, folder, budget)
    monitor, seed = run.training.monitor, int(own["seed_everything"])
    most = ""
    if isinstance(run.method, Method):  # a reference has no rounds
        most = f" of at most {run.training.rounds} rounds"
    console.print(
        f"{type(run.method).__name__}: {trials} trials{most}, by {monitor}, seed {seed}, in {folder}",
        highlight=False,
        soft_wrap=True,
    )
    if run.spends:
        told = "warning: privacy: each trial spends a budget of its own, these add up, and no budget has the choice"
        console.print(told, highlight=False, soft_wrap=True)
    values = {option: value_of(own, option) for option in spec}
    # The config's own settings come first: a search should not end below what one had.
    if not study.trials and all(holds(entry, values[option]) for option, entry in spec.items()):
        study.enqueue_trial(values)
    with progress_bars(console, "best") as progress:
        task = progress.add_task("trials", total=trials, completed=_settled(study), best="")
        while _settled(study) < trials:
            # A new sampler for each trial, seeded by the trial's number: a search that was stopped comes to the same
            # trials as one that was not, whatever state its sampler was in.
            study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=STARTUP, multivariate=True, seed=(seed * 100_003 + _settled(study)) % 2**32
            )
            ended = _one(study, spec, own, folder, logged)
            save_study(study, folder, budget)
            console.print(ended, highlight=False)
            so_far = ""
            if _completed(study):
                so_far = f"best {study.best_value:.4f}"
            progress.update(task, completed=_settled(study), best=so_far)
    table = _table(study)
    write_atomically(folder / "trials.csv", table.write_csv())
    if not _completed(study):
        raise RunError(f"none of {trials} trials came to an end; {folder / 'trials.csv'} says why")
    best = study.best_trial
    pruned = ", median pruning" if prune else ""
    stated = (
        f"# Found by cgfedrec tune: trial {best.number} of {trials}{most}, seed {seed}{pruned}.\n"
        f"# {monitor} {best.value:.4f}; no test item was ranked.\n"
    )
    path = folder / "best.yaml"
    write_atomically(path, stated + dump(parsed(with_values(own, best.params))))
    console.print(f"{monitor} {best.value:.4f} with {_written(best.params)}\n{path}", highlight=False, soft_wrap=True)
    return path


def _optuna() -> ModuleType:
    """Optuna, which is an extra. Raises `InputError` where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise InputError("tuning needs Optuna: pip install 'cgfedrec[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _settled(study: optuna.Study) -> int:
    """How many trials count: those that have ended, in whatever way."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def _completed(study: optuna.Study) -> bool:
    """Whether any trial came to a value."""
    return any(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False))


def _one(study: optuna.Study, space: Mapping[str, Any], own: dict[str, Any], output: Path, logged: bool) -> str:
    """Ask for a trial, train it, and tell how it ended."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    trial = study.ask({option: distribution(entry) for option, entry in space.items()})
    values, folder = trial.params, output / "trial"
    started, value, state, error = time.perf_counter(), None, TrialState.COMPLETE, ""
    try:
        config = grouped(with_values(own, values), output.name, "tune")
        run = _open(config, folder, trial, logged)
        if logged:  # beside the trial's own folder, which goes
            run.log.start(output / "trials" / str(trial.number), config)
        with _finalized(run):
            run.training.fit()
        if run.interrupted:
            raise SystemExit(128 + run.interrupted)
        best = run.training.best
        assert best is not None
        value = best[run.training.monitor]
        trial.set_user_attr("best_round", int(best["round"]))
    except TrialPruned:
        state = TrialState.PRUNED
    except (InputError, RunError, NotFiniteError, RuntimeError, ValueError) as failure:
        # Settings that diverge or do not fit are an answer like any other, and the search goes on.
        state = TrialState.FAIL
        error = str(failure)
        if isinstance(failure, NotFiniteError):  # whose message lists clients, and they say nothing of settings
            error = f"the {failure.what} is not finite"
        trial.set_user_attr("error", error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    trial.set_user_attr("seconds", time.perf_counter() - started)
    study.tell(trial, value, state=state)
    ended = f"{state.name.lower()} {error}".strip()
    if value is not None:
        ended = f"{value:.4f}"
    return f"trial {trial.number}: {ended}  {_written(values)}"


@contextmanager
def _finalized(run: Run) -> Iterator[None]:
    """End the loggers of a run with it, however it ends."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        run.log.call("finalize", status)


def _open(config: Mapping[str, Any], folder: Path, trial: optuna.Trial | None = None, logged: bool = False) -> Run:
    """Set up the run of a config; one that belongs to a trial reports to it, and may write into the folder."""
    callbacks = []
    if trial is not None:
        callbacks.append(_Reporter(trial))
        folder.mkdir(parents=True, exist_ok=True)
    settings = parsed(config)
    if not logged:
        settings.update(Namespace(**UNLOGGED))
    return Run(settings, folder, callbacks)


class _Reporter:
    """A callback that tells the study of every evaluation, and ends the trial if the study prunes it."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_round_end(self, loop: FederatedLoop) -> None:
        """Report the round's value, if this round was evaluated. Raises ``TrialPruned`` to end the trial."""
        if not loop.history or loop.history[-1]["round"] != loop.round:
            return
        row = loop.history[-1]
        if loop.monitor not in row:  # the round only prepared
            return
        self.trial.report(row[loop.monitor], loop.round)
        if self.trial.should_prune():
            from optuna import TrialPruned

            raise TrialPruned


def _table(study: optuna.Study) -> pl.DataFrame:
    """One row for each trial that counts."""
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "value": value_of_trial(trial),
            "best_round": trial.user_attrs.get("best_round"),
            "seconds": trial.user_attrs["seconds"],
            **trial.params,
            "error": trial.user_attrs.get("error", ""),
        }
        for trial in study.trials
        if trial.state.is_finished()
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _written(values: Mapping[str, Any]) -> str:
    """The values of a trial on one line, options by their last names."""
    parts = []
    for option, value in values.items():
        name = option.rpartition("init_args.")[2]
        if isinstance(value, float):
            parts.append(f"{name} {value:.4g}")
        else:
            parts.append(f"{name} {value}")
    return ", ".join(parts)
