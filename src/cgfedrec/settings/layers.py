"""Layers of plain settings, and the one rule by which all that is said of a run is merged.

A layer is a nested mapping of all that one source says: a config, an environment variable, the command line. Within a
layer order does not count. Between layers a later one wins, value by value, so both hold where they say different
things. What was said of one class is never taken for another: that one starts from its own defaults. There is one
exception: the control, `CONTROL`, takes over the settings of the method that it controls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from inspect import signature
from pkgutil import resolve_name
from typing import TypeGuard

from cgfedrec.errors import InputError

Layer = dict[str, object]
CLASSES = ("data", "method", "logger")
"""Options that name a class; its own settings stand below it, ``method.dim``."""
DEFAULTS = {
    "data": {"class_path": "cgfedrec.data.FederatedDataModule"},
    "method": {"class_path": "cgfedrec.methods.CGFedCo"},
    "logger": {"class_path": "cgfedrec.run.loggers.WandbLogger"},
}
"""The class of each, where none is named."""
LISTS = ("callbacks", "loggers")
"""Options that list classes; one by itself may be given without a list."""
UNLOGGED: dict[str, None] = {"logger": None, "loggers": None}
"""What says that a run is logged in its CSV alone."""
CONTROL, CONTROLLED = "cgfedrec.methods.Local", "cgfedrec.methods.CGFedRec"
_SPEC = {"class_path", "init_args", "dict_kwargs"}


def merged(*layers: Mapping[str, object]) -> Layer:
    """Later layers over earlier ones, by the rule above."""
    whole: Layer = {}
    for layer in layers:
        whole = _mapping_over(whole, layer)
    return whole


def short(path: Sequence[str]) -> str:
    """The name of an option at a place in the settings."""
    return ".".join(part for part in path if part not in ("init_args", "dict_kwargs"))


def same_class(one: object, other: object) -> bool:
    """Whether two names are of one class; a name without a path is that of any class of this name."""
    if one == other:
        return True
    if not isinstance(one, str) or not isinstance(other, str) or one.split(".")[-1] != other.split(".")[-1]:
        return False
    if "." not in one or "." not in other:
        return True
    # A package offers classes of its modules: cgfedrec.methods.FedMF is cgfedrec.methods.fedmf.FedMF.
    try:
        return bool(resolve_name(one) is resolve_name(other))
    except Exception:  # a user's own module may raise anything; the parser says what is wrong with it
        return False


def shaped(option: object, value: object) -> Layer:
    """One option in the form in which layers hold it, whatever short form it was given in.

    Raises:
        InputError: if it is no option, or if its parts contradict each other.
    """
    group, *rest = _name(option).split(".")
    if group in _SPEC:
        raise InputError(f"{group}: says nothing by itself; write it under {', '.join(CLASSES)}")
    for part in reversed(rest):
        value = {part: value}
    if group in CLASSES:
        value = _class_spelt_out(value)
    elif group in LISTS and isinstance(value, str | Mapping):
        value = [deepcopy(value)]
    elif group == "protocol" and isinstance(value, str):
        value = {"name": value}
    elif isinstance(value, Mapping):
        value = _nested(value)
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    return {group: value}


def _name(key: object) -> str:
    # Python and YAML allow keys of any type.
    if not isinstance(key, str):
        raise InputError(f"{key!r} is no option")
    return key


def _class_spelt_out(value: object) -> object:
    """A class as ``{class_path, init_args}``, if it was given by its name or by its settings; other values as is."""
    if isinstance(value, str):
        return {"class_path": value}
    if isinstance(value, Mapping):
        return _spec(value)
    return value


def _spec(value: Mapping[str, object]) -> Layer:
    """A class and its settings as ``{class_path, init_args}``; the settings may stand beside the class_path."""
    whole = _nested(value)
    own = {key: part for key, part in whole.items() if key not in _SPEC}
    spec = {key: part for key, part in whole.items() if key in _SPEC}
    if own:
        spec = joined(spec, {"init_args": own})
    return spec


def _nested(tree: Mapping[str, object]) -> Layer:
    """A mapping whose keys with dots are spelt out as mappings."""
    whole: Layer = {}
    for key, value in tree.items():
        first, *rest = _name(key).split(".")
        value = _nested(value) if isinstance(value, Mapping) else deepcopy(value)
        for part in reversed(rest):
            value = {part: value}
        whole = joined(whole, {first: value})
    return whole


def joined(one: Layer, other: Layer, path: Sequence[str] = ()) -> Layer:
    """Two parts of one layer as one. Nothing is lost, except that the later of two values of one option counts.

    Args:
        one: What came first.
        other: What came after it.
        path: The place of both in the settings, to be named in a message.

    Raises:
        InputError: if one says that there is nothing at a place, and the other says something of what is there.
    """
    whole = dict(one)
    for key, value in other.items():
        if key in whole:
            value = _both(whole[key], value, (*path, key))
        whole[key] = value
    return whole


def _both(before: object, value: object, path: Sequence[str]) -> object:
    """What holds if one layer says two things of one place."""
    # A class's name and its settings say different things.
    if isinstance(before, dict) and isinstance(value, str):
        value = {"class_path": value}
    elif isinstance(value, dict) and isinstance(before, str):
        before = {"class_path": before}
    if isinstance(before, dict) and isinstance(value, dict):
        if _is_spec(before) != _is_spec(value):
            before, value = _spec(before), _spec(value)
        return joined(before, value, path)
    for mapping in (before, value):
        if isinstance(mapping, dict):
            place, (below, _) = short(path), next(leaves(mapping))
            raise InputError(f"{place}: null and {place}.{short(below)} cannot both hold; give one of them")
    return value


def _over(below: object, above: object) -> object:
    """What holds if ``above`` outranks ``below``."""
    if isinstance(above, str) and _is_spec(below) and same_class(above, below.get("class_path")):
        return below
    if isinstance(below, str) and _is_spec(above):
        below = {"class_path": below}
    if isinstance(below, dict) and isinstance(above, dict):
        return _mapping_over(below, above)
    return deepcopy(above)


def _mapping_over(below: Mapping[str, object], above: Mapping[str, object]) -> Layer:
    """`_over` of two mappings."""
    if _is_spec(below) or _is_spec(above):
        below, above = _spec(below), _spec(above)
        name = below.get("class_path")
        now = above.get("class_path", name)
        if name is not None and not same_class(name, now):
            below = _taken_over(below, now)
    whole = dict(below)
    for key, value in above.items():
        whole[key] = _over(below[key], value) if key in below else deepcopy(value)
    return whole


def _taken_over(spec: Mapping[str, object], other: object) -> Layer:
    """What another class has of one's settings: nothing, except that the control has all that both know."""
    if not (same_class(other, CONTROL) and same_class(spec["class_path"], CONTROLLED)):
        return {}
    from cgfedrec.methods import Local  # here, since most runs have no control, and methods bring torch with them

    kept = signature(Local).parameters
    settings = spec.get("init_args")
    if not isinstance(settings, dict):
        return {}
    return {"init_args": {name: value for name, value in settings.items() if name in kept}}


def _is_spec(value: object) -> TypeGuard[Layer]:
    return isinstance(value, dict) and bool(value.keys() & _SPEC)


def leaves(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Each value of a layer with its place. An empty mapping is a value; any other mapping is not."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, tree
