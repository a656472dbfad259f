"""What a comparison consists of: every run of it, checked before the first one starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from cgfedrec.centralized.reference import Reference
from cgfedrec.data.split import Part
from cgfedrec.errors import InputError, check
from cgfedrec.files import DamagedError, file_digest, read_json
from cgfedrec.methods import Local
from cgfedrec.protocol import Protocol
from cgfedrec.run.checkpoint import flat, read_checkpoint
from cgfedrec.run.folder import CONFIG
from cgfedrec.run.run import Run
from cgfedrec.settings.layers import CONTROL, Layer, merged, same_class
from cgfedrec.settings.parser import dump, parse
from cgfedrec.settings.sources import layer_of, said
from cgfedrec.settings.yamlfile import read_yaml_file

KEYS = ("title", "base", "data", "methods", "seeds", "metrics", "reference", "test", "published")
OURS = ("config", "seed_everything", "ckpt_path", "run_dir")
"""Options that the comparison itself sets for each run."""
OF_TRAINING = ("batch_size", "negatives")
"""Arguments of the data in which methods may differ: they change how a client trains, and nothing that is measured."""
DEFAULT_METRICS = ("ndcg@10", "hr@10", "mrr@10")

Test = Literal["t", "wilcoxon"]
State = Literal["new", "started", "finished", "changed"]
Kind = Literal["federated", "control", "centralised"]


@dataclass(frozen=True)
class Job:
    """One run: a method on a data set with a seed.

    Attributes:
        data, method: Their names.
        seed: Of everything random.
        directory: Where the run goes.
        config: The whole config, as the run will store it.
    """

    data: str
    method: str
    seed: int
    directory: Path
    config: str

    @property
    def name(self) -> str:
        """Such as ``ml-100k/PFedRec/0``."""
        return f"{self.data}/{self.method}/{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """From which it can be resumed, if it is there."""
        return self.directory / "checkpoints" / "last.ckpt"

    def state(self) -> State:
        """How far it is; ``changed`` if the folder holds a run with another config.

        What is damaged does not count: a run whose results are damaged goes on from its checkpoint, and one whose
        checkpoint is damaged too is new.
        """
        ended, begun = (self.directory / "summary.json").exists(), self.checkpoint.exists()
        if not (ended or begun):
            return "new"
        if self.differences():
            return "changed"
        if ended and not self.damage():
            return "finished"
        return "started" if begun and not self.checkpoint_damage() else "new"

    def differences(self) -> list[str]:
        """Options in which the run in the folder differs; how a run is logged does not count."""
        stored = self._stored()
        if stored is None:
            return []
        there, here = (dict(flat(config)) for config in (stored, yaml.safe_load(self.config)))
        names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        return [name for name in names if name.split(".")[0] != "logger"]

    def _stored(self) -> dict[str, Any] | None:
        """The config of the run in the folder, unless its file is damaged or gone: `damage` says so then."""
        with suppress(OSError, yaml.YAMLError, UnicodeDecodeError):
            stored = yaml.safe_load((self.directory / CONFIG).read_text())
            return stored if isinstance(stored, dict) else None
        return None

    def summary(self) -> dict[str, Any]:
        """What the finished run wrote. Raises `DamagedError`, naming the file, if it is something else by now."""
        return read_json(self.directory / "summary.json")

    def damage(self) -> str | None:
        """The problem with the results of a run, if some were damaged since they were written."""
        if not (self.directory / "summary.json").exists():
            return None
        if self._stored() is None:
            return f"{self.directory / CONFIG}: is damaged or missing"
        try:
            for name, digest in dict(self.summary()["files"]).items():
                path = self.directory / str(name)
                if not path.is_file() or file_digest(path) != digest:
                    return f"{path}: is damaged or missing: its checksum does not agree with summary.json"
        except (DamagedError, KeyError, TypeError, ValueError) as error:
            return str(error)
        return None

    def checkpoint_damage(self) -> str | None:
        """The problem with the checkpoint from which the run would go on, if there is one and it is damaged."""
        if not self.checkpoint.exists():
            return None
        try:
            read_checkpoint(self.checkpoint)
        except InputError as error:
            return str(error).removeprefix("ckpt_path: ")
        return None


@dataclass(frozen=True)
class Facts:
    """How a data set is measured, the same for every method."""

    path: str | None
    users: int
    items: int
    interactions: int
    held_out: int
    split: str
    min_interactions: int
    monitor: str
    protocol: Protocol


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
        seeds: Of every method on every data set.
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
        """Whether every run is there."""
        return all(job.state() == "finished" for job in self.jobs)


def read_plan(path: Path, output: Path) -> Plan:
    """Read a comparison and check all of it: every method is set up on every data set, and nothing is written.

    Args:
        path: A YAML file with ``methods`` and ``data`` (names to overrides of a run's config), ``seeds`` and, for all
            runs, ``base``. A method may name another ``config``, such as one that ``tune`` found, of which the method
            and the size of its batches are taken, and not its rounds: those of a comparison are the same for all.
        output: Where everything is to go.

    Raises:
        InputError: naming every problem.
    """
    given = _read(path)
    methods, data = (_section(given, name) for name in ("methods", "data"))
    base = given.get("base") or {}
    seeds, metrics = given.get("seeds", [0, 1, 2]), given.get("metrics", list(DEFAULT_METRICS))
    reference, test, published = given.get("reference"), given.get("test", "t"), given.get("published") or {}
    check(
        *(f"{path}: no option {key!r}; there are {', '.join(KEYS)}" for key in given if key not in KEYS),
        *(f"{path}: {name}: name one or more" for name in ("methods", "data") if not given.get(name)),
        *_wrong_names(methods, data),
        *_ours("base", base),
        *(problem for name, entry in data.items() for problem in _ours(name, entry)),
        *(problem for name, entry in methods.items() for problem in _ours(name, entry, True)),
        None if _is_list_of(seeds, int) and min(seeds) >= 0 else f"seeds: {seeds} is no list of different numbers",
        None if _is_list_of(metrics, str) else f"metrics: {metrics} is no list of names such as ndcg@10",
        None if test in ("t", "wilcoxon") else f"test: {test!r} is unknown; choose t or wilcoxon",
        *_unknown("reference", [reference] if reference else [], methods),
        *_wrong_figures(published, data, methods),
    )
    check(
        *(f"metrics: {name!r} is none of hr@k, ndcg@k, mrr@k" for name in metrics if not _is_metric(name)),
    )
    base = layer_of({"logger": None} | base, "base")
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
            settings[dataset, method] = _shown(config)
            for problem in _unlike(facts.setdefault(dataset, found), found, metrics):
                problems.setdefault(problem, []).append(where)
            for seed in seeds:
                config["seed_everything"] = seed
                text = yaml.safe_dump(config, sort_keys=False)
                jobs.append(Job(dataset, method, seed, output / dataset / method / str(seed), text))
    check(*(f"{_places(places)}: {problem}" for problem, places in problems.items()))
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
        reference=reference,
        test=test,
        published=published,
        notes=tuple(notes),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        given = read_yaml_file(path)
    except InputError as error:
        raise InputError(f"--config: {problem}" for problem in error.problems) from error
    check(None if isinstance(given, dict) else f"--config: {path} holds no options")
    return dict(given)


def _section(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = given.get(name) or {}
    check(None if isinstance(section, dict) else f"{name}: must map names to overrides")
    return {str(key): {} if entry is None else entry for key, entry in section.items()}


def _wrong_names(*sections: Mapping[str, Any]) -> list[str]:
    """They become folders."""
    return [
        f"{name!r}: such a name cannot be that of a folder"
        for section in sections
        for name in section
        if name != name.strip() or name.startswith(".") or not name or set(name) & set('/\\:*?"<>|\0')
    ]


def _ours(name: str, entry: Any, may_name_a_config: bool = False) -> Iterator[str]:
    if isinstance(entry, str) and may_name_a_config:
        return
    if not isinstance(entry, dict):
        yield f"{name}: must be overrides of a run's config{', or the path of one' if may_name_a_config else ''}"
        return
    for key in OURS:
        if key in entry and not (key == "config" and may_name_a_config):
            yield f"{name}.{key}: is set by the comparison" + ("; see seeds" if key == "seed_everything" else "")


def _wrong_figures(published: Any, data: Mapping[str, Any], methods: Mapping[str, Any]) -> list[str]:
    shape = "published: must map data, method and metric to a number"
    if not isinstance(published, dict) or not all(isinstance(entry, dict) for entry in published.values()):
        return [shape]
    problems = _unknown("published", published, data)
    for entry in published.values():
        problems += _unknown("published", entry, methods)
        rows = [list(figures.values()) if isinstance(figures, dict) else [None] for figures in entry.values()]
        problems += [] if all(isinstance(value, int | float) for row in rows for value in row) else [shape]
    return problems


def _unknown(option: str, names: Sequence[str] | Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    return [f"{option}: no {name!r} in the list: {', '.join(known)}" for name in names if name not in known]


def _is_list_of(values: Any, kind: type) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
        and len(set(values)) == len(values)
    )


def _is_metric(name: str) -> bool:
    kind, _, k = name.partition("@")
    return kind in ("hr", "ndcg", "mrr") and k.isdigit()


def _method_of(entry: Any, problems: dict[str, list[str]], where: str) -> Layer:
    """A method's overrides, with what another config says of a method where it names one."""
    own = {"config": entry} if isinstance(entry, str) else dict(entry)
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
    arguments = (other.get("data") or {}).get("init_args") or {}
    training = {name: arguments[name] for name in OF_TRAINING if name in arguments}
    taken = {"method": other["method"]} if "method" in other else {}
    return merged(taken, {"data": {"init_args": training}} if training else {}, layer_of(own, where))


def _is_local(config: Layer) -> bool:
    method = config.get("method")
    return isinstance(method, dict) and same_class(method.get("class_path"), CONTROL)


def _open(config: Mapping[str, Any], seed: int, output: Path) -> tuple[Run, dict[str, Any]]:
    """Set a run up, which checks its settings against its data, and give its whole config. Nothing is written."""
    settings = parse(said([{**config, "seed_everything": seed}], environment={}))
    whole: dict[str, Any] = yaml.safe_load(dump(settings))
    settings.logger = None
    return Run(settings, output / "never written"), whole


def _kind(run: Run) -> Kind:
    if isinstance(run.method, Local):
        return "control"
    return "centralised" if isinstance(run.method, Reference) else "federated"


def _facts(run: Run) -> Facts:
    data = run.data
    check(None if data.holds_out("test") else "data.split: holds nothing out for a test: there is nothing to compare")
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


def _unlike(facts: Facts, found: Facts, metrics: Sequence[str]) -> list[str]:
    """What a method would have measured in another way than the others."""
    names = ("protocol", "path", "split", "min_interactions", "monitor")
    problems = [
        f"{name}: {getattr(found, name)} where the others have {getattr(facts, name)}; give it under base or data, so "
        "that all methods are measured alike"
        for name in names
        if getattr(found, name) != getattr(facts, name)
    ]
    if not problems and (found.users, found.items, found.interactions) != (
        facts.users,
        facts.items,
        facts.interactions,
    ):
        problems.append("data: other data than the others have; give them under base or data")
    cutoffs = found.protocol.cutoffs
    return problems + [
        f"metrics: {metric} is not measured; protocol.cutoffs are {', '.join(map(str, cutoffs))}"
        for metric in metrics
        if int(metric.partition("@")[2]) not in cutoffs
    ]


def _shown(config: Mapping[str, Any]) -> str:
    """What the report shows of a config: all that belongs to the method."""
    training = {name: config["data"]["init_args"].get(name) for name in OF_TRAINING}
    return yaml.safe_dump({"method": config["method"], "loop": config["loop"], "data": training}, sort_keys=False)


def _places(places: Sequence[str]) -> str:
    return places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"
