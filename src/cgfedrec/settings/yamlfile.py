"""YAML as configs are written in it: plain values, read whole or refused with the line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from cgfedrec.errors import InputError, check

DEEPEST = 40
"""Levels of a config."""
LARGEST = 100_000
"""Values of a config. What an alias repeats is counted each time."""


class _Loader(yaml.SafeLoader):
    """Without dates, which no option takes: a ``run_dir`` called 2024-01-01 is text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def is_file(config: str | os.PathLike[str] | Mapping[str, object]) -> bool:
    """Whether a config is the path of one, and not YAML itself or a mapping."""
    if isinstance(config, os.PathLike):
        return True
    if not isinstance(config, str):
        return False
    try:
        path = Path(config)
        # A config that is missing is to be told as a missing file, and not as odd YAML.
        named_like_one = path.suffix in (".yaml", ".yml") and "\n" not in config
        return named_like_one or path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a null byte
        return False


def read_yaml_file(path: str | os.PathLike[str]) -> object:
    """What a YAML file holds. Raises `InputError`, naming the file, if it is none that can be used."""
    try:
        if not Path(path).exists():
            raise InputError(f"{path}: no such file")
        if not Path(path).is_file():  # a pipe would keep us waiting
            raise InputError(f"{path}: is no file")
        text = Path(path).read_text()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error
    return read_yaml(text, str(path))


def read_yaml(text: str, where: str) -> object:
    """What YAML holds.

    Args:
        text: The YAML.
        where: What to call it in messages.

    Raises:
        InputError: if it is no YAML of plain values, if a key stands twice, or if it is too large or too deep.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        # The nodes are looked at before they become values: an alias is one node, however much it stands for.
        problems: list[str] = []
        _size(node, where, problems, {}, ())
        check(*problems)
        value: object = loader.construct_document(node)
        return value
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        said = str(error).replace(' in "<unicode string>",', "")
        raise InputError(f"{where}: no YAML of plain values: {said}") from error
    except RecursionError as error:
        raise InputError(f"{where}: its values lie too deep to be options") from error
    finally:
        if loader is not None:
            loader.dispose()


def _size(node: yaml.Node, where: str, problems: list[str], sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node stands for.

    Args:
        node: The node.
        where: What to call the YAML in messages.
        problems: Where keys that stand twice are noted.
        sizes: Of the nodes seen so far, by their ids. A node that aliases repeat is walked once.
        above: The ids of the nodes around this one.

    Raises:
        InputError: if it holds itself, lies too deep, or is too large. The walk could not end well then.
    """
    line = node.start_mark.line + 1
    if id(node) in above:
        raise InputError(f"{where}, line {line}: what begins here holds itself")
    if len(above) > DEEPEST:
        raise InputError(f"{where}, line {line}: what begins here lies too deep to be an option")
    if id(node) in sizes:
        return sizes[id(node)]
    inside: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        problems += _twice(node, where)
        inside = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inside = node.value
    size = 1 + sum(_size(part, where, problems, sizes, (*above, id(node))) for part in inside)
    if size > LARGEST:
        raise InputError(f"{where}: stands for more than {LARGEST:,} values, which are no options")
    sizes[id(node)] = size
    return size


def _twice(node: yaml.MappingNode, where: str) -> list[str]:
    """The problem with each key that stands twice: YAML itself would take the later one without a word."""
    problems = []
    seen: set[str] = set()
    for key, _ in node.value:
        name = str(key.value)
        if isinstance(key, yaml.ScalarNode) and name in seen:
            problems.append(f"{where}, line {key.start_mark.line + 1}: {name} stands twice")
        seen.add(name)
    return problems
