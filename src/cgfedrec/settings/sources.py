"""What is said of a run, and by whom: configs, the command line and the environment, read into layers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from cgfedrec.data.layout import laid_out
from cgfedrec.data.layouts import LAYOUTS
from cgfedrec.errors import InputError, check
from cgfedrec.settings.environment import PREFIX
from cgfedrec.settings.layers import CLASSES, Layer, joined, shaped
from cgfedrec.settings.trust import import_paths, meta_keys
from cgfedrec.settings.yamlfile import is_file, read_yaml, read_yaml_file

Config = str | os.PathLike[str] | Mapping[str, object]
"""The path of a file, YAML, or a mapping."""
_GROUPS = (*CLASSES, "protocol", "fabric", "loop")
"""Options that stand for a group of others."""


@dataclass(frozen=True)
class Said:
    """What is said of a run.

    Attributes:
        variables: The environment's layers, by the variables that say them.
        configs: The layer of each config, after what to call it in a message. A later one outranks an earlier one.
        options: The command line's layer.
        asked: What the command line asks to be printed, such as ``--help``, each with its value.
        ignored: Variables that are set, but out of use because of these configs.
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

    def value(self, option: str) -> object:
        """What the highest layer that says anything of an option without dots says of it."""
        for _, layer in reversed(self.layers):
            if option in layer:
                return layer[option]
        return None

    def named(self) -> set[str]:
        """Every class or function that a user names."""
        found: set[str] = set()
        for _, layer in self.layers:
            found |= import_paths(layer)
        return found

    def without(self, group: str, settings: Sequence[str]) -> Said:
        """The same, but for what is said of some settings of a class, such as the format of data."""

        def less(layer: Layer) -> Layer:
            spec = layer.get(group)
            if not isinstance(spec, dict) or not isinstance(spec.get("init_args"), dict):
                return layer
            kept = {name: value for name, value in spec["init_args"].items() if name not in settings}
            return layer | {group: spec | {"init_args": kept}}

        variables = {name: less(layer) for name, layer in self.variables.items()}
        configs = [(name, less(layer)) for name, layer in self.configs]
        return replace(self, variables=variables, configs=configs, options=less(self.options))

    def source(self, path: Sequence[str]) -> str:
        """Who says what the settings hold at this place, in brackets; nothing for the command line itself."""
        for name, layer in reversed(self.layers):
            if not _speaks_of(layer, path):
                continue
            if name:
                return f" ({name})"
            break
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
    typed = _typed_words(options)
    if environment is None:
        environment = os.environ
    variables = {name: text for name, text in sorted(environment.items(), key=_rank) if name.startswith(PREFIX)}
    # The one config of the environment stands in for those that are not named: it is none beside others.
    config = variables.pop(f"{PREFIX}CONFIG", None)
    named = [*configs, *typed.configs]
    ignored = []
    if config and named:
        ignored = [f"{PREFIX}CONFIG"]
    elif config:
        named = [config]
    problems: list[str] = []
    read = [_read(config, problems) for config in named]
    of_options = _typed_layer(typed.options, "the command line", problems)
    of_variables = {name: _typed_layer([(option_of(name), text)], name, problems) for name, text in variables.items()}
    check(*problems)
    return Said(of_variables, read, of_options, typed.asked, ignored)


def option_of(variable: str) -> str:
    """The option that an environment variable stands for."""
    return variable.removeprefix(PREFIX).lower().replace("__", ".")


def variable_of(option: str) -> str:
    """The environment variable of an option."""
    return PREFIX + option.replace(".", "__").upper()


def layer_of(tree: Mapping[str, object], where: str) -> Layer:
    """The layer that a mapping says, whatever short forms it uses. Raises `InputError`, naming where it is from."""
    problems: list[str] = []
    layer = _layer(tree, where, problems)
    check(*problems)
    return layer


def layer_in(file: Path, where: str) -> Layer:
    """The layer that a YAML file says. Raises `InputError`, naming where it is from."""
    tree = read_yaml_file(file)
    if not isinstance(tree, Mapping):
        raise InputError(f"{where}: holds no options")
    return layer_of(tree, where)


class _Typed(NamedTuple):
    """A command line in its parts.

    Attributes:
        options: Each option without its dashes, and the text of its value.
        configs: The values of ``--config``.
        asked: What it asks to be printed, each with its value.
    """

    options: list[tuple[str, str]]
    configs: list[str]
    asked: list[tuple[str, str]]


def _typed_words(words: Sequence[str]) -> _Typed:
    """The parts of a command line. Raises `InputError` for words that are no option, and options without a value."""
    found, problems = _Typed([], [], []), list[str]()
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        follows = bool(waiting) and not waiting[0].startswith("--")
        if word == "-h" or name.split(".")[-1].lstrip("-") == "help":
            # --method.help tells of the class that follows it, and --help of everything.
            if not value and follows and "." in name:
                value = waiting.pop(0)
            found.asked.append((name, value))
        elif name == "--print_config":
            found.asked.append((name, value))
        elif not name.startswith("--") or name == "--":
            problems.append(f"unrecognized argument {word!r}: options begin with --, and have one value")
        elif not equals and not follows:
            problems.append(f"{name}: has no value")
        else:
            if not equals:
                value = waiting.pop(0)
            if name == "--config":
                found.configs.append(value)
            else:
                found.options.append((name.removeprefix("--"), value))
    check(*problems)
    return found


def _read(config: Config, problems: list[str]) -> tuple[str, Layer]:
    """What to call a config, and its layer; notes what is wrong with it."""
    name = "config"
    if isinstance(config, Mapping):
        return name, _layer(config, name, problems)
    no_options = f"{name}: {str(config)[:80]!r} is no file, and no YAML of options"
    if is_file(config):
        name = str(config)
        no_options = f"{name}: holds no options"
    try:
        tree = read_yaml_file(config) if is_file(config) else read_yaml(str(config), name)
    except InputError as error:
        problems += error.problems
        return name, {}
    if not isinstance(tree, Mapping):
        problems.append(no_options)
        return name, {}
    return name, _layer(tree, name, problems)


def _layer(tree: Mapping[str, object], where: str, problems: list[str]) -> Layer:
    """The layer of a mapping; notes what is wrong with it."""
    layer: Layer = {}
    for option, value in tree.items():
        try:
            layer = joined(layer, shaped(option, value))
        except InputError as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
    problems += meta_keys(where, layer)
    return _with_layout(layer)


def _typed_layer(pairs: Iterable[tuple[str, str]], where: str, problems: list[str]) -> Layer:
    """The layer of options and their texts; notes what is wrong with it.

    An option can stand there twice, and what is wrong with its value is said of the option itself.
    """
    layer: Layer = {}
    for option, text in pairs:
        try:
            layer = joined(layer, shaped(option, _typed(option, text)))
        except InputError as error:
            problems += error.problems
    problems += meta_keys(where, layer)
    return _with_layout(layer)


def _rank(variable: tuple[str, str]) -> tuple[bool, str]:
    """Variables in the order of their names, but one that names a layout first: it lies below what others say."""
    return not variable[0].endswith("__FORMAT__LAYOUT"), variable[0]


def _with_layout(layer: Layer) -> Layer:
    """The layer, with all that a layout stands for that it names, below what it says of single options itself.

    So a layout holds against lower layers as if each of its options had been said, and higher layers may change any.
    """
    data = layer.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("init_args"), dict):
        return layer
    arguments = data["init_args"]
    said = arguments.get("format")
    if not isinstance(said, dict) or "layout" not in said or said["layout"] not in (None, *LAYOUTS):
        return layer  # the parser says what is wrong with it, if anything is
    own = {name: value for name, value in said.items() if name != "layout"}
    return layer | {"data": data | {"init_args": arguments | {"format": laid_out(said["layout"]) | own}}}


def _typed(option: str, text: str) -> object:
    """The value of a text: null as in a config, and for a group of options a mapping, or the file that holds one.

    All other text is left to the parser, which knows what its option takes.
    """
    if text.strip() == "null":
        return None
    group, *below = option.split(".")
    begins_a_mapping = text.lstrip().startswith("{")
    if group not in _GROUPS or (below and not begins_a_mapping):
        return text
    if not below and is_file(text):
        return read_yaml_file(text)
    try:
        tree = read_yaml(text, option)
    except InputError:
        # The name of a class need not be YAML.
        if begins_a_mapping:
            raise
        return text
    if tree is None or isinstance(tree, dict):
        return tree
    return text


def _speaks_of(layer: object, path: Sequence[str]) -> bool:
    """Whether a layer says anything of a place, or of one that holds it."""
    for part in path:
        if not isinstance(layer, dict):
            return True
        if part not in layer:
            return False
        layer = layer[part]
    return True
