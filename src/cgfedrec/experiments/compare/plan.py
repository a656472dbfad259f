"""What a comparison consists of: every run of it, checked before the first one starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from cgfedrec.centralized.reference import Reference
from cgfedrec.data.split import Part
from cgfedrec.errors import InputError, check
from cgfedrec.experiments.compare.checks import (
    is_list_of,
    is_metric,
    places_named,
    shown,
    unknown,
    unlike,
    wrong_figures,
    wrong_names,
    wrong_overrides,
)
from cgfedrec.experiments.compare.job import OF_TRAINING, Facts, Job, Kind
from cgfedrec.methods import Local
from cgfedrec.run.run import Run
from cgfedrec.settings.layers import CONTROL, Layer, merged, same_class
from cgfedrec.settings.parser import dump, parse
from cgfedrec.settings.sources import layer_of, said
from cgfedrec.settings.yamlfile import read_yaml_file

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

    @property
    def has_finished(self) -> bool:
        """Whether every run has ended well."""
        return all(job.state() == "finished" for job in self.jobs)


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
    given = _read(path)
    methods, data = _section(given, "methods"), _section(given, "data")
    check(*_problems(path, given, data, methods))
    seeds, metrics = given.get("seeds", [0, 1, 2]), given.get("metrics", list(DEFAULT_METRICS))
    check(*(f"metrics: {name!r} is none of hr@k, ndcg@k, mrr@k" for name in metrics if not is_metric(name)))
    # Runs of a comparison log nothing unless base says so.
    base = layer_of({"logger": None} | (given.get("base") or {}), "base")
    setups = _Setups(base, tuple(seeds), tuple(metrics), output)
    notes = setups.with_control(methods)
    for dataset, of_data in data.items():
        for method, entry in methods.items():
            setups.add(dataset, of_data, method, entry)
    check(*(f"{places_named(places)}: {problem}" for problem, places in setups.problems.items()))
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


@dataclass
class _Setups:
    """Every method on every data set, set up one after the other; what was found is kept.

    Attributes:
        base: Settings of all runs.
        seeds: Of every method on every data set.
        metrics: That are compared.
        output: Where the runs are to go.
        jobs, kinds, settings, facts: As in `Plan`.
        problems: Each with the places that have it: what is found in many runs is said once.
    """

    base: Layer
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    output: Path
    jobs: list[Job] = field(default_factory=list)
    kinds: dict[str, Kind] = field(default_factory=dict)
    settings: dict[tuple[str, str], str] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)

    def with_control(self, methods: dict[str, object]) -> tuple[str, ...]:
        """Add the control to these methods if it is none of them: without it nobody knows what collaboration gains.

        Returns:
            What to note of it.
        """
        for name, entry in methods.items():
            if _is_local(merged(self.base, self._method_of(entry, name))):
                return ()
        free = next(name for name in (Local.__name__, f"{Local.__name__} (control)") if name not in methods)
        methods[free] = {"method": {"class_path": CONTROL}}
        return (f"{free} is added: the control in which nobody collaborates",)

    def add(self, dataset: str, of_data: Layer, method: str, entry: object) -> None:
        """Set a method up on a data set, and plan its runs.

        Args:
            dataset: The name of the data set.
            of_data: What the file says of it.
            method: The name of the method.
            entry: What the file says of it.
        """
        where = f"{dataset}/{method}"
        try:
            layers = self.base, layer_of(of_data, dataset), self._method_of(entry, where)
            run, config = _open(merged(*layers), self.seeds[0], self.output)
        except InputError as error:
            self._note(error.problems, where)
            return
        self.kinds[method] = _kind(run)
        self.settings[dataset, method] = shown(config)
        found = _facts(run)
        # Methods are compared on the same data, measured alike: the first of a data set says how.
        self._note(unlike(self.facts.setdefault(dataset, found), found, self.metrics), where)
        for seed in self.seeds:
            config["seed_everything"] = seed
            text = yaml.safe_dump(config, sort_keys=False)
            self.jobs.append(Job(dataset, method, seed, self.output / dataset / method / str(seed), text))

    def _method_of(self, entry: object, where: str) -> Layer:
        """A method's overrides, over what another config says of a method if it names one."""
        if isinstance(entry, str):
            entry = {"config": entry}
        assert isinstance(entry, dict)  # `_problems` has let nothing else through
        own = dict(entry)
        named = own.pop("config", None)
        taken: Layer = {}
        if named is not None:
            try:
                other = _read(Path(named))
            except InputError as error:
                self._note([problem.removeprefix("--config: ") for problem in error.problems], where)
            else:
                taken = _of_method(layer_of(other, str(named)))
        return merged(taken, layer_of(own, where))

    def _note(self, problems: Iterable[str], where: str) -> None:
        for problem in problems:
            self.problems.setdefault(problem, []).append(where)


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


def _read(path: Path) -> dict[str, Any]:
    """What a comparison's file holds, or a config that it names. What is in it is checked by `_problems`."""
    try:
        given = read_yaml_file(path)
    except InputError as error:
        raise InputError(f"--config: {problem}" for problem in error.problems) from error
    if not isinstance(given, dict):
        raise InputError(f"--config: {path} holds no options")
    return given


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


def _of_method(config: Layer) -> Layer:
    """What a config says of a method and of how it trains."""
    taken: Layer = {}
    if "method" in config:
        taken["method"] = config["method"]
    data = config.get("data")
    if isinstance(data, dict) and isinstance(data.get("init_args"), dict):
        training = {name: data["init_args"][name] for name in OF_TRAINING if name in data["init_args"]}
        if training:
            taken["data"] = {"init_args": training}
    return taken


def _is_local(config: Layer) -> bool:
    method = config.get("method")
    return isinstance(method, dict) and same_class(method.get("class_path"), CONTROL)


def _open(config: Layer, seed: int, output: Path) -> tuple[Run, Layer]:
    """Set a run up, which checks its settings against its data. Nothing is written.

    Returns:
        The run, and its whole config.
    """
    # No variables: a comparison is the same on every machine.
    settings = parse(said([{**config, "seed_everything": seed}], environment={}))
    whole: Layer = yaml.safe_load(dump(settings))
    settings.logger = None  # to open a logger would write
    return Run(settings, output / "never written"), whole


def _kind(run: Run) -> Kind:
    if isinstance(run.method, Local):
        return "control"
    if isinstance(run.method, Reference):
        return "centralised"
    return "federated"


def _facts(run: Run) -> Facts:
    """How the data set of a run is measured. Raises `InputError` if nothing is held out to measure."""
    data = run.data
    if not data.holds_out("test"):
        raise InputError("data.split: holds nothing out for a test: there is nothing to compare")
    return Facts(
        path=data.path,
        users=data.num_users,
        items=data.num_items,
        interactions=int(data.interactions_per_user().sum()),
        held_out=data.part_size(Part.TEST),
        split=data.split,
        min_interactions=data.min_interactions,
        monitor=run.training.monitor,
        protocol=data.protocol,
    )
