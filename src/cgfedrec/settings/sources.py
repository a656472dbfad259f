"""What is said of a run, and by whom: configs, the command line and the environment, read into layers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cgfedrec.errors import InputError, check
from cgfedrec.settings.environment import PREFIX
from cgfedrec.settings.layers import CLASSES, Layer, joined, shaped
from cgfedrec.settings.trust import import_paths, meta_keys
from cgfedrec.settings.yamlfile import is_file, read_yaml, read_yaml_file

Config = str | os.PathLike[str] | Mapping[str, Any]
_GROUPS = (*CLASSES, "protocol", "fabric", "loop")


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
    of_options = _layer(given, "the command line", problems, typed=True)
    of_variables = {
        name: _layer([(option_of(name), text)], name, problems, typed=True) for name, text in variables.items()
    }
    check(*problems)
    return Said(of_variables, read, of_options, asked, ignored)


def option_of(variable: str) -> str:
    """The option that an environment variable stands for."""
    return variable.removeprefix(PREFIX).lower().replace("__", ".")


def variable_of(option: str) -> str:
    """The environment variable of an option."""
    return PREFIX + option.replace(".", "__").upper()


def layer_of(tree: Mapping[Any, Any], where: str) -> Layer:
    """The layer that a mapping says, whatever short forms it uses. Raises `InputError`, naming where it is from."""
    problems: list[str] = []
    layer = _layer(tree.items(), where, problems)
    check(*problems)
    return layer


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


def _layer(pairs: Iterable[tuple[Any, Any]], where: str, problems: list[str], typed: bool = False) -> Layer:
    """A layer of options and their values; ``typed``: as they stood on a command line, not in a config."""
    layer: Layer = {}
    for option, value in pairs:
        try:
            layer = joined(layer, shaped(option, _typed(option, value) if typed else value))
        except InputError as error:
            problems += [problem if typed else f"{where}: {problem}" for problem in error.problems]
    problems += meta_keys(where, layer)
    return layer


def _typed(option: str, value: str) -> Any:
    """What was typed as a value: null as in a config, and for a group of options a mapping, or the file of one.

    All other text is left to the parser, which knows what its option takes.
    """
    if value.strip() == "null":
        return None
    inside = "." in option
    if option.split(".")[0] not in _GROUPS or (inside and not value.lstrip().startswith("{")):
        return value
    if not inside and is_file(value):
        return read_yaml_file(value)
    try:
        tree = read_yaml(value, option)
    except InputError:
        if value.lstrip().startswith("{"):
            raise
        return value
    return tree if tree is None or isinstance(tree, dict) else value


def _at(layer: Any, path: Sequence[str]) -> bool:
    """Whether a layer says anything at a place, or in its stead."""
    for part in path:
        if not isinstance(layer, dict):
            return True
        if part not in layer:
            return False
        layer = layer[part]
    return True
