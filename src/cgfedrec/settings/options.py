"""Every option that a run has, by its name, and what is wrong with a value that it was given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser
from torch.optim import Optimizer

import cgfedrec.centralized
import cgfedrec.methods
from cgfedrec.errors import nearest
from cgfedrec.settings.layers import CLASSES, Layer, leaves, same_class, short

ERRORS = (ArgumentError, ImportError, TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError)
"""What the parser and the classes that it imports raise for a value that they do not take."""
_NO_OPTIONS = ("help", "print_config", "config")
_LONGEST = 80


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        parser: Which takes it.
        dest: What that parser calls it.
        kind: The type of its values.
        default: Where nothing is said of it.
    """

    parser: ArgumentParser
    dest: str
    kind: Any
    default: Any

    def problem(self, value: Any) -> str | None:
        """What the parser has against a value."""
        try:
            self.parser.parse_object({self.dest: value}, env=False, defaults=False)
        except ERRORS as error:
            return str(error)
        return None


def options_of(parser: ArgumentParser, spec: Layer) -> dict[str, Option]:
    """Every option of a run, and of the classes that its settings name, by names like ``method.optimizer.lr``."""
    found = _own(parser, "")
    for group in CLASSES:
        found |= _of_class(found[group], spec.get(group), group)
    return found


def problems(spec: Layer, known: Mapping[str, Option], source: Callable[[Sequence[str]], str]) -> Iterator[str]:
    """What is wrong with settings.

    Args:
        spec: The settings.
        known: Of `options_of`.
        source: Who says what stands at a place, as it is to be told.
    """
    for key, value in spec.items():
        for path, problem in _wrong(value, (key,), known):
            yield f"{short(path)}: {problem}{source(path)}"


def completed(spec: Layer, known: Mapping[str, Option]) -> Layer:
    """The settings, with its own defaults for every class inside them that differs from the default one.

    The parser would let it take over what it has in common with that one.
    """
    whole = dict(spec)
    for group in CLASSES:
        if isinstance(spec.get(group), dict) and isinstance(spec[group].get("init_args"), dict):
            arguments = dict(spec[group]["init_args"])
            for name, value in arguments.items():
                option = known.get(f"{group}.{name}")
                arguments[name] = value if option is None else _with_defaults(option, value)
            whole[group] = {**spec[group], "init_args": arguments}
    return whole


def _with_defaults(option: Option, value: Any) -> Any:
    default = _class_path(option.parser.get_default(option.dest))
    name = value if isinstance(value, str) else _class_path(value)
    if default is None or name is None or same_class(name, default):
        return value
    made = _class(option, name)
    if made is None:
        return value
    own = _parser_of(made).get_defaults().as_dict()
    given = (value.get("init_args") or {}) if isinstance(value, dict) else {}
    return {**(value if isinstance(value, dict) else {"class_path": name}), "init_args": {**own, **given}}


def groups_of(names: Iterable[str]) -> set[str]:
    """The names under which options stand: ``method`` and ``method.optimizer`` for ``method.optimizer.lr``."""
    return {name[:place] for name in names for place, letter in enumerate(name) if letter == "."}


def no_mappings(
    spec: Layer, known: Mapping[str, Option], needed: Collection[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each place where a value stands for a whole group of options, and what is wrong with that.

    Args:
        spec: The settings.
        known: Of `options_of`.
        needed: Options that name a class, and may not be null.
    """
    groups = groups_of(known)
    for path, value in leaves(spec):
        name = short(path)
        if value != {} and (name in needed or name in groups - known.keys()) and path[-1] != "class_path":
            yield path, f"must be a mapping of its options, not {shown(value)}"


def shown(value: Any) -> str:
    """A value as it is written in a config, cut where it is long."""
    plain = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    try:
        text = plain or ("null" if value is None else value if isinstance(value, str) and value else repr(value))
    except ValueError:  # a number of thousands of digits
        text = "a number without end"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def told(kind: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(map(shown, inner[:-1])) + f" or {shown(inner[-1])}" if len(inner) > 1 else shown(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(map(told, inner))
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"a list of {' and '.join(f'{told(one)}s'.removeprefix('a ') for one in inner if one is not Ellipsis)}"
    names = {NoneType: "null", int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind) or str(getattr(kind, "__name__", kind))


def _wrong(value: Any, path: tuple[str, ...], known: Mapping[str, Option]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each place below this one where something is wrong, and what."""
    name = short(path)
    option = known.get(name)
    if option is not None and isinstance(value, dict) and "class_path" in value:
        yield from _wrong_class(option, value, path, known)
    elif option is not None:
        problem = option.problem(value)
        if problem is not None:
            yield (
                path,
                _no_class(option, value)
                if _takes_class(option)
                else (f"must be {told(option.kind)}, not {shown(value)}"),
            )
    elif not any(other.startswith(f"{name}.") for other in known):
        yield path, f"there is no such option{nearest(name, known)}"
    elif not isinstance(value, dict):
        yield path, f"must be a mapping of its options, not {shown(value)}"
    else:
        for key, inner in value.items():
            yield from _wrong(inner, (*path, key), known)


def _wrong_class(
    option: Option, value: Layer, path: tuple[str, ...], known: Mapping[str, Option]
) -> Iterator[tuple[tuple[str, ...], str]]:
    name = value["class_path"]
    if _class(option, name) is None:
        yield path, _no_class(option, name)
        return
    arguments = value.get("init_args", {})
    if not isinstance(arguments, dict):
        yield path, f"its init_args must be a mapping, not {shown(arguments)}"
        return
    found = [wrong for key, inner in arguments.items() for wrong in _wrong(inner, (*path, "init_args", key), known)]
    yield from found
    lines = [] if found else [line.strip(" -") for line in (option.problem(value) or "").splitlines() if line.strip()]
    if lines:
        yield path, next((line for line in lines if "required" in line), lines[-1])


def _no_class(option: Option, name: Any) -> str:
    hint = ""
    if option.dest == "method":
        hint = f"; methods here: {', '.join([*cgfedrec.methods.__all__, *cgfedrec.centralized.__all__])}"
    problem = option.problem({"class_path": name} if isinstance(name, str) else name) or ""
    why = [line.strip(" -") for line in problem.splitlines() if "No module" in line or "has no attribute" in line]
    return f"{shown(name)} is no class that can stand here{hint}{f' ({why[-1]})' if why else ''}"


def _own(parser: ArgumentParser, prefix: str) -> dict[str, Option]:
    return {
        f"{prefix}{action.dest}": Option(parser, action.dest, getattr(action, "_typehint", action.type), action.default)
        for action in parser._actions
        if action.dest not in _NO_OPTIONS and not action.dest.endswith(".help") and action.default != "==SUPPRESS=="
    }


def _of_class(option: Option, spec: Any, name: str) -> dict[str, Option]:
    """The options of a class, and of classes that its own settings name or have by default."""
    found: dict[str, Option] = {}
    made = _class(option, (spec if _takes_class(option) else None) if isinstance(spec, str) else _class_path(spec))
    if made is None:
        return found
    found = _own(_parser_of(made), f"{name}.")
    arguments = spec.get("init_args") if isinstance(spec, dict) else None
    for inner in list(found.values()):
        value = (arguments if isinstance(arguments, dict) else {}).get(inner.dest)
        default = inner.parser.get_default(inner.dest) if _takes_class(inner) else None
        if isinstance(value, dict) and "class_path" not in value and _class_path(default):
            value = {"class_path": _class_path(default), **value}
        if isinstance(value, str | dict) or default is not None:
            found |= _of_class(inner, default if value is None else value, f"{name}.{inner.dest}")
    return found


def _takes_class(option: Option) -> bool:
    """Whether the values of an option name a class."""
    kinds = get_args(option.kind) if get_origin(option.kind) in (Union, UnionType) else (option.kind,)
    if any(kind in (int, float, bool, str) for kind in kinds):
        return False
    return any(kind is not NoneType and (isinstance(kind, type) or "Callable" in str(kind)) for kind in kinds)


def _class_path(spec: Any) -> str | None:
    found = spec.get("class_path") if hasattr(spec, "get") else None
    return found if isinstance(found, str) else None


def _class(option: Option, name: Any) -> type | None:
    """The class that a value of an option names, if it can stand there."""
    if not isinstance(name, str):
        return None
    with suppress(*ERRORS):
        parsed = option.parser.parse_object(
            {option.dest: {"class_path": name}}, env=False, defaults=False, _skip_validation=True
        )[option.dest]
        made = resolve_name(parsed["class_path"])
        return made if isinstance(made, type) else None
    return None


@cache
def _parser_of(made: type) -> ArgumentParser:
    """The parser of a class's own options; what an optimiser optimises is none."""
    parser = ArgumentParser(exit_on_error=False)
    needed = {
        name
        for name, parameter in signature(made).parameters.items()
        if parameter.default is Parameter.empty and issubclass(made, Optimizer)
    }
    parser.add_class_arguments(made, skip=needed & {"params"})
    return parser
