"""Choosing settings at earlier cuts of a rolling evaluation: among alternatives, readings and rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cgfedrec.centralized.reference import Reference
from cgfedrec.history import Row
from cgfedrec.method import Recommender
from cgfedrec.server import CLIENTS, READINGS

CHOSEN_BY = f"{CLIENTS}choose"
"""From how many clients a row's means over readings are, where that is not from all who are asked."""


@dataclass(frozen=True)
class Choice:
    """Settings that earlier cuts have chosen.

    Attributes:
        value: The mean over the cases of these cuts of the metric that chose.
        method: Settings of the method.
        rounds: Of a federation, where rounds were to choose among.
        named: The same in words.
    """

    value: float = 0.0
    method: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    named: str = ""


@dataclass(frozen=True)
class Judged:
    """What one cut says of one alternative.

    Attributes:
        cases: How many users were asked.
        rows: What the training measured: a row for each evaluated round.
    """

    cases: int
    rows: Sequence[Row]


def choose(method: Recommender, monitor: str, of_each: Sequence[tuple[Mapping[str, Any], Sequence[Judged]]]) -> Choice:
    """The best of all alternatives with their readings and rounds; of equal ones the first.

    Args:
        method: Whose settings they are.
        monitor: The validation metric that judges rounds.
        of_each: Each alternative, and what every choosing cut says of it.
    """
    found = [_best(method, monitor, overrides, [one for one in judged if one.cases]) for overrides, judged in of_each]
    return max(found, key=lambda choice: choice.value)  # the first, where several are equal


def _best(method: Recommender, monitor: str, overrides: Mapping[str, Any], judged: Sequence[Judged]) -> Choice:
    """The best reading or round of one alternative."""
    # What makes more readings possible is no choice; the reading tells what has become of it.
    words = [f"{name} {_word(value)}" for name, value in overrides.items() if not isinstance(value, Mapping)]
    if not judged:
        return Choice(0.0, overrides, named=", ".join([*words, "for want of cases"]))
    by_reading = _pooled([_readings(one) for one in judged])
    if by_reading:
        name = max(by_reading, key=by_reading.__getitem__)
        return Choice(by_reading[name], {**overrides, **method.readings[name]}, named=", ".join([*words, name]))
    settled: Mapping[str, Any] = {}
    if isinstance(method, Reference):
        settled = method.settled([one.rows[-1] for one in judged])
    of_cuts = [_rounds(one, monitor) for one in judged]
    # What counts ends by itself, after as many rounds as it takes there, and is evaluated once.
    alone = all(len(one) == 1 for one in of_cuts)
    if alone:
        of_cuts = [dict.fromkeys([0.0], value) for one in of_cuts for value in one.values()]
    by_round = _pooled(of_cuts)
    round = max(by_round, key=by_round.__getitem__)
    rounds = None
    if not (alone or isinstance(method, Reference)):
        rounds = int(round)
        words.append(f"{rounds} rounds")
    words += [f"{name} {_word(value)}" for name, value in settled.items()]
    return Choice(by_round[round], {**overrides, **settled}, rounds, ", ".join(words))


def _rounds(judged: Judged, monitor: str) -> dict[float, tuple[float, float]]:
    """The metric after each round, and over how many cases."""
    return {row["round"]: (row[monitor], judged.cases) for row in judged.rows if monitor in row}


def _readings(judged: Judged) -> dict[str, tuple[float, float]]:
    """The mean of the metric by each reading that clients have judged, and over how many, by its name."""
    for row in reversed(judged.rows):
        found = {name.removeprefix(READINGS): value for name, value in row.items() if name.startswith(READINGS)}
        if found:
            return {name: (value, row.get(CHOSEN_BY, judged.cases)) for name, value in found.items()}
    return {}


def _pooled(of_cuts: Sequence[Mapping[Any, tuple[float, float]]]) -> dict[Any, float]:
    """Means over all cuts, of what every cut has: each a mean and over how many it is."""
    everywhere = [key for key in of_cuts[0] if all(key in of_cut for of_cut in of_cuts)]
    pooled = {}
    for key in everywhere:
        total = sum(of_cut[key][0] * of_cut[key][1] for of_cut in of_cuts)
        pooled[key] = total / max(1, sum(of_cut[key][1] for of_cut in of_cuts))
    return pooled


def _word(value: object) -> str:
    if value is None:
        return "never"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
