"""What can be wrong with a comparison, and how it is said. Each check gives the problems that it finds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from cgfedrec.experiments.compare.job import OF_TRAINING, OURS, Facts

_IN_NO_NAME = set('/\\:*?"<>|\0')
"""Characters that one system or another refuses in the name of a folder."""
_OF_FILES = {".csv", ".parquet", ".html", ".md", ".tex", ".svg"}
"""How the files end that a comparison writes."""


def wrong_names(methods: Mapping[str, object], data: Mapping[str, object]) -> Iterator[str]:
    """Names of methods and data that cannot become folders; those of data are beside the comparison's own files."""
    for name in data:
        if Path(name).suffix in _OF_FILES:
            yield f"{name!r}: the comparison's own files end so, beside which data sets have folders"
    for name in chain(methods, data):
        if name != name.strip() or name.startswith(".") or not name or set(name) & _IN_NO_NAME:
            yield f"{name!r}: such a name cannot be that of a folder"


def wrong_overrides(name: str, entry: object, may_name_a_config: bool = False) -> Iterator[str]:
    """What is wrong with overrides of a run's config.

    Args:
        name: To whom they belong: a data set, a method or ``base``.
        entry: As the file has them.
        may_name_a_config: Whether the path of a config may stand in their place, or among them.
    """
    if isinstance(entry, str) and may_name_a_config:
        return
    if not isinstance(entry, dict):
        wanted = "overrides of a run's config"
        if may_name_a_config:
            wanted += ", or the path of one"
        yield f"{name}: must be {wanted}"
        return
    for key in OURS:
        if key not in entry or (key == "config" and may_name_a_config):
            continue
        hint = "; see seeds" if key == "seed_everything" else ""
        yield f"{name}.{key}: is set by the comparison{hint}"


def wrong_figures(published: object, data: Mapping[str, object], methods: Mapping[str, object]) -> Iterator[str]:
    """What is wrong with published figures, by data, method and metric."""
    shape = "published: must map data, method and metric to a number"
    if not isinstance(published, dict) or not all(isinstance(entry, dict) for entry in published.values()):
        yield shape
        return
    yield from unknown("published", published, data)
    for entry in published.values():
        yield from unknown("published", entry, methods)
        if not all(_are_figures(figures) for figures in entry.values()):
            yield shape


def _are_figures(figures: object) -> bool:
    return isinstance(figures, dict) and all(isinstance(value, int | float) for value in figures.values())


def unknown(option: str, names: Iterable[str], known: Mapping[str, object]) -> Iterator[str]:
    """Names that an option gives and that are none of the known ones."""
    for name in names:
        if name not in known:
            yield f"{option}: no {name!r} in the list: {', '.join(known)}"


def is_list_of(values: object, kind: type) -> bool:
    """Whether this is a list of one or more different values of a kind; true and false are no numbers."""
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
        and len(set(values)) == len(values)
    )


def unlike(facts: Facts, found: Facts, metrics: Sequence[str]) -> Iterator[str]:
    """What a method would have measured in another way than the others on the same data set.

    Args:
        facts: Of the others.
        found: Of this one.
        metrics: That the comparison shows.
    """
    names = ("protocol", "path", "split", "min_interactions", "monitor")
    different = [name for name in names if getattr(found, name) != getattr(facts, name)]
    for name in different:
        yield (
            f"{name}: {getattr(found, name)} where the others have {getattr(facts, name)}; give it under base or data, "
            "so that all methods are measured alike"
        )
    # What differs for no reason that was named yet comes from options of the data that are not facts.
    if not different and (found.fingerprint, found.held_out) != (facts.fingerprint, facts.held_out):
        yield "data: other data than the others have; give them under base or data"
    cutoffs = found.protocol.cutoffs
    for metric in metrics:
        if int(metric.partition("@")[2]) not in cutoffs:
            yield f"metrics: {metric} is not measured; protocol.cutoffs are {', '.join(map(str, cutoffs))}"


def shown(config: Mapping[str, Any]) -> str:
    """What the report shows of a config, as YAML: all that belongs to the method, and what is done to its messages."""
    training = {name: config["data"]["init_args"].get(name) for name in OF_TRAINING}
    told = {"method": config["method"], "loop": config["loop"], "data": training}
    if config["wire"]["steps"]:
        told["wire"] = config["wire"]
    return yaml.safe_dump(told, sort_keys=False)


def places_named(places: Sequence[str]) -> str:
    """The first of the runs that have a problem, and how many more there are."""
    if len(places) == 1:
        return places[0]
    return f"{places[0]} and {len(places) - 1} more"
