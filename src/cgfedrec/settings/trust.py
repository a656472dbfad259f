"""What a checkpoint may say. Its settings come from elsewhere: they are checked before anything parses or imports them.

A config that a user names is their own word. It may name any class, and is not checked here. A checkpoint may come from
anyone. It may name the classes below, and those that the call which opens it names too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
import yaml

import cgfedrec.centralized
import cgfedrec.methods
import cgfedrec.structure
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError, check
from cgfedrec.kit.optimisers import FactorAdam, LowRankSGD, TableSGD
from cgfedrec.settings.layers import Layer
from cgfedrec.wire.clipped import Clipped
from cgfedrec.wire.noised import Noised
from cgfedrec.wire.quantised import Quantised
from cgfedrec.wire.secure import SecureSums
from cgfedrec.wire.toprows import TopRows

LONGEST = 2**20
"""Characters of a checkpoint's settings; ours have some two thousand."""
DEEPEST = 24
"""Levels of a checkpoint's settings; ours have five."""
_OFFERED: dict[str, list[type]] = {
    "cgfedrec.methods": [getattr(cgfedrec.methods, name) for name in cgfedrec.methods.__all__],
    "cgfedrec.centralized": [getattr(cgfedrec.centralized, name) for name in cgfedrec.centralized.__all__],
    "cgfedrec.structure": [getattr(cgfedrec.structure, name) for name in cgfedrec.structure.__all__],
    "cgfedrec.data": [FederatedDataModule],
    "cgfedrec.wire.quantised": [Quantised],
    "cgfedrec.wire.clipped": [Clipped],
    "cgfedrec.wire.noised": [Noised],
    "cgfedrec.wire.toprows": [TopRows],
    "cgfedrec.wire.secure": [SecureSums],
    "cgfedrec.kit.optimisers": [TableSGD, LowRankSGD, FactorAdam],
    "torch.optim": [
        kind
        for kind in vars(torch.optim).values()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    ],
}
CLASSES = frozenset(
    f"{place}.{kind.__name__}"
    for package, kinds in _OFFERED.items()
    for kind in kinds
    for place in (package, kind.__module__)
)
"""What any checkpoint may name: each class by its own module, and by the package that offers it."""
SECTIONS: dict[str, type | tuple[type, ...]] = {
    "seed_everything": int,
    "fabric": dict,
    "data": dict,
    "protocol": (dict, str),
    "method": dict,
    "wire": dict,
    "loop": dict,
}
"""The settings on which a trained state depends, and what each must be.

Where a run goes and how it logs is for the call that opens a checkpoint to say, and not for the checkpoint.
"""
IMPORTING = ("fabric", "method", "wire")
"""Sections in which the parser acts on texts.

It takes a text like ``a.b`` for the name of a class or a function, and imports it. It takes the path of a file for that
of a config, and reads it.
"""
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_META = re.compile(r"__\w+__")

_Leaf = tuple[str, object]
"""The place of a value in the settings, such as ``loop.rounds``, and the value."""


def settings_of(text: str, named: Collection[str], trusted: Collection[str]) -> Layer:
    """The settings that a checkpoint holds, without those that are not its business.

    Args:
        text: YAML, as `cgfedrec.settings.parser.dump` writes it.
        named: Classes that the call which opens it names itself.
        trusted: Modules or classes that it was told to trust (``--trust``).

    Raises:
        InputError: naming every value that a checkpoint may not hold; nothing has been imported then.
    """
    tree = _tree(text)
    check(*meta_keys("ckpt_path: its settings", tree))
    check(*_unusable_sections(tree))
    kept = {name: tree[name] for name in SECTIONS}
    check(*_odd_keys(kept), *_odd_values(kept))
    check(*_not_allowed(kept, named, trusted), *_not_mappings(kept))
    return kept


def meta_keys(where: str, tree: object) -> list[str]:
    """The problem with each key like ``__path__``: the parser keeps notes of its own under such names."""
    found = {key for place, _ in _leaves(tree) for key in place.split(".") if _META.fullmatch(key)}
    return [f"{where}: {key} is no option" for key in sorted(found)]


def import_paths(tree: object) -> set[str]:
    """Every text in a user's own settings that has the form of the name of a class or a function."""
    found: set[str] = set()
    for _, value in _leaves(tree):
        if not isinstance(value, str):
            continue
        if value.lstrip().startswith(("[", "{")):  # a list or a mapping, as a command line holds it
            found.update(match[0] for match in _DOTTED.finditer(value))
        elif _DOTTED.fullmatch(value):
            found.add(value)
    return found


def _tree(text: str) -> Layer:
    if len(text) > LONGEST:
        raise InputError("ckpt_path: its settings are too long to be any")
    try:
        # An alias can make a small text stand for gigabytes, and we write none.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
            raise InputError("ckpt_path: its settings hold aliases, which no run writes")
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InputError("ckpt_path: its settings are no YAML of plain values") from error
    if not isinstance(tree, dict):
        raise InputError("ckpt_path: its settings are no mapping")
    return tree


def _unusable_sections(tree: Layer) -> Iterator[str]:
    for name, kind in SECTIONS.items():
        value = tree.get(name)
        # To Python, true is a whole number: of a seed it would pass for 1.
        if not isinstance(value, kind) or isinstance(value, bool):
            yield _unusable(name)


def _unusable(place: str) -> str:
    return f"ckpt_path: its settings hold no usable {place!r}"


def _leaves(tree: object, place: str = "", depth: int = 0) -> Iterator[_Leaf]:
    """Every value that is no list and no mapping. What lies deeper than any setting does is given as it is."""
    if isinstance(tree, dict) and depth < DEEPEST and tree:
        for key, value in tree.items():
            below = str(key)
            if place:
                below = f"{place}.{key}"
            yield from _leaves(value, below, depth + 1)
    elif isinstance(tree, list) and depth < DEEPEST:
        for value in tree:
            yield from _leaves(value, place, depth + 1)
    else:
        yield place, tree


def _odd_values(tree: Layer) -> Iterator[str]:
    """The problem with each value that is none of YAML's plain ones, or lies too deep."""
    for place, value in _leaves(tree):
        if not isinstance(value, str | int | float | bool | None) and value != {}:
            yield f"ckpt_path: its setting {place} is no plain value"


def _odd_keys(tree: object, depth: int = 0) -> Iterator[str]:
    """The problem with each key that is no text, or in which the parser would see two."""
    inside: list[object] = []
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, str) or "." in key:
                yield f"ckpt_path: its settings hold the key {key!r}, which is no option"
        inside = list(tree.values())
    elif isinstance(tree, list):
        inside = tree
    if depth + 1 < DEEPEST:
        for value in inside:
            yield from _odd_keys(value, depth + 1)


def not_named(tree: Layer) -> Iterator[tuple[str, str]]:
    """Each place of settings where something stands that a checkpoint may name only if a call names it too, and what.

    Args:
        tree: The settings of a run.
    """
    for place, value in _leaves({name: tree[name] for name in SECTIONS}):
        if _is_imported(place, value) and value not in CLASSES and not _is_file(place, value):
            yield place, str(value)


def _not_allowed(tree: Layer, named: Collection[str], trusted: Collection[str]) -> Iterator[str]:
    """The problem with each name of a class that is not allowed, and with each path of a file."""
    for place, value in _leaves(tree):
        if _is_file(place, value):
            yield f"ckpt_path: its setting {place} names a file, {value}, which was not read"
            continue
        allowed = isinstance(value, str) and (value in CLASSES or value in named)
        if allowed or not _is_imported(place, value):
            continue
        # With the dot, trust in my.module is none in my.module2.
        if any(f"{value}.".startswith(f"{module}.") for module in trusted):
            continue
        option = "--method" if place == "method.class_path" else "--trust"
        way_out = f'{option} {value} (in Python: options=["{option}", "{value}"])'
        yield (
            f"ckpt_path: its setting {place} names {value}, which is neither a method of cgfedrec nor an optimiser of "
            f"torch, and so was not imported. If you trust that code, name it in this call: {way_out}"
        )


def _is_file(place: str, value: object) -> bool:
    """Whether a text stands where the parser would read the file of that name."""
    return place.split(".")[0] in IMPORTING and isinstance(value, str) and _is_there(value)


def _is_imported(place: str, value: object) -> bool:
    """Whether the parser imports what stands at a place."""
    # A class_path is imported wherever it stands, and whatever its form.
    acted_on = place.split(".")[0] in IMPORTING and isinstance(value, str)
    return place.endswith("class_path") or bool(acted_on and _DOTTED.fullmatch(str(value)))


def _is_there(path: str) -> bool:
    """Whether a text is the path of something to read: where a class may stand, the parser would take it for a config.

    A folder cannot be read, and may well be named like the value of a setting.
    """
    try:
        return Path(path).exists() and not Path(path).is_dir()
    except (OSError, ValueError):  # too long for a path, or with a null byte
        return False


def _not_mappings(tree: Layer) -> list[str]:
    """The problem with a text that stands in place of a mapping: the parser would open the file of that name."""
    data, method = _mapping(tree["data"]), _mapping(tree["method"])
    if isinstance(tree["protocol"], str) and tree["protocol"] not in ("strict", "reference"):
        return [_unusable("protocol")]
    arguments = data.get("init_args")
    if not isinstance(arguments, dict):
        return [_unusable("data.init_args")]
    problems = [
        _unusable(f"data.init_args.{name}")
        for name in ("format", "synthetic")
        if not isinstance(arguments.get(name, {}), dict)
    ]
    if not isinstance(_mapping(tree["loop"]).get("failures", {}), dict):
        problems.append(_unusable("loop.failures"))
    for name, section in (("data", data), ("method", method)):
        if not isinstance(section.get("init_args", {}), dict) or not isinstance(section.get("class_path"), str):
            problems.append(_unusable(f"{name}.init_args"))
    return problems


def _mapping(section: object) -> Mapping[str, object]:
    """A section that has been found to be a mapping."""
    assert isinstance(section, dict)
    return section
