"""What is said of a run, and by whom: layers of plain settings, and the one rule by which they are merged.

A layer is a nested mapping of all that one source says: a config, an environment variable, the command line. Within a
layer order does not count. Between layers a later one wins, value by value, so that both hold where they say different
things; but what was said of one class is never taken for another, which starts from its own defaults. The one
exception is the control, `CONTROL`, which takes over the settings of the method that it controls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import signature
from pkgutil import resolve_name
from typing import Any

from cgfedrec.errors import InputError, check
from cgfedrec.trust import import_paths, meta_keys
from cgfedrec.yamlfile import is_file, read_yaml, read_yaml_file

Config = str | os.PathLike[str] | Mapping[str, Any]
Layer = dict[str, Any]
PREFIX = "CGFEDREC_FIT_"
CLASSES = ("data", "method", "logger")
"""Options that name a class; its own settings stand below it, ``method.dim``."""
CONTROL, CONTROLLED = "cgfedrec.methods.Local", "cgfedrec.methods.CGFedRec"
_SPEC = {"class_path", "init_args", "dict_kwargs"}


@dataclass(frozen=True)
class Said:
    """What is said of a run.

    Attributes:
        variables: The environment's, each with its layer.
        configs: In rising order, each with what to call it in a message.
        options: The command line's layer.
        asked: Its requests to print something, such as ``--help``, and their values.
        ignored: Variables that are set and that these configs put out of use.
    """

    variables: Mapping[str, Layer] = field(default_factory=dict)
    configs: Sequence[tuple[str, Layer]] = ()
    options: Layer = field(default_factory=dict)
    asked: Sequence[tuple[str, str]] = ()
    ignored: Sequence[str] = ()

    @property
    def layers(self) -> list[tuple[str, Layer]]:
        """All of them, from the lowest rank to the highest, each with its source."""
        return [*self.variables.items(), *self.configs, ("", self.options)]

    @property
    def files(self) -> list[str]:
        """The configs that are files."""
        return [name for name, _ in self.configs if is_file(name)]

    def value(self, option: str) -> Any:
        """What the highest layer that says anything of an option without dots says of it."""
        return next((layer[option] for _, layer in reversed(self.layers) if option in layer), None)

    def named(self) -> set[str]:
        """Every class or function that a user names."""
        return set[str]().union(*(import_paths(layer) for _, layer in self.layers))

    def source(self, path: Sequence[str]) -> str:
        """Who says what the settings hold at this place, in brackets; nothing for the command line itself."""
        for name, layer in reversed(self.layers):
            if _at(layer, path):
                return f" ({name})" if name else ""
        return ""


def said(
    configs: Sequence[Config] = (), options: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Said:
    """Read what configs, the command line and the environment say.

    Args:
        configs: Files, YAML and mappings, later ones over earlier ones.
        options: As on the command line, with configs of its own, which come after those.
        environment: Where variables are looked up; by default that of the process.

    Raises:
        InputError: with every problem; nothing has been imported then.
    """
    given, more, asked = _pairs(options)
    variables = {
        name: text
        for name, text in sorted((os.environ if environment is None else environment).items())
        if name.startswith(PREFIX)
    }
    from_environment = variables.pop(f"{PREFIX}CONFIG", None)
    named = [*configs, *more]
    ignored = [f"{PREFIX}CONFIG"] if named and from_environment else []
    if not named and from_environment:
        named = [from_environment]
    problems: list[str] = []
    read = [_read(config, problems) for config in named]
    of_options = _layer(given, "the command line", problems, text=True)
    of_variables = {
        name: _layer([(option_of(name), text)], name, problems, text=True) for name, text in variables.items()
    }
    check(*problems)
    return Said(of_variables, read, of_options, asked, ignored)


def option_of(variable: str) -> str:
    """The option that an environment variable stands for."""
    return variable.removeprefix(PREFIX).lower().replace("__", ".")


def variable_of(option: str) -> str:
    """The environment variable of an option."""
    return PREFIX + option.replace(".", "__").upper()


def merged(*layers: Layer) -> Layer:
    """Later layers over earlier ones, by the rule above."""
    whole: Layer = {}
    for layer in layers:
        whole = _over(whole, layer)
    return whole


def layer_of(tree: Mapping[Any, Any], where: str) -> Layer:
    """The layer that a mapping says, whatever short forms it uses. Raises `InputError`, naming where it is from."""
    problems: list[str] = []
    layer = _layer(tree.items(), where, problems)
    check(*problems)
    return layer


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
    except (ImportError, AttributeError, ValueError):  # the parser says what is wrong with it
        return False


def _pairs(options: Sequence[str]) -> tuple[list[tuple[str, str]], list[str], list[tuple[str, str]]]:
    """The options of a command line and their values, the configs among them, and the requests to print something."""
    given, configs, asked, problems = list[tuple[str, str]](), list[str](), list[tuple[str, str]](), list[str]()
    waiting = list(options)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        follows = bool(waiting) and not waiting[0].startswith("--")
        if word == "-h" or name.split(".")[-1].lstrip("-") == "help":
            asked.append((name, value or (waiting.pop(0) if follows and "." in name else "")))
        elif name == "--print_config":
            asked.append((name, value))
        elif not name.startswith("--") or name == "--":
            problems.append(f"unrecognized argument {word!r}: options begin with --, and have one value")
        elif not equals and not follows:
            problems.append(f"{name}: has no value")
        else:
            value = value if equals else waiting.pop(0)
            if name == "--config":
                configs.append(value)
            else:
                given.append((name[2:], value))
    check(*problems)
    return given, configs, asked


def _read(config: Config, problems: list[str]) -> tuple[str, Layer]:
    """A config and what to call it."""
    if isinstance(config, Mapping):
        return "config", _layer(config.items(), "config", problems)
    name = str(config) if is_file(config) else "config"
    try:
        tree = read_yaml_file(config) if is_file(config) else read_yaml(str(config), "config")
    except InputError as error:
        problems += error.problems
        return name, {}
    if not isinstance(tree, Mapping):
        told = "no options" if is_file(config) else f"{str(config)[:80]!r} is no file, and no YAML of options"
        problems.append(f"{name}: holds {told}" if is_file(config) else f"{name}: {told}")
        return name, {}
    return name, _layer(tree.items(), name, problems)


def _layer(pairs: Any, where: str, problems: list[str], text: bool = False) -> Layer:
    layer: Layer = {}
    for option, value in pairs:
        try:
            layer = _joined(layer, _shaped(option, value, text), [])
        except InputError as error:
            problems += [problem if text else f"{where}: {problem}" for problem in error.problems]
    problems += meta_keys(where, layer)
    return layer


def _shaped(option: Any, value: Any, text: bool) -> Layer:
    """One option in the form in which layers hold it; ``text``: as it was typed."""
    check(None if isinstance(option, str) else f"{option!r} is no option")
    group, *rest = option.split(".")
    if text and value.strip() == "null":  # as in a config
        value = None
    elif text and (not rest or value.lstrip().startswith("{")):
        value = _typed(option, value, group)
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


def _typed(option: str, value: str, group: str) -> Any:
    """What was typed for a whole group of options: a mapping, or the file of one."""
    if group not in (*CLASSES, "protocol", "fabric", "loop"):
        return value
    if "." not in option and is_file(value):
        return read_yaml_file(value)
    try:
        tree = read_yaml(value, option)
    except InputError:
        if value.lstrip().startswith("{"):
            raise
        return value
    return tree if isinstance(tree, dict) or tree is None else value


def _spec(value: Any) -> Any:
    """A class and its settings, however they were written: ``{class_path, init_args}``."""
    if isinstance(value, str):
        return {"class_path": value}
    if not isinstance(value, Mapping):
        return value
    whole = _nested(value)
    own = {key: part for key, part in whole.items() if key not in _SPEC}
    spec = {key: part for key, part in whole.items() if key in _SPEC}
    return _joined(spec, {"init_args": own}, []) if own else spec


def _nested(tree: Mapping[Any, Any]) -> Layer:
    """A mapping whose keys with dots are spelt out as mappings."""
    whole: Layer = {}
    for key, value in tree.items():
        check(None if isinstance(key, str) else f"{key!r} is no option")
        value = _nested(value) if isinstance(value, Mapping) else deepcopy(value)
        for part in reversed(key.split(".")):
            value = {part: value}
        whole = _joined(whole, value, [])
    return whole


def _joined(one: Layer, other: Layer, path: list[str]) -> Layer:
    """Two parts of one layer, in which nothing is lost but what is said twice: the later word counts."""
    whole = dict(one)
    for key, value in other.items():
        before = whole.get(key)
        if isinstance(before, dict) and isinstance(value, str):
            value = {"class_path": value}
        elif isinstance(value, dict) and isinstance(before, str):
            before = {"class_path": before}
        if key in whole and isinstance(before, dict) != isinstance(value, dict):
            place, inner = short([*path, key]), before if isinstance(before, dict) else value
            name = next((short(below) for below, _ in leaves(inner)), "")
            raise InputError(f"{place}: null and {place}.{name} cannot both hold; give one of them")
        if isinstance(before, dict) and isinstance(value, dict):
            if _is_spec(before) != _is_spec(value):
                before, value = _spec(before), _spec(value)
            value = _joined(before, value, [*path, key])
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


def _at(layer: Any, path: Sequence[str]) -> bool:
    """Whether a layer says anything at a place, or in its stead."""
    for part in path:
        if not isinstance(layer, dict):
            return True
        if part not in layer:
            return False
        layer = layer[part]
    return True


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of a layer that is no mapping, or an empty one, and its place."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, tree
