"""YAML as configs are written in it: plain values, read whole or refused with the line."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from cgfedrec.errors import InputError, check

DEEPEST = 40
"""Levels of a config."""
LARGEST = 100_000
"""Values of a config, what it repeats by aliases counted each time."""


class _Loader(yaml.SafeLoader):
    """Without dates, which no option takes: a ``run_dir`` called 2024-01-01 is text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def is_file(config: Any) -> bool:
    """Whether a config is the path of one, and not YAML itself."""
    if isinstance(config, os.PathLike):
        return True
    with suppress(OSError, ValueError):  # too long for a path, or with a null
        return isinstance(config, str) and (
            (Path(config).suffix in (".yaml", ".yml") and "\n" not in config) or Path(config).is_file()
        )
    return False


def read_yaml_file(path: str | os.PathLike[str]) -> Any:
    """What a YAML file holds. Raises `InputError`, naming it, where it is none that can be used."""
    try:
        if not Path(path).is_file():  # a pipe would keep us waiting
            raise InputError(f"{path}: {'is no file' if Path(path).exists() else 'no such file'}")
        text = Path(path).read_text()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error
    return read_yaml(text, str(path))


def read_yaml(text: str, where: str) -> Any:
    """What YAML holds.

    Raises:
        InputError: for what is no YAML of plain values, keys that stand twice, and what is endless.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        problems: list[str] = []
        if node is not None:
            _size(node, where, problems, {}, ())
        check(*problems)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{where}: no YAML of plain values: {error}") from error
    except RecursionError as error:
        raise InputError(f"{where}: its values lie too deep to be options") from error
    finally:
        if loader is not None:
            loader.dispose()


def _size(node: yaml.Node, where: str, problems: list[str], sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node stands for; notes what is wrong with it."""
    if id(node) in above or len(above) > DEEPEST:
        line = node.start_mark.line + 1
        what = "holds itself" if id(node) in above else "lies too deep to be an option"
        raise InputError(f"{where}, line {line}: what begins here {what}")
    if id(node) in sizes:
        return sizes[id(node)]
    size, inside = 1, (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if isinstance(key, yaml.ScalarNode) and name in seen:
                problems.append(f"{where}, line {key.start_mark.line + 1}: {name} stands twice")
            seen.add(name)
            size += _size(key, where, problems, sizes, inside) + _size(value, where, problems, sizes, inside)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_size(value, where, problems, sizes, inside) for value in node.value)
    if size > LARGEST:
        raise InputError(f"{where}: stands for more than {LARGEST:,} values, which are no options")
    sizes[id(node)] = size
    return size
