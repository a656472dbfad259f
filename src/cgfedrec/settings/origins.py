"""Settings as YAML that says of each value which is no default where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import yaml

Path = tuple[str, ...]


def with_origins(text: str, changed: set[Path], origin: Callable[[Sequence[str]], str | None]) -> str:
    """The same YAML with a comment behind each value that is not its class's default.

    Args:
        text: Settings as nested mappings, in block style.
        changed: The places of the values that are no defaults.
        origin: Who says what stands at a place; nothing where nobody does.
    """
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert root is not None
    for path, line in _places(root):
        said = origin(path) if path in changed else None
        if said:
            lines[line] += f"  # {said}"
    return "\n".join([*lines, ""])


def _places(node: yaml.Node, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """Each value that is no mapping of others: where it stands in the settings, and the line of its name."""
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        place = (*path, str(key.value))
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _places(value, place)
        elif value.end_mark.line == value.start_mark.line or value.start_mark.line > key.start_mark.line:
            # A text over several lines has no room for a comment behind its first one. A list stands below its name.
            yield place, key.start_mark.line
