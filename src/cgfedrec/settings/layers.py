"""Layers of plain settings, and the one rule by which all that is said of a run is merged.

A layer is a nested mapping of all that one source says: a config, an environment variable, the command line. Within a
layer order does not count. Between layers a later one wins, value by value, so that both hold where they say different
things; but what was said of one class is never taken for another, which starts from its own defaults. The one
exception is the control, `CONTROL`, which takes over the settings of the method that it controls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from inspect import signature
from pkgutil import resolve_name
from typing import Any

from cgfedrec.errors import InputError, check

Layer = dict[str, Any]
CLASSES = ("data", "method", "logger")
"""Options that name a class; its own settings stand below it, ``method.dim``."""
CONTROL, CONTROLLED = "cgfedrec.methods.Local", "cgfedrec.methods.CGFedRec"
_SPEC = {"class_path", "init_args", "dict_kwargs"}


def merged(*layers: Layer) -> Layer:
    """Later layers over earlier ones, by the rule above."""
    whole: Layer = {}
    for layer in layers:
        whole = _over(whole, layer)
    return whole


def short(path: Sequence[str]) -> str:
    """The name of an option at a place in the settings."""
    return ".".join(part for part in path if part not in ("init_args", "dict_kwargs"))


def same_class(one: Any, other: Any) -> bool:
    """Whether two names are of one class; a name without a path is that of any class of this name."""
    if one == other:
        return True
    if not isinstance(one, str) or not isinstance(other, str) or one.split(".")[-1] != other.split(".")[-1]:
        return False
    if "." not in one or "." not in other:
        return True
    try:
        return bool(resolve_name(one) is resolve_name(other))
    except Exception:  # of a user's own module it may be any; the parser says what is wrong with it
        return False


def shaped(option: Any, value: Any) -> Layer:
    """One option in the form in which layers hold it, whatever short form it was given in.

    Raises:
        InputError: where it is no option, or its parts contradict each other.
    """
    check(None if isinstance(option, str) else f"{option!r} is no option")
    group, *rest = option.split(".")
    for part in reversed(rest):
        value = {part: value}
    if group in CLASSES:
        value = _spec(value)
    elif group == "protocol" and isinstance(value, str):
        value = {"name": value}
    elif isinstance(value, Mapping):
        value = _nested(value)
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    return {group: value}


def _spec(value: Any) -> Any:
    """A class and its settings, however they were written: ``{class_path, init_args}``."""
    if isinstance(value, str):
        return {"class_path": value}
    if not isinstance(value, Mapping):
        return value
    whole = _nested(value)
    own = {key: part for key, part in whole.items() if key not in _SPEC}
    spec = {key: part for key, part in whole.items() if key in _SPEC}
    return joined(spec, {"init_args": own}) if own else spec


def _nested(tree: Mapping[Any, Any]) -> Layer:
    """A mapping whose keys with dots are spelt out as mappings."""
    whole: Layer = {}
    for key, value in tree.items():
        check(None if isinstance(key, str) else f"{key!r} is no option")
        value = _nested(value) if isinstance(value, Mapping) else deepcopy(value)
        for part in reversed(key.split(".")):
            value = {part: value}
        whole = joined(whole, value)
    return whole


def joined(one: Layer, other: Layer, path: Sequence[str] = ()) -> Layer:
    """Two parts of one layer, in which nothing is lost but what is said twice: the later word counts."""
    whole = dict(one)
    for key, value in other.items():
        before = whole.get(key)
        if isinstance(before, dict) and isinstance(value, str):
            value = {"class_path": value}
        elif isinstance(value, dict) and isinstance(before, str):
            before = {"class_path": before}
        if key in whole and isinstance(before, dict) != isinstance(value, dict):
            place, inner = short((*path, key)), before if isinstance(before, dict) else value
            name = next((short(below) for below, _ in leaves(inner)), "")
            raise InputError(f"{place}: null and {place}.{name} cannot both hold; give one of them")
        if isinstance(before, dict) and isinstance(value, dict):
            if _is_spec(before) != _is_spec(value):
                before, value = _spec(before), _spec(value)
            value = joined(before, value, (*path, key))
        whole[key] = value
    return whole


def _over(below: Any, above: Any) -> Any:
    """What holds where ``above`` outranks ``below``."""
    if isinstance(above, str) and _is_spec(below) and same_class(above, below.get("class_path")):
        return below
    if isinstance(below, str) and _is_spec(above):
        below = {"class_path": below}
    if not isinstance(below, dict) or not isinstance(above, dict):
        return deepcopy(above)
    if _is_spec(below) or _is_spec(above):
        below, above = _spec(below), _spec(above)
        name, now = below.get("class_path"), above.get("class_path", below.get("class_path"))
        if name is not None and not same_class(name, now):
            below = _taken_over(below) if same_class(now, CONTROL) and same_class(name, CONTROLLED) else {}
    whole = dict(below)
    for key, value in above.items():
        whole[key] = _over(below[key], value) if key in below else deepcopy(value)
    return whole


def _taken_over(controlled: Layer) -> Layer:
    """The settings of a method that its control has too."""
    from cgfedrec.methods import Local

    kept = signature(Local).parameters
    settings = controlled.get("init_args") or {}
    return {"init_args": {name: value for name, value in settings.items() if name in kept}}


def _is_spec(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.keys() & _SPEC)


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of a layer that is no mapping, or an empty one, and its place."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, tree
