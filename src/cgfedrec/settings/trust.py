"""What a checkpoint may say. Its settings are data from elsewhere, checked before anything parses or imports them.

A config that a user names is their own word, and may name any class: it is not checked here. What a checkpoint holds
may come from anyone. Of classes it may name those below, and what the very call that opens it names too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

import cgfedrec.centralized
import cgfedrec.methods
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError, check
from cgfedrec.kit.optimisers import FactorAdam, LowRankSGD, TableSGD

LONGEST = 2**20
"""Characters of a checkpoint's settings; ours have some two thousand."""
DEEPEST = 24
"""Levels of a checkpoint's settings; ours have five."""
_OFFERED: dict[str, list[type]] = {
    "cgfedrec.methods": [getattr(cgfedrec.methods, name) for name in cgfedrec.methods.__all__],
    "cgfedrec.centralized": [getattr(cgfedrec.centralized, name) for name in cgfedrec.centralized.__all__],
    "cgfedrec.data": [FederatedDataModule],
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
"""The settings on which a trained state depends, and what each must be. Where a run goes and how it logs is none of a
checkpoint's business: that is for the call that opens it to say.
"""
IMPORTING = ("fabric", "method", "wire")
"""Sections in which the parser takes a text like ``a.b`` for the name of a class or a function, and imports it, and the
path of a file for that of a config, and reads it.
"""
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_META = re.compile(r"__\w+__")

Leaf = tuple[str, Any]
"""The place of a value in the settings, such as ``loop.rounds``, and the value."""


def settings_of(text: str, named: Collection[str], trusted: Collection[str]) -> dict[str, Any]:
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
    check(
        *(
            f"ckpt_path: its settings hold no usable {name!r}"
            for name, kind in SECTIONS.items()
            if not isinstance(tree.get(name), kind) or isinstance(tree.get(name), bool)
        )
    )
    kept = {name: tree[name] for name in SECTIONS}
    check(*_not_plain(kept))
    check(*_not_allowed(kept, named, trusted), *_not_mappings(kept))
    return kept


def meta_keys(where: str, tree: Any) -> list[str]:
    """The problem with each key like ``__path__``: the parser keeps notes of its own under such names."""
    found = {key for place, _ in _leaves(tree) for key in place.split(".") if _META.fullmatch(key)}
    return [f"{where}: {key} is no option" for key in sorted(found)]


def import_paths(tree: Any) -> set[str]:
    """Every text in a user's own settings that names a class or a function, as far as its form tells."""
    return {value for _, value in _leaves(tree) if isinstance(value, str) and _DOTTED.fullmatch(value)}


def _tree(text: str) -> dict[str, Any]:
    check("ckpt_path: its settings are too long to be any" if len(text) > LONGEST else None)
    try:
        # An alias can make a small text stand for gigabytes, and we write none.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
            raise InputError("ckpt_path: its settings hold aliases, which no run writes")
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InputError("ckpt_path: its settings are no YAML of plain values") from error
    check(None if isinstance(tree, dict) else "ckpt_path: its settings are no mapping")
    return dict(tree)


def _leaves(tree: Any, place: str = "", depth: int = 0) -> Iterator[Leaf]:
    """Every value that is no list or mapping, and what lies deeper than any setting does as it is."""
    if isinstance(tree, dict) and depth < DEEPEST and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{place}.{key}" if place else str(key), depth + 1)
    elif isinstance(tree, list) and depth < DEEPEST:
        for value in tree:
            yield from _leaves(value, place, depth + 1)
    else:
        yield place, tree


def _not_plain(tree: Any) -> list[str]:
    """The problem with values that are none of YAML's plain ones, and with keys in which the parser would see two."""
    plain = str | int | float | bool | None
    return [f"ckpt_path: its settings hold the key {key!r}, which is no option" for key in _odd_keys(tree)] + [
        f"ckpt_path: its setting {place} is no plain value"
        for place, value in _leaves(tree)
        if not isinstance(value, plain) and value != {}
    ]


def _odd_keys(tree: Any, depth: int = 0) -> Iterator[Any]:
    if depth >= DEEPEST or not isinstance(tree, dict | list):
        return
    if isinstance(tree, dict):
        yield from (key for key in tree if not isinstance(key, str) or "." in key)
    for value in tree.values() if isinstance(tree, dict) else tree:
        yield from _odd_keys(value, depth + 1)


def _not_allowed(tree: dict[str, Any], named: Collection[str], trusted: Collection[str]) -> list[str]:
    problems = []
    for place, value in _leaves(tree):
        if place.split(".")[0] in IMPORTING and isinstance(value, str) and _is_there(value):
            problems.append(f"ckpt_path: its setting {place} names a file, {value}, which was not read")
            continue
        names_a_class = place.endswith("class_path")
        imports = place.split(".")[0] in IMPORTING and isinstance(value, str) and _DOTTED.fullmatch(value)
        if not (names_a_class or imports) or (isinstance(value, str) and (value in CLASSES or value in named)):
            continue
        if any(f"{value}.".startswith(f"{module}.") for module in trusted):
            continue
        way_out = f"--method {value}" if place == "method.class_path" else f"--trust {value}"
        problems.append(
            f"ckpt_path: its setting {place} names {value}, which is neither a method of cgfedrec nor an optimiser of "
            f"torch, and so was not imported. If you trust that code, name it in this call: {way_out}"
        )
    return problems


def _is_there(path: str) -> bool:
    """Whether a text is the path of something: where a class may stand, the parser would read a config from it."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for one, or with a null
        return False


def _not_mappings(tree: dict[str, Any]) -> list[str]:
    """Where the parser would open a file if a text stood in place of a mapping."""
    arguments = tree["data"].get("init_args")
    if isinstance(tree["protocol"], str) and tree["protocol"] not in ("strict", "reference"):
        return ["ckpt_path: its settings hold no usable 'protocol'"]
    if not isinstance(arguments, dict):
        return ["ckpt_path: its settings hold no usable 'data.init_args'"]
    return [
        f"ckpt_path: its settings hold no usable 'data.init_args.{name}'"
        for name in ("format", "synthetic")
        if not isinstance(arguments.get(name, {}), dict)
    ] + [
        f"ckpt_path: its settings hold no usable '{name}.init_args'"
        for name in ("data", "method")
        if not isinstance(tree[name].get("init_args", {}), dict) or not isinstance(tree[name].get("class_path"), str)
    ]
