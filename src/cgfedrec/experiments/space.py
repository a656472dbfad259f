"""A search space: dotted options, each with choices or a range, and configs with other values for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from jsonargparse import Namespace

from cgfedrec.errors import InputError, check
from cgfedrec.settings.layers import short
from cgfedrec.settings.parser import parse
from cgfedrec.settings.sources import said
from cgfedrec.settings.yamlfile import read_yaml_file


def read_space(path: Path) -> dict[str, Any]:
    """Read a search space: for each option a list of choices, or a range.

    Args:
        path: A YAML file of dotted options; see `cgfedrec.experiments.tune.tune`.

    Raises:
        InputError: with every problem.
    """
    try:
        space = read_yaml_file(path)
    except InputError as error:
        raise InputError(f"--space: {problem}" for problem in error.problems) from error
    if not isinstance(space, dict) or not space:
        raise InputError(f"--space: {path}: holds no options")
    check(*(f"--space: {name}: {problem}" for name, entry in space.items() if (problem := _problem(entry))))
    return {str(name): entry for name, entry in space.items()}


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config in which dotted options have other values."""
    changed = dict(config)
    for option, value in values.items():
        first, _, rest = option.partition(".")
        if rest:
            value = with_values(changed.get(first) or {}, {rest: value})
        changed[first] = value
    return changed


def _problem(entry: object) -> str | None:
    """What is wrong with an option's choices or range, if anything is."""
    if isinstance(entry, list):
        plain = all(value is None or isinstance(value, bool | int | float | str) for value in entry)
        if entry and plain:
            return None
        return "give one or more choices: numbers, text, true, false or null"
    if not isinstance(entry, dict) or not {"low", "high"} <= entry.keys() <= {"low", "high", "log", "step"}:
        return "give a list of choices, or low and high, and log or step if wanted"
    low, high = entry["low"], entry["high"]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        return f"low {low!r} and high {high!r} must be numbers; YAML reads 1e-3 as text, and 1.0e-3 as a number"
    if not low < high:
        return f"low {low} is not below high {high}"
    if entry.get("log") and (low <= 0 or "step" in entry):
        return "log needs a positive low, and takes no step"
    step, whole = entry.get("step", 1), isinstance(low, int) and isinstance(high, int)
    if isinstance(step, bool) or not isinstance(step, int if whole else int | float) or not step > 0:
        return f"step {step!r} must be a positive number, and a whole one where low and high are"
    return None


def check_space(space: Mapping[str, Any], own: dict[str, Any]) -> None:
    """Make sure that the parser takes every choice, and both ends of every range, each on its own.

    Args:
        space: As `read_space` gives it.
        own: The config whose options are to be varied.

    Raises:
        InputError: naming each option with a value that cannot be used.
    """
    problems, seen = [], dict[str, str]()
    for option, entry in space.items():
        if (other := seen.setdefault(short(option.split(".")), option)) != option:
            problems.append(f"--space: {option}: is {other} in other words; name it once")
            continue
        first = option.split(".")[0]
        if first not in ("method", "loop", "data"):
            problems.append(f"--space: {option}: only options of method, loop and data can be tuned")
            continue
        values = entry
        if not isinstance(entry, list):
            values = (entry["low"], entry["high"])
        for value in values:
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
    """The value of a dotted option in a config, with or without ``init_args``; ``None`` where there is none."""
    for key in option.split("."):
        if not isinstance(config, dict):
            return None
        if key not in config:
            config = config.get("init_args") or {}
        config = config.get(key)
    return config


def holds(entry: Any, value: object) -> bool:
    """Whether an option's choices or range hold a value: not one between two steps, nor between two whole numbers."""
    if isinstance(entry, list):
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in entry)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    drawn: Any = distribution(entry)
    if not drawn.low <= value <= drawn.high:
        return False
    steps = (value - drawn.low) / (drawn.step or 1)
    return drawn.step is None or abs(steps - round(steps)) < 1e-8  # as near as Optuna takes it


def distribution(entry: Any) -> optuna.distributions.BaseDistribution:
    """What Optuna draws an option's values from.

    Args:
        entry: A list of choices, or ``low`` and ``high`` with ``log`` or ``step``. Two whole ends make whole numbers.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(entry, list):
        return CategoricalDistribution(entry)
    low, high, log = entry["low"], entry["high"], bool(entry.get("log", False))
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=entry.get("step", 1))
    return FloatDistribution(low, high, log=log, step=entry.get("step"))
