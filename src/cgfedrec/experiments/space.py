"""A search space: dotted options, each with choices or a range, and configs with other values for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from cgfedrec.errors import InputError
from cgfedrec.settings.parser import parse
from cgfedrec.settings.sources import said
from cgfedrec.settings.yamlfile import read_yaml_file

if TYPE_CHECKING:
    import optuna


def read_space(path: Path) -> dict[str, Any]:
    """Read a search space, which `cgfedrec.experiments.checks` looks at.

    Args:
        path: A YAML file of dotted options; see `cgfedrec.experiments.tune.tune`.

    Raises:
        InputError: if it holds no options.
    """
    try:
        space = read_yaml_file(path)
    except InputError as error:
        raise InputError(f"--space: {problem}" for problem in error.problems) from error
    if not isinstance(space, dict) or not space:
        raise InputError(f"--space: {path}: holds no options")
    return {str(name): entry for name, entry in space.items()}


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config in which dotted options have other values. Raises `InputError` where one cannot be."""
    if not isinstance(config, Mapping):
        raise InputError("there is no such option")
    changed = dict(config)
    for option, value in values.items():
        first, _, rest = option.partition(".")
        if rest:
            value = with_values(changed.get(first) or {}, {rest: value})
        changed[first] = value
    return changed


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
