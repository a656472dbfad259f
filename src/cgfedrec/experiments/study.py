"""The trials of a search in one sealed file. At any moment it holds the trials that have ended, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgfedrec.errors import InputError, check
from cgfedrec.experiments.space import distribution
from cgfedrec.files import read_json, write_json

if TYPE_CHECKING:
    import optuna

STUDY = "study.json"


def open_study(folder: Path, budget: Mapping[str, Any], pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """A study in memory, with the trials of the folder's file where there is one.

    Args:
        folder: Of the search.
        budget: What all trials have in common: the config, the space, whether they are pruned, the data, and code of
            one's own.
        pruner: Decides which trials end early.

    Raises:
        InputError: if the file is damaged, or holds a study of something else.
    """
    import optuna

    study = optuna.create_study(direction="maximize", pruner=pruner)
    path = folder / STUDY
    if not path.exists():
        if (folder / "study.db").exists():
            check(f"--output: {folder} holds a study of cgfedrec before 0.2 (study.db), which cannot be gone on with")
        return study
    saved = read_json(path)
    if saved.get("budget") != budget:
        raise InputError(
            f"--output: {folder} holds a study of another config, space, data or code; choose another folder"
        )
    ranges = {option: distribution(entry) for option, entry in budget["space"].items()}
    try:
        for trial in saved["trials"]:
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState[trial["state"]],
                    value=trial["value"],
                    params=trial["params"],
                    distributions={option: ranges[option] for option in trial["params"]},
                    user_attrs=trial["user_attrs"],
                    intermediate_values=dict(trial["intermediate_values"]),
                )
            )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--output: {path} holds no trials of this search ({error})") from error
    return study


def save_study(study: optuna.Study, folder: Path, budget: Mapping[str, Any]) -> None:
    """Write every trial that has ended, in one atomic step.

    Args:
        study: With all trials so far.
        folder: Of the search.
        budget: As for `open_study`.
    """
    trials = [
        {
            "state": trial.state.name,
            "value": value_of_trial(trial),
            "params": trial.params,
            "user_attrs": trial.user_attrs,
            # Pairs, since the keys of a JSON object are text, and rounds are numbers.
            "intermediate_values": list(map(list, trial.intermediate_values.items())),
        }
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished()
    ]
    write_json(folder / STUDY, {"budget": budget, "trials": trials})


def value_of_trial(trial: optuna.trial.FrozenTrial) -> float | None:
    """What a trial came to; ``None`` if it did not come to its end, though Optuna gives a pruned one its last value."""
    if trial.state.name == "COMPLETE":
        return trial.value
    return None
