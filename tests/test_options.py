"""Every option that the parser has, of every class, with values of every kind that people give by mistake.

By default a sample is tried; CGFEDREC_ALL_OPTIONS=1 tries all (`make options`).
"""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import cgfedrec.centralized
import cgfedrec.methods
from cgfedrec.errors import InputError
from cgfedrec.run.api import start
from cgfedrec.run.run import Run
from cgfedrec.settings.environment import PREFIX
from cgfedrec.settings.layers import DEFAULTS, merged
from cgfedrec.settings.options import Option, options_of
from cgfedrec.settings.parser import dump, parse, parser
from cgfedrec.settings.sources import said, variable_of
from tests.conftest import TINY

SAMPLE = 20
"""Attempts with each class, if not all are made."""
CLASSES = [f"cgfedrec.methods.{name}" for name in cgfedrec.methods.__all__] + [
    f"cgfedrec.centralized.{name}" for name in cgfedrec.centralized.__all__
]
VALUES = ["null", '""', "-1", "0", "1000000000000000000000", "1.0e+39", "1.0e-30", ".nan", ".inf", "[]", "{}", "wrong"]
SOURCES = ("option", "file", "environment")
SMALL = {"dim": 4, "clusters": 3, "epochs": 1, "hidden": [4], "directions": 2, "rank": 2, "fit_steps": 1}
"""What makes setting a method up quick, where it has such settings."""


class Attempt(NamedTuple):
    """One value for one option, from one source."""

    method: str
    option: str
    value: str
    source: str


@cache
def options(method: str) -> dict[str, Option]:
    return options_of(parser(False), merged(DEFAULTS, {"method": {"class_path": method}}))


def attempts(method: str) -> Iterator[Attempt]:
    """All of them for the first class; for the others, those of their own options."""
    for option in options(method):
        if method == CLASSES[0] or option.startswith("method"):
            for value in VALUES:
                for source in SOURCES:
                    yield Attempt(method, option, value, source)


def base(method: str, option: str) -> dict[str, Any]:
    """A config that is set up in a moment."""
    own = {name: value for name, value in SMALL.items() if f"method.{name}" in options(method)}
    whole = {**deepcopy(TINY), "method": {"class_path": method, "init_args": own}, "run_dir": "run"}
    if option.startswith("logger"):
        whole["logger"] = {"class_path": "cgfedrec.run.loggers.WandbLogger", "init_args": {"offline": True}}
    return whole


def run(attempt: Attempt) -> Run:
    """Start the run that is attempted."""
    config = base(attempt.method, attempt.option)
    if attempt.source == "environment":
        environment = {f"{PREFIX}{name.upper()}": yaml.safe_dump(value) for name, value in config.items()}
        environment[variable_of(attempt.option)] = attempt.value.strip('"')
        started = start(said(environment=environment))
    elif attempt.source == "option":
        started = start(said([config], [f"--{attempt.option}", attempt.value.strip('"')], {}))
    else:
        path = Path("attempt.yaml")
        path.write_text(f"{attempt.option}: {attempt.value}\n")
        started = start(said([config, path], (), {}))
    with started as run:
        run.fit()
    return run


def problem_with(attempt: Attempt) -> str | None:
    """What is wrong with the way in which an attempt ended, if anything is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = run(attempt)
            again = dump(parse(said([yaml.safe_load(done.config)], (), {})))
        return None if again == done.config else f"its config does not say the same again: {again}"
    except InputError as error:
        left = [path.name for path in Path().iterdir() if path.name != "attempt.yaml"]
        told = "\n".join(error.problems)
        above, _, last = attempt.option.rpartition(".")
        named = attempt.option in told or (above.count(".") and above in told) or f"{last}:" in told
        if attempt.option == "data.path":
            named = named or attempt.value.strip('"') in told
        if left:
            return f"left {left} behind: {told}"
        return None if named else f"does not name the option: {told}"
    except Exception as error:
        return f"raw {type(error).__name__}: {error}"
    finally:
        for path in Path().iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("method", CLASSES, ids=lambda path: path.rpartition(".")[2])
def test_every_value_is_taken_or_refused_by_name(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "fit", lambda self: None)
    everything = list(attempts(method))
    if not os.environ.get("CGFEDREC_ALL_OPTIONS"):
        everything = random.Random(method).sample(everything, min(SAMPLE, len(everything)))
    found = {attempt: problem for attempt in everything if (problem := problem_with(attempt))}
    assert not found, "\n".join(f"{' '.join(attempt)}: {problem[:600]}" for attempt, problem in found.items())
