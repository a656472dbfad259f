"""Every option that a run has, by its name, and the class that stands behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from torch.optim import Optimizer

from cgfedrec.settings.layers import CLASSES, Layer, same_class

ERRORS = (
    ArgumentError,
    ImportError,
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
    SystemExit,  # a script of the user's that ends itself where it is imported
)
"""What the parser, and the classes that it imports, raise for a value that they do not take."""
_NO_OPTIONS = ("help", "print_config", "config")


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        parser: Which takes it.
        dest: What that parser calls it.
        kind: The type of its values, as annotated.
        default: Its value if nothing is said of it.
    """

    parser: ArgumentParser
    dest: str
    kind: object
    default: object

    @property
    def takes_class(self) -> bool:
        """Whether its values name a class."""
        kinds: tuple[object, ...] = (self.kind,)
        if get_origin(self.kind) in (Union, UnionType):
            kinds = get_args(self.kind)
        # Where text or a number may stand, a name is that value itself.
        if any(kind in (int, float, bool, str) for kind in kinds):
            return False
        return any(kind is not NoneType and (isinstance(kind, type) or "Callable" in str(kind)) for kind in kinds)

    def problem(self, value: object) -> str | None:
        """What the parser has against a value. Other options that it needs are not asked for."""
        try:
            self.parser.parse_object({self.dest: value}, env=False, defaults=False, _skip_required=True)
        except ERRORS as error:
            return str(error)
        return None

    def named(self, name: object) -> type | None:
        """The class that a value of this option names, if it can stand here."""
        if not isinstance(name, str):
            return None
        with suppress(*ERRORS):
            # Only the parser knows which class a name without a path is of here. Without validation: it would miss
            # the arguments that the class needs.
            parsed = self.parser.parse_object(
                {self.dest: {"class_path": name}}, env=False, defaults=False, _skip_validation=True
            )
            made = resolve_name(parsed[self.dest]["class_path"])
            if isinstance(made, type):
                return made
        return None


def options_of(parser: ArgumentParser, spec: Layer) -> dict[str, Option]:
    """Every option of a run, and of the classes that its settings name, by names like ``method.optimizer.lr``."""
    found = own_options(parser, "")
    for group in CLASSES:
        found |= _of_class(found[group], spec.get(group), group)
    return found


def item_of(kind: object) -> Option | None:
    """The option that each item of a list of classes is; none for any other type."""
    origin, inner = get_origin(kind), get_args(kind)
    if not isinstance(origin, type) or not issubclass(origin, Sequence) or len(inner) != 1:
        return None
    if not isinstance(inner[0], type) or inner[0].__module__ == "builtins":
        return None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(inner[0], "item", required=False)
    return Option(parser, "item", inner[0], None)


def options_at(option: Option, spec: object, name: str) -> dict[str, Option]:
    """An option that takes a class, and those of the class that was said.

    Args:
        option: The option.
        spec: What was said of it.
        name: What to call it.
    """
    return {name: option, **_of_class(option, spec, name)}


def groups_of(names: Iterable[str]) -> set[str]:
    """The names under which options stand: ``method`` and ``method.optimizer`` for ``method.optimizer.lr``."""
    return {name[:place] for name in names for place, letter in enumerate(name) if letter == "."}


def completed(spec: Layer, known: Mapping[str, Option]) -> Layer:
    """The settings, with its own defaults for every class inside them that differs from the default one.

    The parser would let it take over what it has in common with that one.

    Args:
        spec: The settings.
        known: Of `options_of`.
    """
    whole = dict(spec)
    for group in CLASSES:
        chosen = spec.get(group)
        if not isinstance(chosen, dict) or not isinstance(chosen.get("init_args"), dict):
            continue
        arguments = dict(chosen["init_args"])
        for name, value in arguments.items():
            option = known.get(f"{group}.{name}")
            if option is not None:
                arguments[name] = _with_defaults(option, value)
        whole[group] = {**chosen, "init_args": arguments}
    return whole


def _with_defaults(option: Option, value: object) -> object:
    """A value, with its own defaults if it names another class than the option has by default."""
    default = class_path(option.parser.get_default(option.dest))
    spec: Layer = {}
    if isinstance(value, str):
        spec = {"class_path": value}
    elif isinstance(value, dict):
        spec = value
    name = class_path(spec)
    if default is None or name is None or same_class(name, default):
        return value
    made = option.named(name)
    if made is None or not isinstance(spec.get("init_args") or {}, dict):  # the parser says what is wrong with it
        return value
    own = parser_of(made).get_defaults().as_dict()
    return {**spec, "init_args": {**own, **_arguments(spec)}}


def class_path(spec: object) -> str | None:
    """The class that a mapping, or a default of the parser, names; none if it names none."""
    found = None
    if isinstance(spec, dict | Namespace):
        found = spec.get("class_path")
    if isinstance(found, str):
        return found
    return None


def own_options(parser: ArgumentParser, prefix: str) -> dict[str, Option]:
    """The options of one parser, without those of the classes that it takes."""
    found = {}
    for action in parser._actions:
        if action.dest in _NO_OPTIONS or action.dest.endswith(".help") or action.default == "==SUPPRESS==":
            continue
        # jsonargparse keeps a type that argparse does not know in an attribute of its own.
        kind = getattr(action, "_typehint", action.type)
        found[f"{prefix}{action.dest}"] = Option(parser, action.dest, kind, action.default)
    return found


def _of_class(option: Option, spec: object, name: str) -> dict[str, Option]:
    """The options of a class, and of classes that its own settings name or have by default.

    Args:
        option: Where the class stands.
        spec: What was said of it, or its default.
        name: Of the option, before those of the class.
    """
    chosen = class_path(spec)
    if isinstance(spec, str) and option.takes_class:
        chosen = spec
    made = option.named(chosen)
    if made is None:
        return {}
    found = own_options(parser_of(made), f"{name}.")
    arguments = _arguments(spec)
    for inner in list(found.values()):
        value = arguments.get(inner.dest)
        default = None
        if inner.takes_class:
            default = inner.parser.get_default(inner.dest)
        # Settings without a class are those of the default one.
        if isinstance(value, dict) and "class_path" not in value and class_path(default):
            value = {"class_path": class_path(default), **value}
        if value is None:
            value = default
        found |= _of_class(inner, value, f"{name}.{inner.dest}")
    return found


def _arguments(spec: object) -> Layer:
    """What is said of the settings of a class."""
    if isinstance(spec, dict) and isinstance(spec.get("init_args"), dict):
        return dict(spec["init_args"])
    return {}


@cache
def parser_of(made: type) -> ArgumentParser:
    """The parser of a class's own options. The parameters that an optimiser optimises are no option."""
    parser = ArgumentParser(exit_on_error=False)
    skipped = set()
    if issubclass(made, Optimizer):
        parameter = signature(made).parameters.get("params")
        if parameter is not None and parameter.default is Parameter.empty:
            skipped = {"params"}
    parser.add_class_arguments(made, skip=skipped)
    return parser
