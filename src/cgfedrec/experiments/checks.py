"""Whether a space can be searched: whether its trials can be compared, and whether its values can be used."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import nextafter
from typing import Any

from jsonargparse import Namespace

from cgfedrec.errors import LARGEST, InputError, check
from cgfedrec.experiments.compare.job import OF_TRAINING
from cgfedrec.experiments.space import parsed, value_of, with_values
from cgfedrec.run.opened import data_of
from cgfedrec.settings.layers import UNLOGGED, short
from cgfedrec.settings.mistakes import shown
from cgfedrec.settings.parser import instantiate

NOT_OF_LOOP = {
    "monitor": "it names the metric that trials are compared by",
    "rounds": "it is what a trial may spend",
    "evaluate_every": "it decides of how many rounds a trial's value is the best",
    "patience": "it decides of how many rounds a trial's value is the best",
    "failures": "who fails is what trials are tried under, and no setting of a method",
}
"""Options of the loop in which trials cannot differ if they are to be compared, and why."""
_FOR_ALL = "set it for all trials alike, in the config or on the command line"


def check_space(space: Mapping[str, Any], own: dict[str, Any]) -> None:
    """Make sure that a space can be searched, and that it changes nothing that is measured.

    With every choice, and with both ends of every range, the parts of a run must be such that they can be built.

    Args:
        space: As `read_space` gives it.
        own: The config whose options are to be varied.

    Raises:
        InputError: naming each option that cannot be tuned, or has a value that cannot be used; or with what is wrong
            with the config itself.
    """
    instantiate(_silent(own))
    problems, seen = [], dict[str, str]()
    formed = {option: entry for option, entry in space.items() if not (_not_tuned(option) or _malformed(entry))}
    for option, entry in space.items():
        if (other := seen.setdefault(short(option.split(".")), option)) != option:
            found = [f"is {other} in other words; name it once"]
        elif problem := _not_tuned(option) or _malformed(entry):
            found = [problem]
        else:
            found = _unusable(option, formed, own)
        problems += [f"--space: {option}: {problem}" for problem in found]
    check(*problems)


def check_users(space: Mapping[str, Any], own: dict[str, Any], fingerprint: str) -> None:
    """Make sure that all trials have the same data: who has too few items left as negatives is dropped.

    Args:
        space: As `check_space` has found it good.
        own: The config whose options are to be varied.
        fingerprint: Of its data.

    Raises:
        InputError: if other data are left with the most or the fewest ``data.negatives`` of the space.
    """
    for option, entry in space.items():
        if short(option.split(".")) != "data.negatives":
            continue
        # The more negatives, the more users are dropped: what holds for the fewest and the most holds in between.
        values = sorted(int(value) for value in _values(entry))
        for value in {values[0], values[-1]} - {value_of(own, option)}:
            try:
                data = data_of(_silent(with_values(own, {option: value})))
            except InputError as error:
                raise InputError(f"--space: {option}: {problem}" for problem in _unnamed(option, error)) from error
            if data.fingerprint() != fingerprint:
                check(
                    f"--space: {option}: with {value}, other users have too few items left as negatives than in the "
                    "config itself; they are dropped, and this changes what is measured"
                )


def _not_tuned(option: str) -> str | None:
    """Why an option is none to be tuned, if that is so."""
    group, name = [*short(option.split(".")).split("."), ""][:2]
    if group not in ("method", "loop", "data") or not name:
        return "only options of method, loop and data can be tuned"
    if group == "data" and name not in OF_TRAINING:
        return f"changes what is measured: of data only {' and '.join(OF_TRAINING)} can be tuned; {_FOR_ALL}"
    if group == "loop" and name in NOT_OF_LOOP:
        return f"cannot be tuned: {NOT_OF_LOOP[name]}; {_FOR_ALL}"
    return None


def _malformed(entry: object) -> str | None:
    """What is wrong with the form of an option's choices or range, if anything is."""
    if isinstance(entry, list):
        plain = all(
            value is None or (isinstance(value, bool | int | float | str) and value == value) for value in entry
        )
        if entry and plain:
            return None
        return "give one or more choices: numbers, text, true, false or null"
    if isinstance(entry, dict) and isinstance(entry.get("choices"), list):
        return f"write the list itself: {shown(entry['choices'])}"
    if not isinstance(entry, dict) or not {"low", "high"} <= entry.keys() <= {"low", "high", "log", "step"}:
        return "give a list of choices, [1, 2], or a range, {low: 1, high: 2}, with log: true or a step if wanted"
    low, high = entry["low"], entry["high"]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        return f"low {low!r} and high {high!r} must be numbers; YAML reads 1e-3 as text, and 1.0e-3 as a number"
    for name in ("low", "high"):
        if not -LARGEST <= entry[name] <= LARGEST:  # which is so of what is no number too
            return f"{name} {shown(entry[name])} must be a finite number, from {-LARGEST:g} to {LARGEST:g}"
    if not low < high:
        return f"low {low} is not below high {high}"
    if entry.get("log") and (low <= 0 or "step" in entry):
        return "log needs a positive low, and takes no step"
    step, whole = entry.get("step", 1), isinstance(low, int) and isinstance(high, int)
    if isinstance(step, bool) or not isinstance(step, int if whole else int | float) or not step > 0:
        return f"step {step!r} must be a positive number, and a whole one where low and high are"
    if "step" in entry and not (high - low) / 2**53 <= step <= high - low:
        return f"step {shown(step)} is too large or too small for what is between low {low} and high {high}"
    return None


def _unusable(option: str, space: Mapping[str, Any], own: dict[str, Any]) -> list[str]:
    """What is wrong with the first of an option's choices or ends that cannot be used; nothing if all can.

    What cannot be used beside the config's own settings may do so beside other values of the space. So a value is
    refused if it can be used neither there nor with the first or the last values of all other options.
    """
    rest = {name: entry for name, entry in space.items() if name != option}
    besides = [{}, *({name: _values(entry)[place] for name, entry in rest.items()} for place in (0, -1))]
    for value in _values(space[option]):
        wrong: list[InputError] = []
        for one, beside in product(_nearby(value, space[option]), besides):
            try:
                instantiate(_silent(with_values(own, beside | {option: one})))
            except InputError as error:
                wrong.append(error)
            else:
                break
        else:
            return _unnamed(option, wrong[0])
    return []


def _values(entry: Any) -> list[Any]:
    """The choices of a well-formed entry, or the ends of its range."""
    return entry if isinstance(entry, list) else [entry["low"], entry["high"]]


def _nearby(value: Any, entry: Any) -> list[Any]:
    """A choice, or the end of a range; with the number next to it where an end is as good as never drawn."""
    if isinstance(entry, list) or "step" in entry or (isinstance(entry["low"], int) and isinstance(entry["high"], int)):
        return [value]
    return [value, nextafter(value, entry["low"] if value == entry["high"] else entry["high"])]


def _unnamed(option: str, error: InputError) -> list[str]:
    """The problems with an option, without its name, and without the config that they take it to be from."""
    return [one.removeprefix(f"{short(option.split('.'))}: ").removesuffix(" (config)") for one in error.problems]


def _silent(config: Mapping[str, Any]) -> Namespace:
    """The settings of a whole config without loggers and callbacks, which may do more than be built."""
    settings = parsed(config)
    settings.update(Namespace(**UNLOGGED, callbacks=None))
    return settings
