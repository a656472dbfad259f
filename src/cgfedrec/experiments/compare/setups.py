"""Setting up every method of a comparison on every data set, which checks all settings before the first run starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from cgfedrec.centralized.reference import Reference
from cgfedrec.data.arguments import is_embedded, origin
from cgfedrec.data.rolling import Rolling
from cgfedrec.data.split import Part
from cgfedrec.errors import InputError, check
from cgfedrec.experiments.compare.checks import shown, unlike
from cgfedrec.experiments.compare.job import OF_TRAINING, Facts, Job, Kind
from cgfedrec.experiments.logged import grouped
from cgfedrec.methods import Local
from cgfedrec.run.engine import no_crowd
from cgfedrec.run.opened import data_of
from cgfedrec.run.rolling import is_rolling
from cgfedrec.run.run import Run
from cgfedrec.settings.layers import CONTROL, UNLOGGED, Layer, merged, same_class
from cgfedrec.settings.parser import dump, parse
from cgfedrec.settings.sources import layer_of, said
from cgfedrec.settings.yamlfile import read_yaml_file


@dataclass
class Setups:
    """Every method on every data set, set up one after the other; what was found is kept.

    Attributes:
        base: Settings of all runs.
        seeds: Of every method on every data set.
        metrics: That are compared.
        output: Where the runs are to go.
        jobs, kinds, settings, facts: As in `cgfedrec.experiments.compare.plan.Plan`.
        spending: Data sets, and how many runs on each spend a budget of differential privacy.
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
    spending: dict[str, int] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    _fingerprints: dict[str, str] = field(default_factory=dict)

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
            found = _facts(run)
            configs = [grouped(config, self.output.name, "compare") | {"seed_everything": seed} for seed in self.seeds]
            fingerprints = [self._fingerprint(run, each) for each in configs]
        except InputError as error:
            self._note(error.problems, where)
            return
        self.kinds[method] = _kind(run)
        self.settings[dataset, method] = shown(config)
        if run.spends:
            self.spending[dataset] = self.spending.get(dataset, 0) + len(self.seeds)
        # Methods are compared on the same data, measured alike: the first of a data set says how.
        self._note(unlike(self.facts.setdefault(dataset, found), found, self.metrics), where)
        for seed, each, fingerprint in zip(self.seeds, configs, fingerprints, strict=True):
            directory, text = self.output / dataset / method / str(seed), yaml.safe_dump(each, sort_keys=False)
            self.jobs.append(Job(dataset, method, seed, directory, text, fingerprint, run.header.code))

    def _fingerprint(self, run: Run, config: Layer) -> str | None:
        """Of a run's data, as its summary will say it; ``None`` for embedded data, which follow from the config.

        Methods share it, and so do seeds where none decides what is held out: data are read once more only where this
        run was not set up with them.

        Args:
            run: The same method on the same data, set up with the first seed.
            config: The whole one, with its own seed.
        """
        data, seed = run.data, config["seed_everything"]
        if is_embedded(data.path, type(data).__name__):
            return None
        if data.split != "random" and data.protocol.ties != "random":
            seed = self.seeds[0]
        of_data: Any = config["data"]
        init_args = {name: value for name, value in of_data["init_args"].items() if name not in OF_TRAINING}
        key = yaml.safe_dump([of_data["class_path"], init_args, config["protocol"], seed])
        if key not in self._fingerprints:
            fingerprint = run.header.fingerprint
            if data.cut or seed != data.seed:  # a rolling evaluation was set up at one cut alone
                settings = parse(said([config | {"seed_everything": seed}], environment={}))
                fingerprint = data_of(settings).fingerprint()
            self._fingerprints[key] = fingerprint
        return self._fingerprints[key]

    def _method_of(self, entry: object, where: str) -> Layer:
        """A method's overrides, over what another config says of a method if it names one."""
        if isinstance(entry, str):
            entry = {"config": entry}
        assert isinstance(entry, dict)  # a plan lets nothing else through
        own = dict(entry)
        named = own.pop("config", None)
        taken: Layer = {}
        if named is not None:
            try:
                other = read_options(Path(named))
            except InputError as error:
                self._note([problem.removeprefix("--config: ") for problem in error.problems], where)
            else:
                taken = _of_method(layer_of(other, str(named)))
        return merged(taken, layer_of(own, where))

    def _note(self, problems: Iterable[str], where: str) -> None:
        for problem in problems:
            self.problems.setdefault(problem, []).append(where)


def read_options(path: Path) -> Layer:
    """What a comparison's file holds, or a config that it names.

    Raises:
        InputError: if it is no file of options. Which options they are is not looked at.
    """
    try:
        given = read_yaml_file(path)
    except InputError as error:
        raise InputError(f"--config: {problem}" for problem in error.problems) from error
    if not isinstance(given, dict):
        raise InputError(f"--config: {path} holds no options")
    return given


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
    check(no_crowd(settings, "each run of a comparison"))
    whole: Layer = yaml.safe_load(dump(settings))
    settings.update(Namespace(**UNLOGGED))  # to open a logger would write
    if is_rolling(settings):  # all of its trainings can be set up if the last one can, which has most of the data
        rolling = settings.data.init_args.rolling
        rolling.cut = Rolling(**vars(rolling)).number
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
        path=origin(data.path, type(data).__name__),
        users=data.num_users,
        items=data.num_items,
        interactions=int(data.interactions_per_user().sum()),
        fingerprint=run.header.fingerprint,
        held_out=data.part_size(Part.TEST) if data.cut is None else sum(data.asked[data.rolling.num_choosing :]),
        split=data.split,
        min_interactions=data.min_interactions,
        monitor=run.training.monitor,
        protocol=data.protocol,
    )
