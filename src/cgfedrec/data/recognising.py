"""Whether a file looks like one of the named layouts. What is recognised is told, and never applied."""

from __future__ import annotations

from pathlib import Path

from cgfedrec.data.layout import Format, laid_out
from cgfedrec.data.layouts import LAYOUTS, Layout, LayoutName
from cgfedrec.data.source import find, unpacking
from cgfedrec.errors import InputError

LOOKED_AT = 1 << 16
"""Bytes from the beginning of a file."""
LINES = 20
_TOLD_BY = ("header", "user_column", "item_column", "timestamp_column")
"""Where these are as in a layout, the file is read by it."""


def looks_like(path: Path) -> LayoutName | None:
    """The layout that the first lines of a file have, if it is a named one."""
    try:
        if not path.is_file():
            return None
        source = find(path, Format())
        if source.is_parquet:
            return None
        with unpacking(path), source.open() as file:
            begin = file.read(LOOKED_AT)
    except InputError:  # whoever reads the file says what is wrong with it
        return None
    lines = begin.decode("utf-8-sig", "replace").splitlines()
    if len(begin) == LOOKED_AT:
        lines = lines[:-1] or lines  # the last one is cut
    lines = [line for line in lines[:LINES] if line]
    for name, layout in LAYOUTS.items():
        if lines and _reads_like(layout, lines):
            return name
    return None


def _reads_like(layout: Layout, lines: list[str]) -> bool:
    first, rest = lines[0], layout.goes_on
    if not any(layout.begins.fullmatch(one) for one in (first, first.replace('"', ""))):
        return False
    return rest is None or all(rest.fullmatch(line) for line in lines[1:])


def recognised(path: Path, layout: Format) -> str | None:
    """What to say of a file that looks like a named layout, and is not read by it.

    Args:
        path: Of the file.
        layout: How it is read.
    """
    name = looks_like(path)
    if name is None:
        return None
    values = laid_out(name)
    if all(getattr(layout, option) == values[option] for option in _TOLD_BY):
        return None
    advice = f"add --{layout.option('layout')} {name}"
    if values["timestamp_column"] is None:
        advice += " --data.split random (it has no times)"
    return f"{path}: looks like {name}: {advice}"
