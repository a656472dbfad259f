"""What a comparison consists of: every run of it, checked before the first one starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    methods, data = (_section(given, name) for name in ("methods", "data"))
    check(*_problems(path, given, data, methods))
    seeds, metrics = given.get("seeds", [0, 1, 2]), given.get("metrics", list(DEFAULT_METRICS))
    check(
        *(f"metrics: {name!r} is none of hr@k, ndcg@k, mrr@k" for name in metrics if not is_metric(name)),
    )
    # Runs of a comparison log nothing unless base says so.
    base = layer_of({"logger": None} | (given.get("base") or {}), "base")
    # The same problem, found in many runs, is said once, with the runs that have it.
    problems: dict[str, list[str]] = {}
    jobs, facts, kinds, settings = list[Job](), dict[str, Facts](), dict[str, Kind](), dict[tuple[str, str], str]()
    notes = []
    if not any(_is_local(merged(base, _method_of(entry, problems, name))) for name, entry in methods.items()):
        free = next(name for name in (Local.__name__, f"{Local.__name__} (control)") if name not in methods)
        methods[free] = {"method": {"class_path": CONTROL}}
        notes.append(f"{free} is added: the control in which nobody collaborates")
    for dataset, of_data in data.items():
        for method, entry in methods.items():
            where = f"{dataset}/{method}"
            try:
                run, config = _open(
                    merged(base, layer_of(of_data, dataset), _method_of(entry, problems, where)), seeds[0], output
                )
            except InputError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(where)
                continue
            kinds[method] = _kind(run)
            found = _facts(run)
            settings[dataset, method] = shown(config)
            for problem in unlike(facts.setdefault(dataset, found), found, metrics):
                problems.setdefault(problem, []).append(where)
            for seed in seeds:
                config["seed_everything"] = seed
                text = yaml.safe_dump(config, sort_keys=False)
                jobs.append(Job(dataset, method, seed, output / dataset / method / str(seed), text))
    check(*(f"{places_named(places)}: {problem}" for problem, places in problems.items()))
    order = {seed: place for place, seed in enumerate(seeds)}
    return Plan(
        title=str(given.get("title") or path.stem),
        directory=output,
        jobs=tuple(sorted(jobs, key=lambda job: order[job.seed])),  # one whole seed first: something to see soon
        kinds=kinds,
        settings=settings,
        facts=facts,
        seeds=tuple(seeds),
        metrics=tuple(metrics),
        reference=given.get("reference"),
        test=given.get("test", "t"),
        published=given.get("published") or {},
        notes=tuple(notes),
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


def _read(path: Path) -> dict[str, Any]:
    try:
        given = read_yaml_file(path)
    except InputError as error:
        raise InputError(f"--config: {problem}" for problem in error.problems) from error
    if not isinstance(given, dict):
        check(f"--config: {path} holds no options")
    return dict(given)


def _section(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entries of ``data`` or ``methods``, by their names; an entry may be empty, and then overrides nothing."""
    section = given.get(name) or {}
    if not isinstance(section, dict):
        check(f"{name}: must map names to overrides")
    return {str(key): entry if entry is not None else {} for key, entry in section.items()}


def _method_of(entry: Any, problems: dict[str, list[str]], where: str) -> Layer:
    """A method's overrides, with what another config says of a method where it names one."""
    if isinstance(entry, str):
        entry = {"config": entry}
    own = dict(entry)
    named = own.pop("config", None)
    if named is None:
        return layer_of(own, where)
    try:
        other = _read(Path(named))
    except InputError as error:
        for problem in error.problems:
            problems.setdefault(problem.removeprefix("--config: "), []).append(where)
        return layer_of(own, where)
    other = layer_of(other, str(named))
    taken: dict[str, Any] = {}
    if "method" in other:
        taken["method"] = other["method"]
    arguments = (other.get("data") or {}).get("init_args") or {}
    training = {name: arguments[name] for name in OF_TRAINING if name in arguments}
    if training:
        taken["data"] = {"init_args": training}
    return merged(taken, layer_of(own, where))


def _is_local(config: Layer) -> bool:
    method = config.get("method")
    return isinstance(method, dict) and same_class(method.get("class_path"), CONTROL)


def _open(config: Mapping[str, Any], seed: int, output: Path) -> tuple[Run, dict[str, Any]]:
    """Set a run up, which checks its settings against its data, and give its whole config. Nothing is written."""
    settings = parse(said([{**config, "seed_everything": seed}], environment={}))
    whole: dict[str, Any] = yaml.safe_load(dump(settings))
    settings.logger = None  # to open a logger would write
    return Run(settings, output / "never written"), whole


def _kind(run: Run) -> Kind:
    if isinstance(run.method, Local):
        return "control"
    if isinstance(run.method, Reference):
        return "centralised"
    return "federated"


def _facts(run: Run) -> Facts:
    data = run.data
    if not data.holds_out("test"):
        check("data.split: holds nothing out for a test: there is nothing to compare")
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
