"""What a run says last: how it stands among the runs beside it, and what to try where it is not good enough."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from cgfedrec.errors import InputError
from cgfedrec.files import read_json
from cgfedrec.loop import FederatedLoop
from cgfedrec.run.checkpoint import BEST, LAST
from cgfedrec.run.run import Run
from cgfedrec.server import CLIENTS
from cgfedrec.structure.counting import CountingServer
from cgfedrec.structure.private import CHOOSE

MOST_RUNS = 200
"""Runs beside this one that are looked at, the newest first."""


class Tried(NamedTuple):
    """A run on the same data."""

    value: float
    """The monitored validation metric of its best round."""
    name: str
    """Of its method's class."""
    folder: Path


def advice(run: Run) -> Iterator[str]:
    """What to say of a run that has ended, beside its figures, a line each."""
    yield from _among_others(run)
    training = run.training
    at_the_end = False
    # A method that counts in phases tells of clients in each. It ends by itself, and `show_unfinished` says if not.
    if isinstance(training, FederatedLoop) and not any(name.startswith(CLIENTS) for name in run.summary):
        at_the_end = run.summary["best_round"] == run.summary["rounds"] == training.rounds
    if isinstance(training, FederatedLoop) and training.cut_short:
        yield training.cut_short
    elif at_the_end and isinstance(training, FederatedLoop):
        yield _more(training, run.going_on)
    server = training.server if isinstance(training, FederatedLoop) else None
    if isinstance(server, CountingServer) and CHOOSE in server.sums and server.judged.any():
        again = ""
        if run.spends:
            again = "; that run spends a budget of its own, and on the same people these add up"
        yield (
            "to train on everything and use it, give the same settings and "
            f"--data.split none --method.read_by {quote(list(server.structure.readings)[int(server.chosen)])}{again}"
        )
    if run.summary.get("unfinished"):
        yield "next: give it the rounds that it needs, as is said above its table"
    elif below_popularity(run.summary):
        name = type(run.method).__name__
        if name == "CGFedCo":
            yield (
                "next: cgfedrec data describe shows how much there is to learn from. --method EASE, which sees "
                "everyone's data, shows whether these data hold anything beyond popularity"
            )
        elif not at_the_end:
            spends = isinstance(training, FederatedLoop) and training.spending is not None
            settings = "" if spends else f", or other settings of {name}: cgfedrec tune"  # whose trials spend as well
            yield f"next: try the default, --method CGFedCo{settings}"


def _more(training: FederatedLoop, going_on: str) -> str:
    """How to have more rounds where the last one was the best: as many again, or what is left of a budget."""
    rounds = training.affordable(2 * training.rounds)
    if rounds == training.rounds:
        return "the best round is the last one; more rounds need a larger Noised.epsilon, or more noise in each"
    told = f"{going_on} --loop.rounds {rounds}"
    spending = training.spending
    if spending and spending.bounded:
        told += f" (epsilon {spending.epsilon:.4g} of {spending.budget:g} is spent so far)"
    return f"the best round is the last one: more may help. To go on: {told}"


def below_popularity(told: Mapping[str, Any]) -> bool:
    """Whether a test did not show that its model is better than popularity (`cgfedrec.run.summary.over_popularity`)."""
    if "over_popularity/users" not in told:
        return False
    low = [value for name, value in told.items() if name.startswith("over_popularity/") and name.endswith("/low")]
    return not low or low[0] <= 0


def warning_of(checkpoint: Path) -> str | None:
    """What whoever uses a checkpoint must know of its run's test, as far as that lies beside it."""
    told = _summary(checkpoint.parent.parent / "summary.json")
    if checkpoint.name not in (BEST, LAST) or told is None or not below_popularity(told):
        return None
    return "its test did not show that this model is better than showing everybody what is popular"


def _among_others(run: Run) -> Iterator[str]:
    """How the run stands among those beside it on the same data, by validation: the test chooses nothing."""
    monitor = run.training.monitor
    ours = run.summary.get(monitor)
    others = list(_tried(run, monitor))
    if ours is None or not others:
        return
    best = max(others)
    metric = monitor.removeprefix("val/")
    if best.value > ours:
        yield (
            f"by validation {metric} the best of {len(others) + 1} runs on these data is {best.name} in {best.folder}: "
            f"{best.value:.4f}, this one {ours:.4f}"
        )
        return
    place = "this is the best"
    if best.value == ours:
        place = f"this run and {best.name} in {best.folder} are equal, and the best"
    yield f"by validation {metric} {place} of {len(others) + 1} runs on these data"


def _tried(run: Run, monitor: str) -> Iterator[Tried]:
    """The runs beside a run that were trained on the same data and measured alike."""
    own = run.directory.absolute()
    beside = [own.parent, *([own.parent.parent] if own.name.isdigit() else [])]
    summaries = [folder.glob(where) for folder in beside for where in ("*/summary.json", "*/*/summary.json")]
    found = {path for paths in summaries for path in paths}
    for path in sorted(found, key=lambda one: one.stat().st_mtime, reverse=True)[:MOST_RUNS]:
        told = None if path.parent == own else _summary(path)
        if told and all(told.get(name) == run.summary[name] for name in ("data", "protocol")):
            value = told.get(monitor)
            if isinstance(value, float):
                name = str(told.get("method")).rpartition(".")[2]
                yield Tried(value, name, Path(os.path.relpath(path.parent)))


def _summary(path: Path) -> dict[str, Any] | None:
    """What a ``summary.json`` holds; nothing where there is none that can be read."""
    try:
        return read_json(path)
    except (OSError, InputError):
        return None
