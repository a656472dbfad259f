"""What a comparison consists of: every run of it, checked before the first one starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cgfedrec.errors import InputError, check
from cgfedrec.evaluation.metrics import is_metric
from cgfedrec.experiments.compare.checks import (
    is_list_of,
    places_named,
    unknown,
    wrong_figures,
    wrong_names,
    wrong_overrides,
)
from cgfedrec.experiments.compare.job import Facts, Job, Kind
from cgfedrec.experiments.compare.setups import Setups, read_options
from cgfedrec.settings.sources import layer_of

Test = Literal["t", "wilcoxon"]
KEYS = ("title", "base", "data", "methods", "seeds", "metrics", "reference", "test", "published")
"""What a comparison's file may hold."""
DEFAULT_METRICS = ("ndcg@10", "hr@10", "mrr@10")


@dataclass(frozen=True)
class Plan:
    """A comparison, as its file says.

    Attributes:
        title: Of the report.
        directory: Where everything goes.
        jobs: Every run, in the order in which they start.
        kinds: Each method's name, in the order of the file, and what it is.
        settings: Each method's overrides on each data set, by (data, method), as the report shows them.
        facts: Each data set's name, in the order of the file, and how it is measured.
        seeds: With which every method runs on every data set.
        metrics: Shown in tables; the first one is tested and charted.
        reference: The method against which the others are tested; by default the best federated one.
        test: A paired t-test over users, or Wilcoxon's signed ranks.
        published: What papers report, by data, method and metric, to stand beside what is measured.
        notes: What the plan decided by itself.
    """

    title: str
    directory: Path
    jobs: tuple[Job, ...]
    kinds: Mapping[str, Kind]
    settings: Mapping[tuple[str, str], str]
    facts: Mapping[str, Facts]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    reference: str | None
    test: Test
    published: Mapping[str, Mapping[str, Mapping[str, float]]]
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def control(self) -> str:
        """The first method in which nobody collaborates."""
        return next(name for name, kind in self.kinds.items() if kind == "control")


def read_plan(path: Path, output: Path) -> Plan:
    """Read a comparison and check all of it: every method is set up on every data set, and nothing is written.

    Args:
        path: A YAML file with ``methods`` and ``data`` (names to overrides of a run's config), ``seeds`` and, for all
            runs, ``base``. A method may name another ``config``, such as one that ``tune`` found. The method and how
            it draws its batches are taken from that one. Its rounds are not: all methods of a comparison have the same.
        output: Where everything is to go.

    Raises:
        InputError: naming every problem.
    """
    given: Mapping[str, Any] = read_options(path)  # anything, until `_problems` has looked at it
    methods, data = _section(given, "methods"), _section(given, "data")
    check(*_problems(path, given, data, methods))
    seeds, metrics = given.get("seeds", [0, 1, 2]), given.get("metrics", list(DEFAULT_METRICS))
    check(*(f"metrics: {name!r} is none of hr@k, ndcg@k, mrr@k" for name in metrics if not is_metric(name)))
    # Runs of a comparison log nothing unless base says so.
    base = layer_of({"logger": None} | (given.get("base") or {}), "base")
    setups = Setups(base, tuple(seeds), tuple(metrics), output)
    notes = setups.with_control(methods)
    for dataset, of_data in data.items():
        for method, entry in methods.items():
            setups.add(dataset, of_data, method, entry)
    check(*(f"{places_named(places)}: {problem}" for problem, places in setups.problems.items()))
    if max(setups.spending.values(), default=0) > 1:
        told = f"warning: privacy: each of {sum(setups.spending.values())} runs spends a budget of its own"
        notes += (f"{told}, and on the same people these add up",)
    order = {seed: place for place, seed in enumerate(seeds)}
    return Plan(
        title=str(given.get("title") or path.stem),
        directory=output,
        jobs=tuple(sorted(setups.jobs, key=lambda job: order[job.seed])),  # a whole seed first: something to see soon
        kinds=setups.kinds,
        settings=setups.settings,
        facts=setups.facts,
        seeds=setups.seeds,
        metrics=setups.metrics,
        reference=given.get("reference"),
        test=given.get("test", "t"),
        published=given.get("published") or {},
        notes=notes,
    )


def _problems(
    path: Path, given: Mapping[str, Any], data: Mapping[str, object], methods: Mapping[str, object]
) -> Iterator[str]:
    """What is wrong with a comparison's file, before any run of it is looked at."""
    for key in given:
        if key not in KEYS:
            yield f"{path}: no option {key!r}; there are {', '.join(KEYS)}"
    for name in ("methods", "data"):
        if not given.get(name):
            yield f"{path}: {name}: name one or more"
    yield from wrong_names(methods, data)
    yield from wrong_overrides("base", given.get("base") or {})
    for name, entry in data.items():
        yield from wrong_overrides(name, entry)
    for name, entry in methods.items():
        yield from wrong_overrides(name, entry, may_name_a_config=True)
    seeds = given.get("seeds", [0])
    if not (is_list_of(seeds, int) and min(seeds) >= 0):
        yield f"seeds: {seeds} is no list of different numbers"
    metrics = given.get("metrics", list(DEFAULT_METRICS))
    if not is_list_of(metrics, str):
        yield f"metrics: {metrics} is no list of names such as ndcg@10"
    test = given.get("test", "t")
    if test not in ("t", "wilcoxon"):
        yield f"test: {test!r} is unknown; choose t or wilcoxon"
    if reference := given.get("reference"):
        yield from unknown("reference", [reference], methods)
    yield from wrong_figures(given.get("published") or {}, data, methods)


def _section(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entries of ``data`` or ``methods``, by their names. An empty entry overrides nothing."""
    section = given.get(name) or {}
    if not isinstance(section, dict):
        raise InputError(f"{name}: must map names to overrides")
    entries: dict[str, Any] = {}
    for key, entry in section.items():
        entries[str(key)] = entry
        if entry is None:
            entries[str(key)] = {}
    return entries
