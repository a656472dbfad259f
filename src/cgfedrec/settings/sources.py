"""What is said of a run, and by whom: configs, the command line and the environment, read into layers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cgfedrec.data.layout import laid_out
from cgfedrec.data.layouts import LAYOUTS
from cgfedrec.errors import InputError, check
from cgfedrec.settings.environment import PREFIX
from cgfedrec.settings.layers import CLASSES, LISTS, Layer, joined, leaves, shaped, short
from cgfedrec.settings.trust import IMPORTING, import_paths, meta_keys
from cgfedrec.settings.typed import typed_words
from cgfedrec.settings.yamlfile import is_file, read_yaml, read_yaml_file

Config = str | os.PathLike[str] | Mapping[str, object]
"""The path of a file, YAML, or a mapping."""
_GROUPS = (*CLASSES, "protocol", "fabric", "loop")
"""Options that stand for a group of others."""
COMMAND_LINE = "the command line"


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

    def imported(self) -> set[str]:
        """Every class or module that a user names where one can stand; a path such as ``ratings.csv`` is none."""
        found = {value for _, value in self.asked} | set(self.trusted())
        for _, layer in self.layers:
            data = layer.get("data")
            kind = data.get("class_path") if isinstance(data, dict) else data
            places = {name: layer.get(name) for name in (*IMPORTING, "logger", *LISTS)}
            found |= import_paths(places | {"data": kind})
        return found

    def trusted(self) -> list[str]:
        """Every module or class that a user trusts a checkpoint to name."""
        listed = [str(layer["trust"]) for _, layer in self.layers if layer.get("trust")]
        return [name.strip() for names in listed for name in names.split(",")]

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
        who = self.who(path)
        return f" ({who})" if who not in (None, COMMAND_LINE) else ""

    def who(self, path: Sequence[str]) -> str | None:
        """Who says what the settings hold at this place, if anybody does."""
        for name, layer in reversed(self.layers):
            if _speaks_of(layer, path):
                return name or COMMAND_LINE
        return None


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
    typed = typed_words(options)
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
    of_options = _typed_layer(typed.options, COMMAND_LINE, problems)
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

    An option can stand there twice with one value, and not with two: nobody could see which of them counts. What is
    wrong with a value is said of the option itself.
    """
    layer: Layer = {}
    told: dict[tuple[str, ...], object] = {}
    for option, text in pairs:
        try:
            value = shaped(option, _typed(option, text))
            problems += _said_otherwise(told, value)
            layer = joined(layer, value)
        except InputError as error:
            problems += error.problems
    problems += meta_keys(where, layer)
    return _with_layout(layer)


def _said_otherwise(told: dict[tuple[str, ...], object], layer: Layer) -> Iterator[str]:
    """The problem with each option that has been told another value before; keeps what this layer tells."""
    for path, value in leaves(layer):
        before = told.setdefault(path, value)
        if str(before) != str(value):  # in YAML a number is none of text
            option = short(path).removesuffix(".class_path")
            whole = "; a list is given whole" if isinstance(value, list) else ""
            yield f"{option}: is given twice on the command line, as {before!r} and as {value!r}; give one{whole}"


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
    if group in LISTS and text.lstrip().startswith(("[", "{")):
        return read_yaml(text, option)
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
