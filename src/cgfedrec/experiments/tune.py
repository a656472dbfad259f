"""Search for settings by validation alone, with a budget that is stated and can be the same for every method."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml
from jsonargparse import Namespace
from rich.console import Console

from cgfedrec.data.split import Part
from cgfedrec.errors import InputError, RunError, check
from cgfedrec.experiments.study import distribution, open_study, save_study
from cgfedrec.files import locked, no_folder, remove_leftovers, write_atomically
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.run.console import progress_bars, quiet_console
from cgfedrec.run.run import Run
from cgfedrec.settings.parser import dump, parse, refuse_of_fit
from cgfedrec.settings.sources import said
from cgfedrec.settings.yamlfile import read_yaml_file
from cgfedrec.wire.messages import NotFiniteError

if TYPE_CHECKING:
    import optuna

STARTUP = 5
"""Trials drawn at random before the sampler learns from them and, where asked to, before any is pruned."""
WARM_UP = 0.2
"""Share of the rounds before which no trial is pruned."""


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
    goes on where it was, and comes to the same trials.

    Args:
        options: Of `cgfedrec fit`: the config and what overrides it.
        space: A YAML file of dotted options, each with a list of choices or with ``low``, ``high`` and, if wanted,
            ``log`` or ``step``.
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
    check(f"--trials: {trials} is not positive" if trials < 1 else None)
    console, folder = console or quiet_console(), Path(output)
    check(no_folder("--output", folder))
    spec = read_space(Path(space))
    given = said(options=options)
    refuse_of_fit(given, "tune")
    own: dict[str, Any] = yaml.safe_load(dump(parse(given)))
    _check_space(spec, own)
    run = _open(own, folder)
    check(None if run.data.part_size(Part.VAL) else "data.split: holds nothing out for validation")
    budget = {"config": own, "space": spec, "prune": prune, "data": run.header.fingerprint}
    optuna = _optuna()
    pruner = optuna.pruners.NopPruner()
    if prune:
        pruner = optuna.pruners.MedianPruner(STARTUP, int(WARM_UP * run.training.rounds))
    with locked(folder, f"--output: another search is at work in {folder}"):
        remove_leftovers(folder)
        shutil.rmtree(folder / "trial", ignore_errors=True)  # of a trial that was killed
        return _search(open_study(folder, budget, pruner), budget, run, trials, folder, console)


def _search(study: optuna.Study, budget: dict[str, Any], run: Run, trials: int, folder: Path, console: Console) -> Path:
    """Make the trials that are missing, each saved as it ends, and write what they found."""
    import optuna

    own, spec, prune = budget["config"], budget["space"], budget["prune"]
    save_study(study, folder, budget)
    monitor, seed = run.training.monitor, int(own["seed_everything"])
    most = f" of at most {run.training.rounds} rounds" if isinstance(run.method, Method) else ""
    console.print(
        f"{type(run.method).__name__}: {trials} trials{most}, by {monitor}, seed {seed}, in {folder}",
        highlight=False,
        soft_wrap=True,
    )
    values = {option: _value(own, option) for option in spec}
    if not study.trials and all(_holds(entry, values[option]) for option, entry in spec.items()):
        study.enqueue_trial(values)
    with progress_bars(console, "best") as progress:
        task = progress.add_task("trials", total=trials, completed=_settled(study), best="")
        while _settled(study) < trials:
            study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=STARTUP, multivariate=True, seed=(seed * 100_003 + _settled(study)) % 2**32
            )
            ended = _one(study, spec, own, folder / "trial")
            save_study(study, folder, budget)
            console.print(ended, highlight=False)
            so_far = f"best {study.best_value:.4f}" if _completed(study) else ""
            progress.update(task, completed=_settled(study), best=so_far)
    table = _table(study)
    write_atomically(folder / "trials.csv", table.write_csv())
    if not _completed(study):
        raise RunError(f"none of {trials} trials came to an end; {folder / 'trials.csv'} says why")
    best = study.best_trial
    stated = (
        f"# Found by cgfedrec tune: trial {best.number} of {trials}{most}, seed {seed}"
        f"{', median pruning' if prune else ''}.\n# {monitor} {best.value:.4f}; no test item was ranked.\n"
    )
    path = folder / "best.yaml"
    write_atomically(path, stated + dump(_parsed(with_values(own, best.params))))
    console.print(f"{monitor} {best.value:.4f} with {_written(best.params)}\n{path}", highlight=False, soft_wrap=True)
    return path


def read_space(path: Path) -> dict[str, Any]:
    """Read a search space: each option's choices, or its range. Raises `InputError` with every problem."""
    try:
        space = read_yaml_file(path)
    except InputError as error:
        raise InputError(f"--space: {problem}" for problem in error.problems) from error
    check(None if isinstance(space, dict) and space else f"--space: {path}: holds no options")
    check(*(f"--space: {name}: {problem}" for name, entry in space.items() if (problem := _problem(entry))))
    return {str(name): entry for name, entry in space.items()}


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config in which dotted options have other values."""
    changed = dict(config)
    for option, value in values.items():
        first, _, rest = option.partition(".")
        changed[first] = with_values(changed.get(first) or {}, {rest: value}) if rest else value
    return changed


def _problem(entry: Any) -> str | None:
    if isinstance(entry, list):
        plain = all(value is None or isinstance(value, bool | int | float | str) for value in entry)
        return None if entry and plain else "give one or more choices: numbers, text, true, false or null"
    if not isinstance(entry, dict) or not {"low", "high"} <= entry.keys() <= {"low", "high", "log", "step"}:
        return "give a list of choices, or low and high, and log or step if wanted"
    low, high = entry["low"], entry["high"]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        return f"low {low!r} and high {high!r} must be numbers; YAML reads 1e-3 as text, and 1.0e-3 as a number"
    if not low < high:
        return f"low {low} is not below high {high}"
    if entry.get("log") and (low <= 0 or "step" in entry):
        return "log needs a positive low, and takes no step"
    return None


def _check_space(space: Mapping[str, Any], own: dict[str, Any]) -> None:
    """Every end of a range and every choice must be something that the parser takes, one at a time."""
    problems = []
    for option, entry in space.items():
        first = option.split(".")[0]
        if first not in ("method", "loop", "data"):
            problems.append(f"--space: {option}: only options of method, loop and data can be tuned")
            continue
        for value in entry if isinstance(entry, list) else (entry["low"], entry["high"]):
            try:
                _parsed(with_values(own, {option: value}))
            except InputError as error:
                problems.append(f"--space: {option}: {error}")
                break
    check(*problems)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError("tuning needs Optuna: pip install 'cgfedrec[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _settled(study: optuna.Study) -> int:
    """How many trials count: those that have ended, whatever way."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def _completed(study: optuna.Study) -> bool:
    return any(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False))


def _value(config: Any, option: str) -> Any:
    for key in option.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _holds(entry: Any, value: Any) -> bool:
    if isinstance(entry, list):
        return value in entry
    return isinstance(value, int | float) and entry["low"] <= value <= entry["high"]


def _one(study: optuna.Study, space: Mapping[str, Any], own: dict[str, Any], folder: Path) -> str:
    """Ask for a trial, train it, and tell how it ended."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    trial = study.ask({option: distribution(entry) for option, entry in space.items()})
    values = trial.params
    started, value, state, error = time.perf_counter(), None, TrialState.COMPLETE, ""
    try:
        run = _open(with_values(own, values), folder, trial)
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
        state = TrialState.FAIL
        error = f"the {failure.what} is not finite" if isinstance(failure, NotFiniteError) else str(failure)
        trial.set_user_attr("error", error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    trial.set_user_attr("seconds", time.perf_counter() - started)
    study.tell(trial, value, state=state)
    ended = f"{value:.4f}" if value is not None else f"{state.name.lower()} {error}".strip()
    return f"trial {trial.number}: {ended}  {_written(values)}"


def _open(config: Mapping[str, Any], folder: Path, trial: optuna.Trial | None = None) -> Run:
    callbacks = [_Reporter(trial)] if trial else []
    if trial:
        folder.mkdir(parents=True, exist_ok=True)
    settings = _parsed(config)
    settings.logger = None
    return Run(settings, folder, callbacks)


def _parsed(config: Mapping[str, Any]) -> Namespace:
    """The settings of a whole config, whatever the environment says."""
    return parse(said([config], environment={}))


class _Reporter:
    """Tells the study of every evaluation, and ends a trial that it prunes."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_round_end(self, loop: FederatedLoop) -> None:
        row = loop.history[-1] if loop.history else {}
        if row.get("round") != loop.round:
            return
        self.trial.report(row[loop.monitor], loop.round)
        if self.trial.should_prune():
            from optuna import TrialPruned

            raise TrialPruned


def _table(study: optuna.Study) -> pl.DataFrame:
    """A row a trial that counts."""
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value if trial.state.name == "COMPLETE" else None,
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
    short = {option.rpartition("init_args.")[2]: value for option, value in values.items()}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in short.items())
