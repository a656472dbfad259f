"""A search space: dotted options, each with choices or a range, and configs with other values for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from jsonargparse import Namespace

from cgfedrec.errors import InputError, check
from cgfedrec.settings.parser import parse
from cgfedrec.settings.sources import said
from cgfedrec.settings.yamlfile import read_yaml_file


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


def check_space(space: Mapping[str, Any], own: dict[str, Any]) -> None:
    """Every end of a range and every choice must be something that the parser takes, one at a time."""
    problems = []
    for option, entry in space.items():
        first = option.split(".")[0]
        if first not in ("method", "loop", "data"):
            problems.append(f"--space: {option}: only options of method, loop and data can be tuned")
            continue
        for value in entry if isinstance(entry, list) else (entry["low"], entry["high"]):
            try:
                parsed(with_values(own, {option: value}))
            except InputError as error:
                problems.append(f"--space: {option}: {error}")
                break
    check(*problems)


def parsed(config: Mapping[str, Any]) -> Namespace:
    """The settings of a whole config, whatever the environment says."""
    return parse(said([config], environment={}))


def value_of(config: Any, option: str) -> Any:
    for key in option.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def holds(entry: Any, value: Any) -> bool:
    if isinstance(entry, list):
        return value in entry
    return isinstance(value, int | float) and entry["low"] <= value <= entry["high"]


def distribution(entry: Any) -> optuna.distributions.BaseDistribution:
    """From what values of an option are drawn: a list of choices, or ``low`` and ``high``."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(entry, list):
        return CategoricalDistribution(entry)
    low, high, log = entry["low"], entry["high"], bool(entry.get("log", False))
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=entry.get("step", 1))
    return FloatDistribution(low, high, log=log, step=entry.get("step"))
